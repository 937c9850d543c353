//! Reading: extents, then blocks from the cache or the store, then what is dirty over them.

use std::sync::Arc;

use super::Core;
use super::file::OpenFile;
use crate::cache::BlockKey;
use crate::error::{Kind, Result};
use crate::index::extents::Extent;
use crate::pack::{BLOCK_CIPHER_LEN, BLOCK_PLAIN_LEN, PACK_CIPHER_LEN, PackId, PackReader, Run};
use crate::volume::{Ino, Whence};

/// How far ahead of a sequential reader the store is told to read, in bytes of the file.
const READ_AHEAD_LEN: u64 = 4 << 20;
/// Sealed bytes are read in pieces of at most this many blocks, so that a large read takes little memory.
const BLOCKS_PER_READ: u32 = 64;

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
                located.plain_size = located.plain_size.max(state.dirty_end);
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

    /// Fills `out`, which starts at `plain_offset`, from extents clipped to it; holes are zeros.
    pub(super) fn fill(
        &self,
        extents: &[(Extent, PackId)],
        plain_offset: u64,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let mut done = 0;
        for (extent, id) in extents {
            let from = ((extent.plain_offset - plain_offset) as usize).min(out.len());
            let to = (from + extent.plain_len as usize).min(out.len());
            out[done..from].fill(0);
            self.read_extent(extent, *id, &mut out[from..to], sequential)?;
            done = to;
        }
        out[done..].fill(0);
        Ok(())
    }

    /// Reads the first `out.len()` bytes of an extent.
    fn read_extent(
        &self,
        extent: &Extent,
        id: PackId,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let run = Run {
            pack: id,
            cipher_offset: extent.cipher_offset,
            plain_len: extent.run_len,
        };
        let reader = self.packs.get(id)?;
        let end = extent.start + out.len() as u32;
        let mut block = extent.start / BLOCK_PLAIN_LEN;
        let last = end.div_ceil(BLOCK_PLAIN_LEN);
        while block < last {
            let key = |block| BlockKey {
                pack: extent.pack,
                cipher_offset: run.block_cipher_offset(block),
            };
            let mut part = Part {
                run,
                reader: &reader,
                start: extent.start,
                out,
            };
            if let Some(plain) = self.cache.get(key(block)) {
                part.copy(block, &plain);
                block += 1;
                continue;
            }
            // As many of the following blocks as are not here either, in one read. A reader who goes through the
            // file asks for whole blocks: nobody put them into the cache.
            let most = last.min(block + BLOCKS_PER_READ);
            let mut until = block + 1;
            while until < most && (sequential || !self.cache.contains(key(until))) {
                until += 1;
            }
            self.read_blocks(&mut part, block..until, sequential, &key)?;
            block = until;
        }
        Ok(())
    }

    fn read_blocks(
        &self,
        part: &mut Part<'_>,
        blocks: std::ops::Range<u32>,
        sequential: bool,
        key: &impl Fn(u32) -> BlockKey,
    ) -> Result<()> {
        thread_local! {
            static SEALED: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        SEALED.with_borrow_mut(|sealed| {
            part.reader.read_sealed(&part.run, blocks.clone(), sealed)?;
            for block in blocks.clone() {
                let at = ((block - blocks.start) * BLOCK_CIPHER_LEN) as usize;
                let plain_len = part.run.block_plain_len(block) as usize;
                let sealed = &sealed[at..at + plain_len + crate::crypto::SEAL_OVERHEAD];
                let (run, reader) = (part.run, part.reader);
                if let Some(whole) = part.whole(block) {
                    reader.open_block(&run, block, sealed, whole)?;
                    if !sequential {
                        self.cache.insert(key(block), Arc::from(&*whole));
                    }
                    continue;
                }
                let mut plain = vec![0; plain_len];
                reader.open_block(&run, block, sealed, &mut plain)?;
                part.copy(block, &plain);
                self.cache.insert(key(block), plain.into());
            }
            Ok(())
        })
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
        // Pieces of one pack that lie close together are one request.
        const GAP: u32 = 64 * 1024;
        let mut pending: Option<(PackId, u32, u32)> = None;
        for (extent, id) in &located.extents {
            let run = Run {
                pack: *id,
                cipher_offset: extent.cipher_offset,
                plain_len: extent.run_len,
            };
            let start = run.block_cipher_offset(extent.start / BLOCK_PLAIN_LEN);
            let blocks_end = (extent.start + extent.plain_len).div_ceil(BLOCK_PLAIN_LEN);
            let end = run.block_cipher_offset(blocks_end).min(PACK_CIPHER_LEN);
            match &mut pending {
                Some((pack, _, until))
                    if pack == id && start >= *until && start - *until <= GAP =>
                {
                    *until = end
                }
                _ => {
                    pending.into_iter().for_each(|p| self.prefetch(p));
                    pending = Some((*id, start, end));
                }
            }
        }
        pending.into_iter().for_each(|p| self.prefetch(p));
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

/// A part of a run that is being read into `out`, which starts at byte `start` of the run.
struct Part<'a> {
    run: Run,
    reader: &'a PackReader,
    start: u32,
    out: &'a mut [u8],
}

impl Part<'_> {
    /// Where in `out` the bytes of a block belong: as a range of the block, and the place in `out`.
    fn place(&self, block: u32) -> (usize, usize, usize) {
        let block_start = block * BLOCK_PLAIN_LEN;
        let end =
            (self.start + self.out.len() as u32).min(block_start + self.run.block_plain_len(block));
        let from = self.start.max(block_start);
        (
            (from - block_start) as usize,
            (end - block_start) as usize,
            (from - self.start) as usize,
        )
    }

    /// The part of `out` that is exactly this block.
    fn whole(&mut self, block: u32) -> Option<&mut [u8]> {
        let (from, to, at) = self.place(block);
        let is_whole = from == 0 && to == self.run.block_plain_len(block) as usize;
        is_whole.then(|| &mut self.out[at..at + to])
    }

    fn copy(&mut self, block: u32, plain: &[u8]) {
        let (from, to, at) = self.place(block);
        self.out[at..at + to - from].copy_from_slice(&plain[from..to]);
    }
}
