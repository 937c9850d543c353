//! Making durable what is in the journal, with the packs that it names.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::requests::answer;
use super::side_sync::SideSync;
use super::{Journal, Log};
use crate::error::Result;
use crate::index::ClosedSegment;
use crate::store::Growing;

/// The right to sync: one thread has it at a time. Taken before the journal is locked.
pub struct SyncLane<'a>(MutexGuard<'a, SideSync>);

impl Log {
    /// Waits for a sync that is running, and keeps others from beginning.
    pub fn sync_lane(&self) -> SyncLane<'_> {
        SyncLane(self.lane.lock())
    }

    /// Answers the fsyncs that wait, with one sync for all of them.
    pub fn answer_syncs(&self) {
        let waiting = self.requests.take_syncs();
        if !waiting.is_empty() {
            answer(waiting, self.sync());
        }
    }

    /// Makes everything durable that is in the journal now.
    ///
    /// # Errors
    /// Something could not be synced, or nobody would find it where it is. It is tried again with the next sync.
    pub fn sync(&self) -> Result<()> {
        self.sync_in(&self.sync_lane())
    }

    /// The same for who holds the lane.
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
                // Durable, and where nobody will find it: not what was asked for.
                self.check_place().inspect_err(|_| self.replace_ruined())?;
            }
            let mut journal = self.journal();
            if let Err(e) = synced {
                // This sync has failed, whatever the next one does: that needs a file that can be synced.
                if let Err(again) = journal.replace_unsyncable(&self.view) {
                    log::warn!("{again}");
                }
                return Err(e);
            }
            // A copy may have taken the place of the open segment meanwhile: that one has to be synced, too.
            if journal.synced(segment.as_deref(), appended) {
                return Ok(());
            }
        }
    }

    /// Syncs the packs and the segment side by side: should the power go in between, a frame counts only if everything
    /// that it names can be decrypted.
    fn sync_packs_and(
        &self,
        lane: &SyncLane<'_>,
        segment: Option<&Arc<dyn Growing>>,
    ) -> Result<()> {
        let unsynced = self.new_packs.take_unsynced();
        let sync_packs = || unsynced.files.iter().try_for_each(|pack| pack.sync());
        let synced = match segment {
            // On a disk the two waits are one: the filesystem below commits both together.
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

    /// Syncs the end of a segment: `closed` becomes a head when it is durable. The journal stays locked, as nothing may
    /// be made on top of an end that is not.
    pub fn sync_closed(
        &self,
        lane: &SyncLane<'_>,
        journal: &mut Journal,
        closed: Option<ClosedSegment>,
    ) -> Result<()> {
        let (segment, appended) = journal.sync_point();
        self.sync_packs_and(lane, segment.as_ref())?;
        journal.synced(segment.as_deref(), appended);
        if let Some(closed) = closed {
            journal.closed(closed);
        }
        Ok(())
    }

    /// Somebody has changed files that were synced before: they are treated like files that cannot be synced.
    fn replace_ruined(&self) {
        self.new_packs.put_back_unsynced(self.new_packs.growing());
        if let Err(e) = self.journal().replace_unsyncable(&self.view) {
            log::warn!("{e}");
        }
    }
}
