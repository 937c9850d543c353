//! The packs that are open for reading.

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

/// Open packs, a bounded number of them; the longest unused is closed first.
pub struct Packs {
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    open: Mutex<Open>,
    gate: Arc<WriteGate>,
}

struct Open {
    published: LruCache<PackId, Arc<PackReader>>,
    /// Growing packs and leftovers: a handful, not counted into the bound.
    pinned: HashMap<PackId, Arc<PackReader>>,
    /// How often a pack was closed on purpose: one that was opened at that time is not kept.
    closed: u64,
}

impl Packs {
    /// Keeps at most `open_max` published packs open, one at least. Closes `gate` when it opens a pack that has a feature
    /// without which nobody may write to the library. A writer puts such a feature into the segments that name the pack,
    /// too, which are all read before anything is written: this is for one that did not.
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

    /// The reader of a pack, opened where it is not. No lock is held over the opening.
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
        // Only what is authentic says so, not a header in which a bit was hurt.
        if !reader.writable() && reader.trailer().is_ok() && self.gate.close(Reason::NewerPack) {
            log::error!(
                "data/{id}: written by a newer hushfs: continuing read-only; install that version to write"
            );
        }
        let mut open = self.open.lock();
        // A pack removed meanwhile must not stay open, or its room on the disk would stay taken.
        let evicted = if open.closed == closed {
            open.published.push(id, Arc::clone(&reader))
        } else {
            None
        };
        drop(open);
        // Closing a file may take its time; not under the lock.
        drop(evicted);
        Ok(reader)
    }

    /// Adds a pack that still grows (or a leftover); it stays until [`Packs::unpin`].
    pub fn pin(&self, id: PackId, object: Arc<dyn Object>) -> Result<()> {
        let reader = Arc::new(PackReader::open(object, id, &self.master)?);
        self.open.lock().pinned.insert(id, reader);
        Ok(())
    }

    /// From now on it is one of the published packs: opened anew when it is asked for, under its published name.
    pub fn unpin(&self, id: PackId) {
        let reader = self.open.lock().pinned.remove(&id);
        drop(reader);
    }

    /// Closes it: it is about to be removed.
    pub fn forget(&self, id: PackId) {
        let mut open = self.open.lock();
        open.closed += 1;
        let readers = (open.published.pop(&id), open.pinned.remove(&id));
        drop(open);
        drop(readers);
    }

    /// How many published packs may be open.
    pub fn open_max(&self) -> usize {
        self.open.lock().published.cap().get()
    }

    /// Closes the half of the published packs that was not used for the longest time; false where none is open.
    pub fn close_some(&self) -> bool {
        let mut open = self.open.lock();
        let count = open.published.len().div_ceil(2);
        let closed: Vec<_> = (0..count)
            .filter_map(|_| open.published.pop_lru())
            .collect();
        drop(open);
        !closed.is_empty()
    }

    /// How many packs are open: published, pinned.
    pub fn open_count(&self) -> (usize, usize) {
        let open = self.open.lock();
        (open.published.len(), open.pinned.len())
    }
}
