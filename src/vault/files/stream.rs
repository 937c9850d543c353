//! Flushing long writes in the background: a thread flushes the dirty data of a file while the program writes more.
//! Otherwise the program would wait for encryption and for the store every few requests.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Files, OpenFile};
use crate::error::Result;
use crate::vault::thread::Workers;

/// Maximum number of queued files. If the queue is full, the writer flushes its file itself.
const QUEUE_MAX: usize = 64;

/// The thread; `None` if it does not run.
#[derive(Default)]
pub struct Streams(Mutex<Option<Workers<Arc<OpenFile>>>>);

impl Streams {
    /// Queues `file` to be flushed soon. Returns false if the queue is full or the thread does not run. Data that
    /// cannot be written stays dirty, and the failure is reported like any other.
    pub fn offer(&self, file: &Arc<OpenFile>) -> bool {
        let thread = self.0.lock();
        thread
            .as_ref()
            .is_some_and(|thread| thread.offer(file.clone()))
    }
}

/// Keeps the thread running. The thread holds the files, which hold the thread: dropping this breaks the circle.
pub struct Streamer(Arc<Files>);

impl Streamer {
    /// Starts the thread.
    pub fn start(files: Arc<Files>) -> Result<Self> {
        let run = files.clone();
        let flush = move |file: Arc<OpenFile>| {
            // A failure is recorded in the file, and reported when it is closed.
            let _ = run.flush_stream(&file);
            let ino = file.ino;
            drop(file);
            run.close_file(ino);
        };
        *files.streams.0.lock() = Some(Workers::start("streamer", 1, QUEUE_MAX, flush)?);
        Ok(Self(files))
    }

    /// Ends the thread after it has flushed all queued files.
    pub fn stop(&self) {
        let thread = self.0.streams.0.lock().take();
        // Not under the lock: a writer may offer another file meanwhile.
        drop(thread);
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.stop();
    }
}
