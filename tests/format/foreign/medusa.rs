//! Cassandra Medusa.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64_simd::STANDARD;
use hushfs::cache::BlockCache;
use hushfs::foreign::Format;
use hushfs::foreign::medusa::frames::{FernetKey, looks_like_aws, looks_like_frames, scan};
use hushfs::foreign::medusa::{FrameReader, Medusa};
use md5::{Digest, Md5};

use super::decoder::*;
use super::*;

const KEY: &str = "DrMxa6NEhBuKcBqffvw675eHo/9J/W3WqXZ3spyI1/U=";
const MANIFEST: &str = "meta/manifest.json";

/// Holds every file of a bucket to the forms of names, every manifest to its copy, every object to its manifests; answers
/// what each backup says that its files are. Objects of which a manifest says another length were overwritten.
fn decode(root: &Path, key: &MedusaKey) -> Vec<(String, String, Vec<u8>)> {
    let forms = page::column("medusa names", 0);
    let mut found = Vec::new();
    for name in files(root) {
        let fitting: Vec<&String> = forms
            .iter()
            .filter(|form| page::fits(form, &name))
            .collect();
        assert!(!fitting.is_empty(), "{name}");
        let bytes = fs::read(root.join(&name)).unwrap();
        if let Some((_, end)) = name.rsplit_once('_')
            && let Some(time) = end.strip_suffix(".timestamp")
        {
            assert_eq!(bytes, time.as_bytes(), "{name}");
        }
        if name.contains("/differential") {
            assert_eq!(bytes, b"differential");
        }
        let Some(backup) = name.strip_suffix(MANIFEST) else {
            continue;
        };
        let (node, backup) = backup.trim_end_matches('/').split_once('/').unwrap();
        let copy = format!("index/backup_index/{backup}/manifest_{node}.json");
        assert_eq!(bytes, fs::read(root.join(copy)).unwrap());
        for object in medusa_manifest(&bytes) {
            let path = text(&object, "path");
            let Some(plain) = check(root, key, &object) else {
                continue;
            };
            found.push((backup.into(), path.into(), plain));
        }
    }
    found
}

/// The plaintext of an object that is as its manifest says.
fn check(root: &Path, key: &MedusaKey, object: &Json) -> Option<Vec<u8>> {
    let path = text(object, "path");
    let stored = fs::read(root.join(path));
    if stored.is_err() && is_left_out(path) {
        return None;
    }
    let stored = stored.unwrap();
    if object["size"] != stored.len() {
        return None;
    }
    assert_eq!(object["MD5"], md5_hex(&stored), "{path}");
    let (plain, _) = key.file(&stored);
    assert_eq!(object["source_size"], plain.len(), "{path}");
    let digest = STANDARD.encode_to_string(Md5::digest(&plain));
    assert_eq!(object["source_MD5"], digest, "{path}");
    Some(plain)
}

fn open(root: &Path, read_only: bool) -> Result<Medusa> {
    Medusa::open(root, KEY.as_bytes(), 4 << 20, read_only)
}

#[test]
fn medusa_wrote_what_the_page_says() {
    let root = vectors().join("medusa/store/backups");
    let found = decode(&root, &MedusaKey::new(KEY));
    let mut count = 0;
    for file in json("medusa/expected.json").as_array().unwrap() {
        let member = |name: &str| file[name].as_str().unwrap();
        let (backup, name) = (member("backup"), member("file"));
        let below = format!("/{}/{}/{name}", member("keyspace"), member("table"));
        let plain = found
            .iter()
            .find(|(b, path, _)| b == backup && path.ends_with(&below));
        let is_lost = file["overwritten_by_diff2"] == true;
        assert_eq!(
            plain.is_none(),
            is_lost || is_left_out(name) && backup == "full-2026",
            "{backup}{below}"
        );
        if let Some((.., plain)) = plain {
            assert_eq!(sha256(plain), member("sha256"));
            count += 1;
        }
    }
    assert_eq!((count, found.len()), (38, 38));
    // Another driver: an upload in parts.
    let manifest = fs::read(vectors().join("medusa/manifest-s3-example.json")).unwrap();
    assert!(!medusa_manifest(&manifest).is_empty());
}

#[test]
fn the_page_gives_the_known_answers_of_medusa() {
    let kat = json("medusa/kat.json");
    let member = |name: &str| kat[name].as_str().unwrap();
    let key = MedusaKey::new(member("key_secret_base64"));
    assert_eq!(crate::page::hex(&key.0), member("signing_key_hex"));
    assert_eq!(crate::page::hex(&key.1), member("encryption_key_hex"));
    let vector = crate::page::unhex(member("iv_hex"));
    let time = kat["timestamp"].as_u64().unwrap();
    for case in kat["cases"].as_array().unwrap() {
        let plain = pattern(case["n"].as_u64().unwrap() as usize);
        let stored = key.file_of(time, &vector, &plain);
        assert_eq!(sha256(&stored), case["enc_sha256"], "{}", plain.len());
        let (again, heads) = key.file(&stored);
        assert!(again == plain && heads.iter().all(|head| *head == (time, vector.clone())));
    }
}

#[test]
fn the_medusa_example_is_as_the_page_says() {
    let key = MedusaKey::new(&page::constant("medusa.key"));
    assert_eq!(key.0, page::bytes("medusa.signing_key"));
    assert_eq!(key.1, page::bytes("medusa.encryption_key"));
    let token = page::constant("medusa.token");
    let frame = [&page::bytes("medusa.length"), token.as_bytes()].concat();
    let vector: Vec<u8> = (0..16).collect();
    assert_eq!(key.file(&frame), (vec![3], vec![(1_700_000_000, vector)]));
    assert!(token.starts_with("gAAAAA") && looks_like_frames(&frame));

    // And hushfs opens it.
    let dir = example();
    assert_eq!(decode(dir.path(), &key).len(), 1);
    let bucket = mount(open(dir.path(), true));
    assert_eq!(read(&*bucket, "node1/b1/data/ks/t/f.db"), [3]);
}

/// A bucket of the page's example alone.
fn example() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let manifest = page::constant("medusa.manifest");
    let token = page::constant("medusa.token");
    let frame = [&page::bytes("medusa.length"), token.as_bytes()].concat();
    for (name, bytes) in [
        ("node1/b1/meta/manifest.json", manifest.as_bytes()),
        (
            "index/backup_index/b1/manifest_node1.json",
            manifest.as_bytes(),
        ),
        ("node1/b1/data/ks/t/f.db", &frame),
    ] {
        put(dir.path(), name, bytes);
    }
    dir
}

#[test]
fn hushfs_writes_backups_as_the_page_says() {
    let dir = example();
    let now = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let start = now();
    let volume = mount(open(dir.path(), false));
    let table = "node1/b1/data/ks/t";
    fs::create_dir(dir.path().join(table).join(".idx")).unwrap();
    drop(volume);
    let volume = mount(open(dir.path(), false));
    let long = pattern((1 << 20) + 5);
    write(&*volume, &format!("{table}/g.db"), &long);
    write(&*volume, &format!("{table}/.idx/f.db"), b"index");
    write(&*volume, &format!("{table}/f.db"), b"");
    drop(volume);
    let key = MedusaKey::new(KEY);
    let found = decode(dir.path(), &key);
    let plain: Vec<(&str, &[u8])> = found
        .iter()
        .map(|(_, path, plain)| (path.strip_prefix(table).unwrap(), &plain[..]))
        .collect();
    let expected: [(&str, &[u8]); 3] = [("/f.db", b""), ("/g.db", &long), ("/.idx/f.db", b"index")];
    assert!(
        plain == expected,
        "{:?}",
        plain.iter().map(|(name, _)| name)
    );
    let stored = fs::read(dir.path().join(table).join("g.db")).unwrap();
    let (_, heads) = key.file(&stored);
    assert_eq!(heads.len(), 2);
    assert_ne!(heads[0].1, heads[1].1, "a vector each");
    assert!(heads.iter().all(|(time, _)| (start..=now()).contains(time)));
}

/// The pool: a new file is named by the newest differential backup, a changed one by all that named it.
#[test]
fn hushfs_changes_the_manifests_that_the_page_says() {
    let dir = tempfile::tempdir().unwrap();
    let from = vectors().join("medusa/store/backups");
    for name in files(&from) {
        put(dir.path(), &name, &fs::read(from.join(&name)).unwrap());
    }
    let volume = mount(open(dir.path(), false));
    let table = "node1.example.internal/data/media/users-11112222333344445555666677778888";
    write(&*volume, &format!("{table}/new.db"), b"new");
    write(&*volume, &format!("{table}/tone.mp3"), b"changed");
    drop(volume);
    let mut of: Vec<(String, Vec<u8>)> = Vec::new();
    for (backup, path, plain) in decode(dir.path(), &MedusaKey::new(KEY)) {
        if path.starts_with(table) && (path.ends_with("/new.db") || path.ends_with("/tone.mp3")) {
            of.push((format!("{backup}{}", &path[table.len()..]), plain));
        }
    }
    of.sort();
    let told: Vec<(&str, &[u8])> = of.iter().map(|(name, b)| (&**name, &b[..])).collect();
    let expected: [(&str, &[u8]); 3] = [
        ("diff-1/tone.mp3", b"changed"),
        ("diff-2/new.db", b"new"),
        ("diff-2/tone.mp3", b"changed"),
    ];
    assert_eq!(told, expected);
}

/// What hushfs makes of a file of one frame.
fn opened(key: &FernetKey, stored: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(stored).unwrap();
    let (frames, plain_size) = scan(&file, key, stored.len() as u64).ok()?;
    let cache = Arc::new(BlockCache::new(0));
    let reader = FrameReader::new(Arc::new(file), key.clone(), frames, plain_size, None, cache);
    let mut out = vec![0; plain_size as usize];
    use hushfs::foreign::Reader;
    reader.read_exact_at(0, &mut out).ok()?;
    Some(out)
}

#[test]
fn tokens_have_the_bounds_of_the_page() {
    let (key, ours) = (
        MedusaKey::new(KEY),
        FernetKey::parse(KEY.as_bytes()).unwrap(),
    );
    let number = |name: &str| page::number("medusa numbers", name);
    let token_len = |n: usize| medusa_frame_len(n) - 4;
    assert_eq!(token_len(1), number("token_len_min"));
    assert_eq!(
        medusa_frame_len(number("chunk_len")),
        number("frame_len_max")
    );
    let longest = number("chunk_len_max");
    assert!(token_len(longest) <= number("token_len_max"));
    assert!(token_len(longest + 1) > number("token_len_max"));
    for (len, is_read) in [(1, true), (longest, true), (longest + 1, false)] {
        // A time that is to come, too.
        let plain = pattern(len);
        let frame = key.frame(u64::MAX, &[9; 16], &plain);
        assert_eq!(opened(&ours, &frame).is_some_and(|p| p == plain), is_read);
    }
    // The standard alphabet, which a reader should take.
    let mut frame = key.frame(0, &[0xff; 16], b"x");
    for letter in &mut frame[4..] {
        *letter = match *letter {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
    }
    assert!(frame[4..].contains(&b'/'));
    assert_eq!(opened(&ours, &frame).as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_key_is_read_as_the_page_says() {
    let frame = |text: &str| {
        let mut out = Vec::new();
        FernetKey::parse(text.as_bytes())?.seal(5, &[1; 16], b"plain", &mut out);
        Some(out)
    };
    let expected = MedusaKey::new(KEY).frame(5, &[1; 16], b"plain");
    let (url_safe, mixed) = (KEY.replace('/', "_"), KEY.replacen('/', "_", 1));
    let (junk, comment) = (format!("\"Dr\n{}", &KEY[2..]), format!("{KEY} # mine"));
    for text in [KEY, &url_safe, &mixed, &junk, &comment] {
        assert_eq!(frame(text).as_ref(), Some(&expected), "{text}");
    }
    assert_eq!(frame(KEY.trim_end_matches('=')), None);
    assert_eq!(frame("AAAA"), None);
}

#[test]
fn hushfs_refuses_the_names_of_the_page() {
    let dir = example();
    let bucket = open(dir.path(), false).unwrap();
    let is_taken = |file: &str| {
        let path = format!("node1/b1/data/ks/t/{file}");
        bucket.check_name(Path::new(&path)).is_ok()
    };
    let rows = page::table("medusa undecrypted");
    assert_eq!(rows.len(), 5);
    for (at, row) in rows.iter().enumerate() {
        let (start, next) = (&row[0], &row[1]);
        assert!(!is_taken(&format!("{start}{next}")));
        assert!(!is_taken(&format!("{start}{next}.bak")));
        assert_eq!(is_taken(&format!("{start}-2{next}")), at == 4, "{start}");
        assert!(is_taken(&format!("x{start}{next}")));
        assert!(is_taken(start) && is_taken(next));
    }
}

#[test]
fn the_other_form_begins_as_the_page_says() {
    let begins: Vec<Vec<u8>> = page::column("medusa aws", 0)
        .iter()
        .map(|digits| crate::page::unhex(digits))
        .collect();
    for first in 0..=255u8 {
        for second in 0..=255u8 {
            let head = [first, second, 0x78, 0, 0, 0];
            let is_listed = begins.iter().any(|begin| head.starts_with(begin));
            assert_eq!(looks_like_aws(&head), is_listed, "{head:x?}");
        }
    }
    let root = vectors().join("cases/medusa/fernet-and-aws");
    let (mut aws, mut frames) = (0, 0);
    for name in files(&root).iter().filter(|name| name.contains("/data/")) {
        let bytes = fs::read(root.join(name)).unwrap();
        aws += usize::from(begins.iter().any(|begin| bytes.starts_with(begin)));
        frames += usize::from(bytes.get(4..).is_some_and(|t| t.starts_with(b"gAAAAA")));
    }
    assert!(aws > 0 && frames > 0, "{aws} {frames}");
}
