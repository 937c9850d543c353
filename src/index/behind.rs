//! What lies behind a frame that does not open, in a leftover: a crash takes the end of a file, or pages of what was
//! never synced. Anything else that is missing there was durable, and something has damaged it.

use super::encoding::from_cbor;
use super::record::Frame;
use super::segment::{FRAME_PLAIN_LEN_MAX, LENGTH_SEALED_LEN, Part, aad};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey};
use crate::error::Result;
use crate::object::SegmentId;
use crate::store::Object;

/// Bytes that are looked at together.
const WINDOW: usize = 1 << 20;
/// A segment is published at 4 MiB. Only one that could not be, for long, is longer than this.
const SEARCHED_LEN_MAX: u64 = 64 << 20;

/// Frames that cannot be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behind {
    /// How many open.
    pub frames: u64,
    /// The counter of the last one that says that what came before it was durable; the first frame of a segment says it
    /// of other segments, and may itself be all there was.
    pub durable: Option<u64>,
}

impl Behind {
    /// Looks for frames in a segment behind `cipher_offset`, where one ends (0 where the opening does not open), at
    /// every byte: a length prefix opens only where it was written. Takes a second for 4 MiB, so it is for what is
    /// damaged only, and looks at 64 MiB at most.
    pub fn search(
        object: &dyn Object,
        id: SegmentId,
        master: &MasterKey,
        cipher_offset: u64,
    ) -> Result<Self> {
        let end = object.cipher_len()?.min(cipher_offset + SEARCHED_LEN_MAX);
        let mut bytes = [0; HEADER_LEN];
        if end >= HEADER_LEN as u64 {
            object.read_at(&mut bytes, 0)?;
        }
        // Where the header is what is damaged, it said nothing that is not known.
        let header = Header::decode(&bytes, Magic::Segment, id.object(), &object.name());
        let key = master.object_key(&header.unwrap_or(Header::new(Magic::Segment, id.object())));
        let mut behind = Self::default();
        let mut at = cipher_offset.max(HEADER_LEN as u64);
        let mut window = Vec::new();
        while at + LENGTH_SEALED_LEN as u64 <= end {
            window.resize((end - at).min(WINDOW as u64) as usize, 0);
            object.read_at(&mut window, at)?;
            let Some((skip, plain_len)) = find_length(&key, &window, at) else {
                at += (window.len() - LENGTH_SEALED_LEN + 1) as u64;
                continue;
            };
            at += skip as u64;
            match read_frame(object, &key, at, plain_len, end)? {
                Some(frame) => {
                    let is_first = cipher_offset == 0 && behind.frames == 0;
                    if frame.durable_before && !is_first {
                        behind.durable = Some(frame.counter);
                    }
                    behind.frames += 1;
                    at += (LENGTH_SEALED_LEN + plain_len + SEAL_OVERHEAD) as u64;
                }
                None => at += 1,
            }
        }
        Ok(behind)
    }
}

/// The first place in `window`, which begins at `cipher_offset`, where a length opens; and the length.
fn find_length(key: &SealKey, window: &[u8], cipher_offset: u64) -> Option<(usize, usize)> {
    let mut len = [0; 4];
    window
        .windows(LENGTH_SEALED_LEN)
        .enumerate()
        // Holes, and what was allocated and never written.
        .filter(|(_, sealed)| sealed.iter().any(|b| *b != 0))
        .find(|(i, sealed)| {
            key.open(
                &aad(Part::Length, cipher_offset + *i as u64),
                sealed,
                &mut len,
            )
        })
        .map(|(i, _)| (i, u32::from_le_bytes(len) as usize))
}

/// The frame whose length stands at `cipher_offset`; `None` where it does not open, or is something else.
fn read_frame(
    object: &dyn Object,
    key: &SealKey,
    cipher_offset: u64,
    plain_len: usize,
    file_len: u64,
) -> Result<Option<Frame>> {
    let from = cipher_offset + LENGTH_SEALED_LEN as u64;
    if plain_len > FRAME_PLAIN_LEN_MAX || from + (plain_len + SEAL_OVERHEAD) as u64 > file_len {
        return Ok(None);
    }
    let mut sealed = vec![0; plain_len + SEAL_OVERHEAD];
    object.read_at(&mut sealed, from)?;
    let mut plain = vec![0; plain_len];
    if !key.open(&aad(Part::Frame, from), &sealed, &mut plain) {
        return Ok(None);
    }
    Ok(from_cbor(&plain).ok())
}
