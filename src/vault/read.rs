//! Reading a file: its extents, filled (`blocks`), then what is dirty over them.

use super::Core;
use super::file::OpenFile;
use crate::error::{Kind, Result};
use crate::index::extents::Extent;
use crate::pack::{BLOCK_PLAIN_LEN, PACK_CIPHER_LEN, PackId, Run};
use crate::volume::{Ino, Whence};

/// How far ahead of a sequential reader the store is told to read, in bytes of the file.
const READ_AHEAD_LEN: u64 = 4 << 20;
/// A piece of a pack as long as this, without gaps, is read ahead without asking, in bytes.
const WHOLE_LEN: u32 = 1 << 20;

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
        let sequential = file
            .as_ref()
            .is_some_and(|f| f.pattern.note(plain_offset, len));
        if let (true, Some(file)) = (sequential, &file) {
            self.read_ahead(file, plain_offset + len as u64);
        }
        if let Err(e) = self.fill(&located.extents, plain_offset, out, sequential) {
            // The pack may have been collected since the extents were looked up: then they are elsewhere now.
            if !matches!(e.kind(), Kind::Missing) {
                return Err(e.about(format_args!("inode {}", ino.0)));
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

    /// Tells the store what a sequential reader who is at `from` will want.
    fn read_ahead(&self, file: &OpenFile, from: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        let ahead = file.pattern.ahead.load(Relaxed).max(from);
        if ahead >= from + READ_AHEAD_LEN / 2 {
            return;
        }
        let to = from + READ_AHEAD_LEN;
        file.pattern.ahead.store(to, Relaxed);
        let Ok(located) = self.locate(file.ino, ahead, to) else {
            return;
        };
        let mut ranges: Vec<(PackId, u32, u32)> = located
            .extents
            .iter()
            .map(|(extent, id)| {
                let run = Run {
                    pack: *id,
                    cipher_offset: extent.cipher_offset,
                    plain_len: extent.run_len,
                };
                let blocks_end = (extent.start + extent.plain_len).div_ceil(BLOCK_PLAIN_LEN);
                let start = run.block_cipher_offset(extent.start / BLOCK_PLAIN_LEN);
                (
                    *id,
                    start,
                    run.block_cipher_offset(blocks_end).min(PACK_CIPHER_LEN),
                )
            })
            .collect();
        // What was written here and there lies in several packs, in each in the order of the file: so sorted, pieces
        // that lie close together are one request.
        const GAP: u32 = 64 * 1024;
        ranges.sort_unstable();
        for group in ranges.chunk_by(|a, b| a.0 == b.0 && b.1 <= a.2.saturating_add(GAP)) {
            let (start, end) = (group[0].1, group[group.len() - 1].2);
            let wanted: u32 = group.iter().map(|(_, from, to)| to - from).sum();
            // What lies in one piece the system reads ahead by itself, and in larger pages: asking takes half as
            // much processor time again.
            if end - start < WHOLE_LEN || wanted < end - start {
                self.prefetch((group[0].0, start, end));
            }
        }
    }

    fn prefetch(&self, (id, start, end): (PackId, u32, u32)) {
        if let Ok(reader) = self.packs.get(id) {
            reader.prefetch(start, end - start);
        }
    }

    pub(super) fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // What is dirty is data, too.
        if !self.read_only {
            self.flush_ino(ino)?;
        }
        let located = self.locate(ino, plain_offset, u64::MAX)?;
        if plain_offset >= located.plain_size {
            return Err(Kind::NoSuchOffset.into());
        }
        let mut extents = located.extents.iter().map(|(e, _)| e);
        match whence {
            Whence::Data => extents
                .next()
                .map(|e| e.plain_offset)
                .ok_or_else(|| Kind::NoSuchOffset.into()),
            Whence::Hole => {
                let mut end = plain_offset;
                for e in extents.take_while(|e| e.plain_offset < located.plain_size) {
                    if e.plain_offset > end {
                        break;
                    }
                    end = e.plain_end();
                }
                Ok(end.min(located.plain_size))
            }
        }
    }
}
