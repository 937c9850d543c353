//! Copies live data out of packs in which a write or a sync failed.
//!
//! Owns no data. The log knows which packs failed; the files know which handles have to report a loss.

use std::sync::Arc;

use parking_lot::Mutex;

use super::copy::copy_ranges;
use super::files::Files;
use super::log::Log;
use crate::error::{Kind, Result};
use crate::index::record::Record;
use crate::logged;
use crate::object::PackId;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::volume::Ino;

/// Copies live data out of failed packs.
pub(super) struct Salvage {
    log: Arc<Log>,
    files: Arc<Files>,
    /// The syncer and upkeep would copy the same packs twice.
    running: Mutex<()>,
}

impl Salvage {
    /// Creates it for the packs of `log`.
    pub fn new(log: Arc<Log>, files: Arc<Files>) -> Self {
        Self {
            log,
            files,
            running: Mutex::default(),
        }
    }

    /// Copies live data out of all failed packs, and removes them. Data that cannot be decrypted is lost, but does not
    /// keep its pack from being removed: otherwise every sync would fail because of it.
    pub fn run(&self) -> Result<()> {
        let _running = self.running.lock();
        let mut result = Ok(());
        for id in self.log.new_packs().failed() {
            result = result.and(self.evacuate(id));
        }
        result
    }

    fn evacuate(&self, id: PackId) -> Result<()> {
        let mut lost: Vec<(Ino, u64, u64)> = Vec::new();
        let users = self.log.view().tree().users_of(id);
        for (ino, ranges) in users {
            self.copy_readable(ino, &ranges, &mut lost)?;
        }
        // Wait for a running sync: it may include this pack, and would mark it as failed again.
        let lane = self.log.sync_lane();
        // Data that a flush has written to it is not in the tree until its record is committed.
        let barrier = self.log.block_pack_writers();
        let pack = self.log.view().tree().find_pack(id).copied();
        if pack.is_some_and(|p| p.live_plain_bytes > 0) && !self.is_lost(id, &lost) {
            return Ok(());
        }
        // Frames older than the copies refer to this pack, so it is condemned like any other, and removed once the
        // record is durable.
        self.log.commit_acknowledged(|_, transaction| {
            transaction.records.push(Record::Condemn(vec![id]));
            Ok(())
        })?;
        drop(barrier);
        self.log.new_packs().forget_unsynced(id);
        self.log.sync_in(&lane)?;
        self.log.new_packs().discard_failed(id)
    }

    /// Whether all live data of a pack is in the lost ranges.
    fn is_lost(&self, id: PackId, lost: &[(Ino, u64, u64)]) -> bool {
        if lost.is_empty() {
            return false;
        }
        let users = self.log.view().tree().users_of(id);
        let mut live = users
            .iter()
            .flat_map(|(ino, ranges)| ranges.iter().map(|range| (*ino, range.0, range.1)));
        live.all(|range| is_within(range, lost))
    }

    /// Copies the ranges of a file that can be decrypted, and adds the others to `lost`. Bisects down to single blocks.
    fn copy_readable(
        &self,
        ino: Ino,
        ranges: &[(u64, u64)],
        lost: &mut Vec<(Ino, u64, u64)>,
    ) -> Result<()> {
        const BLOCK: u64 = BLOCK_PLAIN_LEN as u64;
        let mut left = vec![ranges.to_vec()];
        while let Some(ranges) = left.pop() {
            match (copy_ranges(&self.log, ino, &ranges), &ranges[..]) {
                (Ok(_), _) => {}
                (Err(e), _) if !matches!(e.kind(), Kind::Damaged(_)) => return Err(e),
                (Err(e), &[(from, to)]) if to - from <= BLOCK => {
                    let name = logged::file_name(ino, self.log.view().path_of(ino));
                    log::error!("{name}: data loss in bytes {from}..{to}: {e}");
                    lost.push((ino, from, to));
                    self.log.requests().record_loss();
                    if let Some(file) = self.files.opened(ino) {
                        // The next close or fsync of each handle reports it.
                        let mut state = file.state.lock();
                        state.failures += 1;
                        state.failed_for_space = false;
                    }
                }
                (Err(_), &[(from, to)]) => {
                    let middle = from + (to - from).div_ceil(2 * BLOCK) * BLOCK;
                    left.extend([vec![(middle, to)], vec![(from, middle)]]);
                }
                (Err(_), many) => left.extend(many.iter().map(|range| vec![*range])),
            }
        }
        Ok(())
    }
}

/// Whether a range of a file is covered by `ranges`, which are sorted and may be adjacent.
fn is_within((ino, mut from, to): (Ino, u64, u64), ranges: &[(Ino, u64, u64)]) -> bool {
    for (_, start, end) in ranges.iter().filter(|range| range.0 == ino) {
        if (*start..*end).contains(&from) {
            from = *end;
        }
    }
    from >= to
}
