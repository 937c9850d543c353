//! Open handles. Owns which file each one is of, and which failures it was told of; does not own the files
//! (`super::file`), nor the kernel's references to inodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::volume::{Handle, Ino};

/// The open handles.
pub struct Handles {
    next: AtomicU64,
    open: Mutex<HashMap<u64, OpenHandle>>,
}

/// What is known of one.
pub struct OpenHandle {
    /// The file.
    pub ino: Ino,
    /// It may write.
    pub writes: bool,
    /// Failures of the file that it has been told of, or that were before its time.
    failures_seen: u64,
}

impl Handles {
    /// None is open. Handles begin at 1.
    pub fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }
    }

    /// Opens one, of a file that has failed so often.
    pub fn open(&self, ino: Ino, writes: bool, failures_seen: u64) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = OpenHandle {
            ino,
            writes,
            failures_seen,
        };
        self.open.lock().insert(number, handle);
        Handle(number)
    }

    /// Closes one; `None` if it is not open.
    pub fn close(&self, handle: Handle) -> Option<OpenHandle> {
        self.open.lock().remove(&handle.0)
    }

    /// Whether it is open, and may write.
    pub fn is_writer(&self, handle: Handle) -> bool {
        self.open.lock().get(&handle.0).is_some_and(|h| h.writes)
    }

    /// Notes that it is told of all `failures` of its file; answers how many it knew of. `None` if it is not open.
    pub fn tell(&self, handle: Handle, failures: u64) -> Option<u64> {
        let mut open = self.open.lock();
        let handle = open.get_mut(&handle.0)?;
        Some(std::mem::replace(&mut handle.failures_seen, failures))
    }
}
