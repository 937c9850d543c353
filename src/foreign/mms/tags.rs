//! What a record says of an audio file beside its name: title, artist, length and so on (format page, 1.5).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use lofty::config::ParseOptions;
use lofty::file::{AudioFile, FileType, TaggedFile, TaggedFileExt};
use lofty::probe::Probe;
use lofty::tag::Accessor;
use serde_json::{Map, Number, Value};

use super::super::{Cursor, Reader};

/// Adds what is known, members in the server's order: texts that are not known are left out, numbers of tracks and
/// disks are null. A file that cannot be understood says nothing.
pub fn add(json: &mut Map<String, Value>, reader: Arc<dyn Reader>) {
    // The parser reads what anybody may have made.
    let parsed = catch_unwind(AssertUnwindSafe(|| parse(reader)))
        .ok()
        .flatten();
    let tag = parsed
        .as_ref()
        .and_then(|file| file.primary_tag().or_else(|| file.first_tag()));
    let text = |json: &mut Map<String, Value>, name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            json.insert(name.into(), value.into());
        }
    };
    text(json, "title", tag.and_then(|t| t.title().map(Into::into)));
    text(json, "artist", tag.and_then(|t| t.artist().map(Into::into)));
    text(json, "album", tag.and_then(|t| t.album().map(Into::into)));
    if let Some(date) = tag.and_then(Accessor::date) {
        json.insert("year".into(), date.year.into());
    }
    let number = |n: Option<u32>| n.map_or(Value::Null, Value::from);
    json.insert("track_no".into(), number(tag.and_then(Accessor::track)));
    json.insert(
        "track_of".into(),
        number(tag.and_then(Accessor::track_total)),
    );
    json.insert("disk_no".into(), number(tag.and_then(Accessor::disk)));
    json.insert("disk_of".into(), number(tag.and_then(Accessor::disk_total)));
    let kind = parsed.as_ref().map(TaggedFile::file_type);
    let properties = parsed.as_ref().map(AudioFile::properties);
    if let Some(duration) = properties.map(|p| p.duration()).filter(|d| !d.is_zero()) {
        json.insert("duration".into(), seconds(duration.as_secs_f64()));
    }
    json.insert("lossless".into(), kind.is_some_and(is_lossless).into());
    let Some(properties) = properties else { return };
    if let Some(kbit) = properties.audio_bitrate().filter(|n| *n > 0) {
        json.insert("bitrate".into(), (u64::from(kbit) * 1000).into());
    }
    if let Some(rate) = properties.sample_rate() {
        json.insert("sampleRate".into(), rate.into());
    }
    if let Some(channels) = properties.channels() {
        json.insert("numberOfChannels".into(), channels.into());
    }
    if let Some(name) = kind.and_then(name) {
        json.insert("dataformat".into(), name.into());
    }
}

fn parse(reader: Arc<dyn Reader>) -> Option<TaggedFile> {
    let probe = Probe::new(std::io::BufReader::new(Cursor::new(reader)));
    let probe = probe.guess_file_type().ok()?;
    probe
        .options(ParseOptions::new().read_cover_art(false))
        .read()
        .ok()
}

/// A script writes 2 where Rust writes 2.0.
fn seconds(seconds: f64) -> Value {
    if seconds.fract() == 0.0 {
        return (seconds as u64).into();
    }
    Number::from_f64(seconds).map_or(Value::Null, Value::Number)
}

fn is_lossless(kind: FileType) -> bool {
    matches!(
        kind,
        FileType::Flac | FileType::Wav | FileType::Aiff | FileType::Ape | FileType::WavPack
    )
}

fn name(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        FileType::Mpeg => "mp3",
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
