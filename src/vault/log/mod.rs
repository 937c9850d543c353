//! The log: everything that is written to a library goes through it, as records or as contents that records name.
//!
//! Owns the journal, the packs that are not published, the write gate, ids of new inodes, and what waits to be synced.
//! Does not own what is read ([`View`]), dirty buffers (`files`), publication (`outbox`), or when anything is done
//! (`syncer`, `upkeep`).
//!
//! Invariants between calls: a record is in the journal before its effect is in the tree; what a record names is in a
//! pack of this mount or a published one; a published frame names published packs only (`outbox` keeps that).
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

/// The way of every change into a library.
pub(crate) struct Log {
    view: Arc<View>,
    device: DeviceId,
    gate: Arc<WriteGate>,
    /// Held while packs and segment are synced together. Two syncs side by side would each find half of the unsynced
    /// files, and one would call frames durable whose packs the other is still syncing.
    lane: Mutex<SideSync>,
    /// Writers hold it shared from writing data to a pack until the record that names it is in the journal: in between
    /// the pack looks unreferenced. Whoever condemns packs holds it alone.
    barrier: RwLock<()>,
    journal: Mutex<Journal>,
    new_packs: NewPacks,
    ids: Ids,
    requests: Requests,
    others: Others,
}

impl Log {
    /// A log on top of what is published.
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

    /// What is read.
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

    /// Fails where nothing new may be written.
    pub fn check_writable(&self) -> Result<()> {
        self.gate.check()
    }

    /// The journal, locked.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// The packs that are not published.
    pub fn new_packs(&self) -> &NewPacks {
        &self.new_packs
    }

    /// What requests ask of the syncer and of upkeep.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Which other devices write to the library.
    pub fn others(&self) -> &Others {
        &self.others
    }

    /// An id for a new inode or link.
    pub fn next_id(&self, tree: &Tree) -> Result<Id> {
        self.ids.next(self.env(), tree)
    }

    /// Held from writing data to a pack until the record that names it is in the journal.
    ///
    /// # Errors
    /// The request was answered while it waited.
    pub fn hold_off_collection(&self) -> Result<RwLockReadGuard<'_, ()>> {
        overdue::read(&self.barrier)
    }

    /// Waits until every pack that is being written is named by a record, and holds off writers meanwhile.
    pub fn stop_sealing(&self) -> RwLockWriteGuard<'_, ()> {
        self.barrier.write()
    }

    /// Drops an inode without a name and references from the tree. False where the journal, which keeps transactions
    /// from seeing the inode go, could not be had within `patience`; `None` waits for it.
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

    /// Records where the finished packs end that are not published; answers whether there are any.
    pub fn record_finished(&self, journal: &mut Journal) -> Result<bool> {
        let finished = self.new_packs.finished();
        if finished.is_empty() {
            return Ok(false);
        }
        let records = finished.into_iter().map(Record::Pack).collect();
        journal.append((&self.view, &self.gate), self.env().wall(), records)?;
        Ok(true)
    }

    /// Whether packs may be removed: only in a library that one device alone writes to, as the others' view is not known.
    pub fn may_collect(&self) -> bool {
        !self.others.are_there() && !self.view.has_gaps() && self.check_writable().is_ok()
    }

    /// Whether collection would remove a pack.
    pub fn is_any_dead(&self) -> bool {
        self.dead_bytes() > 0 || self.new_packs.any(|id| self.is_dead_unpublished(id))
    }

    /// Bytes of published packs that may be collected.
    pub fn dead_bytes(&self) -> u64 {
        if !self.may_collect() {
            return 0;
        }
        let tree = self.view.tree();
        let dead = tree.packs().iter().filter(|p| is_dead(p));
        dead.filter_map(|p| p.cipher_len).map(u64::from).sum()
    }

    /// Whether nothing is live in a pack that is not published, and no record says how long it is: what a closed segment
    /// records is published with that.
    pub fn is_dead_unpublished(&self, id: PackId) -> bool {
        let tree = self.view.tree();
        tree.find_pack(id)
            .is_some_and(|p| p.live_plain_bytes == 0 && p.cipher_len.is_none())
    }

    /// Has the numbers stored that inodes were given in place of their own. Where that fails, the next mount tries again,
    /// and gives the same, unless others came or went meanwhile.
    pub fn store_numbers(&self) {
        /// A frame has room for many more.
        const PER_FRAME: usize = 10_000;
        let numbers = self.view.tree().unstored_numbers();
        for some in numbers.chunks(PER_FRAME) {
            let stored = self.commit(|_, transaction| {
                let records = some.iter().cloned().map(Record::Attr);
                transaction.records.extend(records);
                Ok(())
            });
            if let Err(e) = stored {
                return log::warn!("{} inode numbers are not stored yet: {e}", numbers.len());
            }
        }
    }
}

/// Whether a published pack has no use any more, and that is not recorded yet.
pub(super) fn is_dead(pack: &PackInfo) -> bool {
    pack.cipher_len.is_some() && pack.live_plain_bytes == 0 && !pack.condemned
}
