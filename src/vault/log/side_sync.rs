//! The thread that syncs the open segment while its caller syncs the packs.
//!
//! It lives as long as the library is open: starting a thread for each fsync costs about as much as the fsync itself
//! on a fast disk. It knows nothing of what it syncs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::error::{Kind, Result};
use crate::store::Growing;

/// A file to sync, and where the result goes.
type Job = (Arc<dyn Growing>, Sender<Result<()>>);

/// Started when it is needed first.
#[derive(Default)]
pub struct SideSync {
    /// `None` inside where the system has no thread to give.
    worker: OnceLock<Option<Worker>>,
}

struct Worker {
    /// `None` only while it is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl SideSync {
    /// Syncs `file` while `meanwhile` runs. An error of `meanwhile` goes first.
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
        // The thread ends when nobody can send any more.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(waiting: &Receiver<Job>) {
    for (file, result) in waiting {
        // Whoever asked may have given up.
        let _ = result.send(file.sync());
    }
}
