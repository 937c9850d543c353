//! What the targets of the foreign formats do. Here, too, the input is also what stands inside of something well made.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use base64_simd::STANDARD as BASE64;
use hushfs::cache::BlockCache;
use hushfs::foreign::cipher::Key;
use hushfs::foreign::images::{self, Images};
use hushfs::foreign::medusa::frames::{FernetKey, scan};
use hushfs::foreign::medusa::{self, FrameReader, manifest};
use hushfs::foreign::mms::index::Index;
use hushfs::foreign::mms::{Mms, Options};
use hushfs::foreign::{Format, ListEntry, Mirror, Reader};
use hushfs::report::{Report, Watch};
use hushfs::volume::{ROOT, Volume};

/// Takes a part of the input: of as many bytes as its first two say.
fn take<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = data.split_first_chunk() else {
        return std::mem::take(data);
    };
    let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    *data = rest;
    part
}

/// The same the other way round.
fn part(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("a seed is short");
    [&len.to_le_bytes(), bytes].concat()
}

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).expect("a disk that is not full");
}

/// A line of an index of Minio Music Server.
fn line(key: &Key, iv: u8, record: &[u8]) -> String {
    let mut sealed = Vec::new();
    key.encrypt_padded(&[iv; 16], record, &mut sealed);
    let (data, iv) = (
        BASE64.encode_to_string(sealed),
        BASE64.encode_to_string([iv; 16]),
    );
    format!("{{\"data\":\"{data}\",\"iv\":\"{iv}\"}}\n")
}

fn index(lines: &[String]) -> String {
    let count = lines.len();
    let first = format!("{{\"version\":2,\"registers\":{count},\"id\":1}}\n");
    first + &lines.concat()
}

/// The index of a Minio Music Server: as it comes, and with a record that is sealed well and holds anything.
pub fn mms_index(data: &[u8]) {
    let key = Key::short(&[7; 16]);
    let _ = Index::parse(data, &key);
    let text = index(&[line(&key, 1, data)]);
    if let Ok(index) = Index::parse(text.as_bytes(), &key) {
        let is_below = |path: &str| !path.starts_with('/') && !path.split('/').any(|p| p == "..");
        assert!(index.records().all(|record| is_below(&record.path)));
    }
}

/// The key file of the known answers, which the password `XXXXXXX` opens, and what is in it.
const KEY_FILE: &str =
    r#"{"data":"521WPmCnOfu0YhTY9styiEIXf5hcEHXM13FCgTcsfSc=","iv":"AAECAwQFBgcICQoLDA0ODw=="}"#;
const INTERNAL_KEY: [u8; 16] = [
    0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87, 0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f,
];
/// A song, and the objects of each layer of its encryption.
const NAMES: [&str; 4] = [
    "m/s.mp3",
    "m/11111111111111111111111111111111.encrypt",
    "m/22222222222222222222222222222222.encrypt",
    "m/33333333333333333333333333333333.encrypt",
];

struct Nobody;

impl Watch for Nobody {
    fn problem(&mut self, _: &str, _: &str) {}
    fn note(&mut self, _: &str, _: &str) {}
    fn total(&mut self, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

/// Reads all files of a library, as far as they are believable.
fn read_library(dir: &Path) -> Option<Vec<Vec<u8>>> {
    let options = Options {
        key: Some("key".into()),
        index: Some("music.index".into()),
        ..Options::default()
    };
    let format = Mms::open(dir, b"XXXXXXX", &options, true).ok()?;
    let (mut files, mut listed) = (Vec::new(), Vec::new());
    format.list(&mut |one| listed.push(one)).ok()?;
    for one in listed {
        let ListEntry::File(path, entry) = one else {
            continue;
        };
        let known = entry.plain_size;
        let size = known.map_or_else(|| format.plain_size(&entry), Ok);
        let Ok(reader) = format.open(&path, &entry) else {
            continue;
        };
        assert!(size.is_ok(), "what opens has a size");
        let plain_size = reader.plain_size();
        assert!(
            plain_size < 1 << 24,
            "no plaintext is longer than its object"
        );
        let mut out = vec![0; plain_size as usize];
        if reader.read_exact_at(0, &mut out).is_ok() {
            files.push(out);
        }
    }
    let verified = format.verify(&mut Report::new(&mut Nobody));
    verified.expect("a folder that can be listed");
    Mirror::new(Box::new(format)).expect("a few names");
    Some(files)
}

/// A whole library of a Minio Music Server: key file, index and object as they come; and a well made key file, over
/// records of a song that was encrypted up to three times, whose lengths and objects are true or come from the input.
pub fn mms_library(data: &[u8]) {
    let (flags, mut rest) = data.split_first().unwrap_or((&0, &[]));
    let parts: [&[u8]; 6] = std::array::from_fn(|_| take(&mut rest));
    let [key_file, index_file, song, lens @ ..] = parts;
    let len_of = |layer: usize, plain_len: usize| {
        let said = lens[layer]
            .first_chunk()
            .map(|len| u16::from_le_bytes(*len));
        said.map_or(plain_len, usize::from)
    };
    let is_broken = |layer: usize| flags >> layer & 1 == 1;
    let dir = tempfile::tempdir().expect("a place to work");
    let dir = dir.path();
    put(dir, "key", key_file);
    put(dir, "music.index", index_file);
    put(dir, "a.encrypt", song);
    read_library(dir);

    std::fs::remove_file(dir.join("a.encrypt")).expect("it was just put there");
    std::fs::create_dir(dir.join("m")).expect("a disk that is not full");
    put(dir, "key", KEY_FILE.as_bytes());
    let key = Key::short(&INTERNAL_KEY);
    let (mut lines, mut plain, mut is_true) = (Vec::new(), song.to_vec(), true);
    for layer in 0..3 {
        let (path, object, iv) = (NAMES[layer], NAMES[layer + 1], layer as u8);
        let len = len_of(layer, plain.len());
        is_true &= len == plain.len() && !is_broken(layer);
        let json = format!(
            r#"{{"id":{layer},"path":"{path}","filesize":{len},"extension":"x","iv":"{}","nameEnc":"{object}"}}"#,
            BASE64.encode_to_string([iv; 16])
        );
        lines.push(line(&key, iv, json.as_bytes()));
        let mut sealed = Vec::new();
        for segment in plain.chunks(1008) {
            key.encrypt_padded(&[iv; 16], segment, &mut sealed);
        }
        plain = sealed;
        put(
            dir,
            object,
            if is_broken(layer) { index_file } else { &plain },
        );
    }
    put(dir, "music.index", index(&lines).as_bytes());
    let files = read_library(dir).expect("a well made library");
    if is_true {
        assert_eq!(files.len(), 3);
        assert!(
            files.iter().all(|file| file == song),
            "each layer is read through to the song"
        );
    }
}

fn fernet() -> FernetKey {
    let text = format!("{}=", "A".repeat(43));
    FernetKey::parse(text.as_bytes()).expect("32 zero bytes")
}

/// What is in a file of frames, where all of them open.
fn read_frames(key: &FernetKey, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file: File = tempfile::tempfile().expect("a place to work");
    file.write_all(bytes).expect("a disk that is not full");
    let (frames, plain_size) = scan(&file, key, bytes.len() as u64).ok()?;
    assert!(
        plain_size <= bytes.len() as u64,
        "no plaintext is longer than its frames"
    );
    let cache = Arc::new(BlockCache::new(1 << 20));
    let reader = FrameReader::new(Arc::new(file), key.clone(), frames, plain_size, None, cache);
    let mut out = vec![0; plain_size as usize];
    reader.read_exact_at(0, &mut out).ok()?;
    Some(out)
}

/// Files of Fernet frames: as they come, well made ones around the input, and those with a byte changed.
pub fn medusa_frames(data: &[u8]) {
    let key = fernet();
    let opened = read_frames(&key, data);
    assert!(
        opened.is_none_or(|plain| plain.is_empty()),
        "nobody guesses an HMAC"
    );
    let mut sealed = Vec::new();
    for piece in data.chunks(usize::from(*data.first().unwrap_or(&1)) + 1) {
        key.seal(0, &[2; 16], piece, &mut sealed);
    }
    assert_eq!(read_frames(&key, &sealed).as_deref(), Some(data));
    if let Some((at, rest)) = data.split_first_chunk() {
        let at = usize::from(u16::from_le_bytes(*at)) % sealed.len();
        sealed[at] ^= rest.first().copied().unwrap_or(0);
        // Another letter may be the same bits: of the other alphabet.
        let opened = read_frames(&key, &sealed);
        assert!(
            opened.is_none_or(|plain| plain == data),
            "a change is noticed"
        );
    }
}

/// Manifests, and what is made of their digests.
pub fn medusa_manifest(data: &[u8]) {
    for section in manifest::parse(data).unwrap_or_default() {
        for object in section.objects {
            let _ = (
                object.stored_digest(),
                object.source_digest(),
                object.is_like_frames(),
            );
        }
    }
}

/// What is in an image, where it opens.
fn read_image(stored: &[u8], meta: &[u8]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a place to work");
    put(dir.path(), "a.png.enc", stored);
    put(dir.path(), "a.png.enc.meta", meta);
    let format = Images::open(dir.path(), b"key", true).ok()?;
    let volume = Mirror::new(Box::new(format)).expect("two names");
    let attr = volume.lookup(ROOT, OsStr::new("a.png")).ok()?;
    let _ = volume.getxattr(attr.ino, OsStr::new("user.mime_type"));
    let handle = volume.open(attr.ino, 0).ok()?;
    let mut out = vec![0; stored.len() + 1];
    let len = volume.read(attr.ino, handle, 0, &mut out).ok()?;
    assert!(
        attr.plain_size <= stored.len() as u64,
        "no plaintext is longer than its image"
    );
    out.truncate(len);
    Some(out)
}

/// A store of one encrypted image and its description: as they come, and the image encrypted well.
pub fn images_file(mut data: &[u8]) {
    let image = take(&mut data);
    read_image(image, data);
    let mut sealed = vec![3; 16];
    images::key_of(b"key").encrypt_padded(&[3; 16], image, &mut sealed);
    // Content that is not what its description says may be refused as a wrong key's.
    if let Some(plain) = read_image(&sealed, data) {
        assert_eq!(plain, image);
    }
}

/// Settings of other programs, in which keys are looked for; and keys.
pub fn foreign_settings(data: &[u8]) {
    let _ = FernetKey::parse(data);
    let _ = (medusa::key_in_ini(data), images::key_in_env(data));
}

/// Something that is valid, to be changed; nothing for a target of something else.
pub fn seeds(name: &str) -> Option<Vec<Vec<u8>>> {
    let record = br#"{"id":0,"path":"m/s.mp3","filesize":5,"extension":"mp3","iv":"AAECAwQFBgcICQoLDA0ODw==","nameEnc":"m/1.encrypt","track_no":null}"#;
    let library = |key: &Key| index(&[line(key, 1, record), line(key, 2, record)]).into_bytes();
    Some(match name {
        "mms_index" => vec![record.to_vec(), library(&Key::short(&[7; 16]))],
        "mms_library" => {
            let (index, song) = (library(&Key::short(&INTERNAL_KEY)), vec![9; 1100]);
            let parts = [KEY_FILE.as_bytes(), &index, &song].map(part).concat();
            let lens = [&1100u16.to_le_bytes()[..], &[], &[0, 4]].map(part).concat();
            [0, 2, 7].map(|flags| [&[flags], &parts[..], &lens].concat()).to_vec()
        }
        "medusa_frames" => (0..8).map(|n| vec![n * 17; 200]).collect(),
        "medusa_manifest" => vec![
            br#"[{"keyspace": "k", "columnfamily": "t", "objects": [{"path": "n/b/data/k/t/f", "MD5": "23b828ac2934cc3b4065294cb98a2a02", "size": 104, "source_MD5": "hmZoNQaqzZALvVp0rE7faA==", "source_size": 1}]}]"#.to_vec(),
        ],
        "images_file" => {
            let meta = br#"{"originalExtension":".png","mimeType":"image/png"}"#;
            let png = part(b"\x89PNG\r\n\x1a\n and so on");
            vec![[&png[..], meta].concat(), meta.to_vec()]
        }
        "foreign_settings" => vec![
            b"[storage]\nkey_secret_base64 = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n # more\n".to_vec(),
            b"A=1\nexport IMAGE_ENCRYPTION_KEY=\"a${A}b$C\" # d\nB='${A:-x}'\n".to_vec(),
        ],
        _ => return None,
    })
}
