//! From extents to bytes: blocks from the cache, else from the store, decrypted directly into the reply.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::readahead::{CHUNK_CIPHER_MAX, Readahead};
use crate::cache::{BlockCache, BlockKey, CacheStats};
use crate::crypto::SEAL_OVERHEAD;
use crate::error::Result;
use crate::index::extents::Extent;
use crate::object::PackId;
use crate::pack::{BLOCK_CIPHER_LEN, BLOCK_PLAIN_LEN, PACK_CIPHER_LEN, PackReader, Packs, Run};

/// Maximum length of one read of the store, in bytes of the pack, so that a large request takes little memory: 256 KiB
/// of blocks, which is one request of the kernel, plus one block, because the request may start within a block.
const READ_LEN_MAX: u32 = ((256 << 10) / BLOCK_PLAIN_LEN + 1) * BLOCK_CIPHER_LEN;
/// Length of the aligned window around a randomly read block that the system is asked to read in the background, in
/// bytes of the pack, as a page fault does in a mapped file. Neighbouring blocks were written together and are often
/// read next. Random reads of 4 KiB in a file of 1 GiB: 12,400 per second instead of 8,200.
const READ_AROUND_LEN: u32 = 128 << 10;
/// Maximum gap between two blocks of one read, in bytes of the pack: reading the gap costs less than another call.
const READ_GAP_MAX: u32 = 8 * 1024;

/// Minimum length of a read-ahead chunk, in bytes of a pack. Shorter ranges, and those with gaps, are left to the
/// system's own read-ahead, into the page cache.
const CHUNK_CIPHER_MIN: u32 = 256 << 10;
/// Maximum gap between two ranges of a pack that are read ahead in one request, in bytes.
const READAHEAD_GAP_MAX: u32 = 64 << 10;

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

/// A block that is not in the cache, and the part of it that is to be read.
struct BlockRequest {
    run: Run,
    block: u32,
    key: BlockKey,
    /// Offset of the part in the block.
    skip: usize,
    /// Offset of the part in the reply.
    at: usize,
    len: usize,
}

impl BlockRequest {
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

/// Reads blocks of packs: from the cache, from chunks that were read ahead, or from the store. Does not own the packs
/// that are still being written, nor the mapping from files to blocks.
pub(in crate::vault) struct Blocks {
    packs: Arc<Packs>,
    cache: BlockCache,
    readahead: Readahead,
}

impl Blocks {
    /// Reads from `packs`, and caches at most `cache_bytes` bytes of decrypted blocks.
    pub fn new(packs: Arc<Packs>, cache_bytes: usize) -> Result<Self> {
        Ok(Self {
            cache: BlockCache::new(cache_bytes),
            readahead: Readahead::start(&packs)?,
            packs,
        })
    }

    /// Hits, misses and size of the cache of decrypted blocks.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Waits until all requested read-ahead has completed.
    #[cfg(test)]
    pub fn settle(&self) {
        self.readahead.settle();
    }

    /// Starts to fetch the blocks of these extents, all of one file, in the background.
    pub fn read_ahead(&self, extents: &[(Extent, PackId)]) {
        let mut ranges: Vec<CipherRange> = extents.iter().map(CipherRange::of).collect();
        // A file that was written in random order is stored in several packs, in each roughly in file order: sorted by
        // position, ranges that are close together become one request.
        ranges.sort_unstable_by_key(|r| (r.pack, r.start));
        let mut rest = &ranges[..];
        while let Some((first, others)) = rest.split_first() {
            let near = rest.iter().zip(others).take_while(|(last, next)| {
                next.pack == last.pack
                    && next.start <= last.end.saturating_add(READAHEAD_GAP_MAX)
                    && next.end - first.start <= CHUNK_CIPHER_MAX
            });
            let (group, others) = rest.split_at(1 + near.count());
            rest = others;
            let end = group.iter().map(|r| r.end).fold(first.end, u32::max);
            let len = end - first.start;
            let wanted = group.iter().map(|r| u64::from(r.end - r.start)).sum();
            if len >= CHUNK_CIPHER_MIN && wanted >= u64::from(len) {
                self.readahead.fetch(first.pack, first.start..end, wanted);
            } else if let Ok(reader) = self.packs.get(first.pack) {
                reader.prefetch(first.start, len);
            }
        }
    }

    /// Fills `out`, which starts at `plain_offset` of the file, from extents that are clipped to it; holes are zeros.
    /// Whole blocks of a `sequential` reader bypass the cache, because they will not be read again. For a random
    /// reader, the neighbourhood of the block is read in the background.
    pub fn fill(
        &self,
        extents: &[(Extent, PackId)],
        plain_offset: u64,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let mut requests = Vec::new();
        let mut done = 0;
        for (extent, id) in extents {
            let from = ((extent.plain_offset - plain_offset) as usize).min(out.len());
            let to = (from + extent.plain_len as usize).min(out.len());
            out[done..from].fill(0);
            self.copy_cached(extent, *id, from..to, out, &mut requests);
            done = to;
        }
        out[done..].fill(0);
        // A file that was written in random order alternates between packs, but is roughly in file order within each of
        // them: sorted by position, its blocks take few reads.
        requests.sort_unstable_by_key(|r| (r.run.pack, r.key.cipher_offset));
        let mut rest = &requests[..];
        while !rest.is_empty() {
            let mut done = 0;
            if sequential {
                done = self.decrypt_fetched(rest, out)?;
            }
            if done == 0 {
                done = count_in_one_read(rest);
                self.read_group(&rest[..done], out, sequential)?;
            }
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Decrypts the first requested blocks from the read-ahead chunk that holds them. Returns how many; 0 if there is
    /// no such chunk.
    fn decrypt_fetched(&self, requests: &[BlockRequest], out: &mut [u8]) -> Result<usize> {
        let Some(first) = requests.first() else {
            return Ok(0);
        };
        let Some(chunk) = self.readahead.find(first.run.pack, &first.cipher()) else {
            return Ok(0);
        };
        let covered = |r: &&BlockRequest| chunk.covers(r.run.pack, &r.cipher());
        let group = &requests[..requests.iter().take_while(covered).count()];
        let Some(cipher) = chunk.take(&cipher_range(group)) else {
            return Ok(0);
        };
        let reader = self.packs.get(first.run.pack)?;
        // If decryption fails, the caller reads the blocks again from the store, and reports the error of that.
        let decrypted = self.decrypt_group(&reader, group, cipher, out, true);
        Ok(if decrypted.is_ok() { group.len() } else { 0 })
    }

    /// Copies the cached blocks of an extent to their `place` in `out`, and adds a request for each of the others.
    fn copy_cached(
        &self,
        extent: &Extent,
        id: PackId,
        place: Range<usize>,
        out: &mut [u8],
        requests: &mut Vec<BlockRequest>,
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
            // A bad index may claim two lengths for one block; only decryption tells which is right.
            match self.cache.get(key).filter(|p| p.len() == plain_len) {
                Some(plain) => out[at..at + len].copy_from_slice(&plain[skip..skip + len]),
                None => requests.push(BlockRequest {
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

    /// Reads the blocks of a group in one read of the store, and decrypts each to its place in `out`.
    fn read_group(&self, group: &[BlockRequest], out: &mut [u8], sequential: bool) -> Result<()> {
        thread_local! {
            static CIPHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let [first, ..] = group else { return Ok(()) };
        let reader = self.packs.get(first.run.pack)?;
        let Range { start, end } = cipher_range(group);
        CIPHER.with_borrow_mut(|cipher| {
            let len = (end - start) as usize;
            if cipher.len() < len {
                cipher.resize(len, 0);
            }
            let cipher = &mut cipher[..len];
            reader.read_sealed(start, cipher)?;
            if sequential {
                drop_pages_behind(&reader, start, end);
            } else if group.len() == 1 {
                reader.prefetch(start / READ_AROUND_LEN * READ_AROUND_LEN, READ_AROUND_LEN);
            }
            self.decrypt_group(&reader, group, cipher, out, sequential)
        })
    }

    /// Decrypts the blocks of a group, each to its place in `out`. `cipher` starts with the first block of the group.
    fn decrypt_group(
        &self,
        reader: &PackReader,
        group: &[BlockRequest],
        cipher: &[u8],
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        let start = cipher_range(group).start;
        // A block whose middle was overwritten is requested twice: for the parts before and after the overwritten
        // range.
        let mut last: Option<(u32, Arc<[u8]>)> = None;
        for request in group {
            let plain_len = request.plain_len();
            let from = (request.key.cipher_offset - start) as usize;
            let cipher = &cipher[from..from + plain_len + SEAL_OVERHEAD];
            let part = &mut out[request.at..request.at + request.len];
            if request.len == plain_len {
                reader.open_block(&request.run, request.block, cipher, part)?;
                if !sequential {
                    self.cache.insert(request.key, Arc::from(&*part));
                }
                continue;
            }
            let plain = match last
                .take()
                .filter(|(offset, p)| *offset == request.key.cipher_offset && p.len() == plain_len)
            {
                Some((_, plain)) => plain,
                None => {
                    let mut plain: Arc<[u8]> = std::iter::repeat_n(0, plain_len).collect();
                    let fresh = Arc::get_mut(&mut plain).expect("it is not shared yet");
                    reader.open_block(&request.run, request.block, cipher, fresh)?;
                    self.cache.insert(request.key, plain.clone());
                    plain
                }
            };
            part.copy_from_slice(&plain[request.skip..request.skip + request.len]);
            last = Some((request.key.cipher_offset, plain));
        }
        Ok(())
    }
}

/// Drops the pages of the pack that a sequential reader has passed from the page cache, which already holds the
/// decrypted file. That halves the memory that a stream takes; and pages that are reused immediately are cheaper than
/// fresh ones.
fn drop_pages_behind(reader: &PackReader, cipher_start: u32, cipher_end: u32) {
    /// Length of the range that is kept: requests of one reader are answered out of order, so it may still be read.
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

/// The range of the pack from the first block of a group to the end of its last one.
fn cipher_range(group: &[BlockRequest]) -> Range<u32> {
    let start = group.first().map_or(0, |r| r.key.cipher_offset);
    let ends = group.iter().map(BlockRequest::cipher_end);
    start..ends.fold(start, u32::max)
}

/// How many of the first requested blocks are close enough to be fetched in one read.
fn count_in_one_read(requests: &[BlockRequest]) -> usize {
    let Some(first) = requests.first() else {
        return 0;
    };
    let near = requests.windows(2).take_while(|w| {
        w[0].run.pack == w[1].run.pack
            && w[1].key.cipher_offset <= w[0].cipher_end() + READ_GAP_MAX
            && w[1].cipher_end() - first.key.cipher_offset <= READ_LEN_MAX
    });
    1 + near.count()
}
