//! What lies behind a frame that does not open, in a leftover: a crash takes the end of a file, or pages of what was
//! never synced. Anything else that is missing there was durable, and something has damaged it.

use super::encoding::from_cbor;
use super::record::{Frame, SegmentId};
use super::segment::{FRAME_PLAIN_LEN_MAX, LENGTH_SEALED_LEN, Part, aad};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey};
use crate::error::Result;
use crate::store::Object;

/// Bytes that are looked at together.
const WINDOW: usize = 1 << 20;

/// Whether a segment holds a frame, behind `cipher_offset`, that says that what came before it was durable.
/// `cipher_offset` is where a frame ends, or 0 where the opening does not open. Every byte is tried: a length prefix opens
/// only where it was written. Takes a second for 4 MiB, so it is for what is damaged only.
pub fn hides_durable(
    object: &dyn Object,
    id: SegmentId,
    master: &MasterKey,
    cipher_offset: u64,
) -> Result<bool> {
    let file_len = object.cipher_len()?;
    if file_len < HEADER_LEN as u64 {
        return Ok(false);
    }
    let mut bytes = [0; HEADER_LEN];
    object.read_at(&mut bytes, 0)?;
    let Ok(header) = Header::decode(&bytes, Magic::Segment, id, &object.name()) else {
        return Ok(false); // without the key that it names, nothing opens
    };
    let key = master.object_key(&header);
    // What comes first in a segment says so of other segments, and may itself be all there was.
    let mut is_first = cipher_offset == 0;
    let mut at = cipher_offset.max(HEADER_LEN as u64);
    let mut window = Vec::new();
    while at + LENGTH_SEALED_LEN as u64 <= file_len {
        window.resize((file_len - at).min(WINDOW as u64) as usize, 0);
        object.read_at(&mut window, at)?;
        let Some((skip, plain_len)) = find_length(&key, &window, at) else {
            at += (window.len() - LENGTH_SEALED_LEN + 1) as u64;
            continue;
        };
        at += skip as u64;
        match read_frame(object, &key, at, plain_len, file_len)? {
            Some(frame) if frame.durable_before && !is_first => return Ok(true),
            Some(_) => {
                is_first = false;
                at += (LENGTH_SEALED_LEN + plain_len + SEAL_OVERHEAD) as u64;
            }
            None => at += 1,
        }
    }
    Ok(false)
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
