//! Reads a file of frames: each is decrypted as a whole and cached, and all of them are checked against the digest in the
//! manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use md5::{Digest, Md5};
use parking_lot::Mutex;

use super::super::{Reader, read_at, with_buffer};
use super::frames::{
    FRAME_PLAIN_LEN, FernetKey, Frames, LENGTH_LEN, TOKEN_LEN_MAX, TOKEN_LEN_MIN, cipher_len,
};
use crate::cache::{BlockCache, BlockKey};
use crate::error::{Error, Kind, Result};

#[cfg(test)]
mod tests;

/// How many frames are decrypted in parallel, and how far ahead of a sequential reader.
const AT_ONCE: u64 = 4;
/// Most frames that were read out of order and are kept for the digest.
const EARLY_MAX: usize = 12;
/// When this many frames wait for the digest, a thread that reads another frame digests one itself.
const EARLY_MANY: usize = 8;

/// Reads a file of frames.
pub struct FrameReader {
    file: Arc<File>,
    key: FernetKey,
    frames: Frames,
    plain_size: u64,
    cache: Arc<BlockCache>,
    /// Its number in the cache.
    number: u32,
    /// Held while a frame is decrypted, so that several readers of a frame do not all decrypt it.
    loading: [Mutex<()>; AT_ONCE as usize],
    /// The frame that was read last.
    recent: AtomicU64,
    order: Option<Arc<Order>>,
}

/// The digest of the plaintext, as far as it was read in order. The HMACs cannot show that a frame is from another file or
/// position. MD5 takes longer than everything else, so that it is computed in a thread of its own.
struct Order {
    expected: [u8; 16],
    /// Number of frames in the file.
    count: u64,
    /// Frames that wait for their turn. Locked after `digest`, or alone.
    early: Mutex<BTreeMap<u64, Arc<[u8]>>>,
    digest: Mutex<Md5>,
    /// The next frame to digest. Changed under both locks.
    next: AtomicU64,
    wrong: AtomicBool,
    /// The thread is running.
    working: AtomicBool,
}

impl Order {
    fn new(expected: [u8; 16], count: u64) -> Self {
        Self {
            expected,
            count,
            early: Mutex::default(),
            digest: Mutex::default(),
            next: AtomicU64::new(0),
            wrong: AtomicBool::new(false),
            working: AtomicBool::new(false),
        }
    }

    fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Digests the next frame; returns false if it was not read yet. The last frame shows whether the digest is right,
    /// whichever thread digests it.
    fn digest_one(&self, md5: &mut Md5) -> bool {
        let Some(plain) = self.take_next() else {
            return false;
        };
        md5.update(&plain);
        if self.next() == self.count {
            let digest: [u8; 16] = md5.clone().finalize().into();
            self.wrong.store(digest != self.expected, Ordering::Release);
        }
        true
    }

    /// Starts the thread that digests frames, unless it is running. It ends when no frame is ready. A frame that is added at
    /// that moment waits until another one starts the thread again.
    fn digest_in_background(self: &Arc<Self>) {
        if self.working.swap(true, Ordering::AcqRel) {
            return;
        }
        let order = Arc::clone(self);
        let work = move || {
            while order.digest_one(&mut order.digest.lock()) {}
            order.working.store(false, Ordering::Release);
        };
        let name = std::thread::Builder::new().name("digest".into());
        if name.spawn(work).is_err() {
            // The last frame is digested by its reader.
            self.working.store(false, Ordering::Release);
        }
    }

    fn take_next(&self) -> Option<Arc<[u8]>> {
        let mut early = self.early.lock();
        let plain = early.remove(&self.next())?;
        self.next.fetch_add(1, Ordering::AcqRel);
        Some(plain)
    }

    fn check(&self) -> Result<()> {
        if !self.wrong.load(Ordering::Acquire) {
            return Ok(());
        }
        let check =
            "all of its frames are authentic, but they or their order differ from its manifest";
        Err(Kind::Damaged(check.into()).into())
    }
}

impl FrameReader {
    /// A reader of a file whose frames are known. `source_md5` is the digest of its plaintext in the manifest.
    pub fn new(
        file: Arc<File>,
        key: FernetKey,
        frames: Frames,
        plain_size: u64,
        source_md5: Option<[u8; 16]>,
        cache: Arc<BlockCache>,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let count = frames.count(plain_size);
        Self {
            file,
            key,
            frames,
            plain_size,
            cache,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            loading: Default::default(),
            recent: AtomicU64::new(0),
            order: source_md5.map(|expected| Arc::new(Order::new(expected, count))),
        }
    }

    fn count(&self) -> u64 {
        self.frames.count(self.plain_size)
    }

    /// The number of the frame with this byte.
    fn frame_at(&self, plain_offset: u64) -> u64 {
        match &self.frames {
            Frames::Canonical => plain_offset / FRAME_PLAIN_LEN as u64,
            Frames::ListEntry(starts) => {
                starts.partition_point(|(_, plain)| *plain <= plain_offset) as u64 - 1
            }
        }
    }

    /// The start of a frame, in the file and in the plaintext.
    fn start(&self, frame: u64) -> (u64, u64) {
        match &self.frames {
            Frames::Canonical => {
                let plain = frame * FRAME_PLAIN_LEN as u64;
                (cipher_len(plain), plain)
            }
            Frames::ListEntry(starts) => starts[frame as usize],
        }
    }

    fn cache_key(&self, frame: u64) -> BlockKey {
        BlockKey {
            pack: self.number,
            cipher_offset: frame as u32,
        }
    }

    /// Reads and decrypts a frame.
    fn load(&self, frame: u64) -> Result<Arc<[u8]>> {
        let (at, plain_start) = self.start(frame);
        let wrong = |why: &str| {
            Error::from(Kind::Damaged(
                format!("frame {frame} at {at}: {why}").into(),
            ))
        };
        let mut length = [0; LENGTH_LEN as usize];
        read_at(&self.file, at, &mut length)?;
        let token_len = u32::from_be_bytes(length);
        if !(TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&token_len) {
            return Err(wrong(
                "the length of its token is impossible: changed, or not encrypted",
            ));
        }
        let end = if frame + 1 < self.count() {
            self.start(frame + 1).1
        } else {
            self.plain_size
        };
        with_buffer(token_len as usize, |token| {
            read_at(&self.file, at + LENGTH_LEN, token)?;
            let plain = self.key.open(token).map_err(wrong)?;
            if plain.len() as u64 != end - plain_start {
                return Err(wrong("it has the wrong number of bytes"));
            }
            Ok(Arc::from(plain))
        })
    }

    /// Decrypts all frames in order, and returns the digest of the plaintext.
    pub fn digest(&self) -> Result<[u8; 16]> {
        let mut md5 = Md5::new();
        for frame in 0..self.count() {
            md5.update(self.load(frame)?);
        }
        Ok(md5.finalize().into())
    }

    /// The plaintext of a frame.
    fn frame(&self, frame: u64) -> Result<Arc<[u8]>> {
        let before = self.recent.swap(frame, Ordering::Relaxed);
        let key = self.cache_key(frame);
        let plain = match self.cache.get(key) {
            Some(plain) => plain,
            None => {
                let slot = &self.loading[(frame % AT_ONCE) as usize];
                let loading = slot.try_lock().unwrap_or_else(|| {
                    if before == frame || before + 1 == frame {
                        self.load_ahead(frame);
                    }
                    slot.lock()
                });
                // `get` alone would count as another miss.
                let loaded = self.cache.contains(key).then(|| self.cache.get(key));
                let plain = match loaded.flatten() {
                    Some(plain) => plain,
                    None => self.load(frame)?,
                };
                self.cache.insert(key, Arc::clone(&plain));
                drop(loading);
                plain
            }
        };
        self.add_to_digest(frame, &plain)?;
        Ok(plain)
    }

    /// Decrypts one of the next frames while another thread decrypts `frame` for a sequential reader. Errors are ignored:
    /// reading that frame will return them.
    fn load_ahead(&self, frame: u64) {
        for next in (frame + 1..self.count()).take(AT_ONCE as usize - 1) {
            let slot = &self.loading[(next % AT_ONCE) as usize];
            let key = self.cache_key(next);
            if let Some(_loading) = slot.try_lock()
                && !self.cache.contains(key)
            {
                if let Ok(plain) = self.load(next) {
                    self.cache.insert(key, plain);
                }
                return;
            }
        }
    }

    /// Adds a frame to the digest, unless that was done. A wrong digest makes reading the last frame fail, and from then on
    /// every read.
    fn add_to_digest(&self, frame: u64, plain: &Arc<[u8]>) -> Result<()> {
        let Some(order) = &self.order else {
            return Ok(());
        };
        let is_last = frame + 1 == order.count;
        let waiting = {
            let mut early = order.early.lock();
            if frame < order.next() {
                drop(early);
                // Another thread may be digesting the last frame.
                let _digest = is_last.then(|| order.digest.lock());
                return order.check();
            }
            early.entry(frame).or_insert_with(|| Arc::clone(plain));
            while early.len() > EARLY_MAX {
                early.pop_last();
            }
            early.len()
        };
        if is_last {
            self.finish(order)?;
        } else {
            order.digest_in_background();
            if waiting >= EARLY_MANY {
                order.digest_one(&mut order.digest.lock());
            }
        }
        order.check()
    }

    /// Called at the last frame: digests the remaining frames, if nearly all were read in order.
    fn finish(&self, order: &Order) -> Result<()> {
        let mut md5 = order.digest.lock();
        while order.digest_one(&mut md5) {}
        if order.count - order.next() > EARLY_MAX as u64 {
            return Ok(());
        }
        while order.next() < order.count {
            let next = order.next();
            let plain = match self.cache.get(self.cache_key(next)) {
                Some(plain) => plain,
                None => self.load(next)?,
            };
            order.early.lock().insert(next, plain);
            order.digest_one(&mut md5);
        }
        Ok(())
    }
}

impl Reader for FrameReader {
    fn plain_size(&self) -> u64 {
        self.plain_size
    }

    fn read_exact_at(&self, mut plain_offset: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let number = self.frame_at(plain_offset);
            let frame = self.frame(number)?;
            let skip = (plain_offset - self.start(number).1) as usize;
            let len = (frame.len() - skip).min(out.len());
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(&frame[skip..skip + len]);
            out = later;
            plain_offset += len as u64;
        }
        Ok(())
    }
}
