//! The thread that syncs the open segment while its caller syncs the packs.
//!
//! It lives as long as the library is open: on a fast disk, starting a thread for each fsync costs about as much as the
//! fsync itself. It does not know what the files contain.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::error::{Kind, Result};
use crate::store::Growing;

/// A file to sync, and the channel for the result.
type Job = (Arc<dyn Growing>, Sender<Result<()>>);

/// The thread, started on first use.
#[derive(Default)]
pub struct SideSync {
    /// Contains `None` if the thread could not be started; the caller then syncs both itself.
    worker: OnceLock<Option<Worker>>,
}

struct Worker {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl SideSync {
    /// Syncs `file` while `meanwhile` runs. If both fail, returns the error of `meanwhile`.
    pub fn sync(
        &self,
        file: &Arc<dyn Growing>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (result, answer) = channel();
        let worker = self.worker.get_or_init(Worker::start).as_ref();
        let jobs = worker.and_then(|worker| worker.jobs.as_ref());
        let is_given = jobs.is_some_and(|jobs| jobs.send((file.clone(), result)).is_ok());
        let done = meanwhile();
        let synced = if is_given {
            answer.recv().unwrap_or_else(|_| Err(Kind::Poisoned.into()))
        } else {
            file.sync()
        };
        done.and(synced)
    }
}

impl Worker {
    fn start() -> Option<Self> {
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("segment-sync".into())
            .spawn(move || work(&waiting))
            .ok()?;
        Some(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread ends when the channel is closed.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(waiting: &Receiver<Job>) {
    for (file, result) in waiting {
        // The receiver may be gone.
        let _ = result.send(file.sync());
    }
}
