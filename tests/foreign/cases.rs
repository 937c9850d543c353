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
            if path.is_dir() {
                pending.push(path)
            } else {
                all.insert(path.clone(), fs::read(path).unwrap());
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
                    OsStr::new(".goutputstream-AB12CD"),
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
            volume
                .unlink(folder, OsStr::new(".goutputstream-AB12CD"))
                .unwrap();
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

/// Where each format takes files, and names in it that nothing renames to one that it takes.
fn never_renamed() -> [(&'static str, Open, &'static str, Vec<String>); 3] {
    let strings = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let (long, longer) = (".".to_string() + &"n".repeat(250), "n".repeat(247) + ".tmp");
    let music = [
        ".lyrics.txt",
        ".nomedia",
        "notes.txt~",
        ".ratings",
        "cover.jpg.part",
        ".cover.jpg.Ab12Cd",
        "song.mp3.txt",
    ];
    let top = "node1.example.internal/diff-2";
    [
        ("mms/run1-bucket", open_mms, "music", strings(&music)),
        (
            "medusa/store/backups",
            open_medusa,
            top,
            strings(&[".notes", "y.tmp"]),
        ),
        (
            "imagestore",
            open_images,
            "dam",
            vec![".x.enc".into(), long, longer],
        ),
    ]
}

#[test]
fn a_name_that_nothing_will_rename_is_refused() {
    for (name, open, folder, refused) in never_renamed() {
        let dir = library(name);
        let volume = Mirror::new(open(dir.path(), false).unwrap()).unwrap();
        let before = stored(dir.path());
        for file in refused {
            let e = write(&*volume, &format!("{folder}/{file}"), b"x").unwrap_err();
            assert!(
                matches!(e.errno(), libc::EPERM | libc::ENAMETOOLONG),
                "{name} {file}: {e}"
            );
        }
        volume.close().unwrap();
        assert!(stored(dir.path()).keys().eq(before.keys()), "{name}");
    }
}

#[test]
fn a_file_that_may_be_renamed_is_held_and_named_when_it_is_not() {
    let dir = library("mms/run1-bucket");
    let volume = Mirror::new(open_mms(dir.path(), false).unwrap()).unwrap();
    let (music, _) = parent(&*volume, "music/x");
    let held = [
        ".song.mp3.Ab12Cd",
        "song.mp3~",
        "song.mp3.part",
        ".syncthing.song.mp3.tmp",
        "~syncthing~song.mp3.tmp",
        "song.mp3.crdownload",
        ".#song.mp3",
        "song.mp3.1a2b3c4d.partial",
        ".goutputstream-AB12CD",
    ];
    for name in held {
        let name = OsStr::new(name);
        let (attr, handle) = volume
            .create(music, name, 0o644, libc::O_RDWR, CALLER)
            .unwrap();
        volume
            .write(attr.ino, handle, 0, name.as_encoded_bytes())
            .unwrap();
        // As `rsync --fsync` does it.
        let (done, synced) = std::sync::mpsc::channel();
        volume.fsync(
            attr.ino,
            handle,
            Box::new(move |result| done.send(result).unwrap()),
        );
        synced.recv().unwrap().unwrap();
        volume.flush(attr.ino, handle).unwrap();
        volume.release(attr.ino, handle);
        volume
            .rename(
                music,
                name,
                music,
                OsStr::new("song.mp3"),
                RenameMode::Replace,
            )
            .unwrap();
        assert_eq!(
            read(&*volume, "music/song.mp3").unwrap(),
            name.as_encoded_bytes()
        );
    }
    for name in ["song.mp3.part", ".song.mp3.Ab12Cd"] {
        write(&*volume, &format!("music/{name}"), b"not whole").unwrap();
    }
    let e = volume.close().unwrap_err().to_string();
    for name in ["music/song.mp3.part", "music/.song.mp3.Ab12Cd"] {
        assert!(e.contains(name), "{e}");
        volume.unlink(music, OsStr::new(&name[6..])).unwrap();
    }
    volume.close().unwrap();
}

#[test]
fn metadata_that_changes_with_a_file_keeps_owner_and_mode() {
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
