//! The outbox publishes finished packs and segments: it moves them from `new/` into the library.
//!
//! Owns the order of publication, and what this machine remembers about the library outside of it. Does not own the
//! open pack and the open segment (`log`), nor the decision when to publish (`upkeep`).
//!
//! Invariant: at any moment, everything that a published segment refers to is published. Packs are therefore published
//! first, and a segment only after the preceding one. Files in `new/` are normal: the next mount finds and publishes
//! them (`recovery`). Only one thread publishes at a time: recovery, then upkeep, then the one that closes the library.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::devices::{Memory, list_index, log_foreign_segment};
use super::log::Log;
use super::salvage::Salvage;
use crate::error::{Error, Kind, Result};
use crate::index::record::{Head, PackLen};
use crate::index::{ClosedSegment, PackInfo, SegmentInfo, SegmentReader, SegmentState};
use crate::object::{Area, DeviceId, SegmentId};

/// Publishes finished packs and segments.
pub(super) struct Outbox {
    log: Arc<Log>,
    salvage: Arc<Salvage>,
    memory: Memory,
    /// Closed and durable segments that are not published yet, in their order.
    waiting: Mutex<VecDeque<SegmentInfo>>,
}

impl Outbox {
    /// An outbox for the files that `log` has written.
    pub fn new(log: Arc<Log>, salvage: Arc<Salvage>, memory: Memory) -> Self {
        Self {
            log,
            salvage,
            memory,
            waiting: Mutex::default(),
        }
    }

    /// Whether closed segments are not published yet: publishing one has failed, and is tried again.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// What this machine remembers about the library.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Copies live data out of packs in which a write or a sync failed.
    pub fn salvage(&self) -> Result<()> {
        self.salvage.run()
    }

    /// Closes the open pack and the open segment, and publishes both (hushfs-format(5), WRITING):
    ///
    /// 1. Copy live data out of failed packs.
    /// 2. Check that the library is still where the next mount will look for it.
    /// 3. Publish closed segments whose publication failed the last time. If that fails again, continue only if the open
    ///    segment is full: closed segments may pile up in `new/`, but a segment has a maximum length.
    /// 4. Sync the data that the open segment refers to, while other threads keep writing.
    /// 5. Finish the open pack, record it in the segment, close the segment, and sync both.
    /// 6. Publish the packs, then the segment that refers to them.
    /// 7. Check that recently published files still exist, and remember the new heads on this machine.
    pub fn publish(&self) -> Result<()> {
        self.salvage.run()?;
        self.log.inspect_place()?;
        let earlier = self.publish_waiting();
        if earlier.is_err() && !self.log.journal().is_full() {
            return earlier;
        }
        self.log.sync()?;
        if !self.close_open_files()? {
            return earlier;
        }
        earlier.and_then(|()| self.publish_waiting())?;
        self.log.check_published();
        // Not part of the library: if it fails, only a rollback to this state goes unnoticed.
        if let Err(e) = self.remember() {
            log::warn!("{e}");
        }
        Ok(())
    }

    /// Publishes full packs.
    pub fn publish_packs(&self) -> Result<()> {
        let finished = self.log.new_packs().finished();
        if !self.log.record_finished(&mut self.log.journal())? {
            return Ok(());
        }
        self.log.sync()?;
        self.log.new_packs().publish(&finished)
    }

    /// Finishes the open pack and closes the open segment, durably. Returns false if nothing has changed.
    pub fn close_open_files(&self) -> Result<bool> {
        let lane = self.log.sync_lane();
        // The journal stays locked throughout: no frame may refer to a pack that is still open when the segment is
        // closed, and no new segment may follow one whose footer is not durable.
        let mut journal = self.log.journal();
        let packs = self.log.new_packs();
        if journal.is_idle() && packs.is_idle() {
            return Ok(false);
        }
        packs.finish_open()?;
        if let Some(id) = packs.failed().first() {
            // A pack has failed in the meantime: its data must be copied first, because published frames refer to
            // published packs only.
            return Err(Error::new(Kind::Poisoned, format_args!("data/{id}")));
        }
        self.log.record_finished(&mut journal)?;
        let closed = journal.close_segment(self.log.view())?;
        let closed = self.log.sync_closed(&lane, &mut journal, closed)?;
        self.waiting.lock().extend(closed);
        Ok(true)
    }

    /// Publishes the segments that wait, after the packs that they refer to.
    fn publish_waiting(&self) -> Result<()> {
        if !self.is_waiting() {
            return Ok(());
        }
        let packs = self.log.new_packs();
        let mut finished = packs.finished();
        {
            let tree = self.log.view().tree();
            // A pack that is not recorded yet has to wait for its record: after a crash it would count as unreferenced.
            let is_recorded = |p: &PackInfo| p.cipher_len.is_some();
            finished.retain(|p| tree.find_pack(p.pack).is_some_and(is_recorded));
        }
        packs.publish(&finished)?;
        let mut waiting = self.waiting.lock();
        while let Some(segment) = waiting.front() {
            self.publish_segment(segment.id, false)?;
            self.log.journal().index_mut().add(*segment);
            waiting.pop_front();
        }
        Ok(())
    }

    /// Publishes a closed segment that recovery has written, after the packs that it refers to.
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
        journal.index_mut().add(SegmentInfo {
            id: closed.id,
            device,
            number,
            cipher_len: closed.cipher_len,
        });
        Ok(())
    }

    /// Publishes a segment, after looking for segments that other devices have written in the meantime.
    pub fn publish_segment(&self, id: SegmentId, is_snapshot: bool) -> Result<()> {
        if let Err(e) = self.look_for_others() {
            log::warn!("{e}");
        }
        self.log.others().expect(id);
        if !is_snapshot {
            // Not part of the library: if it fails, this machine mistakes its own segment for another's after a crash.
            if let Err(e) = self.memory.expect(id) {
                log::warn!("{e}");
            }
        }
        let store = self.log.view().store();
        store.publish(id.object(), Area::Index)
    }

    /// Whether dead packs and superseded segments may be removed. Must be called after the record that condemns them is
    /// published: it looks for other devices again, and any that starts later reads that record.
    pub fn may_remove(&self) -> Result<bool> {
        if self.log.may_collect() {
            self.look_for_others()?;
        }
        Ok(self.log.may_collect())
    }

    /// Checks whether another device writes to the library: it holds a lock, has files in `new/`, or has published a
    /// segment since the library was opened. From then on nothing is collected.
    fn look_for_others(&self) -> Result<()> {
        let (view, others) = (self.log.view(), self.log.others());
        if view.store().has_neighbours()? {
            others.set_present();
        }
        for id in others.take_new(list_index(&**view.store())?) {
            others.set_present();
            let opened = view
                .store()
                .open(Area::Index, id.object())
                .and_then(|object| {
                    SegmentReader::open(object, id, view.master(), SegmentState::Published)
                });
            log_foreign_segment(id, self.log.device(), opened);
        }
        Ok(())
    }

    /// Remembers the heads outside of the library, so that a rollback of the index is detected.
    pub fn remember(&self) -> Result<()> {
        let heads = self.log.journal().index().heads();
        self.memory.remember(heads)
    }

    /// Moves the files that this device left under its former id to the folder of the present one, unless a mount may
    /// still use them. Returns the former id if that was done.
    pub fn take_over_former(&self) -> Result<Option<DeviceId>> {
        let Some(former) = self.memory.former() else {
            return Ok(None);
        };
        if self.log.view().store().take_over(former)? {
            return Ok(Some(former));
        }
        log::warn!(
            "new/{former}: another mount may be using it, so its files are not recovered by this one"
        );
        Ok(None)
    }
}
