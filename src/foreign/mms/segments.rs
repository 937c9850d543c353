//! Encrypted objects: segments that are encrypted separately, all with the file's initialisation vector
//! (`man/hushfs-foreign.5`: Music objects).

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::super::cipher::{Iv, Key, padded_len, unpadded_len};
use super::super::sealer::Seal;
use super::super::{PlainReader, Reader, with_buffer};
use crate::error::{Kind, Result};

/// Bytes of plaintext in a segment.
pub const SEGMENT_PLAIN_LEN: usize = 1008;
/// Bytes of a full segment, encrypted.
pub const SEGMENT_CIPHER_LEN: usize = 1024;
/// Segments that are encrypted or read in one step: as many as a request of 256 KiB touches.
const BATCH: usize = 262;

/// The length of an object with `plain_len` bytes of plaintext (`man/hushfs-foreign.5`: Music objects).
pub fn cipher_len(plain_len: u64) -> u64 {
    let full = plain_len / SEGMENT_PLAIN_LEN as u64 * SEGMENT_CIPHER_LEN as u64;
    match plain_len % SEGMENT_PLAIN_LEN as u64 {
        0 => full,
        rest => full + padded_len(rest),
    }
}

/// Encrypts a file, segment by segment.
pub struct SegmentSeal {
    /// The library's internal key.
    pub key: Key,
    /// The file's initialisation vector, which all of its segments share.
    pub iv: Iv,
}

impl Seal for SegmentSeal {
    fn unit_plain_len(&self) -> usize {
        BATCH * SEGMENT_PLAIN_LEN
    }

    fn seal(&mut self, plain: &[u8], _last: bool, out: &mut Vec<u8>) -> Result<()> {
        for segment in plain.chunks(SEGMENT_PLAIN_LEN) {
            self.key.encrypt_padded(&self.iv, segment, out);
        }
        Ok(())
    }

    fn reader(&self, file: Arc<File>, plain_size: u64) -> Arc<dyn Reader> {
        let stored = Arc::new(PlainReader {
            file,
            plain_size: cipher_len(plain_size),
        });
        let key = self.key.clone();
        Arc::new(SegmentReader::new(stored, key, self.iv, plain_size))
    }

    fn iv(&self) -> Option<Iv> {
        Some(self.iv)
    }
}

/// Reads an encrypted object.
pub struct SegmentReader {
    stored: Arc<dyn Reader>,
    key: Key,
    iv: Iv,
    plain_size: u64,
}

impl SegmentReader {
    /// A reader of an object, whose length must fit `plain_size`. `stored` reads its encrypted bytes.
    pub fn new(stored: Arc<dyn Reader>, key: Key, iv: Iv, plain_size: u64) -> Self {
        Self {
            stored,
            key,
            iv,
            plain_size,
        }
    }

    /// Decrypts segment `number` in place, and returns its plaintext.
    fn open_segment<'a>(&self, number: u64, segment: &'a mut [u8]) -> Result<&'a [u8]> {
        self.key.decrypt_blocks(&self.iv, segment);
        let left = self.plain_size - number * SEGMENT_PLAIN_LEN as u64;
        let expected = left.min(SEGMENT_PLAIN_LEN as u64) as usize;
        if unpadded_len(segment) != Some(expected) {
            let check =
                format!("the padding of segment {number} is wrong: changed, or another key");
            return Err(Kind::Damaged(check.into()).into());
        }
        Ok(&segment[..expected])
    }
}

impl SegmentReader {
    /// Fills `out` from `plain_offset`, which is in these segments.
    fn read_batch(&self, numbers: Range<u64>, plain_offset: u64, out: &mut [u8]) -> Result<()> {
        let start = numbers.start * SEGMENT_CIPHER_LEN as u64;
        let stop = (numbers.end * SEGMENT_CIPHER_LEN as u64).min(cipher_len(self.plain_size));
        with_buffer((stop - start) as usize, |cipher| {
            self.stored.read_exact_at(start, cipher)?;
            let mut done = 0;
            for (number, segment) in numbers.zip(cipher.chunks_mut(SEGMENT_CIPHER_LEN)) {
                let plain = self.open_segment(number, segment)?;
                let at = plain_offset + done as u64;
                let plain = &plain[(at - number * SEGMENT_PLAIN_LEN as u64) as usize..];
                let len = plain.len().min(out.len() - done);
                out[done..done + len].copy_from_slice(&plain[..len]);
                done += len;
            }
            Ok(())
        })
    }
}

impl Reader for SegmentReader {
    fn plain_size(&self) -> u64 {
        self.plain_size
    }

    fn read_exact_at(&self, mut plain_offset: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let first = plain_offset / SEGMENT_PLAIN_LEN as u64;
            let end = (plain_offset + out.len() as u64).div_ceil(SEGMENT_PLAIN_LEN as u64);
            let end = end.min(first + BATCH as u64);
            let plain_end = end * SEGMENT_PLAIN_LEN as u64;
            let len = out.len().min((plain_end - plain_offset) as usize);
            let (now, later) = out.split_at_mut(len);
            self.read_batch(first..end, plain_offset, now)?;
            out = later;
            plain_offset += len as u64;
        }
        Ok(())
    }
}
