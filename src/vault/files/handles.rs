//! Open handles. Owns the file of each handle, and the number of failures that it has reported. Does not own the files
//! (`super::file`) or the kernel's references to inodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::volume::{Handle, Ino};

/// The open handles.
pub struct Handles {
    next: AtomicU64,
    open: Mutex<HashMap<u64, OpenHandle>>,
}

/// An open handle.
pub struct OpenHandle {
    /// The file.
    pub ino: Ino,
    /// It is open for writing.
    pub writes: bool,
    /// Number of failures of the file that it has reported, or that happened before it was opened.
    reported_failures: u64,
}

impl Handles {
    /// Creates an empty table. Handle numbers begin at 1.
    pub fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }
    }

    /// Opens a handle to a file of which `reported_failures` flushes have failed so far.
    pub fn open(&self, ino: Ino, writes: bool, reported_failures: u64) -> Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = OpenHandle {
            ino,
            writes,
            reported_failures,
        };
        self.open.lock().insert(number, handle);
        Handle(number)
    }

    /// Closes a handle. Returns `None` if it is not open.
    pub fn close(&self, handle: Handle) -> Option<OpenHandle> {
        self.open.lock().remove(&handle.0)
    }

    /// Whether the handle is open for writing.
    pub fn is_writer(&self, handle: Handle) -> bool {
        self.open.lock().get(&handle.0).is_some_and(|h| h.writes)
    }

    /// Records that the handle has reported all `failures` of its file. Returns how many it had reported before; `None`
    /// if it is not open.
    pub fn mark_reported(&self, handle: Handle, failures: u64) -> Option<u64> {
        let mut open = self.open.lock();
        let handle = open.get_mut(&handle.0)?;
        Some(std::mem::replace(&mut handle.reported_failures, failures))
    }
}
