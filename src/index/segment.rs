//! Segments: encrypted frames in a write-once file (`man/hushfs-format.5`, section SEGMENTS).
//!
//! A segment grows in the device's own folder, frame by frame; once closed it is published and never changed. A frame
//! of a published segment that fails to decrypt is damage; only an open segment may have a torn end.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::encoding::{from_cbor, to_cbor};
use super::kept::Kept;
use super::record::{Frame, Head, SegmentFooter, SegmentHeader};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey, random};
use crate::error::{Error, Kind, Result};
use crate::object::{DeviceId, SegmentId};
use crate::pack::padme_len;
use crate::store::{Growing, Object, Store};

/// Length in bytes at which a segment is published.
pub const SEGMENT_CIPHER_LEN: u64 = 4 * 1024 * 1024;
/// Maximum plaintext of a frame, in bytes: enough to flush the largest write buffer in the smallest pieces.
pub(super) const FRAME_PLAIN_LEN_MAX: usize = 32 * 1024 * 1024;
/// Minimum length of a published segment.
const PADDING_FLOOR: u64 = 4096;
pub(super) const LENGTH_SEALED_LEN: usize = 4 + SEAL_OVERHEAD;
const TRAILER_PLAIN_LEN: usize = 32;
const TRAILER_SEALED_LEN: usize = TRAILER_PLAIN_LEN + SEAL_OVERHEAD;

/// The kind of an encrypted message. It is part of the associated data, so that one kind cannot be taken for another.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Length = 0,
    Frame = 1,
    Footer = 2,
    Trailer = 3,
}

pub(super) fn aad(part: Part, cipher_offset: u64) -> [u8; 9] {
    let mut aad = [part as u8; 9];
    aad[1..].copy_from_slice(&cipher_offset.to_le_bytes());
    aad
}

/// Writes a segment.
pub struct SegmentWriter {
    id: SegmentId,
    file: Arc<dyn Growing>,
    key: SealKey,
    device: DeviceId,
    number: u64,
    frames: u64,
    cipher_len: u64,
    digest: Sha256,
    buffer: Vec<u8>,
    /// A copy of everything written; empty for a snapshot, which may be long and does not need it.
    kept: Vec<u8>,
    failed: bool,
}

/// A segment with its footer; not yet synced or published.
pub struct ClosedSegment {
    /// Its id.
    pub id: SegmentId,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub cipher_len: u64,
    /// The file.
    pub file: Arc<dyn Growing>,
}

impl SegmentWriter {
    /// Starts a segment in the store's `new/` folder.
    pub fn create(
        store: &dyn Store,
        master: &MasterKey,
        id: SegmentId,
        opening: &SegmentHeader,
    ) -> Result<Self> {
        let header = Header::new(Magic::Segment, id.object());
        let mut writer = Self {
            id,
            file: store.create(id.object())?,
            key: master.object_key(&header),
            device: opening.device,
            number: opening.number,
            frames: 0,
            cipher_len: 0,
            digest: Sha256::new(),
            buffer: header.encode().to_vec(),
            kept: Vec::new(),
            failed: false,
        };
        let written = writer.write_message(Part::Frame, &to_cbor(opening));
        if written.is_err() {
            store.discard(id.object())?;
        }
        written.map(|()| writer)
    }

    /// Its id.
    pub fn id(&self) -> SegmentId {
        self.id
    }
    /// The file, for syncing.
    pub fn file(&self) -> &Arc<dyn Growing> {
        &self.file
    }
    /// Its number in this device's order; 0 for a snapshot.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// Bytes written.
    pub fn cipher_len(&self) -> u64 {
        self.cipher_len
    }
    /// Frames written, including the header.
    pub fn frames(&self) -> u64 {
        self.frames
    }
    /// A copy of what was written to it, whatever became of the file.
    pub fn kept(&self) -> Arc<dyn Object> {
        Arc::new(Kept {
            name: self.file.name(),
            bytes: self.kept.clone(),
        })
    }
    /// Whether a write or sync failed: nothing may be added.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Refuses further frames after a failed sync.
    pub fn mark_failed(&mut self) {
        self.failed = true;
    }

    /// Undoes the last frame as if its write had failed, and refuses further frames.
    pub fn take_back(&mut self) {
        self.frames -= 1;
        self.failed = true;
    }

    /// Appends a frame: written, but not synced.
    pub fn append(&mut self, frame: &Frame) -> Result<()> {
        self.write_message(Part::Frame, &to_cbor(frame))
    }

    /// Appends the footer, padding and trailer.
    pub fn close(&mut self, needs: Vec<Head>) -> Result<ClosedSegment> {
        let closing = to_cbor(&SegmentFooter {
            frames: self.frames,
            needs,
        });
        self.seal_message(Part::Footer, &closing)?;
        let true_len = self.cipher_len + self.buffer.len() as u64;
        let padded_len = padme_len(true_len + TRAILER_SEALED_LEN as u64, PADDING_FLOOR);
        let from = self.buffer.len();
        self.buffer.resize(
            (padded_len - self.cipher_len) as usize - TRAILER_SEALED_LEN,
            0,
        );
        random(&mut self.buffer[from..])?;
        let (end, number) = (true_len.to_le_bytes(), self.number.to_le_bytes());
        let aad = aad(Part::Trailer, padded_len - TRAILER_SEALED_LEN as u64);
        self.key
            .seal(&aad, &[&end, &self.device.0, &number], &mut self.buffer)?;
        self.flush_buffer()?;
        let sha256 = std::mem::take(&mut self.digest).finalize().into();
        // Nothing may follow the trailer.
        self.failed = true;
        Ok(ClosedSegment {
            id: self.id,
            sha256,
            cipher_len: self.cipher_len,
            file: self.file.clone(),
        })
    }

    fn write_message(&mut self, part: Part, plain: &[u8]) -> Result<()> {
        self.seal_message(part, plain)?;
        self.flush_buffer()?;
        self.frames += 1;
        Ok(())
    }

    /// Appends the encrypted length and message to the buffer.
    fn seal_message(&mut self, part: Part, plain: &[u8]) -> Result<()> {
        if self.failed {
            return Err(Error::new(Kind::Poisoned, self.file.name()));
        }
        if plain.len() > FRAME_PLAIN_LEN_MAX {
            return Err(Error::new(Kind::TooBig, self.file.name()));
        }
        let at = self.cipher_len + self.buffer.len() as u64;
        let len = (plain.len() as u32).to_le_bytes();
        self.key
            .seal(&aad(Part::Length, at), &[&len], &mut self.buffer)?;
        self.key.seal(
            &aad(part, at + LENGTH_SEALED_LEN as u64),
            &[plain],
            &mut self.buffer,
        )
    }

    fn flush_buffer(&mut self) -> Result<()> {
        let written = self.file.write_at(&self.buffer, self.cipher_len);
        self.failed |= written.is_err();
        written?;
        self.digest.update(&self.buffer);
        self.cipher_len += self.buffer.len() as u64;
        if self.number != 0 {
            self.kept.extend_from_slice(&self.buffer);
        }
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }
}

/// Whether a segment is complete or may have a torn end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// Published: anything that fails to decrypt is damage.
    Published,
    /// Left in `new/`: it ends at the first frame that fails to decrypt.
    Leftover,
}

/// The digest of a segment that is being read.
enum Hash {
    Running(Sha256),
    Known([u8; 32]),
}

/// Reads a segment.
pub struct SegmentReader {
    object: Arc<dyn Object>,
    name: String,
    id: SegmentId,
    key: SealKey,
    state: SegmentState,
    /// End of the last frame; for a leftover, the file's length.
    true_len: u64,
    file_len: u64,
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    digest: Hash,
    frames: u64,
    opening: SegmentHeader,
    writable: bool,
}

/// What is known at the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The footer; a leftover may have none.
    pub closing: Option<SegmentFooter>,
    /// SHA-256 of the whole file; meaningless for a leftover.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub cipher_len: u64,
    /// End of the last frame that decrypts.
    pub frames_end: u64,
}

impl SegmentReader {
    /// Opens a segment and reads its header.
    pub fn open(
        object: Arc<dyn Object>,
        id: SegmentId,
        master: &MasterKey,
        state: SegmentState,
    ) -> Result<Self> {
        let name = object.name();
        let mut bytes = [0; HEADER_LEN];
        object.read_at(&mut bytes, 0)?;
        let header = Header::decode(&bytes, Magic::Segment, id.object(), &name)?;
        let key = master.object_key(&header);
        let file_len = object.cipher_len()?;
        let trailer = match state {
            SegmentState::Published => Some(read_trailer(&*object, &key, file_len, &name)?),
            SegmentState::Leftover => None,
        };
        let true_len = trailer.map_or(file_len, |(true_len, ..)| true_len);
        let digest = Hash::Running(Sha256::new_with_prefix(bytes));
        let at = HEADER_LEN as u64;
        let (buffer, buffer_at) = (Vec::new(), at);
        let mut reader = Self {
            object,
            name,
            id,
            key,
            state,
            true_len,
            file_len,
            at,
            buffer,
            buffer_at,
            digest,
            frames: 0,
            opening: SegmentHeader::default(),
            writable: header.writable(),
        };
        let Some((Part::Frame, plain)) = reader.message()? else {
            return Err(reader.damaged("no header"));
        };
        let opening: SegmentHeader = from_cbor(&plain).map_err(|e| reader.damaged(e))?;
        if (opening.number == 0) != opening.stamp_segments.is_some() {
            return Err(reader.damaged("a base with a number, or a segment without one"));
        }
        if trailer
            .is_some_and(|(_, device, number)| (device, number) != (opening.device, opening.number))
        {
            return Err(reader.damaged("header and trailer name different writers"));
        }
        reader.opening = opening;
        Ok(reader)
    }

    /// Sets its digest, if that is known already.
    pub fn digest_is(&mut self, sha256: [u8; 32]) {
        self.digest = Hash::Known(sha256);
    }

    /// Its id.
    pub fn id(&self) -> SegmentId {
        self.id
    }
    /// Its name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// False if the segment has a feature that a writer must know and this version does not.
    pub fn writable(&self) -> bool {
        self.writable
    }
    /// Its header.
    pub fn opening(&self) -> &SegmentHeader {
        &self.opening
    }

    /// Calls `each` with every frame, in order.
    pub fn frames(mut self, mut each: impl FnMut(Frame) -> Result<()>) -> Result<SegmentEnd> {
        loop {
            match self.message()? {
                Some((Part::Frame, plain)) => {
                    let frame = from_cbor(&plain).map_err(|e| self.damaged(e))?;
                    each(frame)?;
                }
                Some((_, plain)) => {
                    let closing: SegmentFooter = from_cbor(&plain).map_err(|e| self.damaged(e))?;
                    return self.end(Some(closing));
                }
                None => return self.end(None),
            }
        }
    }

    fn end(mut self, closing: Option<SegmentFooter>) -> Result<SegmentEnd> {
        if let Some(closing) = &closing {
            // The footer itself was counted when it was read.
            if closing.frames != self.frames - 1 {
                return Err(self.damaged("frames are missing"));
            }
            if self.state == SegmentState::Published && self.at != self.true_len {
                return Err(self.damaged("bytes after the footer"));
            }
        }
        let frames_end = self.at;
        if self.state == SegmentState::Published && matches!(self.digest, Hash::Running(_)) {
            while self.at < self.file_len {
                let step = (self.file_len - self.at).min(1 << 20) as usize;
                self.fill(step)?;
                self.consume(step);
            }
        }
        Ok(SegmentEnd {
            closing,
            sha256: match self.digest {
                Hash::Running(hash) => hash.finalize().into(),
                Hash::Known(sha256) => sha256,
            },
            cipher_len: self.file_len,
            frames_end,
        })
    }

    fn damaged(&self, check: impl std::fmt::Display) -> Error {
        Error::damaged(
            &self.name,
            format_args!("{check} (frame {} at byte {})", self.frames, self.at),
        )
    }

    /// The next message; `None` at the end or at the torn frame of a leftover.
    fn message(&mut self) -> Result<Option<(Part, Vec<u8>)>> {
        let torn = |reader: &Self, why: &str| match reader.state {
            SegmentState::Published => Err(reader.damaged(why)),
            SegmentState::Leftover => Ok(None),
        };
        if self.at + (LENGTH_SEALED_LEN as u64) > self.true_len {
            return torn(self, "no footer");
        }
        self.fill(LENGTH_SEALED_LEN)?;
        let mut len = [0; 4];
        if !self.key.open(
            &aad(Part::Length, self.at),
            self.peek(0, LENGTH_SEALED_LEN),
            &mut len,
        ) {
            return torn(self, "the length of a frame fails to decrypt");
        }
        let plain_len = u32::from_le_bytes(len) as usize;
        if plain_len > FRAME_PLAIN_LEN_MAX {
            return Err(self.damaged("a frame of impossible length"));
        }
        let sealed_len = plain_len + SEAL_OVERHEAD;
        let whole = LENGTH_SEALED_LEN + sealed_len;
        if self.at + whole as u64 > self.true_len {
            return torn(self, "a frame is truncated");
        }
        self.fill(whole)?;
        let at = self.at + LENGTH_SEALED_LEN as u64;
        let mut plain = vec![0; plain_len];
        for part in [Part::Frame, Part::Footer] {
            if self.key.open(
                &aad(part, at),
                self.peek(LENGTH_SEALED_LEN, sealed_len),
                &mut plain,
            ) {
                self.consume(whole);
                self.frames += 1;
                return Ok(Some((part, plain)));
            }
        }
        torn(self, "a frame fails to decrypt")
    }

    fn peek(&self, skip: usize, len: usize) -> &[u8] {
        let from = (self.at - self.buffer_at) as usize + skip;
        &self.buffer[from..from + len]
    }

    /// Fills the buffer so that it has the next `len` bytes.
    fn fill(&mut self, len: usize) -> Result<()> {
        const CHUNK: u64 = 256 * 1024;
        let have = self.buffer_at + self.buffer.len() as u64;
        if self.at + len as u64 <= have {
            return Ok(());
        }
        self.buffer.drain(..(self.at - self.buffer_at) as usize);
        self.buffer_at = self.at;
        let from = self.buffer.len();
        let want = (self.at + len as u64).max(have + CHUNK).min(self.file_len);
        self.buffer.resize((want - self.at) as usize, 0);
        self.object.read_at(&mut self.buffer[from..], have)
    }

    fn consume(&mut self, len: usize) {
        let from = (self.at - self.buffer_at) as usize;
        if let (SegmentState::Published, Hash::Running(hash)) = (self.state, &mut self.digest) {
            hash.update(&self.buffer[from..from + len]);
        }
        self.at += len as u64;
    }
}

/// Decrypts the trailer; returns the end of the last frame, the writer and the number.
fn read_trailer(
    object: &dyn Object,
    key: &SealKey,
    file_len: u64,
    name: &str,
) -> Result<(u64, DeviceId, u64)> {
    let at = file_len.saturating_sub(TRAILER_SEALED_LEN as u64);
    let mut sealed = [0; TRAILER_SEALED_LEN];
    object.read_at(&mut sealed, at)?;
    let mut trailer = [0; TRAILER_PLAIN_LEN];
    if !key.open(&aad(Part::Trailer, at), &sealed, &mut trailer) {
        return Err(Error::damaged(
            name,
            "the trailer fails to decrypt: truncated, changed, or of another library",
        ));
    }
    let (mut true_len, mut device, mut number) = ([0; 8], DeviceId::default(), [0; 8]);
    true_len.copy_from_slice(&trailer[..8]);
    device.0.copy_from_slice(&trailer[8..24]);
    number.copy_from_slice(&trailer[24..]);
    Some(u64::from_le_bytes(true_len))
        .filter(|len| *len <= at)
        .map(|len| (len, device, u64::from_le_bytes(number)))
        .ok_or_else(|| Error::damaged(name, "impossible length"))
}

#[cfg(test)]
mod tests;
