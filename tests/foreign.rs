//! Foreign libraries, without a kernel: what the original programs wrote is read, answers that they gave are given
//! byte for byte, what is written is read again and holds to what the formats demand, and damage is an error.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64_simd::STANDARD as BASE64;
use hushfs::cache::BlockCache;
use hushfs::error::{Kind, Result};
use hushfs::foreign::cipher::Key;
use hushfs::foreign::images::{self, Images};
use hushfs::foreign::medusa::frames::{self, FernetKey, FrameSeal};
use hushfs::foreign::medusa::{BackupsView, Medusa};
use hushfs::foreign::mms::{self, Mms};
use hushfs::foreign::report::{Report, Watch};
use hushfs::foreign::sealer::{Seal, Sealer};
use hushfs::foreign::stage::Stage;
use hushfs::foreign::{Format, FormatKind, Mirror, detect};
use hushfs::volume::{Caller, Ino, ROOT, RenameMode, Volume};
use serde_json::Value;
use sha2::{Digest, Sha256};

const MMS_PASSWORD: &str = "correct horse ñ 2019";
const MEDUSA_KEY: &str = "DrMxa6NEhBuKcBqffvw675eHo/9J/W3WqXZ3spyI1/U=";
const IMAGES_KEY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// Left out of the vectors for their size.
const LEFT_OUT: &[&str] = &[
    "3MB random.wav",
    "nb-2-big-Data.db",
    "lora_1795199454472_1051.png",
    "lora_1795199454520_1257.png",
];

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/foreign")
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(vectors().join(path)).unwrap()).unwrap()
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|i| (7 * i + 3) as u8).collect()
}

/// Bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 32);
    let mut n = 0u64;
    while out.len() < len {
        out.extend_from_slice(&Sha256::digest(
            [seed.to_le_bytes(), n.to_le_bytes()].concat(),
        ));
        n += 1;
    }
    out.truncate(len);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

fn library(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&vectors().join(name), dir.path());
    dir
}

fn open_mms(root: &Path, read_only: bool) -> Result<Box<dyn Format>> {
    let format = Mms::open(
        root,
        MMS_PASSWORD.as_bytes(),
        &mms::Options::default(),
        read_only,
    )?;
    Ok(Box::new(format))
}

fn open_medusa(root: &Path, read_only: bool) -> Result<Box<dyn Format>> {
    Ok(Box::new(Medusa::open(
        root,
        MEDUSA_KEY.as_bytes(),
        8 << 20,
        read_only,
    )?))
}

fn open_images(root: &Path, read_only: bool) -> Result<Box<dyn Format>> {
    Ok(Box::new(Images::open(
        root,
        IMAGES_KEY.as_bytes(),
        read_only,
    )?))
}

type Open = fn(&Path, bool) -> Result<Box<dyn Format>>;
const LIBRARIES: [(&str, Open); 3] = [
    ("mms/run1-bucket", open_mms),
    ("medusa/store/backups", open_medusa),
    ("imagestore", open_images),
];

fn find(volume: &dyn Volume, path: &str) -> Result<Ino> {
    let mut at = ROOT;
    for name in Path::new(path) {
        at = volume.lookup(at, name)?.ino;
    }
    Ok(at)
}

fn read(volume: &dyn Volume, path: &str) -> Result<Vec<u8>> {
    let ino = find(volume, path)?;
    let handle = volume.open(ino, libc::O_RDONLY)?;
    let mut out = vec![0; volume.getattr(ino)?.plain_size as usize + 100];
    let read = volume.read(ino, handle, 0, &mut out);
    volume.release(ino, handle);
    out.truncate(read?);
    Ok(out)
}

fn parent(volume: &dyn Volume, path: &str) -> (Ino, String) {
    let path = Path::new(path);
    let parent = find(volume, path.parent().unwrap().to_str().unwrap()).unwrap();
    (
        parent,
        path.file_name().unwrap().to_str().unwrap().to_string(),
    )
}

/// Writes a file in pieces, in the order given.
fn write_pieces(volume: &dyn Volume, path: &str, pieces: &[(u64, &[u8])]) -> Result<()> {
    let (dir, name) = parent(volume, path);
    let (ino, handle) = match volume.lookup(dir, OsStr::new(&name)) {
        Ok(attr) => (attr.ino, volume.open(attr.ino, libc::O_RDWR)?),
        Err(_) => {
            let (attr, handle) =
                volume.create(dir, OsStr::new(&name), 0o644, libc::O_RDWR, CALLER)?;
            (attr.ino, handle)
        }
    };
    for (at, piece) in pieces {
        for (n, part) in piece.chunks(1 << 20).enumerate() {
            volume.write(ino, handle, at + (n << 20) as u64, part)?;
        }
    }
    let flushed = volume.flush(ino, handle);
    volume.release(ino, handle);
    flushed
}

fn write(volume: &dyn Volume, path: &str, bytes: &[u8]) -> Result<()> {
    write_pieces(volume, path, &[(0, bytes)])
}

#[derive(Default)]
struct Found(Vec<String>);

impl Watch for Found {
    fn problem(&mut self, subject: &str, text: &str) {
        self.0.push(format!("{subject}: {text}"));
    }
    fn note(&mut self, _: &str, _: &str) {}
    fn total(&mut self, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

fn problems(format: &dyn Format) -> Vec<String> {
    let mut found = Found::default();
    format.verify(&mut Report::new(&mut found)).unwrap();
    found.0
}

/// Problems that the vectors do not have of themselves.
fn new_problems(format: &dyn Format) -> Vec<String> {
    let mut all = problems(format);
    all.retain(|p| {
        !LEFT_OUT.iter().any(|out| p.contains(out)) && !p.contains("the backup diff-1 has lost it")
    });
    all.retain(|p| !p.contains("describes a file that is not there"));
    all
}

/// What a codec makes of some bytes, by way of the sealer.
fn seal(seal: Box<dyn Seal>, plain: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage::open(dir.path()).unwrap();
    let mut sealer = Sealer::new(&stage, seal, true).unwrap();
    // Pieces that fit no unit.
    plain
        .chunks(100_003)
        .for_each(|part| sealer.write(part).unwrap());
    let sealed = sealer.finish().unwrap();
    let stored = fs::read(sealed.temp.path()).unwrap();
    assert_eq!(sealed.cipher_len, stored.len() as u64);
    // Any range of it reads back, too.
    for at in [0, 1, 15, 16, 1007, 1008, 1024, plain.len() / 2, plain.len()] {
        let at = at.min(plain.len());
        let mut out = vec![0; (plain.len() - at).min(5000)];
        sealed.reader.read_exact_at(at as u64, &mut out).unwrap();
        assert_eq!(out, plain[at..at + out.len()]);
    }
    stored
}

#[test]
fn mms_gives_the_known_answers() {
    let kat = json("mms/kat.json");
    let bytes = |name: &str| {
        <[u8; 16]>::try_from(BASE64.decode_to_vec(kat[name].as_str().unwrap()).unwrap()).unwrap()
    };
    let (key, iv) = (Key::short(&bytes("internal_key_b64")), bytes("iv_b64"));
    let cases = kat["files"].as_array().unwrap();
    for case in cases {
        let len = case["n"].as_u64().unwrap();
        let stored = seal(
            Box::new(mms::SegmentSeal {
                key: key.clone(),
                iv,
            }),
            &pattern(len),
        );
        assert_eq!(stored.len() as u64, case["enc_len"], "{len}");
        assert_eq!(mms::cipher_len(len), case["enc_len"], "{len}");
        assert_eq!(sha256(&stored), case["enc_sha256"], "{len}");
    }
    assert_eq!(cases.len(), 15);
    for case in kat["passwords"].as_array().unwrap() {
        // The key file of each password opens with it, and gives the same internal key: an index sealed with that.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), case["keyfile"].as_str().unwrap()).unwrap();
        let line = kat["record_line"].as_str().unwrap();
        fs::write(
            dir.path().join("i"),
            format!("{{\"version\":2,\"registers\":1,\"id\":1}}\n{line}\n"),
        )
        .unwrap();
        let password = case["password"].as_str().unwrap().as_bytes();
        let library = Mirror::new(Box::new(
            Mms::open(dir.path(), password, &Default::default(), true).unwrap(),
        ))
        .unwrap();
        let path = kat["record"]["path"].as_str().unwrap();
        let attr = library.getattr(find(&*library, path).unwrap()).unwrap();
        assert_eq!(attr.plain_size, kat["record"]["filesize"]);
        let wrong = Mms::open(dir.path(), b"wrong", &Default::default(), true)
            .err()
            .unwrap();
        assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
    }
}

#[test]
fn medusa_gives_the_known_answers() {
    let kat = json("medusa/kat.json");
    let key = FernetKey::parse(kat["key_secret_base64"].as_str().unwrap().as_bytes()).unwrap();
    let iv: Vec<u8> = (0..16).collect();
    assert_eq!(hex(&iv), kat["iv_hex"]);
    let pinned = Some((kat["timestamp"].as_u64().unwrap(), iv.try_into().unwrap()));
    let cases = kat["cases"].as_array().unwrap();
    for case in cases {
        let plain = pattern(case["n"].as_u64().unwrap());
        let cache = Arc::new(BlockCache::new(4 << 20));
        let stored = seal(
            Box::new(FrameSeal {
                key: key.clone(),
                pinned,
                cache,
            }),
            &plain,
        );
        assert_eq!(sha256(&stored), case["enc_sha256"]);
        assert_eq!(frames::cipher_len(plain.len() as u64), stored.len() as u64);
    }
    assert_eq!(cases.len(), 11);
}

#[test]
fn images_gives_the_known_answers() {
    let kat = json("imagestore/kat.json");
    let iv: Vec<u8> = (0x10..0x20).collect();
    assert_eq!(hex(&iv), kat["iv_hex"]);
    let iv: [u8; 16] = iv.try_into().unwrap();
    let cases = kat["cases"].as_array().unwrap();
    for case in cases {
        let key = images::key_of(case["key"].as_str().unwrap().as_bytes());
        let stored = seal(
            Box::new(images::ImageSeal::new(key, iv)),
            &pattern(case["n"].as_u64().unwrap()),
        );
        assert_eq!(sha256(&stored), case["enc_sha256"]);
        assert_eq!(stored.len() as u64, case["enc_len"]);
    }
    assert_eq!(cases.len(), 24);
}

#[test]
fn what_the_music_server_wrote_is_read() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), true).unwrap()).unwrap();
    let expected = json("mms/expected.json");
    let mut count = 0;
    for record in expected[0]["records_in_index_order"].as_array().unwrap() {
        let path = record["path"].as_str().unwrap();
        let attr = volume.getattr(find(&*volume, path).unwrap()).unwrap();
        assert_eq!(attr.plain_size, record["filesize"], "{path}");
        if LEFT_OUT.iter().any(|out| path.ends_with(out)) {
            let missing = read(&*volume, path).unwrap_err();
            assert_eq!(
                missing.errno(),
                libc::EIO,
                "listed, and an error to read: {missing}"
            );
            continue;
        }
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            record["plain_sha256"],
            "{path}"
        );
        count += 1;
    }
    assert_eq!(count, 16);
    assert!(find(&*volume, "key").is_err() && find(&*volume, "music.index").is_err());
}

#[test]
fn what_medusa_wrote_is_read() {
    let dir = library("medusa/store/backups");
    let node = "node1.example.internal";
    let bucket = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
    let medusa = Medusa::open(dir.path(), MEDUSA_KEY.as_bytes(), 8 << 20, true).unwrap();
    let backups = Mirror::new(Box::new(BackupsView::new(medusa))).unwrap();
    let (mut read_files, mut lost) = (0, 0);
    for file in json("medusa/expected.json").as_array().unwrap() {
        let text = |name: &str| file[name].as_str().unwrap();
        let below = format!("{}/{}/{}", text("keyspace"), text("table"), text("file"));
        let shown = format!("{node}/{}/{below}", text("backup"));
        if LEFT_OUT.contains(&text("file")) && text("backup") == "full-2026" {
            assert_eq!(read(&*backups, &shown).unwrap_err().errno(), libc::EIO);
            continue;
        }
        if file["overwritten_by_diff2"] == true {
            assert_eq!(
                read(&*backups, &shown).unwrap_err().errno(),
                libc::EIO,
                "{shown}"
            );
            lost += 1;
            continue;
        }
        assert_eq!(
            sha256(&read(&*backups, &shown).unwrap()),
            text("sha256"),
            "{shown}"
        );
        let folder = if text("backup") == "full-2026" {
            format!("{node}/full-2026/data")
        } else {
            format!("{node}/data")
        };
        assert_eq!(
            sha256(&read(&*bucket, &format!("{folder}/{below}")).unwrap()),
            text("sha256")
        );
        let attr = bucket
            .getattr(find(&*bucket, &format!("{folder}/{below}")).unwrap())
            .unwrap();
        assert_eq!(attr.plain_size, file["size"]);
        read_files += 1;
    }
    assert_eq!((read_files, lost), (38, 1));
    let manifest = format!("{node}/diff-1/meta/manifest.json");
    assert_eq!(
        read(&*bucket, &manifest).unwrap(),
        fs::read(dir.path().join(&manifest)).unwrap()
    );
    let found = problems(bucket.format());
    assert!(
        found
            .iter()
            .any(|p| p.contains("overwritten by the backup diff-2: the backup diff-1 has lost it")),
        "{found:?}"
    );
    assert_eq!(new_problems(bucket.format()), Vec::<String>::new());
}

#[test]
fn what_the_image_store_wrote_is_read() {
    let dir = library("imagestore");
    let volume = Mirror::new(open_images(dir.path(), true).unwrap()).unwrap();
    let mut count = 0;
    for file in json("imagestore/expected.json")["files"]
        .as_array()
        .unwrap()
    {
        let path = file["file"].as_str().unwrap().strip_suffix(".enc").unwrap();
        if LEFT_OUT.iter().any(|out| path.ends_with(out)) {
            continue;
        }
        assert_eq!(
            sha256(&read(&*volume, path).unwrap()),
            file["sha256"],
            "{path}"
        );
        let ino = find(&*volume, path).unwrap();
        assert_eq!(volume.getattr(ino).unwrap().plain_size, file["size"]);
        let mime = volume.getxattr(ino, OsStr::new("user.mime_type")).unwrap();
        assert_eq!(mime, file["servedType"].as_str().unwrap().as_bytes());
        count += 1;
    }
    assert_eq!(count, 16);
}

/// Where each format takes a new file.
fn new_path(name: &str, file: &str) -> String {
    match name {
        "mms/run1-bucket" => format!("music/{file}.mp3"),
        "imagestore" => format!("dam/loras/{file}.jpg"),
        _ => format!(
            "node1.example.internal/data/media/users-11112222333344445555666677778888/{file}.db"
        ),
    }
}

#[test]
fn what_is_written_is_there_after_opening_again() {
    for (name, open) in LIBRARIES {
        let dir = library(name);
        let mut expected: HashMap<String, Vec<u8>> = HashMap::new();
        let volume = Mirror::new(open(dir.path(), false).unwrap()).unwrap();
        for len in [
            0,
            1,
            15,
            16,
            1007,
            1008,
            1009,
            258_048,
            1 << 20,
            (1 << 20) + 1,
            3_000_000,
            20_000_000,
        ] {
            let path = new_path(name, &format!("of {len}"));
            let bytes = noise(len as u64, len);
            write(&*volume, &path, &bytes).unwrap();
            expected.insert(path, bytes);
        }
        // Backwards, over itself, and far behind the end: never in the order in which it is stored.
        let path = new_path(name, "random");
        let mut model = vec![0; 30_000_000];
        let pieces: Vec<(usize, Vec<u8>)> = [
            (29_000_000, 1_000_000),
            (0, 12_000_000),
            (5, 100),
            (11_000_000, 9_000_000),
            (3, 1),
        ]
        .map(|(at, len)| (at, noise(at as u64, len)))
        .into();
        for (at, piece) in &pieces {
            model[*at..at + piece.len()].copy_from_slice(piece);
        }
        let pieces: Vec<(u64, &[u8])> = pieces.iter().map(|(at, p)| (*at as u64, &p[..])).collect();
        write_pieces(&*volume, &path, &pieces).unwrap();
        expected.insert(path.clone(), model);
        // A part of an older file, and a cut.
        let part = new_path(name, "of 3000000");
        write_pieces(&*volume, &part, &[(100, b"changed")]).unwrap();
        expected.get_mut(&part).unwrap()[100..107].copy_from_slice(b"changed");
        // Rename over another, and removal.
        let (dir_ino, gone) = parent(&*volume, &new_path(name, "of 1"));
        let (_, over) = parent(&*volume, &new_path(name, "of 15"));
        volume
            .rename(
                dir_ino,
                OsStr::new(&gone),
                dir_ino,
                OsStr::new(&over),
                RenameMode::Replace,
            )
            .unwrap();
        let moved = expected.remove(&new_path(name, "of 1")).unwrap();
        expected.insert(new_path(name, "of 15"), moved);
        let (_, removed) = parent(&*volume, &new_path(name, "of 1007"));
        volume.unlink(dir_ino, OsStr::new(&removed)).unwrap();
        expected.remove(&new_path(name, "of 1007"));
        for (path, bytes) in &expected {
            assert!(
                read(&*volume, path).unwrap() == *bytes,
                "{path} before closing"
            );
        }
        volume.close().unwrap();
        drop(volume);
        assert!(!dir.path().join(".hushfs-tmp").exists(), "nothing is left");
        let volume = Mirror::new(open(dir.path(), true).unwrap()).unwrap();
        for (path, bytes) in &expected {
            assert!(
                read(&*volume, path).unwrap() == *bytes,
                "{path} after opening again"
            );
        }
        for gone in ["of 1", "of 1007"] {
            assert!(find(&*volume, &new_path(name, gone)).is_err());
        }
        assert_eq!(
            new_problems(volume.format()),
            Vec::<String>::new(),
            "{name}"
        );
    }
}

#[test]
fn a_changed_byte_never_panics_and_medusa_always_notices() {
    for (name, open) in LIBRARIES {
        let source = vectors().join(name);
        let mut files = Vec::new();
        let mut pending = vec![source.clone()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => pending.push(path),
                    false => files.push(path.strip_prefix(&source).unwrap().to_path_buf()),
                }
            }
        }
        let dir = library(name);
        for file in &files {
            let path = dir.path().join(file);
            let whole = fs::read(&path).unwrap();
            if whole.is_empty() {
                continue;
            }
            for (at, cut) in [
                (0, false),
                (whole.len() / 2, false),
                (whole.len() - 1, false),
                (whole.len() / 2, true),
                (0, true),
            ] {
                let mut bad = whole.clone();
                if cut {
                    bad.truncate(at)
                } else {
                    bad[at] ^= 0x40
                }
                fs::write(&path, &bad).unwrap();
                // The first read of a broken index or key may fail; nothing may panic, or hang.
                if let Ok(format) = open(dir.path(), true) {
                    let found = problems(&*format);
                    let volume = Mirror::new(format).unwrap();
                    let is_data =
                        name.starts_with("medusa") && file.iter().any(|part| part == "data");
                    if is_data {
                        let shown = file.to_str().unwrap();
                        assert!(
                            read(&*volume, shown).is_err(),
                            "{shown} at {at}, cut: {cut}"
                        );
                        assert!(
                            found.iter().any(|p| p.starts_with(shown)),
                            "{shown}: {found:?}"
                        );
                    }
                }
            }
            fs::write(&path, &whole).unwrap();
        }
    }
}

#[test]
fn frames_in_another_order_are_noticed_by_who_reads_them_all() {
    let dir = library("medusa/store/backups");
    let volume = Mirror::new(open_medusa(dir.path(), false).unwrap()).unwrap();
    let path = new_path("medusa", "many frames");
    write(&*volume, &path, &noise(1, 3 << 20)).unwrap();
    volume.close().unwrap();
    drop(volume);
    let stored = dir.path().join(&path);
    let whole = fs::read(&stored).unwrap();
    let frame = whole.len() / 3;
    let swapped = [
        &whole[frame..2 * frame],
        &whole[..frame],
        &whole[2 * frame..],
    ]
    .concat();
    fs::write(&stored, swapped).unwrap();
    let format = open_medusa(dir.path(), true).unwrap();
    assert!(problems(&*format).iter().any(|p| p.contains("many frames")));
    assert_eq!(
        read(&*Mirror::new(format).unwrap(), &path)
            .unwrap_err()
            .errno(),
        libc::EIO
    );
    fs::write(&stored, whole).unwrap();
    let volume = Mirror::new(open_medusa(dir.path(), true).unwrap()).unwrap();
    assert_eq!(read(&*volume, &path).unwrap(), noise(1, 3 << 20));
}

#[test]
fn wrong_secrets_and_strangers_are_named() {
    let dir = library("medusa/store/backups");
    let wrong = Medusa::open(dir.path(), &[b'A'; 44], 0, true)
        .err()
        .unwrap();
    assert!(
        matches!(wrong.kind(), Kind::Usage(_)),
        "no padding: {wrong}"
    );
    let key = BASE64.encode_to_string([7; 32]);
    let wrong = Medusa::open(dir.path(), key.as_bytes(), 0, true)
        .err()
        .unwrap();
    assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
    // Every object of the later format.
    let mut pending = vec![dir.path().join("node1.example.internal")];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.to_str().unwrap().contains("/data/") {
                fs::write(path, [2, 5, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            }
        }
    }
    let later = Medusa::open(dir.path(), MEDUSA_KEY.as_bytes(), 0, true)
        .err()
        .unwrap();
    assert!(later.to_string().contains("AWS Encryption SDK"), "{later}");
    let dir = library("imagestore");
    let wrong = Images::open(dir.path(), b"another", true).err().unwrap();
    assert!(matches!(wrong.kind(), Kind::WrongKey), "{wrong}");
}

#[test]
fn what_a_folder_is_is_recognised_or_asked() {
    for (name, kind) in [
        ("mms/run1-bucket", FormatKind::Mms),
        ("medusa/store/backups", FormatKind::Medusa),
        ("imagestore", FormatKind::Images),
    ] {
        assert_eq!(detect(&vectors().join(name), false).unwrap(), kind);
    }
    let dir = library("mms/run1-bucket");
    copy(&vectors().join("imagestore/dam"), &dir.path().join("dam"));
    let several = detect(dir.path(), false).unwrap_err().to_string();
    assert!(several.contains("--format=mms or images"), "{several}");
    let none = tempfile::tempdir().unwrap();
    assert!(matches!(
        detect(none.path(), false).unwrap_err().kind(),
        Kind::NotLibrary
    ));
    fs::copy(dir.path().join("key"), dir.path().join("key2")).unwrap();
    let keys = Mms::open(
        dir.path(),
        MMS_PASSWORD.as_bytes(),
        &Default::default(),
        true,
    )
    .err()
    .unwrap()
    .to_string();
    assert!(keys.contains("key, key2"), "{keys}");
}

#[test]
fn files_that_would_lie_in_clear_are_refused() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert_eq!(
        write(&*volume, "music/cover.jpg", b"x")
            .unwrap_err()
            .errno(),
        libc::EPERM
    );
    assert_eq!(
        write(&*volume, "song.mp3", b"x").unwrap_err().errno(),
        libc::EPERM,
        "outside of the music"
    );
    // As rsync does it: a name that means nothing, until the file is whole.
    write(&*volume, "music/.song.mp3.Xy12ab", b"la la la").unwrap();
    assert!(!dir.path().join("music/.song.mp3.Xy12ab").exists());
    let (music, _) = parent(&*volume, "music/x");
    volume
        .rename(
            music,
            OsStr::new(".song.mp3.Xy12ab"),
            music,
            OsStr::new("song.mp3"),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(read(&*volume, "music/song.mp3").unwrap(), b"la la la");
    volume.close().unwrap();
    drop(volume);
    let options = mms::Options {
        allow_plain: true,
        ..Default::default()
    };
    let format = Mms::open(dir.path(), MMS_PASSWORD.as_bytes(), &options, false).unwrap();
    let volume = Mirror::new(Box::new(format)).unwrap();
    write(&*volume, "music/cover.jpg", b"picture").unwrap();
    assert_eq!(
        fs::read(dir.path().join("music/cover.jpg")).unwrap(),
        b"picture"
    );
    assert_eq!(read(&*volume, "music/song.mp3").unwrap(), b"la la la");
}

#[test]
fn a_picture_in_clear_and_one_encrypted_of_the_same_name_are_both_there() {
    let dir = library("imagestore");
    let sealed = "dam/checkpoints/checkpoint_1795199454566_6301.png";
    let clear = fs::read(dir.path().join("plain/pic.gif")).unwrap();
    fs::write(dir.path().join(sealed), &clear).unwrap();
    let volume = Mirror::new(open_images(dir.path(), false).unwrap()).unwrap();
    assert_eq!(read(&*volume, sealed).unwrap(), clear);
    let other = read(
        &*volume,
        "dam/checkpoints/checkpoint_1795199454566_6301 (encrypted).png",
    )
    .unwrap();
    assert!(!other.is_empty() && other != clear);
    // Writing to the one must not take the other's place.
    assert!(write(&*volume, sealed, b"new").is_err());
}

#[test]
fn a_password_change_leaves_the_rest_alone() {
    let dir = library("mms/run1-bucket");
    let index = fs::read(dir.path().join("music.index")).unwrap();
    let new = || Ok(zeroize::Zeroizing::new(b"new".to_vec()));
    let wrong = mms::passwd(dir.path(), &Default::default(), b"wrong", new).unwrap_err();
    assert!(matches!(wrong.kind(), Kind::WrongKey));
    mms::passwd(
        dir.path(),
        &Default::default(),
        MMS_PASSWORD.as_bytes(),
        new,
    )
    .unwrap();
    assert_eq!(fs::read(dir.path().join("music.index")).unwrap(), index);
    assert_eq!(fs::metadata(dir.path().join("key")).unwrap().len(), 87);
    assert!(open_mms(dir.path(), true).is_err());
    let format = Mms::open(dir.path(), b"new", &Default::default(), true).unwrap();
    assert_eq!(
        read(
            &*Mirror::new(Box::new(format)).unwrap(),
            "music/edge/b15.wav"
        )
        .unwrap()
        .len(),
        15
    );
}

#[test]
fn an_index_that_is_not_whole_is_only_read() {
    let dir = library("mms/run1-bucket");
    let path = dir.path().join("music.index");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    assert_eq!(
        write(&*volume, "music/a.mp3", b"x").unwrap_err().errno(),
        libc::EROFS
    );
    assert_eq!(read(&*volume, "music/edge/b15.wav").unwrap().len(), 15);
    let found = problems(volume.format());
    assert!(found.iter().any(|p| p.contains("cut short")), "{found:?}");
}

/// A library of Minio Music Server whose index was lost: its objects were taken for songs, under fresh vectors.
struct LostIndex {
    dir: tempfile::TempDir,
    key: Key,
    lines: Vec<Vec<u8>>,
}

impl LostIndex {
    fn new() -> Self {
        let kat = json("mms/kat.json");
        let internal = BASE64.decode_to_vec(kat["internal_key_b64"].as_str().unwrap());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("music")).unwrap();
        let key_file = kat["passwords"][0]["keyfile"].as_str().unwrap();
        fs::write(dir.path().join("key"), key_file).unwrap();
        Self {
            dir,
            key: Key::short(&internal.unwrap().try_into().unwrap()),
            lines: Vec::new(),
        }
    }

    fn sealed(&self, iv: u8, plain: &[u8]) -> Vec<u8> {
        let (key, iv) = (self.key.clone(), [iv; 16]);
        seal(Box::new(mms::SegmentSeal { key, iv }), plain)
    }

    fn object_of(path: &str) -> String {
        let digest = <md5::Md5 as md5::Digest>::digest(path.as_bytes());
        format!("music/{}.encrypt", hex(&digest))
    }

    fn put(&self, object: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(object), bytes).unwrap();
    }

    /// As the server does it with a file at `path`; gives its object's name and bytes.
    fn encrypt(&mut self, path: &str, iv: u8, plain: &[u8]) -> (String, Vec<u8>) {
        let (object, bytes) = (Self::object_of(path), self.sealed(iv, plain));
        self.put(&object, &bytes);
        let record = serde_json::json!({
            "id": 0, "path": path, "filesize": plain.len(), "extension": path.rsplit('.').next(),
            "iv": BASE64.encode_to_string([iv; 16]), "nameEnc": object,
        });
        let line = mms::index::seal_record(record.as_object().unwrap(), &self.key).unwrap();
        self.lines.push(line);
        (object, bytes)
    }

    fn open(&self, read_only: bool) -> Arc<Mirror> {
        let count = self.lines.len();
        let mut index = format!("{{\"version\":2,\"registers\":{count},\"id\":1}}\n").into_bytes();
        for line in &self.lines {
            index.extend_from_slice(line);
            index.push(b'\n');
        }
        self.put("music.index", &index);
        let options = mms::Options::default();
        let format = Mms::open(self.dir.path(), b"XXXXXXX", &options, read_only).unwrap();
        Mirror::new(Box::new(format)).unwrap()
    }
}

#[test]
fn an_object_that_was_encrypted_twice_is_named_and_read() {
    // The server took the object of a song for a song, and the vector of that went with the index.
    let mut library = LostIndex::new();
    let once = library.sealed(1, &noise(5, 5000));
    let path = format!("music/{}.encrypt", "5".repeat(32));
    library.put(&path, &once);
    let (object, _) = library.encrypt(&path, 2, &once);
    let volume = library.open(true);
    let found = problems(volume.format());
    assert!(
        found.len() == 1 && found[0].contains("encrypted twice"),
        "{found:?}"
    );
    assert_eq!(read(&*volume, &path).unwrap(), once);
    // What is missing has the size that the index says, and reading it is an error.
    fs::remove_file(library.dir.path().join(object)).unwrap();
    let volume = library.open(true);
    let attr = volume.getattr(find(&*volume, &path).unwrap()).unwrap();
    assert_eq!(attr.plain_size, once.len() as u64);
    assert_eq!(read(&*volume, &path).unwrap_err().errno(), libc::EIO);
}

#[test]
fn an_object_that_was_encrypted_twice_is_read_through_where_its_vector_is_known() {
    for len in [0, 1, 15, 1007, 1008, 1009, 300_000] {
        // The original was there, too, and was encrypted first: its object is what was then encrypted once more. The
        // index was lost again, and so once more.
        let song = noise(len as u64, len);
        let mut library = LostIndex::new();
        let (path, once) = library.encrypt("music/a.mp3", 3, &song);
        let (path_2, twice) = library.encrypt(&path, 4, &once);
        library.encrypt(&path_2, 5, &twice);
        let volume = library.open(false);
        for path in ["music/a.mp3", &path, &path_2] {
            let ino = find(&*volume, path).unwrap();
            assert_eq!(volume.getattr(ino).unwrap().plain_size, len as u64);
            assert_eq!(read(&*volume, path).unwrap(), song, "{path} of {len}");
            let handle = volume.open(ino, libc::O_RDONLY).unwrap();
            for at in [1, 16, 1000, 1007, 1008, 100_001, 299_999] {
                let mut out = [0; 2500];
                let count = volume.read(ino, handle, at, &mut out).unwrap();
                let expected = song.get(at as usize..).unwrap_or_default();
                assert_eq!(out[..count], expected[..expected.len().min(2500)], "{at}");
            }
            volume.release(ino, handle);
        }
        assert_eq!(problems(volume.format()), Vec::<String>::new());
        // Under another name it could not be read through: programs copy it instead.
        let (music, name) = parent(&*volume, &path);
        let to = OsStr::new("b.mp3");
        let moved = volume.rename(music, OsStr::new(&name), music, to, RenameMode::Replace);
        assert_eq!(moved.unwrap_err().errno(), libc::EXDEV);
    }
}

#[test]
fn an_object_that_was_encrypted_twice_is_not_read_under_the_vector_of_another() {
    // The old object came first, and the original was encrypted after that: same lengths, another vector.
    let song = noise(6, 5000);
    let mut library = LostIndex::new();
    let once = library.sealed(1, &song);
    let (path, _) = library.encrypt("music/a.mp3", 3, &song);
    library.encrypt(&path, 4, &once);
    let volume = library.open(true);
    assert_eq!(read(&*volume, "music/a.mp3").unwrap(), song);
    assert_eq!(read(&*volume, &path).unwrap(), once);
    let found = problems(volume.format());
    assert!(
        found.len() == 1 && found[0].contains("encrypted twice"),
        "{found:?}"
    );
    // The song is of another length since, or its object is gone.
    let (object, _) = library.encrypt("music/other.mp3", 5, &song[..4000]);
    library.encrypt(&object, 6, &once);
    assert_eq!(read(&*library.open(true), &object).unwrap(), once);
    fs::remove_file(library.dir.path().join(&path)).unwrap();
    assert_eq!(read(&*library.open(true), &path).unwrap(), once);
}
