//! Finds the APE tag of a file (APEv2 specification, "APE Tags Header").

use std::ops::Range;
use std::sync::Arc;

use super::super::super::Reader;
use super::id3::V1_LEN;
use crate::error::Result;

/// Bytes of a header, and of a footer.
const HEADER_LEN: u64 = 32;
/// The start of a header or footer.
const MARK: &[u8] = b"APETAGEX";
/// A flag: this tag has a header before its items.
const HAS_HEADER: u32 = 1 << 31;
/// The longest tag that is read, in bytes.
const TAG_LEN_MAX: u64 = 16 << 20;

/// A reader of the APE tag of a file: the one at `start`, or the one at the end, before an ID3v1 tag.
pub fn find(reader: &Arc<dyn Reader>, start: u64, has_v1: bool) -> Option<Arc<dyn Reader>> {
    let v1_len = if has_v1 { V1_LEN } else { 0 };
    let end = reader.plain_size().checked_sub(v1_len)?;
    let plain = at_start(&**reader, start).or_else(|| at_end(&**reader, end))?;
    let is_within = start <= plain.start && plain.end <= end;
    if !is_within || plain.end - plain.start > TAG_LEN_MAX {
        return None;
    }
    let reader = Arc::clone(reader);
    Some(Arc::new(Part { reader, plain }))
}

fn at_start(reader: &dyn Reader, start: u64) -> Option<Range<u64>> {
    let header = Header::read(reader, start)?;
    Some(start..start + HEADER_LEN + header.len)
}

fn at_end(reader: &dyn Reader, end: u64) -> Option<Range<u64>> {
    let footer = Header::read(reader, end.checked_sub(HEADER_LEN)?)?;
    let header_len = match footer.flags & HAS_HEADER {
        0 => 0,
        _ => HEADER_LEN,
    };
    Some(end.checked_sub(footer.len + header_len)?..end)
}

/// A header or a footer.
struct Header {
    /// Bytes of the items and the footer.
    len: u64,
    flags: u32,
}

impl Header {
    fn read(reader: &dyn Reader, plain_offset: u64) -> Option<Self> {
        if plain_offset.checked_add(HEADER_LEN)? > reader.plain_size() {
            return None;
        }
        let mut header = [0; HEADER_LEN as usize];
        reader.read_exact_at(plain_offset, &mut header).ok()?;
        // Mark, version, length, count of items, flags; eight bytes are reserved.
        let number = |at: usize| header[at..].first_chunk().copied().map(u32::from_le_bytes);
        (header.starts_with(MARK)).then_some(Self {
            len: number(12)?.into(),
            flags: number(20)?,
        })
    }
}

/// A range of a file.
struct Part {
    reader: Arc<dyn Reader>,
    plain: Range<u64>,
}

impl Reader for Part {
    fn plain_size(&self) -> u64 {
        self.plain.end - self.plain.start
    }

    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()> {
        self.reader
            .read_exact_at(self.plain.start + plain_offset, out)
    }
}
