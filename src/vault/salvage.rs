//! Copying live data out of packs that a write or a sync failed in.
//!
//! Owns nothing; the log knows which packs failed, and the files which handles have to be told of a loss.

use std::sync::Arc;

use super::copy::copy_ranges;
use super::files::Files;
use super::log::Log;
use crate::error::{Kind, Result};
use crate::index::record::Record;
use crate::logged;
use crate::object::PackId;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::volume::Ino;

/// Empties packs that failed.
pub(super) struct Salvage {
    log: Arc<Log>,
    files: Arc<Files>,
}

impl Salvage {
    /// Of what `log` has written.
    pub fn new(log: Arc<Log>, files: Arc<Files>) -> Self {
        Self { log, files }
    }

    /// Copies live data out of packs that a write or a sync failed in, and removes these. Data that cannot be decrypted
    /// there is lost, and must not hold up the rest: every sync would fail for it.
    pub fn run(&self) -> Result<()> {
        let mut result = Ok(());
        for id in self.log.new_packs().failed() {
            result = result.and(self.empty_pack(id));
        }
        result
    }

    fn empty_pack(&self, id: PackId) -> Result<()> {
        let mut lost: Vec<(Ino, u64, u64)> = Vec::new();
        let users = self.log.view().tree().users_of(id);
        for (ino, ranges) in users {
            self.copy_readable(ino, &ranges, &mut lost)?;
        }
        // A sync that runs now has this pack among its files, and would count it as failed once more.
        let lane = self.log.sync_lane();
        // Data that a flush has sealed into it is not seen in the tree until its record is written.
        let sealing = self.log.stop_sealing();
        let pack = self.log.view().tree().find_pack(id).copied();
        if pack.is_some_and(|p| p.live_plain_bytes > 0) && !self.is_lost(id, &lost) {
            return Ok(());
        }
        // Frames name it that come before the copies: it is removed when it is known to be condemned, as any pack.
        self.log.commit_acknowledged(|_, transaction| {
            transaction.records.push(Record::Condemn(vec![id]));
            Ok(())
        })?;
        drop(sealing);
        self.log.new_packs().forget_unsynced(id);
        self.log.sync_in(&lane)?;
        self.log.new_packs().discard_failed(id)
    }

    /// Whether all that is live in a pack is among these bytes of files.
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

    /// Copies what opens of these ranges of a file, and notes what does not.
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
                    log::error!("{name}: bytes {from} to {to} are lost: {e}");
                    lost.push((ino, from, to));
                    self.log.requests().note_loss();
                    if let Some(file) = self.files.opened(ino) {
                        // Who closes it is told.
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

/// Whether these bytes of a file are among those, which are in order and may adjoin.
fn is_within((ino, mut from, to): (Ino, u64, u64), ranges: &[(Ino, u64, u64)]) -> bool {
    for (_, start, end) in ranges.iter().filter(|range| range.0 == ino) {
        if (*start..*end).contains(&from) {
            from = *end;
        }
    }
    from >= to
}
