//! Read-ahead: detects sequential readers, and fetches what they will read next in large chunks, on threads of its own
//! and bypassing the system's page cache, while requests decrypt the chunks that have arrived.
//!
//! Each byte is thus read once, into buffers that are reused. Through the page cache, a stream continually takes fresh
//! pages and copies out of them: a cold file of 1 GiB on a virtual disk was read at 1,400 MiB/s instead of 2,000. A
//! file that is stored in small extents is read ahead through the page cache, which keeps the bytes between them until
//! they are read.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mm::Advice;

use crate::error::Result;
use crate::object::PackId;
use crate::overdue;
use crate::pack::Packs;
use crate::store::STREAM_ALIGNMENT;
use crate::vault::thread::Workers;

/// Length of a huge page in bytes: on x86-64, and on aarch64 with 4 KiB pages. Disks fill one huge page faster than the
/// same length of small ones: a virtual disk at 3.4 GB/s instead of 1.4.
const HUGE_PAGE_LEN: usize = 2 << 20;
/// Maximum length of a chunk, in bytes of a pack, wherever it starts. Its start and end are extended to
/// [`STREAM_ALIGNMENT`], and it must still fit in a buffer.
pub const CHUNK_CIPHER_MAX: u32 = HUGE_PAGE_LEN as u32 - 2 * STREAM_ALIGNMENT;
/// Maximum length of a chunk, in bytes of the file: seven kernel requests. Encrypted, it fits in a buffer.
const CHUNK_PLAIN_MAX: u64 = 7 << 18;
/// Length of the first chunk of a sequence, in bytes of the file. It doubles with each chunk, because many files are
/// read only at their beginning.
const CHUNK_PLAIN_MIN: u64 = 2 << 18;
/// Number of chunks that are fetched ahead of one reader. More were not faster.
const CHUNKS_AHEAD: u64 = 2;
/// Maximum number of chunks in memory or being fetched: 32 MiB for all readers together.
const CHUNKS_MAX: usize = 16;
/// Chunks that are not consumed within this time are recycled: their reader has stopped or seeked.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(1);
/// Two threads, so that one fetches while the chunk of the other is consumed; with one thread the disk would idle.
const THREADS: usize = 2;

/// Detects whether a file is read sequentially.
#[derive(Debug, Default)]
pub struct ReadPattern(Mutex<Progress>);

#[derive(Debug)]
struct Progress {
    /// The furthest end of any request of the sequence.
    plain_end: u64,
    /// Whether the previous request belonged to the sequence.
    in_sequence: bool,
    /// The end of the last chunk that was requested.
    fetched_end: u64,
    /// The length of the next chunk.
    chunk_len: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            plain_end: 0,
            in_sequence: false,
            fetched_end: 0,
            chunk_len: CHUNK_PLAIN_MIN,
        }
    }
}

/// How a request relates to the previous ones.
#[derive(Debug, PartialEq, Eq)]
pub enum AccessPattern {
    /// Somewhere in the file.
    Random,
    /// Part of a sequence. The range of the file to fetch now may be empty.
    Sequential(Range<u64>),
}

impl ReadPattern {
    /// Records a request. Requests of one reader may arrive out of order, by as much as the kernel reads ahead.
    pub fn record(&self, plain_offset: u64, len: usize) -> AccessPattern {
        const NEAR: u64 = 4 << 20;
        const SHORT: usize = 16 << 10;
        let mut pattern = self.0.lock();
        let plain_end = plain_offset.saturating_add(len as u64);
        if plain_offset.abs_diff(pattern.plain_end) > NEAR || len < SHORT {
            *pattern = Progress {
                plain_end,
                ..Progress::default()
            };
            return AccessPattern::Random;
        }
        pattern.plain_end = pattern.plain_end.max(plain_end);
        if !std::mem::replace(&mut pattern.in_sequence, true) && plain_offset > 0 {
            return AccessPattern::Random;
        }
        let start = pattern.fetched_end.max(pattern.plain_end);
        if start - pattern.plain_end >= CHUNKS_AHEAD * pattern.chunk_len {
            return AccessPattern::Sequential(start..start);
        }
        pattern.fetched_end = start.saturating_add(pattern.chunk_len);
        pattern.chunk_len = (2 * pattern.chunk_len).min(CHUNK_PLAIN_MAX);
        AccessPattern::Sequential(start..pattern.fetched_end)
    }
}

/// Memory for one chunk: a huge page if the system has one.
struct Buffer {
    /// Twice the needed length, so that it contains an aligned huge page. Untouched pages take no memory.
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; 2 * HUGE_PAGE_LEN];
        let start = memory
            .as_ptr()
            .align_offset(HUGE_PAGE_LEN)
            .min(HUGE_PAGE_LEN);
        // SAFETY: the range is inside `memory`, and the advice changes no contents. If it is refused, small pages are
        // used.
        let _ = unsafe {
            rustix::mm::madvise(
                memory.as_ptr().add(start).cast_mut().cast(),
                HUGE_PAGE_LEN,
                Advice::LinuxHugepage,
            )
        };
        Self { memory, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + HUGE_PAGE_LEN]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + HUGE_PAGE_LEN]
    }
}

/// A range of a pack that was fetched or is being fetched.
pub struct Chunk {
    pack: PackId,
    /// A multiple of [`STREAM_ALIGNMENT`].
    cipher_start: u32,
    cipher_end: u32,
    /// The bytes, and how many could be read; `Some(None)` if the fetch failed.
    fetched: OnceLock<Option<(Buffer, usize)>>,
    /// Number of bytes that were not consumed yet; negative if some were consumed twice.
    unconsumed: AtomicI64,
    created: Instant,
}

impl Chunk {
    /// Whether a range of a pack is inside the chunk.
    pub fn covers(&self, pack: PackId, cipher: &Range<u32>) -> bool {
        self.pack == pack && self.cipher_start <= cipher.start && cipher.end <= self.cipher_end
    }

    /// Consumes the bytes of a range that the chunk covers, and waits until they are fetched. `None` if the fetch
    /// failed: the caller must read them from the store, and gets the error there.
    pub fn take(&self, cipher: &Range<u32>) -> Option<&[u8]> {
        let fetched = match self.fetched.get() {
            Some(fetched) => fetched,
            None => {
                let _waiting = overdue::wait().ok()?;
                self.fetched.wait()
            }
        };
        let (buffer, len) = fetched.as_ref()?;
        let taken = i64::from(cipher.end - cipher.start);
        self.unconsumed.fetch_sub(taken, Ordering::Relaxed);
        let (from, to) = (
            cipher.start - self.cipher_start,
            cipher.end - self.cipher_start,
        );
        buffer.bytes()[..*len].get(from as usize..to as usize)
    }
}

/// A chunk that waits for a thread to fetch it. When this is dropped, the waiting readers wake up, whatever the result.
struct Fetch {
    chunk: Arc<Chunk>,
    buffer: Option<Buffer>,
}

impl Fetch {
    fn run(mut self, packs: &Packs) {
        let Some(mut buffer) = self.buffer.take() else {
            return;
        };
        let chunk = &self.chunk;
        let len = (chunk.cipher_end - chunk.cipher_start).next_multiple_of(STREAM_ALIGNMENT);
        let fetched = packs.get(chunk.pack).and_then(|reader| {
            reader.read_stream(chunk.cipher_start, &mut buffer.bytes_mut()[..len as usize])
        });
        // Set only once: here, or otherwise in `drop`.
        let _ = chunk.fetched.set(fetched.ok().map(|len| (buffer, len)));
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let _ = self.chunk.fetched.set(None);
    }
}

/// Owns the chunks, and the threads that fetch them.
pub struct Readahead {
    chunks: Mutex<VecDeque<Arc<Chunk>>>,
    threads: Workers<Fetch>,
}

impl Readahead {
    /// Starts the threads.
    pub fn start(packs: &Arc<Packs>) -> Result<Self> {
        let packs = packs.clone();
        let fetch = move |fetch: Fetch| fetch.run(&packs);
        Ok(Self {
            chunks: Mutex::default(),
            threads: Workers::start("readahead", THREADS, CHUNKS_MAX, fetch)?,
        })
    }

    /// The chunk that covers a range of a pack, if there is one.
    pub fn find(&self, pack: PackId, cipher: &Range<u32>) -> Option<Arc<Chunk>> {
        let chunks = self.chunks.lock();
        let found = chunks.iter().rev().find(|c| c.covers(pack, cipher));
        found.cloned()
    }

    /// Starts to fetch a range of a pack, at most [`CHUNK_CIPHER_MAX`] bytes long, of which readers will consume
    /// `wanted` bytes. Does nothing if all buffers are in use: read-ahead is best effort.
    pub fn fetch(&self, pack: PackId, cipher: Range<u32>, wanted: u64) {
        debug_assert!(cipher.start <= cipher.end && cipher.end - cipher.start <= CHUNK_CIPHER_MAX);
        let mut chunks = self.chunks.lock();
        let Some(buffer) = take_buffer(&mut chunks) else {
            return;
        };
        let chunk = Arc::new(Chunk {
            pack,
            cipher_start: cipher.start / STREAM_ALIGNMENT * STREAM_ALIGNMENT,
            cipher_end: cipher.end,
            fetched: OnceLock::new(),
            unconsumed: AtomicI64::new(i64::try_from(wanted).unwrap_or(i64::MAX)),
            created: Instant::now(),
        });
        let fetch = Fetch {
            chunk: chunk.clone(),
            buffer: Some(buffer),
        };
        if self.threads.offer(fetch) {
            chunks.push_back(chunk);
        }
    }

    /// Waits until all requested chunks are fetched.
    #[cfg(test)]
    pub fn settle(&self) {
        let chunks = self.chunks.lock();
        assert!(chunks.len() <= CHUNKS_MAX);
        for chunk in &*chunks {
            chunk.fetched.wait();
        }
    }
}

/// A buffer for one more chunk: that of a chunk that was fully consumed or not consumed in time, otherwise a new one.
/// `None` if there are [`CHUNKS_MAX`] chunks.
fn take_buffer(chunks: &mut VecDeque<Arc<Chunk>>) -> Option<Buffer> {
    let is_done = |c: &Arc<Chunk>| {
        // Readers and fetching threads hold an `Arc` of the chunk, and can obtain one only under the lock that is held
        // here.
        Arc::strong_count(c) == 1
            && (c.unconsumed.load(Ordering::Relaxed) <= 0 || c.created.elapsed() > UNUSED_TIMEOUT)
    };
    let Some(at) = chunks.iter().position(is_done) else {
        return (chunks.len() < CHUNKS_MAX).then(Buffer::new);
    };
    let chunk = Arc::into_inner(chunks.remove(at)?)?;
    let buffer = chunk.fetched.into_inner().flatten().map(|(b, _)| b);
    Some(buffer.unwrap_or_else(Buffer::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: usize = 128 << 10;

    fn record(pattern: &ReadPattern, plain_offset: u64) -> Option<Range<u64>> {
        match pattern.record(plain_offset, REQUEST) {
            AccessPattern::Random => None,
            AccessPattern::Sequential(next) => Some(next),
        }
    }

    #[test]
    fn a_sequential_reader_has_every_byte_fetched_once_and_two_chunks_ahead() {
        let pattern = ReadPattern::default();
        let (mut fetched, mut at) = (REQUEST as u64, 0);
        for _ in 0..400 {
            let next = record(&pattern, at).expect("it reads on");
            at += REQUEST as u64;
            if !next.is_empty() {
                assert_eq!(next.start, fetched.max(at), "no gap, nothing twice");
                assert!(next.end - next.start <= CHUNK_PLAIN_MAX);
                fetched = next.end;
            }
            assert!((at..at + 3 * CHUNK_PLAIN_MAX).contains(&fetched));
        }
        assert!(fetched - at >= CHUNK_PLAIN_MAX, "and well ahead");
    }

    #[test]
    fn requests_out_of_order_are_one_sequence() {
        let pattern = ReadPattern::default();
        record(&pattern, 0);
        for pair in 1..50u64 {
            for at in [2 * pair + 1, 2 * pair] {
                assert!(record(&pattern, at * REQUEST as u64).is_some());
            }
        }
    }

    #[test]
    fn random_and_short_reads_have_nothing_fetched() {
        let pattern = ReadPattern::default();
        for at in [1u64 << 30, 5 << 30, 0x1000, 3 << 30, u64::MAX - 5] {
            assert_eq!(record(&pattern, at), None, "{at}");
        }
        let pattern = ReadPattern::default();
        for at in 0..100 {
            assert_eq!(pattern.record(at * 4096, 4096), AccessPattern::Random);
        }
        // One jump ends a sequence; the chunks of the next one start short.
        let pattern = ReadPattern::default();
        for at in 0..40 {
            assert!(record(&pattern, at * REQUEST as u64).is_some());
        }
        for at in [1 << 30, (1 << 30) + REQUEST as u64] {
            assert_eq!(record(&pattern, at), None);
        }
        let next = record(&pattern, (1 << 30) + 2 * REQUEST as u64).expect("a new sequence");
        assert_eq!(next.end - next.start, CHUNK_PLAIN_MIN);
    }
}
