//! Flushing long writes in the background: a thread flushes the dirty data of a file while the program writes more.
//! Otherwise the program would wait for encryption and for the store every few requests.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::{Files, OpenFile};
use crate::error::{Error, Kind, Result};

/// Maximum number of queued files. If the queue is full, the writer flushes its file itself.
const QUEUE_MAX: usize = 64;

/// The queue of the thread; `None` if the thread does not run.
#[derive(Default)]
pub struct Streams(Mutex<Option<SyncSender<Arc<OpenFile>>>>);

impl Streams {
    /// Queues `file` to be flushed soon. Returns false if the queue is full or the thread does not run. Data that
    /// cannot be written stays dirty, and the failure is reported like any other.
    pub fn offer(&self, file: &Arc<OpenFile>) -> bool {
        let queue = self.0.lock();
        queue
            .as_ref()
            .is_some_and(|q| q.try_send(file.clone()).is_ok())
    }
}

/// The running thread.
pub struct Streamer {
    files: Arc<Files>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Streamer {
    /// Starts the thread.
    pub fn start(files: Arc<Files>) -> Result<Self> {
        let (sender, queue) = sync_channel::<Arc<OpenFile>>(QUEUE_MAX);
        let run = files.clone();
        let thread = std::thread::Builder::new()
            .name("streamer".into())
            .spawn(move || {
                for file in queue {
                    // A failure is recorded in the file, and reported when it is closed.
                    let _ = run.flush_stream(&file);
                    let ino = file.ino;
                    drop(file);
                    run.close_file(ino);
                }
            })
            .map_err(|e| Error::new(Kind::Io(e), "the thread streamer"))?;
        *files.streams.0.lock() = Some(sender);
        Ok(Self {
            files,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread after it has flushed all queued files.
    pub fn stop(&self) {
        drop(self.files.streams.0.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            // An error means that the thread has panicked, which was logged.
            let _ = thread.join();
        }
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.stop();
    }
}
