//! Foreign libraries, without a kernel: what the original programs wrote is read, answers that they gave are given
//! byte for byte, what is written is read again and holds to what the formats demand, and damage is an error.

mod answers;
mod cases;
mod damage;
mod twice;
mod writing;

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
use hushfs::foreign::sealer::{Seal, Sealer};
use hushfs::foreign::stage::Stage;
use hushfs::foreign::{Format, FormatKind, Mirror, detect};
use hushfs::report::{Report, Watch};
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
struct Found {
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Watch for Found {
    fn problem(&mut self, subject: &str, text: &str) {
        self.problems.push(format!("{subject}: {text}"));
    }
    fn note(&mut self, subject: &str, text: &str) {
        self.notes.push(format!("{subject}: {text}"));
    }
    fn total(&mut self, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

fn verify(format: &dyn Format) -> Found {
    let mut found = Found::default();
    format.verify(&mut Report::new(&mut found)).unwrap();
    found
}

fn problems(format: &dyn Format) -> Vec<String> {
    verify(format).problems
}

/// Problems that the vectors do not have of themselves.
fn new_problems(format: &dyn Format) -> Vec<String> {
    let mut all = problems(format);
    all.retain(|p| {
        !LEFT_OUT.iter().any(|out| p.contains(out)) && !p.contains("the backup diff-1 has lost it")
    });
    all.retain(|p| !p.contains("describes a file that does not exist"));
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
