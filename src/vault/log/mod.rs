//! The log: everything written to a library goes through it, as records or as contents that records refer to.
//!
//! Owns the journal, the unpublished packs, the write gate, the ids of new inodes, and the pending syncs. Does not own
//! the read side ([`View`]), dirty buffers (`files`), publication (`outbox`), or scheduling (`syncer`, `upkeep`).
//!
//! Invariants between calls: a record is in the journal before its effect is in the tree; the data that a record refers
//! to is in a pack of this mount or in a published one; a published frame refers to published packs only (maintained by
//! `outbox`).
//!
//! Lock order: the sync lane, the collection barrier, the journal, the new packs, the tree.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::devices::Others;
use super::view::View;
use crate::env::Env;
use crate::error::Result;
use crate::gate::WriteGate;
use crate::index::record::{Id, Record};
use crate::index::{PackInfo, Tree};
use crate::object::{DeviceId, PackId};
use crate::overdue;
use crate::volume::Ino;

mod ids;
mod journal;
mod new_packs;
mod place;
mod published;
mod requests;
mod side_sync;
mod sync;
mod transaction;

use ids::Ids;
pub(super) use journal::{Journal, RESERVE_BYTES, rename_segment};
pub(super) use new_packs::{NewPacks, Subject, split};
pub(super) use published::PublishedIndex;
pub(super) use requests::{PanicGuard, Requests, TICK};
use side_sync::SideSync;
pub(super) use transaction::Transaction;

/// The path of every change into a library.
pub(crate) struct Log {
    view: Arc<View>,
    device: DeviceId,
    gate: Arc<WriteGate>,
    /// Held while packs and segment are synced together. Two concurrent syncs would each take some of the unsynced
    /// files, and one could declare frames durable whose packs the other is still syncing.
    lane: Mutex<SideSync>,
    /// Writers hold it shared from writing data to a pack until the record that refers to that data is in the journal:
    /// in between the pack looks unreferenced. Condemning packs requires it exclusively.
    barrier: RwLock<()>,
    journal: Mutex<Journal>,
    new_packs: NewPacks,
    ids: Ids,
    requests: Requests,
    others: Others,
}

impl Log {
    /// Creates a log that continues the published index.
    pub fn new(
        view: Arc<View>,
        device: DeviceId,
        gate: Arc<WriteGate>,
        index: PublishedIndex,
        others: Others,
    ) -> Self {
        Self {
            journal: Mutex::new(Journal::new(&view, device, index)),
            requests: Requests::new(view.env().clone()),
            new_packs: NewPacks::new(&view, device),
            view,
            device,
            gate,
            lane: Mutex::default(),
            barrier: RwLock::default(),
            ids: Ids::default(),
            others,
        }
    }

    /// The read side.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The clock and the source of ids.
    pub fn env(&self) -> &Arc<Env> {
        self.view.env()
    }

    /// This device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Whether anything may be written.
    pub fn gate(&self) -> &WriteGate {
        &self.gate
    }

    /// Fails if nothing new may be written.
    pub fn check_writable(&self) -> Result<()> {
        self.gate.check()
    }

    /// The journal, locked.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// The unpublished packs.
    pub fn new_packs(&self) -> &NewPacks {
        &self.new_packs
    }

    /// Work that requests have queued for the syncer and for upkeep.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Which other devices write to the library.
    pub fn others(&self) -> &Others {
        &self.others
    }

    /// Returns an id for a new inode or link.
    pub fn next_id(&self, tree: &Tree) -> Result<Id> {
        self.ids.next(self.env(), tree)
    }

    /// Takes the barrier shared. Hold the guard from writing data to a pack until the record that refers to it is in
    /// the journal.
    ///
    /// # Errors
    /// The request was answered while it waited.
    pub fn hold_off_collection(&self) -> Result<RwLockReadGuard<'_, ()>> {
        overdue::read(&self.barrier)
    }

    /// Takes the barrier exclusively: waits until all data in packs is referenced by records, and blocks writers to
    /// packs.
    pub fn block_pack_writers(&self) -> RwLockWriteGuard<'_, ()> {
        self.barrier.write()
    }

    /// Drops an inode without links and references from the tree. Returns false if the journal could not be locked
    /// within `patience` (`None` waits without limit). The lock keeps the inode from disappearing during a transaction.
    pub fn drop_unused(&self, ino: Ino, patience: Option<Duration>) -> bool {
        let journal = match patience {
            Some(patience) => self.journal.try_lock_for(patience),
            None => Some(self.journal.lock()),
        };
        if journal.is_some() {
            let mut tree = self.view.tree_mut();
            if let Some(ix) = tree.find(ino) {
                tree.drop_if_unused(ix);
            }
        }
        journal.is_some()
    }

    /// Records the lengths of the finished packs. Returns whether there are any.
    pub fn record_finished(&self, journal: &mut Journal) -> Result<bool> {
        let finished = self.new_packs.finished();
        if finished.is_empty() {
            return Ok(false);
        }
        let records = finished.into_iter().map(Record::Pack).collect();
        journal.append((&self.view, &self.gate), self.env().wall(), records)?;
        Ok(true)
    }

    /// Whether packs may be removed: only if no other device writes to the library, because others may still refer to
    /// packs that are unreferenced here.
    pub fn may_collect(&self) -> bool {
        !self.others.are_there() && !self.view.has_gaps() && self.check_writable().is_ok()
    }

    /// Whether collection would remove any pack.
    pub fn has_dead_packs(&self) -> bool {
        self.dead_bytes() > 0 || self.new_packs.any(|id| self.is_dead_unpublished(id))
    }

    /// Bytes in published packs that collection would free.
    pub fn dead_bytes(&self) -> u64 {
        if !self.may_collect() {
            return 0;
        }
        let tree = self.view.tree();
        let dead = tree.packs().iter().filter(|p| is_dead(p));
        dead.filter_map(|p| p.cipher_len).map(u64::from).sum()
    }

    /// Whether an unpublished pack has no live bytes and its length is not recorded. Once a closed segment records the
    /// length, the pack must be published with that segment.
    pub fn is_dead_unpublished(&self, id: PackId) -> bool {
        let tree = self.view.tree();
        tree.find_pack(id)
            .is_some_and(|p| p.live_plain_bytes == 0 && p.cipher_len.is_none())
    }

    /// Stores the inode numbers that were assigned in place of colliding ones. After a failure the next mount tries
    /// again, and assigns the same numbers unless inodes were added or removed in between.
    pub fn store_numbers(&self) {
        /// Maximum number of records per frame, far fewer than fit.
        const PER_FRAME: usize = 10_000;
        let numbers = self.view.tree().unstored_numbers();
        for some in numbers.chunks(PER_FRAME) {
            let stored = self.commit(|_, transaction| {
                let records = some.iter().cloned().map(Record::Attr);
                transaction.records.extend(records);
                Ok(())
            });
            if let Err(e) = stored {
                return log::warn!(
                    "{} inode numbers could not be stored yet: {e}",
                    numbers.len()
                );
            }
        }
    }
}

/// Whether a published pack has no live bytes and is not condemned yet.
pub(super) fn is_dead(pack: &PackInfo) -> bool {
    pack.cipher_len.is_some() && pack.live_plain_bytes == 0 && !pack.condemned
}
