//! A whole library of a Minio Music Server: key file, index and object as they come; and a well made key file, over
//! records of a song that was encrypted up to three times, whose lengths and objects are true or come from the input.
#![no_main]
use std::path::Path;

use base64_simd::STANDARD as BASE64;
use hushfs::foreign::cipher::Key;
use hushfs::foreign::mms::{Mms, Options, index};
use hushfs::foreign::report::{Report, Watch};
use hushfs::foreign::{Format, Listed, Mirror};
use libfuzzer_sys::fuzz_target;

/// The key file of the known answers, which the password `XXXXXXX` opens, and what is in it.
const KEY_FILE: &str = r#"{"data":"521WPmCnOfu0YhTY9styiEIXf5hcEHXM13FCgTcsfSc=","iv":"AAECAwQFBgcICQoLDA0ODw=="}"#;
const INTERNAL_KEY: [u8; 16] =
    [0xf0, 0xe1, 0xd2, 0xc3, 0xb4, 0xa5, 0x96, 0x87, 0x78, 0x69, 0x5a, 0x4b, 0x3c, 0x2d, 0x1e, 0x0f];
/// The song, and the objects of each layer.
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

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).expect("a disk that is not full");
}

/// Reads all that is there, as far as it is believable.
fn read(dir: &Path) -> Option<Vec<(String, Vec<u8>)>> {
    let options = Options { key: Some("key".into()), index: Some("music.index".into()), ..Options::default() };
    let format = Mms::open(dir, b"XXXXXXX", &options, true).ok()?;
    let mut files = Vec::new();
    let mut listed = Vec::new();
    format.list(&mut |one| listed.push(one)).ok()?;
    for one in listed {
        let Listed::File(path, entry) = one else { continue };
        let size = entry.plain_size.map_or_else(|| format.plain_size(&entry), Ok);
        let Ok(reader) = format.open(&path, &entry) else { continue };
        assert!(size.is_ok(), "what opens has a size");
        assert!(reader.plain_size() < 1 << 24, "no plaintext is longer than its object");
        let mut out = vec![0; reader.plain_size() as usize];
        if reader.read_exact_at(0, &mut out).is_ok() {
            files.push((path.to_string_lossy().into_owned(), out));
        }
    }
    format.verify(&mut Report::new(&mut Nobody)).expect("a folder that can be listed");
    Mirror::new(Box::new(format)).expect("a few names");
    Some(files)
}

/// As the server encrypts a file.
fn sealed(key: &Key, iv: u8, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    plain.chunks(1008).for_each(|segment| key.encrypt_padded(&[iv; 16], segment, &mut out));
    out
}

fuzz_target!(|data: (&[u8], &[u8], &[u8], [Option<u16>; 3], [bool; 3])| {
    let dir = tempfile::tempdir().expect("a place to work");
    let dir = dir.path();
    let (key_file, index_file, song, lens, broken) = data;
    put(dir, "key", key_file);
    put(dir, "music.index", index_file);
    put(dir, "a.encrypt", song);
    read(dir);

    std::fs::remove_file(dir.join("a.encrypt")).expect("it was just put there");
    std::fs::create_dir(dir.join("m")).expect("a disk that is not full");
    put(dir, "key", KEY_FILE.as_bytes());
    let key = Key::short(&INTERNAL_KEY);
    let mut text = b"{\"version\":2,\"registers\":3,\"id\":1}\n".to_vec();
    let mut plain = song.to_vec();
    for layer in 0..3 {
        let (path, object, iv) = (NAMES[layer], NAMES[layer + 1], layer as u8);
        let len = lens[layer].map_or(plain.len(), usize::from);
        let json = format!(
            r#"{{"id":{layer},"path":"{path}","filesize":{len},"extension":"x","iv":"{}","nameEnc":"{object}"}}"#,
            BASE64.encode_to_string([iv; 16])
        );
        let mut line = Vec::new();
        key.encrypt_padded(&[iv; 16], json.as_bytes(), &mut line);
        let line = format!(r#"{{"data":"{}","iv":"{}"}}"#, BASE64.encode_to_string(line), BASE64.encode_to_string([iv; 16]));
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        plain = sealed(&key, iv, &plain);
        put(dir, object, if broken[layer] { index_file } else { &plain });
    }
    put(dir, "music.index", &text);
    assert!(index::Index::parse(&text, &key).expect("a well made index").records().count() == 3);
    let files = read(dir).expect("a well made library");
    if lens == [None; 3] && broken == [false; 3] {
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|(_, bytes)| bytes == song), "each layer is read through to the song");
    }
});
