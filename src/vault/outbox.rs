//! The outbox: finished packs and segments on their way from `new/` into the library.
//!
//! Owns the order of publication, and what this machine remembers of it outside of the library. Does not own the packs
//! and segments that still grow (`log`), nor when anything is published (`upkeep`).
//!
//! Invariant: at any moment, everything that a published segment names is published. So packs go first, and a segment
//! only when the one before it has gone. A file in `new/` is a normal state: what is not published yet is found again, and
//! published, by the next mount (`recovery`). One thread publishes at a time: recovery, then upkeep, then closing.

use std::sync::Arc;

use super::devices::{Memory, list_index, log_foreign_segment};
use super::log::Log;
use super::salvage::Salvage;
use crate::error::{Error, Kind, Result};
use crate::index::record::{Head, PackLen};
use crate::index::{ClosedSegment, PackInfo, Published, SegmentExtent, SegmentReader};
use crate::object::{Area, DeviceId, SegmentId};

/// The way of finished files into the library.
pub(super) struct Outbox {
    log: Arc<Log>,
    salvage: Salvage,
    memory: Memory,
}

impl Outbox {
    /// An outbox of what `log` has written.
    pub fn new(log: Arc<Log>, salvage: Salvage, memory: Memory) -> Self {
        Self {
            log,
            salvage,
            memory,
        }
    }

    /// What this machine remembers of the library.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Copies out of packs that a write or a sync failed in.
    pub fn salvage(&self) -> Result<()> {
        self.salvage.run()
    }

    /// Ends the open pack and the open segment, and publishes both (hushfs-format(5), WRITING):
    ///
    /// 1. Live data is copied out of packs that failed.
    /// 2. The library is still where the next mount will look for it.
    /// 3. A closed segment that could not be published the last time goes first.
    /// 4. What the open segment names is synced while others go on writing.
    /// 5. The open pack gets its end, the segment the record of it and its own end; both are synced.
    /// 6. Packs are published, then the segment that names them.
    /// 7. What was published lately is still there; this machine remembers the new heads.
    pub fn publish(&self) -> Result<()> {
        self.salvage.run()?;
        self.log.inspect_place()?;
        self.publish_closed()?;
        self.log.sync()?;
        if !self.end_open_files()? {
            return Ok(());
        }
        self.publish_closed()?;
        self.log.check_published();
        // Not part of the library: without it only a rollback to here goes unnoticed.
        if let Err(e) = self.remember() {
            log::warn!("{e}");
        }
        Ok(())
    }

    /// Publishes the packs that are full.
    pub fn publish_packs(&self) -> Result<()> {
        let finished = self.log.new_packs().finished();
        if !self.log.record_finished(&mut self.log.journal())? {
            return Ok(());
        }
        self.log.sync()?;
        self.log.new_packs().publish(&finished)
    }

    /// Gives the open pack and the open segment an end that is durable; false where nothing has changed.
    fn end_open_files(&self) -> Result<bool> {
        let lane = self.log.sync_lane();
        // Locked to the end: no frame may name a pack that is still open when the segment closes, and none may be
        // made on top of an end that is not durable.
        let mut journal = self.log.journal();
        let packs = self.log.new_packs();
        if journal.is_idle() && packs.is_idle() {
            return Ok(false);
        }
        packs.finish_open()?;
        if let Some(id) = packs.failed().first() {
            // What failed meanwhile has to be copied first: a published frame names published packs only.
            return Err(Error::new(Kind::Poisoned, format_args!("data/{id}")));
        }
        self.log.record_finished(&mut journal)?;
        let closed = journal.close_segment(self.log.view())?;
        self.log.sync_closed(&lane, &mut journal, closed)?;
        Ok(true)
    }

    /// Publishes the closed segment, and first the packs that it names.
    fn publish_closed(&self) -> Result<()> {
        let Some(closed) = self.log.journal().to_publish() else {
            return Ok(());
        };
        let packs = self.log.new_packs();
        let mut finished = packs.finished();
        {
            let tree = self.log.view().tree();
            // One that no record names yet has to wait for it: after a crash it would be taken for unreferenced.
            let is_recorded = |p: &PackInfo| p.cipher_len.is_some();
            finished.retain(|p| tree.find_pack(p.pack).is_some_and(is_recorded));
        }
        packs.publish(&finished)?;
        self.publish_segment(closed, false)?;
        self.log.journal().published();
        Ok(())
    }

    /// Publishes a closed segment that recovery has written, and first the packs that it names.
    pub fn publish_recovered(
        &self,
        closed: &ClosedSegment,
        number: u64,
        packs: &[PackLen],
    ) -> Result<()> {
        let lane = self.log.sync_lane();
        for file in self.log.new_packs().take_unsynced().files {
            file.sync()?;
        }
        closed.file.sync()?;
        drop(lane);
        self.log.new_packs().publish(packs)?;
        self.publish_segment(closed.id, false)?;
        let device = self.log.device();
        let mut journal = self.log.journal();
        journal.index_mut().set_head(Head {
            device,
            number,
            sha256: closed.sha256,
        });
        journal.index_mut().add(Published {
            id: closed.id,
            device,
            number,
            cipher_len: closed.cipher_len,
        });
        Ok(())
    }

    /// Publishes a segment. One that another device wrote meanwhile is noticed before.
    pub fn publish_segment(&self, id: SegmentId, is_snapshot: bool) -> Result<()> {
        if let Err(e) = self.look_for_others() {
            log::warn!("{e}");
        }
        self.log.others().expect(id);
        if !is_snapshot {
            // Not part of the library: without it this machine takes its own segment for another's after a crash.
            if let Err(e) = self.memory.expect(id) {
                log::warn!("{e}");
            }
        }
        let store = self.log.view().store();
        store.publish(id.object(), Area::Index)
    }

    /// Whether packs and segments that are superseded may be removed. Others are looked for again, after the record that
    /// says so is published, so that whoever comes later knows of it.
    pub fn may_remove(&self) -> Result<bool> {
        if self.log.may_collect() {
            self.look_for_others()?;
        }
        Ok(self.log.may_collect())
    }

    /// Looks whether another device is at work: its lock, what it left in `new/`, or a segment that came since this
    /// library was opened. From then on nothing is collected.
    fn look_for_others(&self) -> Result<()> {
        let (view, others) = (self.log.view(), self.log.others());
        if view.store().has_neighbours()? {
            others.note();
        }
        for id in others.take_new(list_index(&**view.store())?) {
            others.note();
            let opened = view
                .store()
                .open(Area::Index, id.object())
                .and_then(|object| {
                    SegmentReader::open(object, id, view.master(), SegmentExtent::Published)
                });
            log_foreign_segment(id, self.log.device(), opened);
        }
        Ok(())
    }

    /// Remembers the heads outside of the library, so that an index that goes back is noticed.
    pub fn remember(&self) -> Result<()> {
        let heads = self.log.journal().index().heads();
        self.memory.remember(heads)
    }

    /// Makes leftovers of this device of what it left under another id, where nobody is at work there.
    pub fn take_over_former(&self) -> Result<Option<DeviceId>> {
        let Some(former) = self.memory.former() else {
            return Ok(None);
        };
        if self.log.view().store().take_over(former)? {
            return Ok(Some(former));
        }
        log::warn!(
            "new/{former}: another mount may be at work there, so what lies in it is left to that"
        );
        Ok(None)
    }
}
