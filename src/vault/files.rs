//! The files that are open: each is there once, for all that work on it, for as long as anything needs it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Core;
use super::file::OpenFile;
use super::journal::Journal;
use crate::volume::Ino;

/// So long the journal is waited for by who may also leave the work to the committer.
const MOMENT: Duration = Duration::from_millis(100);

/// The table of open files. Does not own what is in them (`super::file`), nor the handles.
#[derive(Default)]
pub(super) struct Files {
    open: Mutex<HashMap<Ino, Arc<OpenFile>>>,
    /// Inodes to be dropped for which the journal was waited for too long.
    unused: Mutex<Vec<Ino>>,
}

impl Files {
    /// The open file; opened if it is not.
    fn get_or_open(&self, ino: Ino) -> Arc<OpenFile> {
        self.open
            .lock()
            .entry(ino)
            .or_insert_with(|| Arc::new(OpenFile::new(ino)))
            .clone()
    }

    /// The open file, if it is open.
    fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
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
}

impl Core {
    /// The open file, made where it is not open.
    pub(super) fn file(&self, ino: Ino) -> Arc<OpenFile> {
        self.files.get_or_open(ino)
    }

    /// The open file, if it is open.
    pub(super) fn opened(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.get(ino)
    }

    /// Forgets the open file where nothing needs it; drops an inode that lost its last name and reference.
    pub(super) fn let_go(&self, ino: Ino, references: u32) {
        let tree = self.view.tree();
        let Some(ix) = tree.find(ino) else { return };
        let inode = tree.inode(ix);
        let unused = references > 0 && inode.let_go(references) && !inode.is_linked();
        drop(tree);
        if unused {
            // The kernel does not wait for this, so it must not wait for the store.
            match self.journal.try_lock_for(MOMENT) {
                Some(journal) => self.drop_unused(&journal, ino),
                None => self.files.unused.lock().push(ino),
            }
        }
        self.close_file(ino);
    }

    /// Drops what could not be dropped at once.
    pub(super) fn drop_all_unused(&self) {
        let unused = std::mem::take(&mut *self.files.unused.lock());
        if !unused.is_empty() {
            let journal = self.journal.lock();
            for ino in unused {
                self.drop_unused(&journal, ino);
            }
        }
    }

    /// Drops an inode without a name and references.
    fn drop_unused(&self, _journal: &Journal, ino: Ino) {
        let mut tree = self.view.tree_mut();
        if let Some(ix) = tree.find(ino) {
            tree.drop_if_unused(ix);
        }
    }

    /// Forgets an open file if nothing needs it.
    pub(super) fn close_file(&self, ino: Ino) {
        let mut open = self.files.open.lock();
        if let Some(file) = open.get(&ino) {
            self.give_up_if_gone(file);
            if !self.is_needed(file) {
                open.remove(&ino);
            }
        }
    }

    /// The same for all: one that was closed while somebody looked at it is still there.
    pub(super) fn close_files(&self) {
        self.files.open.lock().retain(|_, file| {
            self.give_up_if_gone(file);
            self.is_needed(file)
        });
    }

    fn is_gone(&self, file: &OpenFile) -> bool {
        self.view.tree().find(file.ino).is_none()
    }

    /// Whether an open file, of which one reference is the table's, has to stay in it.
    fn is_needed(&self, file: &Arc<OpenFile>) -> bool {
        // One more holder than the table: somebody is at work on it. The next to close it, or the committer, looks
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
