//! Background threads that end when the library is closed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::log::Log;
use crate::error::{Error, Kind, Result};

/// A running thread. Does not own its work, or the request to end, which is part of the requests of the log.
pub(super) struct Thread {
    name: &'static str,
    log: Arc<Log>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    /// Starts a thread. `work` must return when the requests of `log` tell the threads to end.
    pub fn start(
        name: &'static str,
        log: Arc<Log>,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        Ok(Self {
            name,
            log,
            handle: Mutex::new(Some(spawn(name, work)?)),
        })
    }

    /// Waits for the thread to end.
    ///
    /// # Errors
    /// The thread panicked, which was logged.
    pub fn join(&self) -> Result<()> {
        let handle = self.handle.lock().take();
        let joined = handle.map_or(Ok(()), JoinHandle::join);
        joined.map_err(|_| Error::new(Kind::Poisoned, format_args!("the thread {}", self.name)))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Dropped without being closed, as after a crash. The thread must not outlive the store.
        self.log.requests().stop();
        let _ = self.join();
    }
}

/// Threads that take jobs from one queue. They end when this is dropped, after the jobs in the queue. A job that takes care
/// of itself when it is dropped is not lost if a thread panics.
pub(super) struct Workers<T> {
    /// `None` only while this is dropped.
    queue: Option<SyncSender<T>>,
    threads: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Workers<T> {
    /// Starts `count` threads with a queue of at most `queue_max` jobs.
    pub fn start(
        name: &'static str,
        count: usize,
        queue_max: usize,
        work: impl Fn(T) + Clone + Send + 'static,
    ) -> Result<Self> {
        let (queue, jobs) = sync_channel(queue_max);
        let jobs = Arc::new(Mutex::new(jobs));
        let mut workers = Self {
            queue: Some(queue),
            threads: Vec::new(),
        };
        for _ in 0..count {
            let (jobs, work) = (jobs.clone(), work.clone());
            let thread = spawn(name, move || {
                while let Some(job) = next(&jobs) {
                    work(job);
                }
            });
            workers.threads.push(thread?);
        }
        Ok(workers)
    }

    /// Queues a job. Returns false if the queue is full.
    pub fn offer(&self, job: T) -> bool {
        let queue = self.queue.as_ref();
        queue.is_some_and(|queue| queue.try_send(job).is_ok())
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // An error means that the thread has panicked, which was logged.
            let _ = thread.join();
        }
    }
}

/// A function of its own, so that the lock is not held while the job is done.
fn next<T>(jobs: &Mutex<Receiver<T>>) -> Option<T> {
    jobs.lock().recv().ok()
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|e| Error::new(Kind::Io(e), format_args!("the thread {name}")))
}
