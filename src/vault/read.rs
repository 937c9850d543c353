//! Reading a file: its extents, filled (`blocks`), then what is dirty over them.

use std::ops::Range;

use super::Core;
use super::ahead::{Access, PIECE_CIPHER_MAX};
use crate::error::{Kind, Result};
use crate::index::extents::Extent;
use crate::pack::{BLOCK_PLAIN_LEN, PACK_CIPHER_LEN, PackId, Run};
use crate::volume::{Ino, Whence};

/// What is shorter, in bytes of a pack, or has gaps, the system is asked to read, into its own memory.
const PIECE_CIPHER_MIN: u32 = 256 << 10;
/// Ranges of a pack with less than this between them are one request.
const READ_GAP_MAX: u32 = 64 << 10;

/// Blocks of a pack.
struct CipherRange {
    pack: PackId,
    start: u32,
    end: u32,
}

impl CipherRange {
    /// The blocks that an extent touches.
    fn of((extent, pack): &(Extent, PackId)) -> Self {
        let run = Run {
            pack: *pack,
            cipher_offset: extent.cipher_offset,
            plain_len: extent.run_len,
        };
        let start = run.block_cipher_offset(extent.start / BLOCK_PLAIN_LEN);
        let blocks_end = (extent.start + extent.plain_len).div_ceil(BLOCK_PLAIN_LEN);
        let end = run
            .block_cipher_offset(blocks_end)
            .min(run.cipher_offset + run.cipher_len());
        Self {
            pack: *pack,
            start,
            end: end.clamp(start, PACK_CIPHER_LEN.max(start)),
        }
    }
}

/// Extents of a file, with the packs that they name.
pub(super) struct Located {
    pub extents: Vec<(Extent, PackId)>,
    pub plain_size: u64,
}

impl Core {
    /// The extents that overlap `from..to`, clipped to it.
    pub(super) fn locate(&self, ino: Ino, from: u64, to: u64) -> Result<Located> {
        let tree = self.tree.read();
        let inode = tree.inode(self.find(&tree, ino)?);
        let overlapping = inode.extents().overlapping(from, to).iter();
        let extents = overlapping
            .map(|e| (e.clip(from, to), tree.pack(e.pack).id))
            .collect();
        Ok(Located {
            extents,
            plain_size: inode.plain_size(),
        })
    }

    pub(super) fn read_file(&self, ino: Ino, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let wanted_end = plain_offset.saturating_add(out.len() as u64);
        let file = self.opened(ino);
        let mut overlays = Vec::new();
        let located = match &file {
            // The state is locked until the extents are here, so that a flush cannot move data past us.
            Some(file) => {
                let state = file.state.lock();
                let mut located = self.locate(ino, plain_offset, wanted_end)?;
                located.plain_size = located.plain_size.max(state.end());
                let len = located
                    .plain_size
                    .saturating_sub(plain_offset)
                    .min(out.len() as u64) as usize;
                if !state.dirty.is_empty() || state.leaving.is_some() {
                    overlays = self.overlay(&state, plain_offset, len);
                }
                located
            }
            None => self.locate(ino, plain_offset, wanted_end)?,
        };
        let len = located
            .plain_size
            .saturating_sub(plain_offset)
            .min(out.len() as u64) as usize;
        let out = &mut out[..len];
        let mut sequential = false;
        if let Some(Access::Sequence(next)) = file.map(|f| f.pattern.note(plain_offset, len)) {
            sequential = true;
            self.read_ahead(ino, next);
        }
        if let Err(e) = self.fill(&located.extents, plain_offset, out, sequential) {
            // The pack may have been collected since the extents were looked up: then they are elsewhere now.
            if !matches!(e.kind(), Kind::Missing) {
                return Err(e);
            }
            if self.read_only {
                self.reread_for_missing();
            }
            let again = self.locate(ino, plain_offset, wanted_end)?;
            self.fill(&again.extents, plain_offset, out, sequential)?;
        }
        for (at, bytes) in overlays {
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(len)
    }

    /// What is dirty in a range, copied: place in the range, and bytes.
    fn overlay(
        &self,
        state: &super::file::FileState,
        plain_offset: u64,
        len: usize,
    ) -> Vec<(usize, Vec<u8>)> {
        let end = plain_offset + len as u64;
        let mut out = Vec::new();
        for dirty in state.leaving.as_deref().into_iter().chain([&state.dirty]) {
            for (start, part) in dirty.parts(plain_offset, end) {
                out.push(((start - plain_offset) as usize, part.to_vec()));
            }
        }
        out
    }

    /// Has fetched what lies in a range of a file.
    fn read_ahead(&self, ino: Ino, plain: Range<u64>) {
        if plain.is_empty() {
            return;
        }
        let Ok(located) = self.locate(ino, plain.start, plain.end) else {
            return;
        };
        let mut ranges: Vec<CipherRange> = located.extents.iter().map(CipherRange::of).collect();
        // What was written here and there lies in several packs, in each in the order of the file: so sorted, pieces
        // that lie close together are one request.
        ranges.sort_unstable_by_key(|r| (r.pack, r.start));
        let mut rest = &ranges[..];
        while let Some((first, others)) = rest.split_first() {
            let near = rest.iter().zip(others).take_while(|(last, next)| {
                next.pack == last.pack
                    && next.start <= last.end.saturating_add(READ_GAP_MAX)
                    && next.end - first.start <= PIECE_CIPHER_MAX
            });
            let (group, others) = rest.split_at(1 + near.count());
            rest = others;
            let end = group.iter().map(|r| r.end).fold(first.end, u32::max);
            let len = end - first.start;
            let wanted = group.iter().map(|r| u64::from(r.end - r.start)).sum();
            if len >= PIECE_CIPHER_MIN && wanted >= u64::from(len) {
                self.ahead.fetch(first.pack, first.start..end, wanted);
            } else if let Ok(reader) = self.packs.get(first.pack) {
                reader.prefetch(first.start, len);
            }
        }
    }

    pub(super) fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // What is dirty is data, too.
        if !self.read_only {
            self.flush_ino(ino)?;
        }
        // Nothing is copied: a walk over a file in many pieces asks once for each.
        let tree = self.tree.read();
        let inode = tree.inode(self.find(&tree, ino)?);
        let plain_size = inode.plain_size();
        if plain_offset >= plain_size {
            return Err(Kind::NoSuchOffset.into());
        }
        match whence {
            Whence::Data => {
                let data = inode.extents().next_data(plain_offset);
                data.ok_or_else(|| Kind::NoSuchOffset.into())
            }
            Whence::Hole => Ok(inode.extents().next_hole(plain_offset).min(plain_size)),
        }
    }
}
