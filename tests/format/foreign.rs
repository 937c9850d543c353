//! `man/hushfs-foreign.5` says what the three other programs wrote, and what hushfs writes in their formats.
//!
//! As with the page of our own format: the decoder uses no code of the crate, and takes its lengths, offsets, names and
//! derivations from the page. It decodes what the programs wrote, the examples, and what hushfs writes today; hushfs opens
//! the examples and what the encoder makes of the page.

mod decoder;
mod medusa;
mod music;
mod page;
mod store;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use hushfs::error::Result;
use hushfs::foreign::{Format, Mirror};
use hushfs::volume::{Caller, Ino, ROOT, Volume};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Left out of the vectors for their size.
const LEFT_OUT: &[&str] = &[
    "music/3MB random.wav",
    "nb-2-big-Data.db",
    "lora_1795199454472_1051.png.enc",
    "lora_1795199454520_1257.png.enc",
];

fn is_left_out(name: &str) -> bool {
    LEFT_OUT.iter().any(|out| name.ends_with(out))
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/foreign")
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(vectors().join(path)).unwrap()).unwrap()
}

/// The plaintext of the known answers.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (7 * i + 3) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    crate::page::hex(&Sha256::digest(bytes))
}

/// Every file below a folder, relative to it.
fn files(root: &Path) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path)
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().into())
            }
        }
    }
    found.sort();
    found
}

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn mount(format: Result<impl Format + 'static>) -> std::sync::Arc<Mirror> {
    Mirror::new(Box::new(format.unwrap())).unwrap()
}

fn find(volume: &dyn Volume, path: &str) -> Ino {
    path.split('/').fold(ROOT, |at, name| {
        volume.lookup(at, OsStr::new(name)).unwrap().ino
    })
}

fn read(volume: &dyn Volume, path: &str) -> Vec<u8> {
    let ino = find(volume, path);
    let handle = volume.open(ino, libc::O_RDONLY).unwrap();
    let mut out = vec![0; volume.getattr(ino).unwrap().plain_size as usize + 1];
    let len = volume.read(ino, handle, 0, &mut out).unwrap();
    volume.release(ino, handle);
    out.truncate(len);
    out
}

/// Writes a whole file, a new one or in place of what was there.
fn write(volume: &dyn Volume, path: &str, bytes: &[u8]) {
    let caller = Caller {
        uid: 0,
        gid: 0,
        umask: 0o022,
    };
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let folder = match folder {
        "" => ROOT,
        folder => find(volume, folder),
    };
    let name = OsStr::new(name);
    let (ino, handle) = match volume.lookup(folder, name) {
        Ok(attr) => {
            let flags = libc::O_RDWR | libc::O_TRUNC;
            (attr.ino, volume.open(attr.ino, flags).unwrap())
        }
        Err(_) => {
            let made = volume.create(folder, name, 0o644, libc::O_RDWR, caller);
            let (attr, handle) = made.unwrap();
            (attr.ino, handle)
        }
    };
    for (at, part) in (0..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
        volume.write(ino, handle, at, part).unwrap();
    }
    volume.flush(ino, handle).unwrap();
    volume.release(ino, handle);
}

#[test]
fn the_page_names_the_commits_that_the_vectors_come_from() {
    let told = page::column("versions", 1).join(" ");
    let mut count = 0;
    for file in ["README.md", "cases/README.md"] {
        let text = fs::read_to_string(vectors().join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        let is_commit = |word: &&str| {
            word.len() == 7
                && word.bytes().any(|b| b.is_ascii_digit())
                && word.bytes().all(|b| b.is_ascii_hexdigit())
        };
        for commit in words.filter(is_commit) {
            assert!(told.contains(commit), "{commit} of {file}");
            count += 1;
        }
    }
    assert!(count >= 6, "{count}");
}

/// What is said of a file that is one byte longer than the page lets it be.
fn refusal(kind: &str, open: impl FnOnce(u64) -> String) {
    let len_max = page::number("limits", kind) as u64;
    let said = open(len_max + 1);
    let expected = format!(
        "it has {} bytes, more than the {len_max} that one can have",
        len_max + 1
    );
    assert!(said.contains(&expected), "{kind}: {said}");
}

/// Problems that verify finds.
#[derive(Default)]
struct Found(String);

impl hushfs::report::Watch for Found {
    fn problem(&mut self, _: &str, text: &str) {
        self.0.push_str(text);
    }
    fn note(&mut self, _: &str, _: &str) {}
    fn total(&mut self, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

fn problems(store: &dyn hushfs::foreign::Format) -> String {
    let mut found = Found::default();
    let mut report = hushfs::report::Report::new(&mut found);
    store.verify(&mut report).unwrap();
    found.0
}

#[test]
fn files_have_the_limits_of_the_page() {
    use hushfs::foreign::images::Images;
    use hushfs::foreign::medusa::Medusa;
    use hushfs::foreign::mms::{self, Mms};
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let lengthen = |name: &str, len: u64| {
        let file = fs::OpenOptions::new().write(true).open(root.join(name));
        file.unwrap().set_len(len).unwrap();
    };
    let said = |opened: Result<()>| opened.unwrap_err().to_string();
    let music = || {
        let named = mms::Options {
            key: Some("key".into()),
            index: Some("music.index".into()),
            ..Default::default()
        };
        said(Mms::open(root, b"", &named, true).map(drop))
    };
    mms::init(root, &Default::default(), b"").unwrap();
    refusal("music index", |len| {
        lengthen("music.index", len);
        music()
    });
    refusal("music key", |len| {
        lengthen("key", len);
        music()
    });
    put(root, "n/b/meta/manifest.json", b"[]");
    refusal("manifest", |len| {
        lengthen("n/b/meta/manifest.json", len);
        let key = page::constant("medusa.key");
        // The others of a bucket can be read.
        let store = Medusa::open(root, key.as_bytes(), 0, true).unwrap();
        problems(&store)
    });
    let text = page::constant("store.text");
    put(root, "x.enc", &page::bytes("store.image"));
    put(root, "x.enc.meta", b"");
    refusal("description", |len| {
        lengthen("x.enc.meta", len);
        let store = Images::open(root, text.as_bytes(), true).unwrap();
        problems(&store)
    });
}

#[test]
fn the_page_lists_the_files_that_hushfs_adds() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/foreign");
    let mut names = BTreeSet::new();
    for file in files(&source) {
        let text = fs::read_to_string(source.join(file)).unwrap();
        let literals = text.split("\".hushfs-").skip(1);
        names.extend(literals.map(|rest| format!(".hushfs-{}", rest.split('"').next().unwrap())));
    }
    let listed: BTreeSet<String> = page::column("hushfs files", 0).into_iter().collect();
    assert_eq!(names, listed);
}

/// Comments cite a section of the page as (`man/hushfs-foreign.5`: NAME, NAME), in one line.
#[test]
fn comments_cite_sections_that_are_there() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sections, mut count) = (page::sections(), 0);
    for folder in ["src/foreign", "tests/foreign"] {
        for file in files(&source.join(folder)) {
            let text = fs::read_to_string(source.join(folder).join(&file)).unwrap();
            for cited in text.split("`man/hushfs-foreign.5`: ").skip(1) {
                let line = cited.lines().next().unwrap();
                let names = line
                    .split(')')
                    .next()
                    .unwrap()
                    .trim_end_matches('.')
                    .split(", ");
                for name in names {
                    assert!(sections.contains(name), "{file}: {name:?}");
                    count += 1;
                }
            }
            assert!(!text.contains("format page,"), "{file}");
        }
    }
    assert!(count >= 25, "{count}");
}
