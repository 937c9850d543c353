//! From extents to bytes: blocks from the cache, else from the store, opened straight into the reply.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::readahead::{Ahead, PIECE_CIPHER_MAX};
use crate::cache::{BlockCache, BlockKey, CacheStats};
use crate::crypto::SEAL_OVERHEAD;
use crate::error::Result;
use crate::index::extents::Extent;
use crate::object::PackId;
use crate::pack::{BLOCK_CIPHER_LEN, BLOCK_PLAIN_LEN, PACK_CIPHER_LEN, PackReader, Packs, Run};

/// Sealed bytes are read in pieces of at most this many, so that a large read takes little memory: 256 KiB of blocks,
/// which is a request of the kernel's, and the one that it may begin within.
const READ_LEN_MAX: u32 = ((256 << 10) / BLOCK_PLAIN_LEN + 1) * BLOCK_CIPHER_LEN;
/// Around a single block that somebody jumped to, so many bytes of the pack are fetched from the disk without waiting,
/// as a page fault does in a mapped file: what lies near was written together, and is often wanted next. Random reads
/// of 4 KiB in a file of 1 GiB: 12,400 a second, not 8,200.
const READ_AROUND_LEN: u32 = 128 << 10;
/// Blocks with less than this between them are one read: that costs less than another call.
const READ_GAP_MAX: u32 = 8 * 1024;

/// What is shorter, in bytes of a pack, or has gaps, the system is asked to read, into its own memory.
const PIECE_CIPHER_MIN: u32 = 256 << 10;
/// Ranges of a pack with less than this between them are one request.
const AHEAD_GAP_MAX: u32 = 64 << 10;

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

/// A block that is not in the cache, and the part of it that is wanted.
struct Want {
    run: Run,
    block: u32,
    key: BlockKey,
    /// Where in the block the part starts.
    skip: usize,
    /// Where in the reply it goes.
    at: usize,
    len: usize,
}

impl Want {
    fn plain_len(&self) -> usize {
        self.run.block_plain_len(self.block) as usize
    }
    fn cipher_end(&self) -> u32 {
        self.key.cipher_offset + (self.plain_len() + SEAL_OVERHEAD) as u32
    }
    fn cipher(&self) -> Range<u32> {
        self.key.cipher_offset..self.cipher_end()
    }
}

/// What the packs of a library hold, as it is read: from the cache, from what was read ahead, or from the store. Does not
/// own the packs that are still written, nor which blocks a file consists of.
pub(in crate::vault) struct Blocks {
    packs: Arc<Packs>,
    cache: BlockCache,
    ahead: Ahead,
}

impl Blocks {
    /// Of these packs, with so many bytes of decrypted blocks.
    pub fn new(packs: Arc<Packs>, cache_bytes: usize) -> Result<Self> {
        Ok(Self {
            cache: BlockCache::new(cache_bytes),
            ahead: Ahead::start(&packs)?,
            packs,
        })
    }

    /// How the cache of decrypted blocks does.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Waits until all that was asked for is read ahead.
    #[cfg(test)]
    pub fn settle(&self) {
        self.ahead.settle();
    }

    /// Has fetched what these extents, all of one file, consist of.
    pub fn read_ahead(&self, extents: &[(Extent, PackId)]) {
        let mut ranges: Vec<CipherRange> = extents.iter().map(CipherRange::of).collect();
        // What was written here and there lies in several packs, in each in the order of the file: so sorted, pieces
        // that lie close together are one request.
        ranges.sort_unstable_by_key(|r| (r.pack, r.start));
        let mut rest = &ranges[..];
        while let Some((first, others)) = rest.split_first() {
            let near = rest.iter().zip(others).take_while(|(last, next)| {
                next.pack == last.pack
                    && next.start <= last.end.saturating_add(AHEAD_GAP_MAX)
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

    /// Fills `out`, which starts at `plain_offset`, from extents clipped to it; holes are zeros. Whole blocks of a
    /// `sequential` reader stay out of the cache: they will not be asked for again. Around others the disk reads on.
    pub fn fill(
        &self,
        extents: &[(Extent, PackId)],
        plain_offset: u64,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let mut wants = Vec::new();
        let mut done = 0;
        for (extent, id) in extents {
            let from = ((extent.plain_offset - plain_offset) as usize).min(out.len());
            let to = (from + extent.plain_len as usize).min(out.len());
            out[done..from].fill(0);
            self.want(extent, *id, from..to, out, &mut wants);
            done = to;
        }
        out[done..].fill(0);
        // Pieces that were written here and there lie in one pack in the order of the file, between others of other
        // packs: sorted, they are few reads.
        wants.sort_unstable_by_key(|w| (w.run.pack, w.key.cipher_offset));
        let mut rest = &wants[..];
        while !rest.is_empty() {
            let mut done = 0;
            if sequential {
                done = self.open_fetched(rest, out)?;
            }
            if done == 0 {
                done = one_read(rest);
                self.read_group(&rest[..done], out, sequential)?;
            }
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Opens the first blocks out of a piece that was read ahead. How many: none where they lie in none.
    fn open_fetched(&self, wants: &[Want], out: &mut [u8]) -> Result<usize> {
        let Some(first) = wants.first() else {
            return Ok(0);
        };
        let Some(piece) = self.ahead.find(first.run.pack, &first.cipher()) else {
            return Ok(0);
        };
        let covered = |w: &&Want| piece.covers(w.run.pack, &w.cipher());
        let group = &wants[..wants.iter().take_while(covered).count()];
        let Some(sealed) = piece.take(&cipher_range(group)) else {
            return Ok(0);
        };
        let reader = self.packs.get(first.run.pack)?;
        // What does not open is read once more, as any other is, before it is an error.
        let opened = self.open_group(&reader, group, sealed, out, true);
        Ok(if opened.is_ok() { group.len() } else { 0 })
    }

    /// Copies what the cache has of an extent to its `place` in `out`, and notes the blocks that it has not.
    fn want(
        &self,
        extent: &Extent,
        id: PackId,
        place: Range<usize>,
        out: &mut [u8],
        wants: &mut Vec<Want>,
    ) {
        let run = Run {
            pack: id,
            cipher_offset: extent.cipher_offset,
            plain_len: extent.run_len,
        };
        let (mut at, mut in_run) = (place.start, extent.start);
        while at < place.end {
            let block = in_run / BLOCK_PLAIN_LEN;
            let skip = (in_run % BLOCK_PLAIN_LEN) as usize;
            let key = BlockKey {
                pack: extent.pack,
                cipher_offset: run.block_cipher_offset(block),
            };
            let plain_len = run.block_plain_len(block) as usize;
            let len = (plain_len - skip).min(place.end - at);
            // An index may claim two lengths of a block: the tag says which is right.
            match self.cache.get(key).filter(|p| p.len() == plain_len) {
                Some(plain) => out[at..at + len].copy_from_slice(&plain[skip..skip + len]),
                None => wants.push(Want {
                    run,
                    block,
                    key,
                    skip,
                    at,
                    len,
                }),
            }
            at += len;
            in_run += len as u32;
        }
    }

    /// Reads the blocks of a group in one read, and opens each to where it belongs.
    fn read_group(&self, group: &[Want], out: &mut [u8], sequential: bool) -> Result<()> {
        thread_local! {
            static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let [first, ..] = group else { return Ok(()) };
        let reader = self.packs.get(first.run.pack)?;
        let Range { start, end } = cipher_range(group);
        SEALED.with_borrow_mut(|sealed| {
            let len = (end - start) as usize;
            if sealed.len() < len {
                sealed.resize(len, 0);
            }
            let sealed = &mut sealed[..len];
            reader.read_sealed(start, sealed)?;
            if sequential {
                uncache_behind(&reader, start, end);
            } else if group.len() == 1 {
                reader.prefetch(start / READ_AROUND_LEN * READ_AROUND_LEN, READ_AROUND_LEN);
            }
            self.open_group(&reader, group, sealed, out, sequential)
        })
    }

    /// Opens the blocks of a group, whose sealed bytes `sealed` starts with, each to where it belongs.
    fn open_group(
        &self,
        reader: &PackReader,
        group: &[Want],
        sealed: &[u8],
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let start = cipher_range(group).start;
        // A block that was written over in its middle is wanted twice, on both sides.
        let mut last: Option<(u32, Arc<[u8]>)> = None;
        for want in group {
            let plain_len = want.plain_len();
            let from = (want.key.cipher_offset - start) as usize;
            let sealed = &sealed[from..from + plain_len + SEAL_OVERHEAD];
            let part = &mut out[want.at..want.at + want.len];
            if want.len == plain_len {
                reader.open_block(&want.run, want.block, sealed, part)?;
                if !sequential {
                    self.cache.insert(want.key, Arc::from(&*part));
                }
                continue;
            }
            let plain = match last
                .take()
                .filter(|(offset, p)| *offset == want.key.cipher_offset && p.len() == plain_len)
            {
                Some((_, plain)) => plain,
                None => {
                    let mut plain: Arc<[u8]> = std::iter::repeat_n(0, plain_len).collect();
                    let fresh = Arc::get_mut(&mut plain).expect("nobody else has it yet");
                    reader.open_block(&want.run, want.block, sealed, fresh)?;
                    self.cache.insert(want.key, plain.clone());
                    plain
                }
            };
            part.copy_from_slice(&plain[want.skip..want.skip + want.len]);
            last = Some((want.key.cipher_offset, plain));
        }
        Ok(())
    }
}

/// Behind a sequential reader the system need not keep what is sealed: it keeps what was opened. That halves the
/// memory that a stream takes, and pages that are used again at once are cheaper than others.
fn uncache_behind(reader: &PackReader, cipher_start: u32, cipher_end: u32) {
    /// What is so near may be wanted still: requests of one reader overtake each other.
    const KEPT_LEN: u32 = 4 << 20;
    const STEP: u32 = 1 << 20;
    if cipher_start / STEP == cipher_end / STEP {
        return;
    }
    let to = (cipher_end / STEP * STEP).saturating_sub(KEPT_LEN);
    let from = to.saturating_sub(KEPT_LEN);
    if from < to {
        reader.uncache(from, to - from);
    }
}

/// From the first block of a group to the end of its last.
fn cipher_range(group: &[Want]) -> Range<u32> {
    let start = group.first().map_or(0, |w| w.key.cipher_offset);
    start..group.iter().map(Want::cipher_end).fold(start, u32::max)
}

/// How many of the first blocks are one read.
fn one_read(wants: &[Want]) -> usize {
    let Some(first) = wants.first() else { return 0 };
    let near = wants.windows(2).take_while(|w| {
        w[0].run.pack == w[1].run.pack
            && w[1].key.cipher_offset <= w[0].cipher_end() + READ_GAP_MAX
            && w[1].cipher_end() - first.key.cipher_offset <= READ_LEN_MAX
    });
    1 + near.count()
}
