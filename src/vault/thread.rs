//! A background thread that ends when the library is closed.

use std::sync::Arc;
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
        let thread = std::thread::Builder::new().name(name.into()).spawn(work);
        let handle =
            thread.map_err(|e| Error::new(Kind::Io(e), format_args!("the thread {name}")))?;
        Ok(Self {
            name,
            log,
            handle: Mutex::new(Some(handle)),
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
