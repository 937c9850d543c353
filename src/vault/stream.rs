//! Long writes leave memory beside whoever writes them: one thread seals what a file has dirty while more comes in.
//! Without it, a program that writes would wait for the cipher and for the store after every few requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::Core;
use super::file::OpenFile;
use crate::error::{Error, Kind, Result};

/// Files that wait; who has one more, writes it out itself.
const QUEUE_MAX: usize = 64;

/// What writers say to the thread.
#[derive(Default)]
pub struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    files: VecDeque<Arc<OpenFile>>,
    /// The thread is there, and not told to end.
    is_open: bool,
}

impl Shared {
    /// Has `file` written out soon; false where nobody will. What fails stays dirty, and is told as any failure is.
    pub fn offer(&self, file: &Arc<OpenFile>) -> bool {
        let mut queue = self.queue.lock();
        if !queue.is_open || queue.files.len() >= QUEUE_MAX {
            return false;
        }
        queue.files.push_back(file.clone());
        self.wake.notify_one();
        true
    }

    /// The next file; `None` at the end.
    fn next(&self) -> Option<Arc<OpenFile>> {
        let mut queue = self.queue.lock();
        while queue.is_open {
            match queue.files.pop_front() {
                Some(file) => return Some(file),
                None => self.wake.wait(&mut queue),
            }
        }
        None
    }

    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.is_open = false;
        queue.files.clear();
        self.wake.notify_one();
    }
}

/// However the thread ends, nobody must count on it afterwards.
struct Closes<'a>(&'a Shared);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The running thread.
pub struct Streamer {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Streamer {
    /// Starts it.
    pub fn start(core: Arc<Core>) -> Result<Self> {
        core.streams.queue.lock().is_open = true;
        let run = core.clone();
        let thread = std::thread::Builder::new()
            .name("streamer".into())
            .spawn(move || {
                let _closes = Closes(&run.streams);
                while let Some(file) = run.streams.next() {
                    // The file keeps what failed, and says so when it is closed.
                    let _ = run.flush_stream(&file);
                    let ino = file.ino;
                    drop(file);
                    run.close_file(ino);
                }
            })
            .map_err(|e| Error::new(Kind::Io(e), "the streamer's thread"))?;
        Ok(Self {
            core,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends it. What waits stays dirty.
    pub fn stop(&self) {
        self.core.streams.close();
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
