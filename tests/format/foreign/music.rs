//! Minio Music Server.

use std::collections::BTreeSet;

use base64_simd::STANDARD;
use hushfs::foreign::mms::{self, Mms};
use hushfs::volume::RenameMode;

use super::decoder::*;
use super::*;

/// A record, and what its object holds, where there is one.
type Song = (Json, Option<Vec<u8>>);

/// A library, decoded: the index's generation, and its records with contents.
fn decode(root: &Path, password: &[u8]) -> (u64, Vec<Song>) {
    let names = page::column("music names", 0);
    let read = |name: &str| fs::read(root.join(name)).unwrap();
    let key = music_internal_key(password, &read(&names[0]));
    let (generation, records) = music_index(&key, &read(&names[1]));
    let opened = records.into_iter().map(|record| {
        let path = text(&record, "path");
        let md5 = md5_hex(path.as_bytes());
        let form = names[2].replace("<path>", "music/").replace("<md5>", &md5);
        assert_eq!(text(&record, "nameEnc"), form);
        if is_left_out(path) {
            return (record, None);
        }
        let stored = fs::read(root.join(&form)).unwrap();
        let plain = music_object(&key, &music_vector(&record), &stored);
        assert_eq!(record["filesize"], plain.len());
        assert_eq!(stored.len(), music_object_len(plain.len()));
        (record, Some(plain))
    });
    (generation, opened.collect())
}

#[test]
fn the_music_server_wrote_what_the_page_says() {
    let expected = &json("mms/expected.json")[0];
    let root = vectors().join("mms/run1-bucket");
    let password = expected["password"].as_str().unwrap();
    let (generation, files) = decode(&root, password.as_bytes());
    assert_eq!(generation, expected["header"]["id"]);
    let records = expected["records_in_index_order"].as_array().unwrap();
    assert_eq!(files.len(), records.len());
    for ((record, plain), expected) in files.iter().zip(records) {
        for (name, value) in record {
            assert_eq!(*value, expected[name]);
        }
        if let Some(plain) = plain {
            assert_eq!(sha256(plain), expected["plain_sha256"]);
        }
    }
}

#[test]
fn the_page_gives_the_known_answers_of_the_music_server() {
    let kat = json("mms/kat.json");
    let bytes = |name: &str| STANDARD.decode_to_vec(kat[name].as_str().unwrap()).unwrap();
    let (key, vector) = (bytes("internal_key_b64"), bytes("iv_b64"));
    for case in kat["files"].as_array().unwrap() {
        let plain = pattern(case["n"].as_u64().unwrap() as usize);
        let stored = music_object_of(&key, &vector, &plain);
        assert_eq!(sha256(&stored), case["enc_sha256"], "{}", plain.len());
        assert_eq!(music_object_len(plain.len()), stored.len());
        assert_eq!(music_object(&key, &vector, &stored), plain);
    }
    for case in kat["passwords"].as_array().unwrap() {
        let password = case["password"].as_str().unwrap().as_bytes();
        let wrapping = crate::page::hex(&music_password_key(password));
        assert_eq!(wrapping, case["wrapkey_hex"]);
        let key_file = case["keyfile"].as_str().unwrap().as_bytes();
        assert_eq!(music_internal_key(password, key_file), key);
    }
}

#[test]
fn the_music_example_is_as_the_page_says() {
    let (key, vector) = (
        page::bytes("music.internal_key"),
        page::bytes("music.vector"),
    );
    let key_file = page::constant("music.key_file");
    assert_eq!(
        music_password_key(b"XXXXXXX"),
        page::bytes("music.password_key")
    );
    assert_eq!(music_internal_key(b"XXXXXXX", key_file.as_bytes()), key);
    let [first, line] = ["music.first_line", "music.line"].map(page::constant);
    let index = format!("{first}\n{line}\n");
    let (_, records) = music_index(&key, index.as_bytes());
    let record = serde_json::to_string(&records[0]).unwrap();
    assert_eq!(record, page::constant("music.record"));
    let object = page::bytes("music.object");
    assert_eq!(music_object(&key, &vector, &object), [3]);

    // And hushfs opens it.
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "key", key_file.as_bytes());
    put(dir.path(), "music.index", index.as_bytes());
    put(dir.path(), text(&records[0], "nameEnc"), &object);
    let (_, files) = decode(dir.path(), b"XXXXXXX");
    assert_eq!(files[0].1.as_deref(), Some(&[3][..]));
    let opened = Mms::open(dir.path(), b"XXXXXXX", &Default::default(), true);
    assert_eq!(read(&*mount(opened), text(&records[0], "path")), [3]);
}

#[test]
fn hushfs_writes_music_as_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let password = "pass wörd".as_bytes();
    mms::init(dir.path(), &Default::default(), password).unwrap();
    let kept = fs::read_to_string(dir.path().join(".hushfs-mms-path")).unwrap();
    assert_eq!(kept, "music/\n");
    let (generation, files) = decode(dir.path(), password);
    assert_eq!((generation, files.len()), (1, 0));
    let open = || Mms::open(dir.path(), password, &Default::default(), false);
    let volume = mount(open());
    assert!(dir.path().join(".hushfs-tmp").is_dir());

    write(&*volume, "music/a.mkv", &pattern(2016));
    write(&*volume, "music/b.mp3", &pattern(1009));
    write(&*volume, "music/é.Flac", b"");
    let before = decode(dir.path(), password).1;
    write(&*volume, "music/a.mkv", &pattern(100_000));
    let music = find(&*volume, "music");
    let name = OsStr::new;
    volume
        .rename(
            music,
            name("b.mp3"),
            music,
            name("c.wav"),
            RenameMode::Replace,
        )
        .unwrap();
    let (generation, after) = decode(dir.path(), password);
    // One more after each of five changes.
    assert_eq!(generation, 6);
    let told: Vec<(&str, u64, usize)> = after
        .iter()
        .map(|(record, plain)| {
            let id = record["id"].as_u64().unwrap();
            (text(record, "path"), id, plain.as_ref().unwrap().len())
        })
        .collect();
    assert_eq!(
        told,
        [
            ("music/a.mkv", 0, 100_000),
            ("music/c.wav", 1, 1009),
            ("music/é.Flac", 2, 0)
        ]
    );
    assert_ne!(before[0].0["iv"], after[0].0["iv"], "new contents");
    let changed = ["path", "extension", "nameEnc"];
    for (name, value) in &after[1].0 {
        let is_same = before[1].0[name] == *value;
        assert_eq!(is_same, !changed.contains(&name.as_str()), "{name}");
    }
    assert_eq!(before[2], after[2], "nothing happened to this one");
    drop(volume);
    assert!(!dir.path().join(".hushfs-tmp").exists());
}

#[test]
fn hushfs_takes_the_media_types_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    mms::init(dir.path(), &Default::default(), b"").unwrap();
    let library = Mms::open(dir.path(), b"", &Default::default(), true).unwrap();
    let is_taken = |extension: &str| {
        let path = format!("music/folder/x.{extension}");
        library.check_name(Path::new(&path)).is_ok()
    };
    let listed = ["audio", "video"].map(music_extensions).concat();
    for extension in &listed {
        assert!(is_taken(extension) && is_taken(&extension.to_uppercase()));
    }
    let mut shorter: Vec<String> = vec![String::new()];
    let mut taken = BTreeSet::new();
    for _ in 0..3 {
        let longer = shorter.iter().flat_map(|start| {
            ('a'..='z')
                .chain('0'..='9')
                .map(move |letter| format!("{start}{letter}"))
        });
        shorter = longer.collect();
        taken.extend(shorter.iter().filter(|e| is_taken(e)).cloned());
    }
    let short = listed.into_iter().filter(|extension| extension.len() <= 3);
    assert_eq!(taken, short.collect());
    for other in ["jpeg", "opus", "encrypt", "mp3x"] {
        assert!(!is_taken(other), "{other}");
    }
}
