//! A background thread that ends with the library.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::log::Log;
use crate::error::{Error, Kind, Result};

/// A running thread. Does not own what it does, nor the request to end, which the log's requests carry.
pub(super) struct Thread {
    name: &'static str,
    log: Arc<Log>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    /// Starts it; `work` ends when the requests of `log` say so.
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

    /// Waits until it has ended.
    ///
    /// # Errors
    /// It ended by a panic, which was logged.
    pub fn join(&self) -> Result<()> {
        let handle = self.handle.lock().take();
        let joined = handle.map_or(Ok(()), JoinHandle::join);
        joined.map_err(|_| Error::new(Kind::Poisoned, format_args!("the thread {}", self.name)))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Dropped without closing: like a crash, but the thread must not outlive the store.
        self.log.requests().stop();
        let _ = self.join();
    }
}
