//! Copying what is live out of packs that a write or a sync failed in.

use super::Core;
use crate::error::{Kind, Result};
use crate::index::record::Record;
use crate::logged;
use crate::object::PackId;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::volume::Ino;

impl Core {
    /// Copies what is live in packs that a write or a sync failed in, so that those can go. What does not open there
    /// is lost, and must not hold up the rest: every sync would fail for it.
    pub(super) fn empty_spoiled(&self) -> Result<()> {
        let mut result = Ok(());
        for id in self.contents.spoiled() {
            result = result.and(self.empty_pack(id));
        }
        result
    }

    fn empty_pack(&self, id: PackId) -> Result<()> {
        let mut lost: Vec<(Ino, u64, u64)> = Vec::new();
        let users = self.view.tree().users_of(id);
        for (ino, ranges) in users {
            self.copy_readable(ino, &ranges, &mut lost)?;
        }
        // What a flush sealed into it and did not frame yet is not seen in the tree.
        let sealing = self.sealing.write();
        let pack = self.view.tree().find_pack(id).copied();
        if pack.is_some_and(|p| p.live_plain_bytes > 0) && !self.is_lost(id, &lost) {
            return Ok(());
        }
        // Frames name it that come before the copies: it goes when it is known to be condemned, as any pack.
        self.transact_promised(|_, draft| {
            draft.records.push(Record::Condemn(vec![id]));
            Ok(())
        })?;
        drop(sealing);
        self.contents.forget_unsynced(id);
        self.sync()?;
        self.contents.discard_spoiled(id)
    }

    /// Whether all that is live in a pack is among these bytes of files.
    fn is_lost(&self, id: PackId, lost: &[(Ino, u64, u64)]) -> bool {
        if lost.is_empty() {
            return false;
        }
        let users = self.view.tree().users_of(id);
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
            match (self.copy_ranges(ino, &ranges), &ranges[..]) {
                (Ok(_), _) => {}
                (Err(e), _) if !matches!(e.kind(), Kind::Damaged(_)) => return Err(e),
                (Err(e), &[(from, to)]) if to - from <= BLOCK => {
                    let name = logged::file_name(ino, self.view.path_of(ino));
                    log::error!("{name}: bytes {from} to {to} are lost: {e}");
                    lost.push((ino, from, to));
                    self.commit.note_loss();
                    if let Some(file) = self.opened(ino) {
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
