//! What fsync(2) said yes to is there, or it did not say yes.

use super::*;

/// Copies the library's folder, as it is on the disk.
fn copy(bench: &Bench, from: &str, to: &str) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(bench.path(from))
        .arg(bench.path(to))
        .status();
    assert!(copied.unwrap().success());
}

/// Mounts a library, writes `first`, does `meddle`, writes `second`; kills the daemon, and mounts anew.
fn after(meddle: impl FnOnce(&Bench)) -> Option<(Bench, io::Result<()>)> {
    if cannot_mount() {
        return None;
    }
    let mut bench = Bench::with_library();
    bench.mount();
    bench.write("first", "one").unwrap();
    meddle(&bench);
    let second = bench.write("second", "two");
    Some((bench, second))
}

fn all_is_there(mut bench: Bench) {
    bench.kill();
    bench.mount();
    assert_eq!(
        (bench.read("first"), bench.read("second")),
        ("one".into(), "two".into())
    );
    bench.umounts();
    bench.succeeds("verify --password-file pw store/lib");
    assert_eq!(
        fs::read_dir(bench.new_folder()).unwrap().count(),
        1,
        "the lock alone"
    );
}

#[test]
fn files_removed_during_a_mount_are_written_again() {
    let gone = |bench: &Bench| fs::remove_dir_all(bench.path("store/lib/new")).unwrap();
    if let Some((bench, second)) = after(gone) {
        second.unwrap();
        assert!(bench.log().contains("written again"), "{}", bench.log());
        all_is_there(bench);
    }
    let gone = |bench: &Bench| fs::remove_dir_all(bench.new_folder()).unwrap();
    if let Some((bench, second)) = after(gone) {
        second.unwrap();
        all_is_there(bench);
    }
    // File by file, and the folder stays.
    let gone = |bench: &Bench| {
        for file in fs::read_dir(bench.new_folder()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    };
    if let Some((bench, second)) = after(gone) {
        second.unwrap();
        all_is_there(bench);
    }
}

#[test]
fn moved_or_replaced_files_are_written_again() {
    let moved =
        |bench: &Bench| fs::rename(bench.path("store/lib/new"), bench.path("away")).unwrap();
    if let Some((bench, second)) = after(moved) {
        second.unwrap();
        all_is_there(bench);
    }
    // As a sync tool does that mirrors an older copy.
    let replaced = |bench: &Bench| {
        copy(bench, "store/lib/new", "copy");
        fs::remove_dir_all(bench.path("store/lib/new")).unwrap();
        fs::rename(bench.path("copy"), bench.path("store/lib/new")).unwrap();
    };
    if let Some((bench, second)) = after(replaced) {
        second.unwrap();
        all_is_there(bench);
    }
    let emptied = |bench: &Bench| {
        for file in fs::read_dir(bench.new_folder()).unwrap() {
            let path = file.unwrap().path();
            fs::remove_file(&path).unwrap();
            fs::write(&path, "").unwrap();
        }
    };
    if let Some((bench, second)) = after(emptied) {
        second.unwrap();
        all_is_there(bench);
    }
}

#[test]
fn fsync_of_what_did_not_change_notices_it_too() {
    let gone = |bench: &Bench| {
        fs::remove_dir_all(bench.path("store/lib/new")).unwrap();
        File::open(bench.path("mnt/first"))
            .unwrap()
            .sync_all()
            .unwrap();
        assert!(bench.new_folder().join("lock").exists());
    };
    if let Some((bench, second)) = after(gone) {
        second.unwrap();
        all_is_there(bench);
    }
}

#[test]
fn fsync_fails_after_a_file_was_truncated() {
    let cut = |bench: &Bench| {
        for file in fs::read_dir(bench.new_folder()).unwrap() {
            let file = File::options().write(true).open(file.unwrap().path());
            file.unwrap().set_len(60).unwrap();
        }
        let first = File::open(bench.path("mnt/first")).unwrap();
        assert!(first.sync_all().is_err());
    };
    if let Some((bench, _)) = after(cut) {
        let log = bench.log();
        assert!(
            log.contains("was overwritten or cut short") && log.contains("new/"),
            "{log}"
        );
    }
}

/// Copies an older state of the files that grow over them, in place: as `cp -r backup/. library/` does.
fn put_back(bench: &Bench, from: &str) {
    let copied = Command::new("cp")
        .arg("-r")
        .arg(bench.path(from).join("."))
        .arg(bench.path("store/lib/new"))
        .status();
    assert!(copied.unwrap().success());
}

#[test]
fn fsync_fails_after_a_file_was_overwritten_in_place() {
    let emptied = |bench: &Bench| {
        for file in fs::read_dir(bench.new_folder()).unwrap() {
            let file = File::options().write(true).open(file.unwrap().path());
            file.unwrap().set_len(0).unwrap();
        }
    };
    let older = |bench: &Bench| {
        copy(bench, "store/lib/new", "copy");
        bench.write("later", "later").unwrap();
        put_back(bench, "copy");
    };
    // No sync comes between the copy and its return.
    let unsynced = |bench: &Bench| {
        copy(bench, "store/lib/new", "copy");
        fs::write(bench.path("mnt/later"), "later").unwrap();
        put_back(bench, "copy");
    };
    let foreign = |bench: &Bench| {
        for file in fs::read_dir(bench.new_folder()).unwrap() {
            let path = file.unwrap().path();
            let len = fs::metadata(&path).unwrap().len() as usize;
            let file = File::options().write(true).open(path);
            io::Write::write_all(&mut file.unwrap(), &vec![b'x'; len]).unwrap();
        }
    };
    let meddle: [&dyn Fn(&Bench); 4] = [&emptied, &older, &unsynced, &foreign];
    for (i, meddle) in meddle.into_iter().enumerate() {
        let Some((mut bench, second)) = after(meddle) else {
            return;
        };
        assert!(second.is_err());
        let log = bench.log();
        assert!(
            log.contains("was overwritten or cut short") && log.contains("new/"),
            "{log}"
        );
        // Who unmounts is told of what is lost.
        if i == 0 {
            let ended = bench.umount();
            assert!(
                ended.code == 5 && ended.stderr.contains("lost"),
                "{}",
                ended.stderr
            );
            bench.mount();
            bench.write("third", "three").unwrap();
        }
        // It goes on, with all but the contents that are in no file any more.
        let started = Instant::now();
        while bench.write("third", "three").is_err() {
            assert!(started.elapsed() < PATIENCE, "{}", bench.log());
            thread::sleep(Duration::from_millis(100));
        }
        bench.kill();
        bench.mount();
        assert_eq!(bench.read("third"), "three");
        let is_older = (1..3).contains(&i);
        for (name, text) in [("first", "one"), ("second", "two"), ("later", "later")] {
            match fs::read_to_string(bench.path("mnt").join(name)) {
                Ok(read) => assert_eq!(read, text),
                Err(e) if name == "later" && e.kind() == io::ErrorKind::NotFound => {
                    assert!(!is_older, "{name}: {e}");
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name}: {e}");
                    assert!(name != "first" || !is_older, "what was put back");
                }
            }
        }
        bench.umounts();
    }
}

#[test]
fn a_mount_that_is_closed_after_meddling_has_everything() {
    for folder in ["new", "index"] {
        let Some((mut bench, _)) = after(|bench| {
            fs::remove_dir_all(bench.path("store/lib").join(folder)).unwrap();
        }) else {
            return;
        };
        bench.umount();
        bench.mount();
        assert_eq!(
            (bench.read("first"), bench.read("second")),
            ("one".into(), "two".into())
        );
        bench.umounts();
        bench.succeeds("verify --password-file pw store/lib");
    }
}

#[test]
fn an_index_that_lost_segments_is_written_anew() {
    if cannot_mount() {
        return;
    }
    let mut bench = Bench::with_library();
    bench.mount();
    bench.write("first", "one").unwrap();
    bench.umounts();
    bench.mount();
    fs::remove_dir_all(bench.path("store/lib/index")).unwrap();
    assert!(
        bench.write("second", "two").is_err(),
        "nobody finds it without the index"
    );
    assert!(
        bench.log().contains("index: 1 files were removed"),
        "{}",
        bench.log()
    );
    bench.write("third", "three").unwrap();
    bench.umounts();
    bench.mount();
    assert_eq!(
        (bench.read("first"), bench.read("second")),
        ("one".into(), "two".into())
    );
    assert_eq!(bench.read("third"), "three");
    bench.umounts();
    bench.succeeds("verify --password-file pw store/lib");
}

#[test]
fn lost_packs_are_reported_and_copied_ones_used() {
    if cannot_mount() {
        return;
    }
    let mut bench = Bench::with_library();
    bench.mount();
    bench.write("first", "one").unwrap();
    bench.umounts();
    bench.mount();
    let data = bench.path("store/lib/data");
    fs::rename(&data, bench.path("away")).unwrap();
    assert!(bench.write("second", "two").is_err());
    assert!(
        bench
            .log()
            .contains("data: was removed or renamed while it is mounted"),
        "{}",
        bench.log()
    );
    fs::rename(bench.path("away"), &data).unwrap();
    bench.write("second", "two").unwrap();
    // An equal one.
    copy(&bench, "store/lib/data", "copy");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(bench.path("copy"), &data).unwrap();
    bench.write("third", "three").unwrap();
    bench.umounts();
    bench.mount();
    assert_eq!(
        (bench.read("first"), bench.read("second")),
        ("one".into(), "two".into())
    );
    // One that lacks what was there.
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    assert!(bench.write("fourth", "four").is_err());
    assert!(bench.log().contains("packs are missing"), "{}", bench.log());
    bench.write("fourth", "four").unwrap();
    bench.umounts();
    bench.mount();
    assert_eq!(bench.read("fourth"), "four");
}

#[test]
fn slots_that_are_gone_are_said_once_and_can_be_put_back() {
    if cannot_mount() {
        return;
    }
    let mut bench = Bench::with_library();
    bench.mount();
    let key = bench.path("store/lib/key");
    fs::rename(&key, bench.path("away")).unwrap();
    assert!(bench.write("first", "one").is_err());
    let said = "hushfs: key: removed or renamed while mounted";
    assert!(bench.log().contains(said), "{}", bench.log());
    assert!(!key.exists(), "it would be in the way of the old one");
    bench.write("first", "one").unwrap();
    fs::rename(bench.path("away"), &key).unwrap();
    bench.write("second", "two").unwrap();
    // An equal one, and one that is empty.
    copy(&bench, "store/lib/key", "copy");
    fs::remove_dir_all(&key).unwrap();
    fs::rename(bench.path("copy"), &key).unwrap();
    bench.write("second", "two").unwrap();
    fs::rename(&key, bench.path("away")).unwrap();
    fs::create_dir(&key).unwrap();
    assert!(bench.write("second", "two").is_err());
    assert_eq!(bench.log().matches(said).count(), 2, "{}", bench.log());
    fs::remove_dir(&key).unwrap();
    fs::rename(bench.path("away"), &key).unwrap();
    all_is_there(bench);
}

#[test]
fn a_moved_library_continues_and_a_replaced_one_does_not() {
    let moved =
        |bench: &Bench| fs::rename(bench.path("store/lib"), bench.path("store/there")).unwrap();
    if let Some((mut bench, second)) = after(moved) {
        second.unwrap();
        assert!(bench.log().contains("moved to"), "{}", bench.log());
        bench.kill();
        fs::rename(bench.path("store/there"), bench.path("store/lib")).unwrap();
        all_is_there(bench);
    }
    let replaced = |bench: &Bench| {
        fs::rename(bench.path("store/lib"), bench.path("store/there")).unwrap();
        copy(bench, "store/there", "store/lib");
    };
    if let Some((mut bench, second)) = after(replaced) {
        assert!(second.is_err());
        assert!(
            bench.log().contains("another folder was put in its place"),
            "{}",
            bench.log()
        );
        assert_ne!(bench.umount().code, 0);
        // Nothing is lost where it was written.
        fs::remove_dir_all(bench.path("store/lib")).unwrap();
        fs::rename(bench.path("store/there"), bench.path("store/lib")).unwrap();
        all_is_there(bench);
    }
    let deleted = |bench: &Bench| fs::remove_dir_all(bench.path("store/lib")).unwrap();
    if let Some((mut bench, second)) = after(deleted) {
        assert!(second.is_err());
        assert!(
            bench.log().contains("was deleted while it is mounted"),
            "{}",
            bench.log()
        );
        assert_eq!(bench.umount().code, 5);
    }
}

#[test]
fn fsync_fails_if_a_file_can_no_longer_be_read() {
    if cannot_mount() {
        return;
    }
    for can_read in [true, false] {
        let mut bench = Bench::on(Faults {
            forgets_removed: !can_read,
            syncs_by_name: can_read,
            ..Faults::default()
        });
        bench.succeeds("init --password-file pw store/lib");
        bench.mount();
        bench.write("first", "one").unwrap();
        fs::remove_dir_all(bench.path("store/lib/new")).unwrap();
        assert!(bench.write("second", "two").is_err());
        let log = bench.log();
        assert!(log.contains("was removed or replaced"), "{log}");
        if can_read {
            bench.write("second", "two").unwrap();
            all_is_there(bench);
        }
    }
}
