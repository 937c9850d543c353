//! An open file: data that is not in a pack yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::allocate::Promised;
use crate::dirty::Dirty;
use crate::env::Env;
use crate::vault::view::ReadPattern;
use crate::volume::{Ino, Time};

/// A regular file that is open, or has data that is not in a pack yet.
#[derive(Debug)]
pub struct OpenFile {
    /// Its inode number.
    pub ino: Ino,
    /// Held while data is moved from the buffer into packs, or contents are changed in another way than by a write.
    pub flushing: Mutex<()>,
    /// Data that is not in a pack yet.
    pub state: Mutex<FileState>,
    /// The access pattern of its readers.
    pub pattern: ReadPattern,
}

/// Changes of a file that are not in the tree yet.
#[derive(Debug, Default)]
pub struct FileState {
    /// Number of open handles.
    pub handles: u32,
    /// Written, and not being flushed yet.
    pub dirty: Dirty,
    /// Being flushed into a pack; readers still see it.
    pub in_flight: Option<Arc<Dirty>>,
    /// When it was last written, if the tree does not have that time yet. `None` with dirty data means that all of it
    /// was written through mmap(2), and that the mtime in the tree is valid.
    pub mtime: Option<Time>,
    /// When utimensat(2) set mtime, if no write(2), fsync(2) or close(2) followed. The kernel does not write back
    /// mmapped pages before utimensat(2), so pages that it writes back later may have been modified earlier.
    pub mtime_set: Option<Instant>,
    /// Number of failed flushes. Each handle reports a failure once.
    pub failures: u64,
    /// Whether the last failure was ENOSPC.
    pub failed_for_space: bool,
    /// Space promised by fallocate(2).
    pub promised: Promised,
}

impl FileState {
    /// Updates mtime after a write, or, with `is_write_back`, after the kernel wrote back pages that were modified
    /// through mmap(2) some time ago.
    pub fn touch(&mut self, env: &Env, is_write_back: bool) {
        /// Pages written back later than this after utimensat(2) count as modified after it. Programs that set times
        /// unmap or close the file promptly, and a change without a new mtime is worse than an unexpected mtime.
        const WRITTEN_BACK: Duration = Duration::from_secs(5);
        let is_older = |set: Instant| is_write_back && env.since(set) < WRITTEN_BACK;
        if !self.mtime_set.is_some_and(is_older) {
            (self.mtime, self.mtime_set) = (Some(env.wall()), None);
        }
    }

    /// End of the dirty and in-flight data: the file is at least this long, even if the tree has a smaller size.
    pub fn end(&self) -> u64 {
        let in_flight = self.in_flight.as_ref().map_or(0, |l| l.end());
        self.dirty.end().max(in_flight)
    }
}

impl OpenFile {
    /// Creates the entry of a file without dirty data.
    pub fn new(ino: Ino) -> Self {
        Self {
            ino,
            flushing: Mutex::new(()),
            state: Mutex::default(),
            pattern: ReadPattern::default(),
        }
    }
}
