//! Odd inputs that occur, with what the original programs make of each: the tables in `vectors/foreign/cases`.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

mod images;
mod medusa;
mod mms;

/// Where hushfs gives another value than the original, and why. Everything else in the tables is held to.
const ON_PURPOSE: &[(&str, &str)] = &[
    (
        "mms-tags",
        "the values in accepted.json: APEv2 tags are read, which the server does not, and a text ends at a NUL",
    ),
    (
        "mms-tags",
        "types other than MP3 are not in the table: the server takes them for MPEG audio and finds nothing, or nonsense",
    ),
    (
        "env",
        "no key: refused, with the app's built-in key and how to use it, as the app's surroundings may set another",
    ),
];

fn case(path: &str) -> PathBuf {
    vectors().join("cases").join(path)
}

fn table(folder: &str, name: &str) -> serde_json::Map<String, Value> {
    let bytes = fs::read(case(folder).join(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Fails with all cases that are wrong, and says how many are right.
fn hold(folder: &str, count: usize, wrong: &[String]) {
    println!("{folder}: {} of {count} agree", count - wrong.len());
    assert!(wrong.is_empty(), "{folder}:\n{}", wrong.join("\n"));
}

#[test]
fn deviations_have_reasons() {
    for (folder, reason) in ON_PURPOSE {
        assert!(case(folder).is_dir() && reason.len() > 20);
    }
}

/// Everything stored, by name.
fn stored(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => drop(all.insert(path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    all
}

#[test]
fn a_file_that_was_refused_and_deleted_leaves_nothing() {
    for (name, open) in LIBRARIES {
        let dir = library(name);
        let volume = Mirror::new(open(dir.path(), false).unwrap()).unwrap();
        let folder = if name == "imagestore" { "dam" } else { "." };
        let folder = if folder == "." {
            ROOT
        } else {
            find(&*volume, folder).unwrap()
        };
        let before = stored(dir.path());
        let data = noise(1, 12_000_000);
        for _ in 0..2 {
            let (attr, handle) = volume
                .create(
                    folder,
                    OsStr::new(".cover.jpg.Xy"),
                    0o644,
                    libc::O_RDWR,
                    CALLER,
                )
                .unwrap();
            for (n, part) in data.chunks(1 << 20).enumerate() {
                volume
                    .write(attr.ino, handle, (n << 20) as u64, part)
                    .unwrap();
            }
            volume.flush(attr.ino, handle).unwrap();
            volume.release(attr.ino, handle);
            volume.forget(attr.ino, 1);
            volume.unlink(folder, OsStr::new(".cover.jpg.Xy")).unwrap();
            assert!(
                stored(dir.path()).keys().eq(before.keys()),
                "{name}: something is left in the store"
            );
        }
        volume.close().unwrap();
        drop(volume);
        assert!(!dir.path().join(".hushfs-tmp").exists(), "{name}");
    }
}

#[test]
fn what_changes_beside_a_file_keeps_owner_and_mode() {
    let users = "node1.example.internal/data/media/users-11112222333344445555666677778888";
    for (name, open) in LIBRARIES {
        let dir = library(name);
        let beside: &[&str] = match name {
            "mms/run1-bucket" => &["music.index"],
            "imagestore" => &["dam/checkpoints/checkpoint_1795199454566_6301.png.enc.meta"],
            _ => &[
                "node1.example.internal/diff-2/meta/manifest.json",
                "index/backup_index/diff-2/manifest_node1.example.internal.json",
            ],
        };
        let set = |path: &str| {
            let path = dir.path().join(path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            let owned = std::os::unix::fs::chown(&path, Some(1234), Some(4321));
            owned.is_ok().then_some((1234, 4321))
        };
        let owners: Vec<_> = beside.iter().map(|path| set(path)).collect();
        let volume = Mirror::new(open(dir.path(), false).unwrap()).unwrap();
        let written = match name {
            "mms/run1-bucket" => "music/new.mp3".to_string(),
            "imagestore" => "dam/checkpoints/checkpoint_1795199454566_6301.png".to_string(),
            _ => format!("{users}/new.db"),
        };
        write(&*volume, &written, b"new contents").unwrap();
        volume.close().unwrap();
        for (path, owner) in beside.iter().zip(owners) {
            let meta = fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!(meta.mode() & 0o7777, 0o640, "{path}");
            if let Some(owner) = owner {
                assert_eq!((meta.uid(), meta.gid()), owner, "{path}");
            }
        }
    }
}
