//! The audio metadata in a record: title, artist, duration and so on (`man/hushfs-foreign.5`: Music records).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lofty::config::{ParseOptions, ParsingMode};
use lofty::file::{AudioFile, FileType, TaggedFile, TaggedFileExt};
use lofty::probe::Probe;
use lofty::tag::{Accessor, ItemKey, Tag, TagType};
use serde_json::{Map, Number, Value};

use super::super::{Cursor, Reader};

mod ape;
mod id3;
mod mpeg;

use id3::Tags;

/// Bytes of a file that are read to detect its type.
const HEAD_LEN: u64 = 36;

/// Properties of the sound.
#[derive(Default)]
struct Sound {
    duration: Option<f64>,
    lossless: bool,
    bitrate: Option<f64>,
    sample_rate: Option<u32>,
    channels: Option<u8>,
    name: Option<String>,
}

/// Adds the metadata to a record, with its members in the server's order. Unknown texts are left out, and unknown numbers of
/// tracks and disks are null. A file that cannot be parsed has no metadata.
///
/// MPEG audio (`extension` mp3 or mp2) is parsed exactly as the server does, because it groups songs by the result. The
/// server parses all other files as MPEG audio as well, and finds nothing or nonsense; here they are parsed correctly.
pub fn add(json: &mut Map<String, Value>, extension: &str, reader: &Arc<dyn Reader>) {
    let (tags, start, has_v1) = Tags::read(&**reader);
    let kind = file_type(&**reader, start);
    let is_mpeg = match kind {
        Some(FileType::Mpeg) => true,
        Some(FileType::Aac) | None => matches!(extension, "mp3" | "mp2"),
        Some(FileType::Wav) => {
            matches!(extension, "mp3" | "mp2") && is_mpeg_in_wav(&**reader, start)
        }
        Some(_) => false,
    };
    let (tags, sound) = if is_mpeg {
        let sound = mpeg::read(&**reader, start, has_v1);
        (
            or_ape(tags, reader, start, has_v1),
            sound.map_or_else(Sound::default, Sound::of_mpeg),
        )
    } else {
        by_type(tags, kind, reader)
    };
    tell(json, tags, sound);
}

fn tell(json: &mut Map<String, Value>, tags: Tags, sound: Sound) {
    let texts = [
        ("title", tags.title),
        ("artist", tags.artist),
        ("album", tags.album),
    ];
    for (name, text) in texts {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            json.insert(name.into(), text.into());
        }
    }
    if let Some(year) = tags.year {
        json.insert("year".into(), year.into());
    }
    let (track, disk) = (tags.track, tags.disk);
    let numbers = [
        ("track_no", track.0),
        ("track_of", track.1),
        ("disk_no", disk.0),
        ("disk_of", disk.1),
    ];
    for (name, number) in numbers {
        json.insert(name.into(), number.map_or(Value::Null, Value::from));
    }
    if let Some(duration) = sound.duration {
        json.insert("duration".into(), as_script_writes(duration));
    }
    json.insert("lossless".into(), sound.lossless.into());
    if let Some(bitrate) = sound.bitrate {
        json.insert("bitrate".into(), as_script_writes(bitrate));
    }
    if let Some(rate) = sound.sample_rate {
        json.insert("sampleRate".into(), rate.into());
    }
    if let Some(channels) = sound.channels {
        json.insert("numberOfChannels".into(), channels.into());
    }
    if let Some(name) = sound.name {
        json.insert("dataformat".into(), name.into());
    }
}

/// The type of a file, by the bytes after its ID3 tags.
fn file_type(reader: &dyn Reader, start: u64) -> Option<FileType> {
    let len = reader.plain_size().saturating_sub(start).min(HEAD_LEN);
    let mut head = vec![0; len as usize];
    reader.read_exact_at(start, &mut head).ok()?;
    FileType::from_buffer(&head)
}

/// Whether a WAV file contains MPEG audio, by its first chunk.
fn is_mpeg_in_wav(reader: &dyn Reader, start: u64) -> bool {
    let mut head = [0; 22];
    let read = reader.plain_size() >= start + 22 && reader.read_exact_at(start, &mut head).is_ok();
    read && head[12..16] == *b"fmt " && matches!(head[20..22], [0x50 | 0x55, 0])
}

/// The given tags, or those of an APE tag if they are empty. The server does not read APE tags.
fn or_ape(tags: Tags, reader: &Arc<dyn Reader>, start: u64, has_v1: bool) -> Tags {
    if !tags.is_empty() {
        return tags;
    }
    // Only the tag is parsed: the parser would search a whole file without frames byte by byte.
    let Some(tag) = ape::find(reader, start, has_v1) else {
        return tags;
    };
    let options = options().read_properties(false);
    let parsed = parse(&tag, FileType::Mpeg, options);
    match parsed.as_ref().and_then(|file| file.tag(TagType::Ape)) {
        Some(ape) => tags.or(ape),
        None => tags,
    }
}

/// The metadata of a file that is not MPEG audio. If an unusual tag makes parsing fail, only the sound is parsed.
fn by_type(tags: Tags, kind: Option<FileType>, reader: &Arc<dyn Reader>) -> (Tags, Sound) {
    let Some(kind) = kind else {
        return (tags, Sound::default());
    };
    let parsed = parse(reader, kind, options());
    let tags = match kind {
        FileType::Wav | FileType::Aiff if parsed.is_none() => {
            tags.or_tags(Tags::in_chunk(&**reader))
        }
        _ => tags,
    };
    let parsed = parsed
        .or_else(|| parse(reader, kind, options().read_tags(false)))
        .or_else(|| parse(reader, kind, options().read_properties(false)));
    let Some(file) = parsed else {
        return (tags, Sound::default());
    };
    let tag = file.primary_tag().or_else(|| file.first_tag());
    let found = tag.map(|tag| Tags::default().or(tag));
    let tags = found.unwrap_or_default().or_tags(tags);
    (tags, Sound::of_file(&file))
}

fn options() -> ParseOptions {
    ParseOptions::new()
        .read_cover_art(false)
        .parsing_mode(ParsingMode::Relaxed)
}

/// Parses a file, which may be hostile.
fn parse(reader: &Arc<dyn Reader>, kind: FileType, options: ParseOptions) -> Option<TaggedFile> {
    let cursor = std::io::BufReader::new(Cursor::new(Arc::clone(reader)));
    let read = || {
        Probe::with_file_type(cursor, kind)
            .options(options)
            .read()
            .ok()
    };
    catch_unwind(AssertUnwindSafe(read)).ok().flatten()
}

impl Tags {
    /// Fills in missing fields from a tag of another kind.
    fn or(mut self, tag: &Tag) -> Self {
        let text = |text: std::borrow::Cow<'_, str>| Some(text.trim().to_string());
        self.title = self.title.or_else(|| tag.title().and_then(text));
        self.artist = self.artist.or_else(|| tag.artist().and_then(text));
        self.album = self.album.or_else(|| tag.album().and_then(text));
        let number = |number: Option<u32>| number.filter(|n| *n != 0).map(i64::from);
        self.track.0 = self.track.0.or(number(tag.track()));
        self.track.1 = self.track.1.or(number(tag.track_total()));
        self.disk.0 = self.disk.0.or(number(tag.disk()));
        self.disk.1 = self.disk.1.or(number(tag.disk_total()));
        let date = || {
            [ItemKey::RecordingDate, ItemKey::Year]
                .into_iter()
                .find_map(|key| tag.get_string(key))
        };
        let year = || tag.date().map(|date| i64::from(date.year));
        let year = self
            .year
            .or_else(year)
            .or_else(|| id3::leading_number(date()?));
        self.year = year.filter(|year| *year != 0);
        self
    }

    /// Fills in missing fields from other tags.
    fn or_tags(mut self, other: Self) -> Self {
        self.title = self.title.or(other.title);
        self.artist = self.artist.or(other.artist);
        self.album = self.album.or(other.album);
        self.year = self.year.or(other.year);
        let or = |ours: (Option<i64>, Option<i64>), other: (_, _)| {
            (ours.0.or(other.0), ours.1.or(other.1))
        };
        self.track = or(self.track, other.track);
        self.disk = or(self.disk, other.disk);
        self
    }
}

impl Sound {
    fn of_mpeg(audio: mpeg::Audio) -> Self {
        Self {
            duration: audio.duration,
            lossless: false,
            bitrate: Some(audio.bitrate),
            sample_rate: Some(audio.sample_rate),
            channels: Some(audio.channels),
            name: Some(format!("mp{}", audio.layer)),
        }
    }

    fn of_file(file: &TaggedFile) -> Self {
        let properties = file.properties();
        let kbit = properties.audio_bitrate().filter(|kbit| *kbit > 0);
        Self {
            duration: Some(properties.duration().as_secs_f64()).filter(|seconds| *seconds > 0.0),
            lossless: is_lossless(file.file_type()),
            bitrate: kbit.map(|kbit| f64::from(kbit) * 1000.0),
            sample_rate: properties.sample_rate(),
            channels: properties.channels(),
            name: name(file.file_type()).map(Into::into),
        }
    }
}

/// A number as JavaScript writes it: 2 instead of 2.0.
fn as_script_writes(number: f64) -> Value {
    if number.fract() == 0.0 {
        return (number as u64).into();
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn is_lossless(kind: FileType) -> bool {
    matches!(
        kind,
        FileType::Flac | FileType::Wav | FileType::Aiff | FileType::Ape | FileType::WavPack
    )
}

fn name(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        FileType::Flac => "flac",
        FileType::Wav => "wav",
        FileType::Aiff => "aiff",
        FileType::Ape => "ape",
        FileType::Mp4 => "m4a",
        FileType::Mpc => "mpc",
        FileType::Opus => "opus",
        FileType::Vorbis => "vorbis",
        FileType::Speex => "speex",
        FileType::WavPack => "wv",
        FileType::Aac => "aac",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::error::Result;

    /// A file without any tag or frame.
    struct Noise {
        plain_size: u64,
        plain_read: AtomicU64,
    }

    impl Reader for Noise {
        fn plain_size(&self) -> u64 {
            self.plain_size
        }
        fn read_exact_at(&self, _plain_offset: u64, out: &mut [u8]) -> Result<()> {
            self.plain_read
                .fetch_add(out.len() as u64, Ordering::Relaxed);
            out.fill(0x55);
            Ok(())
        }
    }

    #[test]
    fn a_long_file_without_tags_is_not_read_to_its_end() {
        let noise = Arc::new(Noise {
            plain_size: 1 << 40,
            plain_read: AtomicU64::new(0),
        });
        let reader: Arc<dyn Reader> = noise.clone();
        let mut json = Map::new();
        add(&mut json, "mp3", &reader);
        assert!(!json.contains_key("title") && !json.contains_key("duration"));
        let plain_read = noise.plain_read.load(Ordering::Relaxed);
        assert!(plain_read < 32 << 20, "{plain_read} bytes are read");
    }
}
