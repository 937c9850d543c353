//! Makes the journal durable, with the packs that it refers to.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::requests::answer;
use super::side_sync::SideSync;
use super::{Journal, Log};
use crate::error::Result;
use crate::index::{ClosedSegment, SegmentInfo};
use crate::store::Growing;

/// The right to sync, held by one thread at a time. Taken before the journal is locked.
pub struct SyncLane<'a>(MutexGuard<'a, SideSync>);

impl Log {
    /// Waits for a running sync, and prevents others from starting.
    pub fn sync_lane(&self) -> SyncLane<'_> {
        SyncLane(self.lane.lock())
    }

    /// Answers all pending fsyncs with one sync.
    pub fn answer_syncs(&self) {
        let waiting = self.requests.take_syncs();
        if !waiting.is_empty() {
            answer(waiting, self.sync());
        }
    }

    /// Makes everything that is in the journal now durable.
    ///
    /// # Errors
    /// Something could not be synced, or the next mount would not find it. The next sync tries again.
    pub fn sync(&self) -> Result<()> {
        self.sync_in(&self.sync_lane())
    }

    /// Like [`Log::sync`], if the caller holds the lane.
    pub fn sync_in(&self, lane: &SyncLane<'_>) -> Result<()> {
        loop {
            let (segment, appended) = {
                let journal = self.journal();
                if journal.is_durable() {
                    drop(journal);
                    return self.check_place().inspect_err(|_| self.replace_ruined());
                }
                journal.sync_point()
            };
            let synced = self.sync_packs_and(lane, segment.as_ref());
            if synced.is_ok() {
                // Durable data that the next mount will not find is not what fsync(2) promises.
                self.check_place().inspect_err(|_| self.replace_ruined())?;
            }
            let mut journal = self.journal();
            if let Err(e) = synced {
                // The result is an error in any case; a copy lets the next sync succeed.
                if let Err(again) = journal.replace_unsyncable(&self.view) {
                    log::warn!("{again}");
                }
                return Err(e);
            }
            // If a copy has replaced the open segment in the meantime, it has to be synced, too.
            if journal.synced(segment.as_deref(), appended) {
                return Ok(());
            }
        }
    }

    /// Syncs the packs and the segment concurrently. Their order does not matter: after a power cut a frame counts only
    /// if everything that it refers to can be decrypted.
    fn sync_packs_and(
        &self,
        lane: &SyncLane<'_>,
        segment: Option<&Arc<dyn Growing>>,
    ) -> Result<()> {
        let unsynced = self.new_packs.take_unsynced();
        let sync_packs = || unsynced.files.iter().try_for_each(|pack| pack.sync());
        let synced = match segment {
            // On a local disk this costs one wait: the underlying filesystem commits both together.
            Some(segment) if !unsynced.files.is_empty() => lane.0.sync(segment, sync_packs),
            Some(segment) => segment.sync(),
            None => sync_packs(),
        };
        match &synced {
            Ok(()) => unsynced.uncache(),
            Err(_) => self.new_packs.put_back_unsynced(unsynced.files),
        }
        synced
    }

    /// Syncs the end of a segment, after which `closed` becomes a head. The journal stays locked, because nothing may
    /// build on an end that is not durable.
    pub fn sync_closed(
        &self,
        lane: &SyncLane<'_>,
        journal: &mut Journal,
        closed: Option<ClosedSegment>,
    ) -> Result<Option<SegmentInfo>> {
        let (segment, appended) = journal.sync_point();
        self.sync_packs_and(lane, segment.as_ref())?;
        journal.synced(segment.as_deref(), appended);
        Ok(closed.map(|closed| journal.closed(&closed)))
    }

    /// Called if another program has changed files after they were synced: treats them as files that cannot be synced.
    fn replace_ruined(&self) {
        self.new_packs.put_back_unsynced(self.new_packs.growing());
        if let Err(e) = self.journal().replace_unsyncable(&self.view) {
            log::warn!("{e}");
        }
    }
}
