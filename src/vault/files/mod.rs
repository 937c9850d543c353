//! Files that are open: what was written to them and is not in the tree yet, and the ways in and out of it.
//!
//! Owns the table of open files with their dirty buffers, the handles, the budgets of memory and of free space, and the
//! stream writer's queue. Does not own stored contents ([`View`]), packs and records (`log`), or when something is synced
//! (`syncer`).
//!
//! Each file is in the table once, for all that work on it, for as long as anything needs it. Lock order: a file's
//! `flushing`, then the log's locks, then the table, a file's state, and the tree. The handles come last, alone.

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

/// How long the journal is waited for by who may also leave the work to the syncer.
const MOMENT: Duration = Duration::from_millis(100);

/// The open files.
pub(crate) struct Files {
    view: Arc<View>,
    log: Arc<Log>,
    /// In order, so that files are written out in the order in which they were made.
    open: Mutex<BTreeMap<Ino, Arc<OpenFile>>>,
    /// Inodes to be dropped for which the journal was waited for too long.
    unused: Mutex<Vec<Ino>>,
    handles: Handles,
    budget: Budget,
    streams: Streams,
}

impl Files {
    /// None is open.
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

    /// What is read.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Where changes go.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// How much may still be written.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The open file; opened if it is not.
    pub fn file(&self, ino: Ino) -> Arc<OpenFile> {
        self.open
            .lock()
            .entry(ino)
            .or_insert_with(|| Arc::new(OpenFile::new(ino)))
            .clone()
    }

    /// The open file, if it is open.
    pub fn opened(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.open.lock().get(&ino).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.open.lock().values().cloned().collect()
    }

    /// Those in which something is dirty, or is being written out.
    pub fn dirty(&self) -> Vec<Arc<OpenFile>> {
        let open = self.open.lock();
        let is_dirty = |file: &&Arc<OpenFile>| {
            let state = file.state.lock();
            !state.dirty.is_empty() || state.leaving.is_some()
        };
        open.values().filter(is_dirty).cloned().collect()
    }

    /// Forgets the open file where nothing needs it; drops an inode that lost its last name and reference.
    pub fn let_go(&self, ino: Ino, references: u32) {
        let tree = self.view.tree();
        let Some(ix) = tree.find(ino) else { return };
        let inode = tree.inode(ix);
        let unused = references > 0 && inode.let_go(references) && !inode.is_linked();
        drop(tree);
        // The kernel does not wait for this, so it must not wait for the store.
        if unused && !self.log.drop_unused(ino, Some(MOMENT)) {
            self.unused.lock().push(ino);
        }
        self.close_file(ino);
    }

    /// Drops inodes that could not be dropped when their last reference went.
    pub fn drop_unused(&self) {
        let unused = std::mem::take(&mut *self.unused.lock());
        for ino in unused {
            self.log.drop_unused(ino, None);
        }
    }

    /// Forgets an open file if nothing needs it.
    pub fn close_file(&self, ino: Ino) {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&ino) {
            self.give_up_if_gone(file);
            if !self.is_needed(file) {
                open.remove(&ino);
            }
        }
    }

    /// The same for all: a close that raced with another holder has left the entry behind.
    pub fn close_unneeded(&self) {
        self.open.lock().retain(|_, file| {
            self.give_up_if_gone(file);
            self.is_needed(file)
        });
    }

    fn is_gone(&self, file: &OpenFile) -> bool {
        self.view.tree().find(file.ino).is_none()
    }

    /// Whether an open file, of which one reference is the table's, has to stay in it.
    fn is_needed(&self, file: &Arc<OpenFile>) -> bool {
        // One more holder than the table: somebody is at work on it. The next to close it, or the syncer, looks
        // again.
        if Arc::strong_count(file) > 1 {
            return true;
        }
        let is_gone = self.is_gone(file);
        let state = file.state.lock();
        let holds = !state.dirty.is_empty() || !state.promised.is_empty();
        !is_gone && (state.handles > 0 || holds)
    }

    /// Gives up what is dirty in a file whose inode is gone: nobody can ask for it.
    fn give_up_if_gone(&self, file: &OpenFile) {
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
