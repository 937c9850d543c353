//! Read-ahead: who goes through a file is told from who jumps in it, and what will be wanted is fetched in large
//! pieces, by threads of its own and past the system's page cache, while requests open what has come.
//!
//! So each byte is read once, into memory that is used again and again. Through the page cache a stream takes fresh
//! pages all the time, and copies out of them: a cold file of 1 GiB on a virtual disk was read at 1,400 MiB/s, and is at
//! 2,000. Of a file that lies in small pieces, the page cache keeps what lies between them until its turn comes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mm::Advice;

use crate::error::{Error, Kind, Result};
use crate::object::PackId;
use crate::overdue;
use crate::pack::Packs;
use crate::store::STREAM_ALIGNMENT;

/// A huge page on x86-64, and on aarch64 with small pages of 4 KiB. A disk fills one faster than as many small ones: a
/// virtual one at 3.4 GB/s, not 1.4.
const HUGE_PAGE_LEN: usize = 2 << 20;
/// Longest range of a pack that is one piece wherever it starts, in bytes: whole pages around it have to fit, too.
pub const PIECE_CIPHER_MAX: u32 = HUGE_PAGE_LEN as u32 - 2 * STREAM_ALIGNMENT;
/// Longest piece, in bytes of the file: seven of the kernel's requests. Sealed, it fits.
const PIECE_PLAIN_MAX: u64 = 7 << 18;
/// The first piece, in bytes of the file; then twice as much each time. Many files are read only at their beginning.
const PIECE_PLAIN_MIN: u64 = 2 << 18;
/// Pieces that are on their way ahead of one reader. More were no faster.
const PIECES_AHEAD: u64 = 2;
/// Pieces kept, those on their way counted in: 32 MiB for all readers together.
const PIECES_MAX: usize = 16;
/// A piece so old, that nobody took, waits for nobody: its reader has stopped or jumped.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);
/// While what one has fetched is taken up, the other fetches: with one alone the disk waits.
const THREADS: usize = 2;

/// How a file is read.
#[derive(Debug, Default)]
pub struct ReadPattern(Mutex<Pattern>);

#[derive(Debug)]
struct Pattern {
    /// Where the furthest request of the sequence ended.
    plain_end: u64,
    /// The request before that led there.
    in_sequence: bool,
    /// Up to where pieces were asked for.
    fetched_end: u64,
    /// The next one's length.
    piece_len: u64,
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            plain_end: 0,
            in_sequence: false,
            fetched_end: 0,
            piece_len: PIECE_PLAIN_MIN,
        }
    }
}

/// What a request is.
#[derive(Debug, PartialEq, Eq)]
pub enum Access {
    /// One somewhere in the file.
    Jump,
    /// One of a sequence. What is to be fetched now, in bytes of the file, maybe nothing.
    Sequence(Range<u64>),
}

impl ReadPattern {
    /// Notes a request. Those of one reader overtake each other, by as much as the kernel reads ahead.
    pub fn note(&self, plain_offset: u64, len: usize) -> Access {
        const NEAR: u64 = 4 << 20;
        const SHORT: usize = 16 << 10;
        let mut pattern = self.0.lock();
        let plain_end = plain_offset.saturating_add(len as u64);
        if plain_offset.abs_diff(pattern.plain_end) > NEAR || len < SHORT {
            *pattern = Pattern {
                plain_end,
                ..Pattern::default()
            };
            return Access::Jump;
        }
        pattern.plain_end = pattern.plain_end.max(plain_end);
        if !std::mem::replace(&mut pattern.in_sequence, true) && plain_offset > 0 {
            return Access::Jump;
        }
        let start = pattern.fetched_end.max(pattern.plain_end);
        if start - pattern.plain_end >= PIECES_AHEAD * pattern.piece_len {
            return Access::Sequence(start..start);
        }
        pattern.fetched_end = start.saturating_add(pattern.piece_len);
        pattern.piece_len = (2 * pattern.piece_len).min(PIECE_PLAIN_MAX);
        Access::Sequence(start..pattern.fetched_end)
    }
}

/// Memory for one piece: a huge page where the system has one.
struct Buffer {
    /// Twice as long as needed: somewhere inside starts a huge page. What is not touched takes no memory.
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
        // SAFETY: the range lies in `memory`, and the advice changes no contents. Where it is not taken, small pages do.
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

/// A range of a pack, fetched or on its way.
pub struct Piece {
    pack: PackId,
    /// A multiple of [`STREAM_ALIGNMENT`].
    cipher_start: u32,
    cipher_end: u32,
    /// The bytes, and how many there were; `None` inside where they could not be fetched.
    fetched: OnceLock<Option<(Buffer, usize)>>,
    /// Bytes that nobody has taken yet; below zero where some were taken twice.
    left: AtomicI64,
    made: Instant,
}

impl Piece {
    /// Whether a range of a pack lies in it.
    pub fn covers(&self, pack: PackId, cipher: &Range<u32>) -> bool {
        self.pack == pack && self.cipher_start <= cipher.start && cipher.end <= self.cipher_end
    }

    /// The bytes of a range that it covers; waits for them. `None` where they could not be fetched: who reads them in
    /// another way learns why.
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
        self.left.fetch_sub(taken, Ordering::Relaxed);
        let (from, to) = (
            cipher.start - self.cipher_start,
            cipher.end - self.cipher_start,
        );
        buffer.bytes()[..*len].get(from as usize..to as usize)
    }
}

/// A piece that waits for a thread. However that goes, whoever waits for the piece is told.
struct Fetch {
    piece: Arc<Piece>,
    buffer: Option<Buffer>,
}

impl Fetch {
    fn run(mut self, packs: &Packs) {
        let Some(mut buffer) = self.buffer.take() else {
            return;
        };
        let piece = &self.piece;
        let len = (piece.cipher_end - piece.cipher_start).next_multiple_of(STREAM_ALIGNMENT);
        let fetched = packs.get(piece.pack).and_then(|reader| {
            reader.read_stream(piece.cipher_start, &mut buffer.bytes_mut()[..len as usize])
        });
        // Set once: here, or else when this is dropped.
        let _ = piece.fetched.set(fetched.ok().map(|len| (buffer, len)));
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let _ = self.piece.fetched.set(None);
    }
}

/// The pieces, and the threads that fetch them.
pub struct Ahead {
    pieces: Mutex<VecDeque<Arc<Piece>>>,
    queue: Option<SyncSender<Fetch>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ahead {
    /// Starts the threads.
    pub fn start(packs: &Arc<Packs>) -> Result<Self> {
        let (sender, receiver) = sync_channel(PIECES_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut ahead = Self {
            pieces: Mutex::default(),
            queue: Some(sender),
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let (packs, receiver) = (packs.clone(), receiver.clone());
            let thread = std::thread::Builder::new()
                .name("readahead".into())
                .spawn(move || {
                    while let Some(fetch) = next(&receiver) {
                        fetch.run(&packs);
                    }
                })
                .map_err(|e| Error::new(Kind::Io(e), "a thread that reads ahead"))?;
            ahead.threads.push(thread);
        }
        Ok(ahead)
    }

    /// The piece that a range lies in, if there is one.
    pub fn find(&self, pack: PackId, cipher: &Range<u32>) -> Option<Arc<Piece>> {
        let pieces = self.pieces.lock();
        let found = pieces.iter().rev().find(|p| p.covers(pack, cipher));
        found.cloned()
    }

    /// Has a range of a pack fetched, [`PIECE_CIPHER_MAX`] long at most, of which somebody will take `wanted` bytes.
    /// Where all memory is in use nothing is done: read-ahead is a help, not a promise.
    pub fn fetch(&self, pack: PackId, cipher: Range<u32>, wanted: u64) {
        debug_assert!(cipher.start <= cipher.end && cipher.end - cipher.start <= PIECE_CIPHER_MAX);
        let mut pieces = self.pieces.lock();
        let Some(buffer) = room(&mut pieces) else {
            return;
        };
        let piece = Arc::new(Piece {
            pack,
            cipher_start: cipher.start / STREAM_ALIGNMENT * STREAM_ALIGNMENT,
            cipher_end: cipher.end,
            fetched: OnceLock::new(),
            left: AtomicI64::new(i64::try_from(wanted).unwrap_or(i64::MAX)),
            made: Instant::now(),
        });
        let fetch = Fetch {
            piece: piece.clone(),
            buffer: Some(buffer),
        };
        if self
            .queue
            .as_ref()
            .is_some_and(|q| q.try_send(fetch).is_ok())
        {
            pieces.push_back(piece);
        }
    }

    /// Waits until all that was asked for is there, so that a test knows what is.
    #[cfg(test)]
    pub fn settle(&self) {
        let pieces = self.pieces.lock();
        assert!(pieces.len() <= PIECES_MAX);
        for piece in &*pieces {
            piece.fetched.wait();
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // It has no result; a panic was logged.
            let _ = thread.join();
        }
    }
}

fn next(fetches: &Mutex<Receiver<Fetch>>) -> Option<Fetch> {
    fetches.lock().recv().ok()
}

/// Memory for one more piece: that of one which was taken whole, or which nobody came for, else new.
fn room(pieces: &mut VecDeque<Arc<Piece>>) -> Option<Buffer> {
    let done = |p: &Arc<Piece>| {
        // Who takes from a piece, or fetches it, has an `Arc` of it, which nobody gets but under the lock held here.
        Arc::strong_count(p) == 1
            && (p.left.load(Ordering::Relaxed) <= 0 || p.made.elapsed() > FORGOTTEN_AFTER)
    };
    let Some(place) = pieces.iter().position(done) else {
        return (pieces.len() < PIECES_MAX).then(Buffer::new);
    };
    let piece = Arc::into_inner(pieces.remove(place)?)?;
    let buffer = piece.fetched.into_inner().flatten().map(|(b, _)| b);
    Some(buffer.unwrap_or_else(Buffer::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: usize = 128 << 10;

    fn note(pattern: &ReadPattern, plain_offset: u64) -> Option<Range<u64>> {
        match pattern.note(plain_offset, REQUEST) {
            Access::Jump => None,
            Access::Sequence(next) => Some(next),
        }
    }

    #[test]
    fn a_sequence_has_all_of_the_file_fetched_once_and_stays_two_pieces_behind() {
        let pattern = ReadPattern::default();
        let (mut fetched, mut at) = (REQUEST as u64, 0);
        for _ in 0..400 {
            let next = note(&pattern, at).expect("it reads on");
            at += REQUEST as u64;
            if !next.is_empty() {
                assert_eq!(next.start, fetched.max(at), "no gap, nothing twice");
                assert!(next.end - next.start <= PIECE_PLAIN_MAX);
                fetched = next.end;
            }
            assert!((at..at + 3 * PIECE_PLAIN_MAX).contains(&fetched));
        }
        assert!(fetched - at >= PIECE_PLAIN_MAX, "and well ahead");
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_sequence() {
        let pattern = ReadPattern::default();
        note(&pattern, 0);
        for pair in 1..50u64 {
            for at in [2 * pair + 1, 2 * pair] {
                assert!(note(&pattern, at * REQUEST as u64).is_some());
            }
        }
    }

    #[test]
    fn who_jumps_or_reads_little_has_nothing_fetched() {
        let pattern = ReadPattern::default();
        for at in [1u64 << 30, 5 << 30, 0x1000, 3 << 30, u64::MAX - 5] {
            assert_eq!(note(&pattern, at), None, "{at}");
        }
        let pattern = ReadPattern::default();
        for at in 0..100 {
            assert_eq!(pattern.note(at * 4096, 4096), Access::Jump);
        }
        // One jump ends a sequence, and its pieces begin short again.
        let pattern = ReadPattern::default();
        for at in 0..40 {
            assert!(note(&pattern, at * REQUEST as u64).is_some());
        }
        for at in [1 << 30, (1 << 30) + REQUEST as u64] {
            assert_eq!(note(&pattern, at), None);
        }
        let next = note(&pattern, (1 << 30) + 2 * REQUEST as u64).expect("a new sequence");
        assert_eq!(next.end - next.start, PIECE_PLAIN_MIN);
    }
}
