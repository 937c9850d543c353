//! MPEG audio, parsed as the server does. The duration is that of a Xing header, or computed from the size of the file if
//! its first three frames have the same bitrate. Otherwise it is unknown.

use super::super::super::Reader;
use super::id3::V1_LEN;

/// Bytes that are searched for frames, after the tags. If there are none, the rest is junk.
const LOOKED_AT_MAX: u64 = 8 << 20;
/// Bytes per read.
const READ_LEN: usize = 64 << 10;
/// If fewer bytes are left, the server does not look for a frame.
const LEFT_MIN: u64 = 256;

/// Properties of the sound, from the first frames.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Audio {
    /// 1 to 3.
    pub layer: u8,
    /// Bits per second.
    pub bitrate: f64,
    /// Samples per second.
    pub sample_rate: u32,
    /// One or two.
    pub channels: u8,
    /// Duration in seconds, if known.
    pub duration: Option<f64>,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
struct Header {
    layer: u8,
    /// Version 1, and not 2 or 2.5.
    is_v1: bool,
    /// Version 2.5, whose bitrates the server does not know: there is no duration.
    is_v2_5: bool,
    bitrate: u32,
    sample_rate: u32,
    is_padded: bool,
    is_mono: bool,
}

impl Header {
    /// Parses a header; `None` if it is not one, or does not specify a bitrate.
    fn parse(head: [u8; 4]) -> Option<Self> {
        /// In kbit/s, by index: for version 1, layers 1, 2 and 3; for the others, layer 1, and layers 2 and 3.
        const BITRATES: [[u16; 14]; 5] = [
            [
                32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448,
            ],
            [
                32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384,
            ],
            [
                32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
            ],
            [
                32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256,
            ],
            [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        ];
        if head[0] != 0xff || head[1] & 0xe0 != 0xe0 {
            return None;
        }
        let halvings = match head[1] >> 3 & 3 {
            0 => 2,
            2 => 1,
            3 => 0,
            _ => return None,
        };
        let layer = match head[1] >> 1 & 3 {
            0 => return None,
            bits => 4 - bits,
        };
        let row = match (halvings, layer) {
            (0, layer) => usize::from(layer) - 1,
            (_, 1) => 3,
            _ => 4,
        };
        let bitrate = BITRATES[row].get(usize::from(head[2] >> 4).checked_sub(1)?)?;
        let rate = [44_100, 48_000, 32_000].get(usize::from(head[2] >> 2 & 3))?;
        Some(Self {
            layer,
            is_v1: halvings == 0,
            is_v2_5: halvings == 2,
            bitrate: u32::from(*bitrate) * 1000,
            sample_rate: rate >> halvings,
            is_padded: head[2] & 2 != 0,
            is_mono: head[3] >> 6 == 3,
        })
    }

    fn samples(&self) -> u32 {
        match (self.layer, self.is_v1) {
            (1, _) => 384,
            (3, false) => 576,
            _ => 1152,
        }
    }

    /// Bytes of the frame.
    fn len(&self) -> u64 {
        let slot = if self.layer == 1 { 4 } else { 1 };
        let padding = if self.is_padded { slot } else { 0 };
        u64::from(self.samples()) / 8 * u64::from(self.bitrate) / u64::from(self.sample_rate)
            + padding
    }

    /// Offset of a Xing header in the frame.
    fn xing_at(&self) -> u64 {
        4 + match (self.layer, self.is_mono, self.is_v1) {
            (3, true, true) | (3, false, false) => 17,
            (3, true, false) => 9,
            (3, false, true) => 32,
            _ => 2,
        }
    }
}

/// Parses the first three frames after `start`, in a file that may end with an ID3v1 tag. `None` if there is no frame.
pub fn read(reader: &dyn Reader, start: u64, has_v1: bool) -> Option<Audio> {
    let mut file = Window::new(reader);
    let mut audio = Audio::default();
    let (mut at, mut first, mut frames) = (start, start, 0);
    let (mut frames_at_sync, mut bitrates) = (0, Vec::new());
    let (mut variable, mut constant) = (false, None);
    let end = start.saturating_add(LOOKED_AT_MAX);
    while let Some(found) = file.sync(at, end) {
        // No frame has followed: the first one was not a frame.
        if frames_at_sync == frames {
            (frames, first) = (0, found);
        }
        frames_at_sync = frames;
        let Some(header) = file.four(found).and_then(Header::parse) else {
            // The server skips both bytes, even if the second one begins a frame.
            at = found + 2;
            continue;
        };
        frames += 1;
        bitrates.push(header.bitrate);
        audio = Audio {
            layer: header.layer,
            bitrate: header.bitrate.into(),
            sample_rate: header.sample_rate,
            channels: if header.is_mono { 1 } else { 2 },
            ..audio
        };
        at = found + header.len().max(4);
        let rate = f64::from(header.sample_rate);
        if frames == 3 {
            let same = bitrates.iter().all(|bitrate| *bitrate == header.bitrate);
            constant = same.then_some(header).or(constant);
            variable &= !same;
            break;
        }
        // The server does not record one, and records of the same song must be equal.
        if header.is_v2_5 {
            break;
        }
        let xing_at = found + header.xing_at();
        let mark = file.four(xing_at).unwrap_or_default();
        if mark != *b"Xing" && mark != *b"Info" {
            continue;
        }
        variable = mark == *b"Xing";
        if !variable {
            constant = Some(header);
        }
        if file
            .four(xing_at + 4)
            .is_some_and(|flags| flags[3] & 1 == 1)
        {
            let count = file.four(xing_at + 8).map(u32::from_be_bytes)?;
            audio.duration = Some(f64::from(count) * f64::from(header.samples()) / rate);
        }
    }
    if audio.layer == 0 {
        return None;
    }
    let v1_len = if has_v1 { V1_LEN } else { 0 };
    let len = reader.plain_size().saturating_sub(first + v1_len) as f64;
    match (audio.duration, constant) {
        (Some(duration), _) if variable && duration > 0.0 => audio.bitrate = len * 8.0 / duration,
        (None, Some(header)) => {
            let samples = (len / header.len().max(1) as f64).round() * f64::from(header.samples());
            audio.duration = Some(samples / f64::from(header.sample_rate));
        }
        _ => {}
    }
    Some(audio)
}

/// A file, read in pieces.
struct Window<'a> {
    reader: &'a dyn Reader,
    bytes: Vec<u8>,
    at: u64,
}

impl<'a> Window<'a> {
    fn new(reader: &'a dyn Reader) -> Self {
        let (bytes, at) = (Vec::new(), 0);
        Self { reader, bytes, at }
    }

    /// The bytes from `at` on, as many as one read returns, but at least `len`.
    fn from(&mut self, at: u64, len: usize) -> Option<&[u8]> {
        let here = at
            .checked_sub(self.at)
            .and_then(|skip| usize::try_from(skip).ok());
        let is_here = here.is_some_and(|skip| skip + len <= self.bytes.len());
        if !is_here {
            let left = self.reader.plain_size().checked_sub(at)?;
            let read = READ_LEN.min(usize::try_from(left).unwrap_or(READ_LEN));
            self.bytes.resize(read, 0);
            self.at = at;
            self.reader.read_exact_at(at, &mut self.bytes).ok()?;
        }
        let bytes = self.bytes.get((at - self.at) as usize..)?;
        (bytes.len() >= len).then_some(bytes)
    }

    fn four(&mut self, at: u64) -> Option<[u8; 4]> {
        self.from(at, 4)?.first_chunk().copied()
    }

    /// The next offset before `end` at which a frame may begin.
    fn sync(&mut self, mut at: u64, end: u64) -> Option<u64> {
        let end = end.min(self.reader.plain_size().saturating_sub(LEFT_MIN));
        while at < end {
            let bytes = self.from(at, 2)?;
            let found = bytes
                .windows(2)
                .position(|two| two[0] == 0xff && two[1] & 0xe0 == 0xe0);
            match found {
                Some(skip) => return Some(at + skip as u64).filter(|at| *at < end),
                None => at += bytes.len() as u64 - 1,
            }
        }
        None
    }
}
