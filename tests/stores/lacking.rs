//! Stores that lack something.

use super::*;

/// Makes a library on a store with these faults, writes to it, and reads it after a kill and after an end.
fn works_on(faults: Faults) {
    if cannot_mount() {
        return;
    }
    let mut bench = Bench::on(faults);
    bench.succeeds("init --password-file pw store/lib");
    bench.mount();
    bench.write("first", "one").unwrap();
    fs::write(bench.path("mnt/long"), vec![7; 3 << 20]).unwrap();
    bench.kill();
    bench.mount();
    bench.write("second", "two").unwrap();
    fs::remove_file(bench.path("mnt/first")).unwrap();
    bench.umounts();
    bench.mount();
    assert_eq!(bench.read("second"), "two");
    assert_eq!(fs::read(bench.path("mnt/long")).unwrap(), vec![7; 3 << 20]);
    assert!(!bench.path("mnt/first").exists());
    bench.umounts();
    bench.succeeds("verify --password-file pw store/lib");
}

#[test]
fn room_that_is_not_known_is_no_limit() {
    // A filesystem in user space that does not say, one that says more than a signed number holds, and s3fs.
    for space in [
        (0, 0, 4096),
        (0, 0, 0),
        (1 << 52, 1 << 52, 4096),
        ((1 << 40) - 1, (1 << 40) - 1, 1 << 24),
    ] {
        let faults = Faults {
            space: Some(space),
            ..Faults::default()
        };
        works_on(faults);
        if cannot_mount() {
            return;
        }
        let mut bench = Bench::on(faults);
        bench.succeeds("init --password-file pw store/lib");
        bench.mount();
        let told = rustix::fs::statvfs(bench.path("mnt")).unwrap();
        let free = i64::try_from(told.f_bavail * told.f_frsize).unwrap();
        assert!(free > 1 << 50, "{free} bytes are said to be free");
        let file = File::create(bench.path("mnt/f")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 30).unwrap();
        drop(file);
        bench.umounts();
    }
}

#[test]
fn a_store_without_what_few_have_will_do() {
    works_on(Faults {
        no_rename_flags: true,
        no_fallocate: true,
        no_chmod: true,
        ..Faults::default()
    });
    works_on(Faults {
        forgets_removed: true,
        ..Faults::default()
    });
}

#[test]
fn a_lock_that_is_refused_is_one_that_is_held() {
    if cannot_mount() {
        return;
    }
    works_on(Faults {
        locks_by_eacces: true,
        ..Faults::default()
    });
    let mut bench = Bench::on(Faults {
        locks_by_eacces: true,
        ..Faults::default()
    });
    bench.succeeds("init --password-file pw store/lib");
    bench.mount();
    fs::create_dir(bench.path("other")).unwrap();
    let second = bench.run("mount --password-file pw store/lib other");
    assert_eq!(second.code, 6, "{}", second.stderr);
    assert!(
        second.stderr.contains("already mounted"),
        "{}",
        second.stderr
    );
    let info = bench.command("info --json store/lib").output().unwrap();
    let info = String::from_utf8(info.stdout).unwrap();
    assert!(info.contains("\"mounted\":true"), "{info}");
}

#[test]
fn a_store_that_cannot_be_written_to_is_found_out_at_mount() {
    if cannot_mount() {
        return;
    }
    let bench = Bench::on(Faults {
        streams_only: true,
        ..Faults::default()
    });
    bench.succeeds("init --password-file pw store/lib");
    let mounted = bench.run("mount --password-file pw store/lib mnt");
    assert_eq!(mounted.code, 9, "{}", mounted.stderr);
    assert!(
        mounted.stderr.contains("--vfs-cache-mode writes"),
        "{}",
        mounted.stderr
    );
    assert!(!bench.is_mounted());
    // What can be read, can be mounted.
    let mounted = bench.run("mount --read-only --password-file pw store/lib mnt");
    assert_eq!(mounted.code, 0, "{}", mounted.stderr);
    assert_eq!(bench.run("umount mnt").code, 0);
}

#[test]
fn files_that_cannot_be_reopened_immediately_are_waited_for() {
    if cannot_mount() {
        return;
    }
    let faults = Faults {
        reopens_after: Some(Duration::from_secs(2)),
        ..Faults::default()
    };
    works_on(faults);
    let mut bench = Bench::on(faults);
    bench.succeeds("init --password-file pw store/lib");
    bench.mount();
    assert!(
        bench
            .log()
            .contains("for some seconds after it was renamed"),
        "{}",
        bench.log()
    );
    bench.umounts();
    let added = bench.run("passwd --password-file pw --new-password-file pw store/lib");
    assert_eq!(added.code, 0, "{}", added.stderr);
    bench.succeeds("info --password-file pw store/lib");
}

#[test]
fn a_store_that_is_read_only_says_what_to_do() {
    if cannot_mount() {
        return;
    }
    let bench = Bench::with_library();
    let flags = rustix::mount::MountFlags::BIND;
    let store = bench.path("store");
    rustix::mount::mount_bind(&store, &store).unwrap();
    let read_only = flags | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&store, read_only, "").unwrap();
    let (mounted, reads) = (
        bench.run("mount --password-file pw store/lib mnt"),
        bench.run("mount --read-only --password-file pw store/lib mnt"),
    );
    let unmounted = bench.run("umount mnt");
    rustix::mount::unmount(&store, UnmountFlags::DETACH).unwrap();
    assert_eq!(
        (mounted.code, reads.code, unmounted.code),
        (9, 0, 0),
        "{}{}",
        mounted.stderr,
        reads.stderr
    );
    assert!(mounted.stderr.contains("--read-only"), "{}", mounted.stderr);
}

#[test]
fn a_link_in_a_folders_place_is_named() {
    if cannot_mount() {
        return;
    }
    for folder in ["data", "index", "new"] {
        let bench = Bench::with_library();
        let path = bench.path("store/lib").join(folder);
        fs::rename(&path, bench.path("elsewhere")).unwrap();
        let how: &[&str] = match folder {
            "new" => &[""],
            _ => &["", "--read-only "],
        };
        for (target, said) in [
            ("elsewhere", "it is a symbolic link, which"),
            ("nowhere", "it has not arrived yet"),
        ] {
            let _ = fs::remove_file(&path);
            symlink(bench.path(target), &path).unwrap();
            for how in how {
                let mounted = bench.run(&format!("mount {how}--password-file pw store/lib mnt"));
                assert_ne!(mounted.code, 0, "{folder}");
                assert!(mounted.stderr.contains(said), "{}", mounted.stderr);
                assert!(
                    mounted.stderr.contains(&format!("lib/{folder}: ")),
                    "{}",
                    mounted.stderr
                );
            }
        }
        // A file.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        let mounted = bench.run("mount --password-file pw store/lib mnt");
        assert!(
            mounted.stderr.contains("it must be a folder"),
            "{}",
            mounted.stderr
        );
    }
}
