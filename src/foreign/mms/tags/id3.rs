//! ID3 tags, parsed as the server does: an invalid frame does not affect the others (ID3v2.2 to 2.4 by <https://id3.org>,
//! ID3v1).
//!
//! If there are several values, the choice is the server's: the first artist, but the last title, album and date; and the
//! year and track number of an ID3v1 tag even if there is an ID3v2 tag.

use super::super::super::Reader;
use crate::error::Result;

/// The longest text that is read, in bytes; a longer one is truncated.
const TEXT_LEN_MAX: u64 = 64 << 10;
/// The longest tag that is read if it must be in memory as a whole, in bytes.
const UNSYNCHRONISED_LEN_MAX: u64 = 16 << 20;
/// Most frames that are read in a tag.
const FRAMES_MAX: usize = 10_000;
/// Most consecutive tags that are read.
const TAGS_MAX: usize = 16;
/// Bytes of an ID3v1 tag, which is at the very end of the file.
pub const V1_LEN: u64 = 128;
/// The characters 0x80 to 0x9f of Windows-1252, the encoding of most texts that claim to be Latin-1.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// The contents of tags.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tags {
    /// The title.
    pub title: Option<String>,
    /// The artist.
    pub artist: Option<String>,
    /// The album.
    pub album: Option<String>,
    /// The year. If it is from a date, it is not 0.
    pub year: Option<i64>,
    /// The number of the track, and the total.
    pub track: (Option<i64>, Option<i64>),
    /// The number of the disk, and the total.
    pub disk: (Option<i64>, Option<i64>),
    /// The kinds of tags that title, artist, album and year are from.
    from: [Option<Version>; 4],
    artists: Vec<String>,
}

/// A kind of tag. Earlier kinds take precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V24,
    V23,
    V22,
    V1,
}

/// The fields in [`Tags::from`].
#[derive(Clone, Copy)]
enum Single {
    Title,
    Artist,
    Album,
    Year,
}

impl Tags {
    /// Reads the tags of a file: ID3v2 at its start, ID3v1 at its end. Also returns where the audio begins, and whether there
    /// is an ID3v1 tag.
    pub fn read(reader: &dyn Reader) -> (Self, u64, bool) {
        let mut tags = Self::default();
        let mut at = 0;
        for _ in 0..TAGS_MAX {
            match tags.take_v2(reader, at) {
                Some(end) => at = end,
                None => break,
            }
        }
        let has_v1 = tags.take_v1(reader).is_some();
        if tags.artist.is_none() {
            tags.artist = joined(&tags.artists);
        }
        (tags, at, has_v1)
    }

    /// Reads the ID3v2 tag in a chunk of a WAV file or an AIFF file.
    pub fn in_chunk(reader: &dyn Reader) -> Self {
        /// Most chunks that are read.
        const CHUNKS_MAX: usize = 1000;
        let mut tags = Self::default();
        let is_little = bytes(reader, 0) == Some(*b"RIFF");
        let mut at = 12;
        for _ in 0..CHUNKS_MAX {
            let (Some(id), Some(len)) = (bytes::<4>(reader, at), bytes::<4>(reader, at + 4)) else {
                break;
            };
            if id.eq_ignore_ascii_case(b"ID3 ") {
                tags.take_v2(reader, at + 8);
                break;
            }
            let len = if is_little {
                u32::from_le_bytes(len)
            } else {
                u32::from_be_bytes(len)
            };
            at += 8 + u64::from(len).next_multiple_of(2);
        }
        tags
    }

    /// Whether there is no title, artist or album.
    pub fn is_empty(&self) -> bool {
        self.title.is_none() && self.artist.is_none() && self.album.is_none()
    }

    /// Reads an ID3v2 tag, and returns where it ends; `None` if there is none.
    fn take_v2(&mut self, reader: &dyn Reader, at: u64) -> Option<u64> {
        let head: [u8; 10] = bytes(reader, at)?;
        let version = match &head[..4] {
            b"ID3\x02" => Version::V22,
            b"ID3\x03" => Version::V23,
            b"ID3\x04" => Version::V24,
            _ => return None,
        };
        let flags = head[5];
        let start = at + 10;
        let end = (start + synchsafe(&head[6..10])).min(reader.plain_size());
        // In version 2.4, each frame has its own flag for unsynchronisation.
        if flags & 0x80 != 0 && version != Version::V24 {
            let len = (end - start).min(UNSYNCHRONISED_LEN_MAX) as usize;
            let mut whole = vec![0; len];
            reader.read_exact_at(start, &mut whole).ok()?;
            resynchronise(&mut whole);
            let len = whole.len() as u64;
            self.take_frames(&InMemory(whole), 0, len, version, flags);
        } else {
            self.take_frames(reader, start, end, version, flags);
        }
        let has_footer = version == Version::V24 && flags & 0x10 != 0;
        Some(end + if has_footer { 10 } else { 0 })
    }

    fn take_frames(&mut self, reader: &dyn Reader, at: u64, end: u64, version: Version, flags: u8) {
        let mut at = at + extended_header_len(reader, at, version, flags);
        for _ in 0..FRAMES_MAX {
            let Some(frame) = Frame::read(reader, at, end, version) else {
                return;
            };
            let data_at = at + frame.head_len;
            at = data_at + frame.len;
            if !frame.is_wanted() || frame.is_sealed {
                continue;
            }
            let len = frame.len.min(end.saturating_sub(data_at)).min(TEXT_LEN_MAX);
            let mut data = vec![0; len as usize];
            if reader.read_exact_at(data_at, &mut data).is_err() {
                return;
            }
            if frame.is_unsynchronised {
                resynchronise(&mut data);
            }
            let skip = if frame.has_length {
                4.min(data.len())
            } else {
                0
            };
            self.take_frame(&frame.id, &data[skip..], version);
        }
    }

    fn take_frame(&mut self, id: &[u8; 4], data: &[u8], version: Version) {
        // An empty frame is an empty text.
        let (encoding, text) = data.split_first().unwrap_or((&0, &[]));
        let text = decode(*encoding, text);
        let text = text.trim_end_matches('\0');
        match id {
            b"TRCK" | b"TRK\0" => self.track = numbers(text, self.track.1),
            b"TPOS" | b"TPA\0" => self.disk = numbers(text, self.disk.1),
            b"TXXX" => self.take_user_text(text, version),
            _ => {
                let values: Vec<&str> = match (version, id) {
                    (Version::V24, _) => text.split('\0').map(trim).collect(),
                    (Version::V23, b"TPE1") => text.split('/').map(trim).collect(),
                    // Anything after a NUL is not part of the text.
                    _ => text.split('\0').take(1).collect(),
                };
                values
                    .into_iter()
                    .for_each(|value| self.take_value(id, value, version));
            }
        }
    }

    fn take_value(&mut self, id: &[u8; 4], value: &str, version: Version) {
        match id {
            b"TIT2" | b"TT2\0" => self.take_text(Single::Title, value, version),
            b"TALB" | b"TAL\0" => self.take_text(Single::Album, value, version),
            b"TPE1" | b"TP1\0" => self.take_text(Single::Artist, value, version),
            b"TYER" | b"TYE\0" => self.take_year(leading_number(value), version),
            b"TDRC" | b"TDRV" => self.take_date(value),
            _ => {}
        }
    }

    /// Sets the year from a date. A later date overrides an earlier one, and any other year before it.
    fn take_date(&mut self, date: &str) {
        let start: String = date.chars().take(4).collect();
        let year = leading_number(&start).filter(|year| *year != 0);
        self.year = year.or(self.year);
    }

    /// Reads user-defined texts: lists of artists as some programs write them, and fields of a Discogs plug-in.
    fn take_user_text(&mut self, text: &str, version: Version) {
        match text.split_once('\0') {
            Some(("Artists" | "DISCOGS_ARTISTS" | "DISCOGS_ARTIST_NAME", values)) => {
                let separator = if version == Version::V24 { '\0' } else { '/' };
                let values = values.split(separator).map(|value| trim(value).to_string());
                self.artists
                    .extend(values.filter(|value| !value.is_empty()));
            }
            Some(("DISCOGS_RELEASED", date)) => self.take_date(trim(date)),
            _ => {}
        }
    }

    fn take_text(&mut self, what: Single, value: &str, version: Version) {
        let from = &mut self.from[what as usize];
        let later_counts = !matches!(what, Single::Artist);
        if from.is_some_and(|from| from < version || from == version && !later_counts) {
            return;
        }
        *from = Some(version);
        let value = Some(value.to_string());
        match what {
            Single::Title => self.title = value,
            Single::Artist => self.artist = value,
            Single::Album => self.album = value,
            Single::Year => {}
        }
    }

    fn take_year(&mut self, year: Option<i64>, version: Version) {
        let from = &mut self.from[Single::Year as usize];
        if from.is_none_or(|from| version <= from) {
            *from = Some(version);
            self.year = year;
        }
    }

    fn take_v1(&mut self, reader: &dyn Reader) -> Option<()> {
        let at = reader.plain_size().checked_sub(V1_LEN)?;
        let tag: [u8; V1_LEN as usize] = bytes(reader, at)?;
        tag.starts_with(b"TAG").then_some(())?;
        let field = |range: std::ops::Range<usize>| {
            let bytes = &tag[range];
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            let text: String = bytes[..end].iter().map(|b| char::from(*b)).collect();
            Some(trim(&text).to_string()).filter(|text| !text.is_empty())
        };
        for (what, range) in [
            (Single::Title, 3..33),
            (Single::Artist, 33..63),
            (Single::Album, 63..93),
        ] {
            if let Some(text) = field(range) {
                self.take_text(what, &text, Version::V1);
            }
        }
        if tag[126] != 0 {
            self.track.0 = Some(tag[126].into());
        }
        if let Some(year) = field(93..97) {
            self.take_year(leading_number(&year), Version::V1);
        }
        Some(())
    }
}

/// A frame of an ID3v2 tag.
struct Frame {
    id: [u8; 4],
    head_len: u64,
    len: u64,
    is_unsynchronised: bool,
    /// Compressed or encrypted: not read.
    is_sealed: bool,
    has_length: bool,
}

impl Frame {
    /// Reads the next frame; `None` at the end.
    fn read(reader: &dyn Reader, at: u64, end: u64, version: Version) -> Option<Self> {
        let head_len = if version == Version::V22 { 6 } else { 10 };
        if at + head_len > end {
            return None;
        }
        let mut head = [0; 10];
        reader
            .read_exact_at(at, &mut head[..head_len as usize])
            .ok()?;
        head[0].is_ascii_uppercase().then_some(())?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let (id, len, flags) = match version {
            Version::V22 => ([head[0], head[1], head[2], 0], number(&head[3..6]), 0),
            Version::V23 => ([head[0], head[1], head[2], head[3]], number(&head[4..8]), 0),
            _ => (
                [head[0], head[1], head[2], head[3]],
                synchsafe(&head[4..8]),
                head[9],
            ),
        };
        let sealed = if version == Version::V23 {
            head[9] & 0xc0
        } else {
            flags & 0x0c
        };
        Some(Self {
            id,
            head_len,
            len,
            is_unsynchronised: flags & 0x02 != 0,
            is_sealed: sealed != 0,
            has_length: flags & 0x01 != 0,
        })
    }

    fn is_wanted(&self) -> bool {
        const WANTED: &[&[u8; 4]] = &[
            b"TIT2", b"TT2\0", b"TPE1", b"TP1\0", b"TALB", b"TAL\0", b"TYER", b"TYE\0", b"TDRC",
            b"TDRV", b"TRCK", b"TRK\0", b"TPOS", b"TPA\0", b"TXXX",
        ];
        WANTED.contains(&&self.id)
    }
}

/// A tag in memory, after resynchronisation.
struct InMemory(Vec<u8>);

impl Reader for InMemory {
    fn plain_size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()> {
        let range = plain_offset as usize..plain_offset as usize + out.len();
        let bytes = self
            .0
            .get(range)
            .ok_or(crate::error::Kind::InvalidArgument)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// Bytes between the header of a tag and its first frame.
fn extended_header_len(reader: &dyn Reader, at: u64, version: Version, flags: u8) -> u64 {
    if flags & 0x40 == 0 || version == Version::V22 {
        return 0;
    }
    let Some(head) = bytes::<4>(reader, at) else {
        return 0;
    };
    match version {
        Version::V24 => synchsafe(&head),
        _ => 4 + u64::from(u32::from_be_bytes(head)),
    }
}

/// Bytes of a file; `None` if it ends before.
pub fn bytes<const N: usize>(reader: &dyn Reader, at: u64) -> Option<[u8; N]> {
    let mut out = [0; N];
    let end = at.checked_add(N as u64)?;
    (end <= reader.plain_size()).then_some(())?;
    reader.read_exact_at(at, &mut out).ok()?;
    Some(out)
}

/// A number with seven bits per byte.
fn synchsafe(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 7 | u64::from(b & 0x7f))
}

/// Removes the zeros that keep a tag from looking like audio.
fn resynchronise(bytes: &mut Vec<u8>) {
    let mut last = 0;
    bytes.retain(|b| {
        let keep = !(last == 0xff && *b == 0);
        last = *b;
        keep
    });
}

/// Decodes a text of a frame. Invalid characters are replaced.
fn decode(encoding: u8, bytes: &[u8]) -> String {
    // Some programs write it twice.
    let bytes = bytes
        .strip_prefix(b"\xff\xfe")
        .filter(|rest| rest.starts_with(b"\xfe\xff"))
        .unwrap_or(bytes);
    let units = |pair: fn([u8; 2]) -> u16, bytes: &[u8]| {
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(|two| pair(*two)).collect();
        String::from_utf16_lossy(&units)
    };
    match (encoding, bytes) {
        (0, _) => bytes.iter().map(|b| windows_1252(*b)).collect(),
        (1 | 2, [0xfe, 0xff, rest @ ..]) => units(u16::from_be_bytes, rest),
        (1, [0xff, 0xfe, rest @ ..]) | (1, rest) => units(u16::from_le_bytes, rest),
        (2, [0xff, 0xfe, rest @ ..]) => units(u16::from_le_bytes, rest),
        (2, rest) => units(u16::from_be_bytes, rest),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn windows_1252(b: u8) -> char {
    match b {
        0x80..=0x9f => WINDOWS_1252[usize::from(b - 0x80)],
        _ => char::from(b),
    }
}

/// Removes blanks at both ends, and the padding of some programs.
fn trim(text: &str) -> &str {
    text.trim_end_matches('\0')
        .trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// A number and a total: `3/12`. Zero counts as none.
fn numbers(text: &str, of_before: Option<i64>) -> (Option<i64>, Option<i64>) {
    let mut parts = text.split('/');
    let mut next = || leading_number(parts.next()?).filter(|number| *number != 0);
    let no = next();
    (no, of_before.or(next()))
}

/// The number that a text begins with.
pub fn leading_number(text: &str) -> Option<i64> {
    let text = trim(text);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end]
        .parse::<i64>()
        .ok()
        .map(|number| sign * number)
}

/// Joins names: `A, B & C`.
fn joined(names: &[String]) -> Option<String> {
    let (last, others) = names.split_last()?;
    Some(match others {
        [] => last.clone(),
        _ => format!("{} & {last}", others.join(", ")),
    })
}
