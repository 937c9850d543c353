//! Open files: data written to them that is not in the tree yet, and the operations that write, read and flush it.
//!
//! Owns the table of open files with their dirty buffers, the handles, the budgets of memory and free space, and the
//! streamer's queue. Does not own stored contents ([`View`]), packs and records (`log`), or the decision when to sync
//! (`syncer`).
//!
//! A file is in the table once, shared by all its users, for as long as it is needed. Lock order: a file's `flushing`,
//! then the log's locks, then the table, a file's state, and the tree. The handles come last, alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::log::Log;
use super::view::View;
use crate::volume::Ino;

mod allocate;
mod budget;
mod file;
mod flush;
mod handles;
mod open;
mod read;
mod stream;
mod write;

use budget::Budget;
pub(super) use file::{FileState, OpenFile};
use handles::Handles;
pub(super) use stream::Streamer;
use stream::Streams;

/// How long FORGET and RELEASE wait for the journal before they leave the work to the syncer.
const FORGET_PATIENCE: Duration = Duration::from_millis(100);

/// The open files.
pub(crate) struct Files {
    view: Arc<View>,
    log: Arc<Log>,
    /// Sorted, so that files are flushed in order of creation.
    open: Mutex<BTreeMap<Ino, Arc<OpenFile>>>,
    /// Inodes that could not be dropped because the journal was locked too long.
    unused: Mutex<Vec<Ino>>,
    handles: Handles,
    budget: Budget,
    streams: Streams,
}

impl Files {
    /// Creates an empty table.
    pub fn new(log: Arc<Log>) -> Self {
        Self {
            view: log.view().clone(),
            log,
            open: Mutex::default(),
            unused: Mutex::default(),
            handles: Handles::new(),
            budget: Budget::default(),
            streams: Streams::default(),
        }
    }

    /// The read side.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The log that changes are written to.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The limits on writing.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the open file, and adds it to the table if it is not there.
    pub fn file(&self, ino: Ino) -> Arc<OpenFile> {
        self.open
            .lock()
            .entry(ino)
            .or_insert_with(|| Arc::new(OpenFile::new(ino)))
            .clone()
    }

    /// Returns the open file, if it is in the table.
    pub fn opened(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.open.lock().get(&ino).cloned()
    }

    /// Returns all open files.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.open.lock().values().cloned().collect()
    }

    /// Returns the files with data that is dirty or being flushed.
    pub fn dirty(&self) -> Vec<Arc<OpenFile>> {
        let open = self.open.lock();
        let is_dirty = |file: &&Arc<OpenFile>| {
            let state = file.state.lock();
            !state.dirty.is_empty() || state.in_flight.is_some()
        };
        open.values().filter(is_dirty).cloned().collect()
    }

    /// Drops references of the kernel to an inode. Drops the inode if no link and no reference is left, and its open
    /// file if that is not needed any more.
    pub fn forget(&self, ino: Ino, references: u32) {
        let tree = self.view.tree();
        let Some(ix) = tree.find(ino) else { return };
        let inode = tree.inode(ix);
        let unused = references > 0 && inode.release(references) && !inode.is_linked();
        drop(tree);
        // The kernel sends FORGET without waiting for an answer, so this must not wait for the store.
        if unused && !self.log.drop_unused(ino, Some(FORGET_PATIENCE)) {
            self.unused.lock().push(ino);
        }
        self.close_file(ino);
    }

    /// Drops inodes that could not be dropped together with their last reference.
    pub fn drop_unused(&self) {
        let unused = std::mem::take(&mut *self.unused.lock());
        for ino in unused {
            self.log.drop_unused(ino, None);
        }
    }

    /// Removes an open file from the table if it is not needed any more.
    pub fn close_file(&self, ino: Ino) {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&ino) {
            self.discard_if_gone(file);
            if !self.is_needed(file) {
                open.remove(&ino);
            }
        }
    }

    /// Removes all open files that are not needed any more. A close that raced with another user leaves its entry
    /// behind.
    pub fn close_unneeded(&self) {
        self.open.lock().retain(|_, file| {
            self.discard_if_gone(file);
            self.is_needed(file)
        });
    }

    fn is_gone(&self, file: &OpenFile) -> bool {
        self.view.tree().find(file.ino).is_none()
    }

    /// Whether an open file has to stay in the table, which holds one reference to it.
    fn is_needed(&self, file: &Arc<OpenFile>) -> bool {
        // Another reference: the file is in use. Its next close, or the syncer, checks again.
        if Arc::strong_count(file) > 1 {
            return true;
        }
        let is_gone = self.is_gone(file);
        let state = file.state.lock();
        let holds = !state.dirty.is_empty() || !state.promised.is_empty();
        !is_gone && (state.handles > 0 || holds)
    }

    /// Discards the dirty data of a file whose inode is gone, because it cannot be read any more.
    fn discard_if_gone(&self, file: &OpenFile) {
        if !self.is_gone(file) {
            return;
        }
        let mut state = file.state.lock();
        self.budget.recount_dirty(state.dirty.cost(), 0);
        state.dirty = Default::default();
        if !state.promised.is_empty() {
            self.recount_promise(file.ino, &mut state);
        }
    }
}
