//! Libraries of earlier days open, and show what they held.
//!
//! `tests/frozen/<version>/<name>/` holds a library as a program of that time left it, and a manifest of what its
//! mount showed; `tests/frozen/make` says how they were made. They are never made anew.
#![allow(
    clippy::unwrap_used,
    reason = "a test that has nothing to go on with fails"
)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hushfs::crypto::{MasterKey, Secret, Slot};
use hushfs::object::{Area, ObjectId};
use hushfs::store::{Access, DirStore, Objects};
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Attr, Caller, FileKind, Ino, ROOT, Volume, Whence};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const PASSWORD: &[u8] = b"correct horse battery staple";
const DEVICE: ObjectId = ObjectId([0xde; 16]);
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// Every frozen library: its folder with `library` and `manifest`.
fn frozen() -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen");
    let folders = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap();
        let paths = entries.map(|e| e.unwrap().path());
        paths.filter(|p| p.is_dir()).collect()
    };
    let mut all: Vec<_> = folders(&top).iter().flat_map(|v| folders(v)).collect();
    all.sort();
    all
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All bytes of a folder, by name.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for area in Area::ALL {
        for entry in fs::read_dir(dir.join(area.name())).unwrap() {
            let path = entry.unwrap().path();
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    files
}

/// The key, by the password.
fn unlock(library: &Path) -> MasterKey {
    let store = DirStore::open(library, Access::ReadOnly).unwrap();
    let slots = store.list(Area::Key).unwrap();
    assert_eq!(slots.len(), 1);
    let bytes = fs::read(library.join("key").join(slots[0].0.to_string())).unwrap();
    let slot = Slot::parse(slots[0].0.into(), &bytes).unwrap();
    slot.open(&Secret::Password(Zeroizing::new(PASSWORD.to_vec())))
        .unwrap()
}

fn open(library: &Path, read_only: bool) -> Arc<Vault> {
    let access = if read_only {
        Access::ReadOnly
    } else {
        Access::Write(DEVICE)
    };
    let store = Arc::new(DirStore::open(library, access).unwrap());
    let options = Options {
        read_only,
        cache_bytes: 1 << 20,
        accept_rollback: false,
        published_only: false,
        uid: 0,
        gid: 0,
    };
    Vault::open(store, unlock(library), DEVICE, None, &options).unwrap()
}

fn escape(path: &[u8]) -> String {
    let mut out = String::new();
    for b in path {
        match b {
            0x21..0x7f if *b != b'%' => out.push(char::from(*b)),
            _ => out += &format!("%{b:02x}"),
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn contents(volume: &dyn Volume, attr: &Attr) -> Vec<u8> {
    let handle = volume.open(attr.ino, libc::O_RDONLY).unwrap();
    let mut bytes = vec![0; attr.plain_size as usize + 1];
    let len = volume.read(attr.ino, handle, 0, &mut bytes).unwrap();
    volume.release(attr.ino, handle);
    bytes.truncate(len);
    bytes
}

fn data_ranges(volume: &dyn Volume, attr: &Attr) -> String {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(start) = volume.lseek(attr.ino, at, Whence::Data) {
        at = volume.lseek(attr.ino, start, Whence::Hole).unwrap();
        ranges.push(format!("{start}-{at}"));
    }
    if ranges.is_empty() {
        "-".into()
    } else {
        ranges.join(",")
    }
}

fn xattrs(volume: &dyn Volume, ino: Ino) -> String {
    let list = volume.listxattr(ino).unwrap();
    let mut shown: Vec<String> = list
        .split(|c| *c == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let value = volume.getxattr(ino, OsStr::from_bytes(name)).unwrap();
            format!("{}={}", String::from_utf8_lossy(name), hex(&value))
        })
        .collect();
    shown.sort();
    if shown.is_empty() {
        "-".into()
    } else {
        shown.join(" ")
    }
}

/// One line of a manifest: path, kind, permissions, links, owner, device, mtime, length, SHA-256, data, attributes.
fn describe(volume: &dyn Volume, path: &[u8], attr: &Attr) -> String {
    let (kind, bytes) = match attr.kind {
        FileKind::Regular => ("file", Some(contents(volume, attr))),
        FileKind::Directory => ("dir", None),
        FileKind::Symlink => ("symlink", Some(volume.readlink(attr.ino).unwrap())),
        FileKind::Fifo => ("fifo", None),
        FileKind::CharDevice => ("char", None),
        other => panic!("{other:?} is in no frozen library"),
    };
    let digest = bytes.as_ref().map(|b| hex(&Sha256::digest(b)));
    let len = match (attr.kind, &bytes) {
        (FileKind::Directory, _) => "-".into(),
        (_, bytes) => bytes.as_ref().map_or(0, Vec::len).to_string(),
    };
    let data = match attr.kind {
        FileKind::Regular => data_ranges(volume, attr),
        _ => "-".into(),
    };
    format!(
        "{}\t{kind}\t{:04o}\t{}\t{}:{}\t{}\t{}.{:09}\t{len}\t{}\t{data}\t{}",
        escape(path),
        attr.perm,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.rdev,
        attr.mtime.sec,
        attr.mtime.nsec,
        digest.as_deref().unwrap_or("-"),
        xattrs(volume, attr.ino)
    )
}

fn walk(volume: &dyn Volume, dir: Ino, prefix: &[u8], lines: &mut Vec<String>) {
    let mut names: Vec<OsString> = Vec::new();
    let mut take = |e: hushfs::volume::Dirent<'_>| {
        if e.name != "." && e.name != ".." {
            names.push(e.name.to_owned());
        }
        true
    };
    volume.readdir(dir, 0, false, &mut take).unwrap();
    for name in names {
        let attr = volume.lookup(dir, &name).unwrap();
        let mut path = prefix.to_vec();
        path.extend(name.into_vec());
        lines.push(describe(volume, &path, &attr));
        if attr.kind == FileKind::Directory {
            path.push(b'/');
            walk(volume, attr.ino, &path, lines);
        }
        volume.forget(attr.ino, 1);
    }
}

/// What a volume shows, as a manifest.
fn manifest(volume: &dyn Volume) -> Vec<String> {
    let mut lines = vec![describe(volume, b".", &volume.getattr(ROOT).unwrap())];
    walk(volume, ROOT, b"", &mut lines);
    lines.sort();
    lines
}

fn expected(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("manifest")).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn assert_same(shown: &[String], expected: &[String], what: &Path) {
    for (shown, expected) in shown.iter().zip(expected) {
        assert_eq!(shown, expected, "in {}", what.display());
    }
    assert_eq!(shown.len(), expected.len(), "in {}", what.display());
}

#[test]
fn frozen_libraries_show_what_they_held() {
    let all = frozen();
    assert!(!all.is_empty());
    for folder in all {
        let temp = tempfile::tempdir().unwrap();
        let library = temp.path().join("library");
        copy(&folder.join("library"), &library);
        let before = snapshot(&library);
        let vault = open(&library, true);
        assert_same(&manifest(&*vault), &expected(&folder), &folder);
        vault.close().unwrap();
        assert!(snapshot(&library) == before, "read-only writes nothing");
        assert!(!library.join("new").exists());
    }
}

#[test]
fn frozen_libraries_can_be_written_to() {
    for folder in frozen() {
        let temp = tempfile::tempdir().unwrap();
        let library = temp.path().join("library");
        copy(&folder.join("library"), &library);
        let vault = open(&library, false);
        let mut lines = manifest(&*vault);
        assert_same(&lines, &expected(&folder), &folder);

        // Every file of it is written to, one is made, and one is moved.
        let (made, handle) = vault
            .create(ROOT, OsStr::new("made now"), 0o600, libc::O_RDWR, CALLER)
            .unwrap();
        vault.write(made.ino, handle, 0, &[7; 20_000]).unwrap();
        vault.flush(made.ino, handle).unwrap();
        vault.release(made.ino, handle);
        vault.forget(made.ino, 1);
        let sizes = vault.lookup(ROOT, OsStr::new("sizes")).unwrap();
        for name in ["0", "1", "16384", "16385", "40000"] {
            let attr = vault.lookup(sizes.ino, OsStr::new(name)).unwrap();
            let handle = vault.open(attr.ino, libc::O_RDWR).unwrap();
            vault
                .write(attr.ino, handle, attr.plain_size / 2, b"now")
                .unwrap();
            vault.flush(attr.ino, handle).unwrap();
            vault.release(attr.ino, handle);
        }
        lines = manifest(&*vault);
        vault.close().unwrap();
        drop(vault);

        let vault = open(&library, true);
        assert_same(&manifest(&*vault), &lines, &folder);
        // What was there before is still there, byte for byte: new things are new files.
        let now = snapshot(&library);
        for (path, bytes) in snapshot(&folder.join("library")) {
            let path = library.join(path.strip_prefix(folder.join("library")).unwrap());
            if path.parent().unwrap().ends_with("key") || now.contains_key(&path) {
                assert!(now[&path] == bytes, "{} changed", path.display());
            }
        }
        assert!(now.len() > snapshot(&folder.join("library")).len());
    }
}
