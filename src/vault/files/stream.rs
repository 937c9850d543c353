//! Long writes leave memory beside whoever writes them: one thread seals what a file has dirty while more comes in.
//! Without it, a program that writes would wait for the cipher and for the store after every few requests.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::{Files, OpenFile};
use crate::error::{Error, Kind, Result};

/// Files that wait; who has one more, writes it out itself.
const QUEUE_MAX: usize = 64;

/// The way to the thread; `None` where there is none.
#[derive(Default)]
pub struct Streams(Mutex<Option<SyncSender<Arc<OpenFile>>>>);

impl Streams {
    /// Has `file` written out soon; false where nobody will. What fails stays dirty, and is told as any failure is.
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
    /// Starts it.
    pub fn start(files: Arc<Files>) -> Result<Self> {
        let (sender, queue) = sync_channel::<Arc<OpenFile>>(QUEUE_MAX);
        let run = files.clone();
        let thread = std::thread::Builder::new()
            .name("streamer".into())
            .spawn(move || {
                for file in queue {
                    // The file keeps what failed, and says so when it is closed.
                    let _ = run.flush_stream(&file);
                    let ino = file.ino;
                    drop(file);
                    run.close_file(ino);
                }
            })
            .map_err(|e| Error::new(Kind::Io(e), "the streamer's thread"))?;
        *files.streams.0.lock() = Some(sender);
        Ok(Self {
            files,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends it, when it has done what waits.
    pub fn stop(&self) {
        drop(self.files.streams.0.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            // It has no result; a panic was logged.
            let _ = thread.join();
        }
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        self.stop();
    }
}
