//! The pool of packs that are open for reading.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::PackReader;
use crate::crypto::MasterKey;
use crate::error::{Kind, Result};
use crate::gate::{Reason, WriteGate};
use crate::object::{Area, PackId};
use crate::store::{Object, Store};

/// A bounded number of open packs. The least recently used one is closed first.
pub struct Packs {
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    open: Mutex<Open>,
    gate: Arc<WriteGate>,
}

struct Open {
    published: LruCache<PackId, Arc<PackReader>>,
    /// Unfinished packs and those that a crash left: a handful, which do not count towards the bound.
    pinned: HashMap<PackId, Arc<PackReader>>,
    /// How often [`Packs::forget`] was called. A pack that was being opened at the time may be gone, and is not kept.
    closed: u64,
}

impl Packs {
    /// Keeps at most `open_max` published packs open, but at least one. Closes `gate` when it opens a pack that has a
    /// feature which this version does not know, and which forbids it to write. A writer also records such a feature in
    /// the segments that refer to the pack, and all segments are read before anything is written; this covers a writer
    /// that did not.
    pub fn new(
        store: Arc<dyn Store>,
        master: Arc<MasterKey>,
        open_max: usize,
        gate: Arc<WriteGate>,
    ) -> Self {
        let open_max = NonZeroUsize::new(open_max).unwrap_or(NonZeroUsize::MIN);
        let open = Open {
            published: LruCache::sparse(open_max),
            pinned: HashMap::new(),
            closed: 0,
        };
        Self {
            store,
            master,
            open: Mutex::new(open),
            gate,
        }
    }

    /// The reader of a pack, which is opened if necessary. No lock is held meanwhile.
    pub fn get(&self, id: PackId) -> Result<Arc<PackReader>> {
        let closed = {
            let mut open = self.open.lock();
            if let Some(reader) = open.pinned.get(&id) {
                return Ok(Arc::clone(reader));
            }
            if let Some(reader) = open.published.get(&id) {
                return Ok(Arc::clone(reader));
            }
            open.closed
        };
        let reader = Arc::new(PackReader::open(
            self.store
                .open(Area::Data, id.object())
                .map_err(|e| match e.kind() {
                    Kind::Missing => {
                        e.hint("wait for the sync to finish, or restore it from a copy")
                    }
                    _ => e,
                })?,
            id,
            &self.master,
        )?);
        // The flag is trusted only if the pack is authentic: the header alone may have a damaged bit.
        if !reader.writable() && reader.trailer().is_ok() && self.gate.close(Reason::NewerPack) {
            log::error!(
                "data/{id}: written by a newer hushfs: continuing read-only (install the newer version to write)"
            );
        }
        let mut open = self.open.lock();
        // A pack that was removed meanwhile must not stay open: its disk space would not be freed.
        let evicted = if open.closed == closed {
            open.published.push(id, Arc::clone(&reader))
        } else {
            None
        };
        drop(open);
        // Closing a file may take long, so not under the lock.
        drop(evicted);
        Ok(reader)
    }

    /// Adds an unfinished pack, or one that a crash left. It stays open until [`Packs::unpin`].
    pub fn pin(&self, id: PackId, object: Arc<dyn Object>) -> Result<()> {
        let reader = Arc::new(PackReader::open(object, id, &self.master)?);
        self.open.lock().pinned.insert(id, reader);
        Ok(())
    }

    /// Called when the pack was published: the next [`Packs::get`] opens it under its published name.
    pub fn unpin(&self, id: PackId) {
        let reader = self.open.lock().pinned.remove(&id);
        drop(reader);
    }

    /// Closes a pack that is about to be removed.
    pub fn forget(&self, id: PackId) {
        let mut open = self.open.lock();
        open.closed += 1;
        let readers = (open.published.pop(&id), open.pinned.remove(&id));
        drop(open);
        drop(readers);
    }

    /// How many published packs may be open at a time.
    pub fn open_max(&self) -> usize {
        self.open.lock().published.cap().get()
    }

    /// Closes the less recently used half of the published packs. Returns false if none is open.
    pub fn close_some(&self) -> bool {
        let mut open = self.open.lock();
        let count = open.published.len().div_ceil(2);
        let closed: Vec<_> = (0..count)
            .filter_map(|_| open.published.pop_lru())
            .collect();
        drop(open);
        !closed.is_empty()
    }

    /// How many packs are open: published ones, and pinned ones.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> (usize, usize) {
        let open = self.open.lock();
        (open.published.len(), open.pinned.len())
    }
}
