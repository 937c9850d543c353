use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::file::{GrowingFile, StoredFile};
use super::*;
use crate::error::Kind;
use crate::object::{Area, DeviceId, ObjectId};

const DEVICE: DeviceId = ObjectId([0xde; 16]);

fn id(n: u8) -> ObjectId {
    ObjectId([n; 16])
}

fn open(library: &Path) -> DirStore {
    DirStore::open(library, Access::Write(DEVICE)).unwrap()
}

fn read(object: &dyn Object) -> Vec<u8> {
    let mut bytes = vec![0; object.cipher_len().unwrap() as usize];
    object.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// What every store does.
fn keeps_the_contract(store: &dyn Store) {
    assert!(
        Area::ALL
            .iter()
            .all(|area| store.list(*area).unwrap().is_empty())
    );
    store.put(Area::Key, id(1), b"slot").unwrap();
    assert_eq!(store.list(Area::Key).unwrap(), [(id(1), 4)]);
    assert!(
        store.put(Area::Key, id(1), b"other").is_err(),
        "an object is never replaced"
    );
    assert!(
        store.leftovers().unwrap().is_empty(),
        "and nothing is left of the attempt"
    );
    assert_eq!(read(&*store.open(Area::Key, id(1)).unwrap()), b"slot");

    let missing = store.open(Area::Data, id(2)).err().unwrap();
    assert!(matches!(missing.kind(), Kind::Missing));
    assert_eq!(
        missing.to_string(),
        format!("data/{}: is missing from the library", id(2))
    );

    let file = store.create(id(2)).unwrap();
    assert!(store.create(id(2)).is_err());
    assert_eq!(file.id(), id(2));
    file.write_at(b"0123456789", 0).unwrap();
    file.write_at(b"abc", 10).unwrap();
    file.write_back(0, 13);
    file.prefetch(0, u64::MAX);
    let mut part = [0; 5];
    file.read_at(&mut part, 8).unwrap();
    assert_eq!(&part, b"89abc");
    let short = file.read_at(&mut part, 9).unwrap_err().to_string();
    assert!(short.ends_with(": damaged: ends after 13 bytes"), "{short}");
    assert_eq!(store.leftovers().unwrap(), [id(2)]);
    assert_eq!(
        read(&*store.open_leftover(id(2)).unwrap()),
        b"0123456789abc"
    );
    file.sync().unwrap();
    store.publish(id(2), Area::Data).unwrap();
    store
        .publish(id(2), Area::Data)
        .expect("may be repeated after an error");
    assert!(store.leftovers().unwrap().is_empty());
    assert_eq!(store.list(Area::Data).unwrap(), [(id(2), 13)]);
    let object = store.open(Area::Data, id(2)).unwrap();
    assert_eq!(object.name(), format!("data/{}", id(2)));
    assert_eq!(
        (read(&*object), read(&*file)),
        (b"0123456789abc".to_vec(), b"0123456789abc".to_vec())
    );

    assert!(
        store.publish(id(3), Area::Data).is_err(),
        "there is nothing to publish"
    );
    store.create(id(2)).unwrap();
    assert!(
        store.publish(id(2), Area::Data).is_err(),
        "what is published is not replaced"
    );
    assert_eq!(read(&*object), b"0123456789abc");
    store.discard(id(2)).unwrap();
    store.discard(id(2)).unwrap();

    store.remove(Area::Data, id(2)).unwrap();
    store.remove(Area::Data, id(2)).unwrap();
    assert!(store.list(Area::Data).unwrap().is_empty());
    assert_eq!(read(&*object), b"0123456789abc", "who has it open reads on");

    streams_what_there_is(store);
    store.reserve(1 << 20).unwrap();
    store.reserve(0).unwrap();
    let space = store.space().unwrap();
    assert!(space.available_bytes <= space.free_bytes && space.free_bytes <= space.total_bytes);
}

/// Growing and published; also where the place in memory rules out a direct read, as some filesystems always do.
fn streams_what_there_is(store: &dyn Store) {
    const PAGE: usize = STREAM_ALIGNMENT as usize;
    let bytes: Vec<u8> = (0..2 * PAGE + 100).map(|i| (i / 100) as u8).collect();
    let growing = store.create(id(4)).unwrap();
    growing.write_at(&bytes, 0).unwrap();
    growing.sync().unwrap();
    let mut memory = vec![0; 6 * PAGE];
    let aligned = memory.as_ptr().align_offset(PAGE);
    let mut check = |object: &dyn Object| {
        for start in [aligned, aligned + 1] {
            for (from, room) in [(0, 4), (1, 1), (1, 4), (2, 2), (3, 1), (9, 1)] {
                let out = &mut memory[start..start + room * PAGE];
                out.fill(0xaa);
                let len = object.read_stream(out, (from * PAGE) as u64).unwrap();
                let there = bytes.get(from * PAGE..).unwrap_or_default();
                let there = &there[..there.len().min(room * PAGE)];
                assert!(out[..len] == *there, "{room} pages from {from}");
            }
        }
    };
    check(&*growing);
    store.publish(id(4), Area::Data).unwrap();
    check(&*growing);
    check(&*store.open(Area::Data, id(4)).unwrap());
    store.remove(Area::Data, id(4)).unwrap();
}

#[test]
fn a_directory_and_memory_keep_the_contract() {
    keeps_the_contract(&open(tempfile::tempdir().unwrap().path()));
    keeps_the_contract(&MemoryStore::new());
}

#[test]
fn only_lower_case_hex_is_a_name() {
    let name = "00112233445566778899aabbccddeeff";
    assert_eq!(ObjectId::parse(name).unwrap().to_string(), name);
    for wrong in [
        "",
        "0",
        &name[1..],
        &format!("{name}0"),
        &name.to_uppercase(),
        &name.replace('f', "g"),
    ] {
        assert_eq!(ObjectId::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn one_device_mounts_a_library_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let e = DirStore::open(dir.path(), Access::Write(DEVICE))
        .err()
        .unwrap();
    assert!(matches!(e.kind(), Kind::InUse));
    assert!(
        e.to_string().contains("already mounted by this device"),
        "{e}"
    );
    DirStore::open(dir.path(), Access::Write(id(5))).expect("another device is another folder");
    DirStore::open(dir.path(), Access::ReadOnly).expect("reading needs no lock");
    drop(first);
    open(dir.path());
}

#[test]
fn checking_the_lock_does_not_block_a_writer() {
    use rustix::fs::{FlockOperation, flock};
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let lock = dir.path().join(format!("new/{DEVICE}/lock"));
    let file = fs::File::open(lock).unwrap();
    flock(&file, FlockOperation::LockShared).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(30));
            drop(file);
        });
        open(dir.path());
    });
}

#[test]
fn reading_only_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path(), Access::ReadOnly).unwrap();
    assert!(
        store.list(Area::Index).unwrap().is_empty(),
        "a folder that is not there is empty"
    );
    let refused = [
        store.put(Area::Key, id(1), b"x"),
        store.remove(Area::Key, id(1)),
        store.create(id(1)).map(drop),
        store.publish(id(1), Area::Data),
        store.discard(id(1)),
        store.reserve(1),
    ];
    assert!(
        refused
            .iter()
            .all(|done| matches!(done.as_ref().unwrap_err().kind(), Kind::ReadOnly))
    );
    assert!(store.leftovers().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // Folders that a copier makes later are found.
    open(dir.path()).put(Area::Index, id(1), b"x").unwrap();
    assert_eq!(store.list(Area::Index).unwrap(), [(id(1), 1)]);
}

#[test]
fn a_reader_can_see_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let see = || DirStore::open(dir.path(), Access::ReadOwn(DEVICE)).unwrap();
    assert!(see().leftovers().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let writer = open(dir.path());
    let file = writer.create(id(1)).unwrap();
    file.write_at(b"left", 0).unwrap();
    // A mount is at work there.
    assert!(see().leftovers().unwrap().is_empty());
    drop((file, writer));
    let store = see();
    assert_eq!(store.leftovers().unwrap(), [id(1)]);
    let left = store.open_leftover(id(1)).unwrap();
    let mut bytes = [0; 4];
    left.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"left");
    assert!(left.write_at(b"x", 4).is_err());
    assert!(store.discard(id(1)).is_err() && store.publish(id(1), Area::Data).is_err());
    // Nor does it keep anybody from writing.
    let writer = open(dir.path());
    assert_eq!(writer.leftovers().unwrap(), [id(1)]);
    assert!(see().leftovers().unwrap().is_empty());
    let other = DirStore::open(dir.path(), Access::ReadOwn(id(9))).unwrap();
    assert!(other.leftovers().unwrap().is_empty());
}

#[test]
fn files_and_folders_are_their_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put(Area::Key, id(1), b"x").unwrap();
    let mode = |path: &str| {
        fs::metadata(dir.path().join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&format!("key/{}", id(1))), 0o600);
    for folder in ["key", "index", "data", "new", &format!("new/{DEVICE}")] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
}

#[test]
fn a_library_that_moves_takes_its_writers_along() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    let store = open(&old);
    let file = store.create(id(1)).unwrap();
    fs::rename(&old, &new).unwrap();
    file.write_at(b"x", 0).unwrap();
    file.sync().unwrap();
    assert!(store.check_place().unwrap().is_empty());
    store.publish(id(1), Area::Data).unwrap();
    store.put(Area::Index, id(2), b"y").unwrap();
    assert!(
        new.join(format!("data/{}", id(1))).exists()
            && new.join(format!("index/{}", id(2))).exists()
    );
    // With another folder in its place, the next mount would not find what is written here.
    fs::create_dir(&old).unwrap();
    store.create(id(3)).unwrap();
    for refused in [
        store.check_place().map(drop),
        store.publish(id(3), Area::Data),
    ] {
        let e = refused.unwrap_err();
        assert!(matches!(e.kind(), Kind::Displaced(_)), "{e}");
        assert!(e.to_string().contains(new.to_str().unwrap()), "{e}");
    }
    assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
    fs::remove_dir(&old).unwrap();
    store.publish(id(3), Area::Data).unwrap();
}

/// Below the vault: files that nobody syncs again, and what reads them meanwhile.
#[test]
fn removed_unfinished_files_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i / 1000) as u8).collect();
    let files: Vec<_> = (1..=3).map(|n| store.create(id(n)).unwrap()).collect();
    for file in &files {
        file.write_at(&bytes, 0).unwrap();
        file.sync().unwrap();
    }
    fs::remove_dir_all(dir.path().join("new")).unwrap();
    // One that is there, but another one.
    fs::create_dir_all(dir.path().join(format!("new/{DEVICE}"))).unwrap();
    let path = |n| dir.path().join(format!("new/{DEVICE}/{}", id(n)));
    fs::write(path(2), b"older").unwrap();
    assert!(store.check_place().unwrap().is_empty());
    for (file, n) in files.iter().zip(1..) {
        assert!(read(&**file) == bytes && fs::read(path(n)).unwrap() == bytes);
        file.write_at(b"more", bytes.len() as u64).unwrap();
        file.sync().unwrap();
        assert_eq!(fs::metadata(path(n)).unwrap().len(), bytes.len() as u64 + 4);
    }
    // Nothing else is left, and the lock is held again.
    assert_eq!(
        fs::read_dir(dir.path().join(format!("new/{DEVICE}")))
            .unwrap()
            .count(),
        4
    );
    let second = DirStore::open(dir.path(), Access::Write(DEVICE));
    assert!(matches!(second.err().unwrap().kind(), Kind::InUse));
    // At publication it is noticed, too.
    fs::remove_file(path(1)).unwrap();
    store.publish(id(1), Area::Data).unwrap();
    assert_eq!(
        store.open(Area::Data, id(1)).unwrap().cipher_len().unwrap(),
        bytes.len() as u64 + 4
    );
    // A crash may come while it is written again.
    fs::rename(path(2), path(2).with_extension("again")).unwrap();
    fs::copy(path(3), path(3).with_extension("again")).unwrap();
    drop((store, files));
    let store = open(dir.path());
    assert_eq!(store.leftovers().unwrap().len(), 2);
    assert_eq!(
        fs::read_dir(dir.path().join(format!("new/{DEVICE}")))
            .unwrap()
            .count(),
        3
    );
    // A new one needs no check before.
    fs::remove_dir_all(dir.path().join("new")).unwrap();
    store.create(id(4)).unwrap();
    assert!(path(4).exists());
}

#[test]
fn other_files_are_ignored_and_nothing_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let data = dir.path().join("data");
    fs::write(data.join(".sync-conflict"), b"").unwrap();
    fs::write(data.join(id(0xab).to_string().to_uppercase()), b"").unwrap();
    fs::create_dir(data.join(id(1).to_string())).unwrap();
    fs::write(dir.path().join("outside"), b"secret").unwrap();
    symlink("../outside", data.join(id(2).to_string())).unwrap();
    let pipe = data.join(id(3).to_string());
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    );
    made.unwrap();
    fs::write(data.join(id(4).to_string()), b"good").unwrap();
    assert_eq!(store.list(Area::Data).unwrap(), [(id(4), 4)]);
    for n in [1, 2, 3] {
        let e = store.open(Area::Data, id(n)).err().unwrap();
        assert_eq!(
            e.to_string(),
            format!("data/{}: damaged: is not a regular file", id(n))
        );
    }
}

#[test]
fn an_area_that_is_a_link_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    symlink("elsewhere", dir.path().join("data")).unwrap();
    let refused = || {
        [Access::Write(DEVICE), Access::ReadOnly].map(|access| {
            let e = DirStore::open(dir.path(), access)
                .err()
                .unwrap()
                .to_string();
            assert!(e.contains("/data: "), "{e}");
            e
        })
    };
    assert!(refused().iter().all(|e| e.contains("has not arrived yet")));
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    assert!(refused().iter().all(|e| e.contains("mount --bind")));
}

#[test]
fn room_ahead_of_appends_is_given_back_when_published() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let file = store.create(id(1)).unwrap();
    for n in 0..10 {
        file.write_at(&[7; 4096], n * 4096).unwrap();
    }
    file.sync().unwrap();
    assert_eq!(
        file.cipher_len().unwrap(),
        40960,
        "the length is that of what was written"
    );
    let new = dir.path().join(format!("new/{DEVICE}/{}", id(1)));
    // A filesystem that cannot allocate ahead has nothing to give back.
    let ahead = fs::metadata(&new).unwrap().blocks() * 512;
    store.publish(id(1), Area::Index).unwrap();
    let after = fs::metadata(dir.path().join(format!("index/{}", id(1)))).unwrap();
    assert_eq!(after.size(), 40960);
    assert!(
        after.blocks() * 512 <= 40960 + 8192,
        "{ahead} before, {} after",
        after.blocks() * 512
    );
}

#[test]
fn the_reserve_holds_room_and_lets_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join(format!("new/{DEVICE}/reserve"));
    store.reserve(4 << 20).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 4 << 20);
    store.reserve(1 << 20).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    assert!(
        store.leftovers().unwrap().is_empty(),
        "neither reserve nor lock is a leftover"
    );
    store.reserve(0).unwrap();
    store.reserve(0).unwrap();
    assert!(!path.exists());
}

/// The kernel tells of a failed write-back once; a second fsync(2) would say that all is well.
#[test]
fn after_an_error_a_growing_file_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let folder = std::sync::Arc::new(fs::File::open(dir.path()).unwrap().into());
    let growing = |fd| {
        GrowingFile::new(
            StoredFile {
                fd,
                name: "new/x".into(),
            },
            id(1),
            dir.path().join("x"),
            std::sync::Arc::clone(&folder),
        )
        .unwrap()
    };
    fs::write(dir.path().join("x"), b"x").unwrap();
    let unwritable = growing(fs::File::open(dir.path().join("x")).unwrap().into());
    assert!(matches!(
        unwritable.write_at(b"y", 1).unwrap_err().kind(),
        Kind::Io(_)
    ));
    assert!(matches!(
        unwritable.write_at(b"y", 1).unwrap_err().kind(),
        Kind::Poisoned
    ));
    unwritable
        .sync()
        .expect("what was written before may be made durable");
    let unsyncable = growing(rustix::pipe::pipe().unwrap().0);
    assert!(matches!(unsyncable.sync().unwrap_err().kind(), Kind::Io(_)));
    assert!(matches!(
        unsyncable.sync().unwrap_err().kind(),
        Kind::Poisoned
    ));
    assert!(matches!(
        unsyncable.write_at(b"y", 0).unwrap_err().kind(),
        Kind::Poisoned
    ));
}
