//! Frames after one that fails to decrypt, in a leftover segment. A crash loses the end of a file, or pages that were
//! never synced; if anything else is missing, durable data was damaged.

use super::encoding::from_cbor;
use super::record::Frame;
use super::segment::{FRAME_PLAIN_LEN_MAX, LENGTH_SEALED_LEN, Part, aad};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey};
use crate::error::Result;
use crate::object::SegmentId;
use crate::store::Object;

/// Bytes read at a time.
const WINDOW: usize = 1 << 20;
/// A segment is published at 4 MiB. It only gets longer than this if publishing failed for a long time.
const SEARCHED_LEN_MAX: u64 = 64 << 20;

/// Frames after a damaged place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TailScan {
    /// How many frames decrypt.
    pub frames: u64,
    /// The counter of the last frame whose `durable_before` is set. In the first frame of a segment it refers to other
    /// segments, so that one is not counted.
    pub durable: Option<u64>,
}

impl TailScan {
    /// Looks for frames after `cipher_offset`, the end of a frame (0 if the header fails to decrypt). Every byte is
    /// tried: a length prefix decrypts only where it was written. That takes a second for 4 MiB, so it is used for
    /// damaged segments only, and stops after 64 MiB.
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
        // If the header is damaged, use the one that the id implies.
        let header = Header::decode(&bytes, Magic::Segment, id.object(), &object.name());
        let key = master.object_key(&header.unwrap_or(Header::new(Magic::Segment, id.object())));
        let mut found = Self::default();
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
                    let is_first = cipher_offset == 0 && found.frames == 0;
                    if frame.durable_before && !is_first {
                        found.durable = Some(frame.counter);
                    }
                    found.frames += 1;
                    at += (LENGTH_SEALED_LEN + plain_len + SEAL_OVERHEAD) as u64;
                }
                None => at += 1,
            }
        }
        Ok(found)
    }
}

/// The first offset in `window`, which starts at `cipher_offset`, at which a length decrypts, and that length.
fn find_length(key: &SealKey, window: &[u8], cipher_offset: u64) -> Option<(usize, usize)> {
    let mut len = [0; 4];
    window
        .windows(LENGTH_SEALED_LEN)
        .enumerate()
        // Skip holes and preallocated space.
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

/// The frame whose length is stored at `cipher_offset`; `None` if it fails to decrypt or is not a frame.
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
