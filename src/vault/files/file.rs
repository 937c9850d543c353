//! An open file: what was written and is not yet in a pack.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::allocate::Promised;
use crate::dirty::Dirty;
use crate::env::Env;
use crate::vault::view::ReadPattern;
use crate::volume::{Ino, Time};

/// A regular file that is open, or has something that is not in a pack yet.
#[derive(Debug)]
pub struct OpenFile {
    /// Which file.
    pub ino: Ino,
    /// Held by whoever moves data from the buffer into packs, or changes the contents in another way than write.
    pub flushing: Mutex<()>,
    /// What was written.
    pub state: Mutex<FileState>,
    /// How it is read.
    pub pattern: ReadPattern,
}

/// What was written to a file and is not in the tree.
#[derive(Debug, Default)]
pub struct FileState {
    /// Handles open.
    pub handles: u32,
    /// Not yet on its way.
    pub dirty: Dirty,
    /// On its way into a pack: still shown to readers.
    pub leaving: Option<Arc<Dirty>>,
    /// When it was last written, where the tree does not say. With something dirty, `None` is where all of that
    /// was stored through maps, and the tree does say.
    pub mtime: Option<Time>,
    /// When utimensat(2) set mtime, where no write(2), fsync(2) or close(2) came since. The kernel does not write out
    /// first what was stored through maps: what it writes back then may be older.
    pub mtime_set: Option<Instant>,
    /// How often writing data out failed, and the last time's errno kind: each handle is told once.
    pub failures: u64,
    /// Whether the last failure was a full disk.
    pub failed_for_space: bool,
    /// The room that was promised.
    pub promised: Promised,
}

impl FileState {
    /// Notes that something was written, or, with `is_write_back`, stored through a map some time ago.
    pub fn touch(&mut self, env: &Env, is_write_back: bool) {
        /// After this what is written back counts as stored later. Programs that set times end their maps, or close
        /// the file, at once, and a change that moves no time is worse than a time that moves.
        const WRITTEN_BACK: Duration = Duration::from_secs(5);
        let is_older = |set: Instant| is_write_back && env.since(set) < WRITTEN_BACK;
        if !self.mtime_set.is_some_and(is_older) {
            (self.mtime, self.mtime_set) = (Some(env.wall()), None);
        }
    }

    /// Where what is dirty or leaving ends: the file is at least so long, whatever the tree says meanwhile.
    pub fn end(&self) -> u64 {
        let leaving = self.leaving.as_ref().map_or(0, |l| l.end());
        self.dirty.end().max(leaving)
    }
}

impl OpenFile {
    /// A file without anything dirty.
    pub fn new(ino: Ino) -> Self {
        Self {
            ino,
            flushing: Mutex::new(()),
            state: Mutex::default(),
            pattern: ReadPattern::default(),
        }
    }
}
