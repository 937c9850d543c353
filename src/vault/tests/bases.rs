//! Bases: written while work goes on, and replayed with what happened meanwhile.

use std::ffi::OsString;

use super::*;
use crate::object::Area;

/// Makes a base due: many short segments.
fn make_base_due(bench: &Bench) {
    for i in 0..202 {
        bench.put(&format!("old{i}"), &[i as u8; 50]);
        bench.vault.outbox.publish().unwrap();
    }
}

type Named = (Vec<u8>, Vec<u8>, Attr);

fn assert_same(now: &[Named], before: &[Named]) {
    assert_eq!(now.len(), before.len());
    for (now, before) in now.iter().zip(before) {
        assert_eq!(now, before, "{}", String::from_utf8_lossy(&before.0));
    }
}

fn names(bench: &Bench) -> Vec<Named> {
    let mut names = Vec::new();
    bench
        .vault
        .readdir(ROOT, 0, false, &mut |e| {
            if e.ino != ROOT {
                names.push(e.name.to_str().unwrap().to_owned());
            }
            true
        })
        .unwrap();
    let mut all: Vec<_> = names
        .iter()
        .map(|n| {
            let attr = bench.stat(n).unwrap();
            let bytes = match attr.kind {
                FileKind::Regular => bench.read(n).unwrap(),
                _ => Vec::new(),
            };
            (n.clone().into_bytes(), bytes, attr)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_base_takes_the_place_of_what_it_covers() {
    let mut bench = Bench::new();
    let dir = bench.mkdir("dir");
    bench.make_in(dir, "inside");
    make_base_due(&bench);
    bench.unlink("old7");
    let change = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    bench
        .vault
        .setattr(bench.stat("old8").unwrap().ino, &change)
        .unwrap();
    let before = names(&bench);
    bench.vault.upkeep.write_snapshot_if_due().unwrap();
    assert!(bench.store.objects(Area::Index).len() < 5);
    bench.remount().unwrap();
    assert_same(&names(&bench), &before);
    bench.put("new", b"new");
    let before = names(&bench);
    bench.remount().unwrap();
    assert_same(&names(&bench), &before);
}

#[test]
fn names_that_were_used_again_while_a_base_was_written_replay() {
    let mut bench = Bench::new();
    make_base_due(&bench);
    // All this is in the base and in the segment that the base needs.
    bench.put("a", b"first");
    bench.unlink("a");
    bench.put("a", b"second");
    for i in 0..3u8 {
        bench.put("tmp", &[i; 10]);
        bench.rename("tmp", "a");
    }
    bench.put("b", b"b");
    bench.rename("b", "c");
    bench.put("b", b"another b");
    let dir = bench.mkdir("dir");
    bench.make_in(dir, "x");
    bench.vault.unlink(dir, OsStr::new("x")).unwrap();
    bench.vault.rmdir(ROOT, OsStr::new("dir")).unwrap();
    let dir = bench.mkdir("dir");
    bench.make_in(dir, "x");
    bench.rename("dir", "dir2");
    bench.mkdir("dir");
    let ino = bench.stat("c").unwrap().ino;
    let change = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    bench.vault.setattr(ino, &change).unwrap();
    bench.env.advance(std::time::Duration::from_millis(2));
    bench.write(ino, 0, b"C");
    let before = names(&bench);
    bench.vault.upkeep.write_snapshot_if_due().unwrap();
    bench.kill().unwrap();
    assert_same(&names(&bench), &before);
    bench.remount().unwrap();
    assert_same(&names(&bench), &before);
}

#[test]
fn work_beside_a_base_is_all_there_afterwards() {
    let mut bench = Bench::new();
    for i in 0..3000 {
        bench.make(&format!("f{i}"));
    }
    make_base_due(&bench);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let (bench, done) = (&bench, &done);
            scope.spawn(move || {
                let mut n = thread;
                while !done.load(Ordering::Relaxed) {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let name = |k: u32| OsString::from(format!("f{}", k % 40 * 2 + thread));
                    let (a, b) = (name(n >> 8), name(n >> 16));
                    let v = &bench.vault;
                    match n >> 29 {
                        0..=2 => drop(v.rename(ROOT, &a, ROOT, &b, RenameMode::Replace)),
                        3 => drop(v.rename(ROOT, &a, ROOT, &b, RenameMode::Exchange)),
                        4 => drop(v.unlink(ROOT, &a)),
                        _ => {
                            if let Ok(made) = v.mknod(ROOT, &a, FileKind::Regular, 0o644, 0, CALLER)
                            {
                                bench.write(made.ino, 0, &n.to_le_bytes());
                                v.forget(made.ino, 1);
                            }
                        }
                    }
                }
            });
        }
        bench.vault.upkeep.write_snapshot_if_due().unwrap();
        done.store(true, Ordering::Relaxed);
    });
    let before = names(&bench);
    bench.kill().unwrap();
    assert_same(&names(&bench), &before);
}

#[test]
fn a_hard_link_that_comes_before_the_first_one_in_a_base() {
    let mut bench = Bench::new();
    make_base_due(&bench);
    bench.put("a", b"a");
    let ino = bench.put("b", b"b");
    bench.unlink("a");
    // It gets the slot that is free.
    bench.vault.link(ino, ROOT, OsStr::new("c")).unwrap();
    bench.vault.forget(ino, 1);
    bench.vault.upkeep.write_snapshot_if_due().unwrap();
    bench.remount().unwrap();
    assert_eq!(bench.stat("b").map(|a| a.nlink), Some(2));
    bench.unlink("b");
    assert!(bench.stat("b").is_none());
    assert_eq!(bench.stat("c").map(|a| a.nlink), Some(1));
    bench.remount().unwrap();
    assert!(bench.stat("b").is_none());
    assert!(bench.read("c").unwrap() == b"b");
}

#[test]
fn a_base_beside_a_segment_that_was_replaced_loses_no_relocation() {
    // Which of the two ids is the later one is chance.
    for _ in 0..6 {
        let mut bench = Bench::new();
        bench.halt_threads();
        make_base_due(&bench);
        let ino = bench.put("f", &[5; 3000]);
        // The open segment is spoiled now; its copy, under a new id, is made while the base is written.
        bench.fail(0, libc::EIO);
        let failed = OsStr::new("failed");
        assert!(bench.vault.mkdir(ROOT, failed, 0o755, CALLER).is_err());
        bench.vault.upkeep.write_snapshot_if_due().unwrap();
        super::super::copy::copy_ranges(&bench.vault.log, ino, &[(0, 3000)]).unwrap();
        bench.vault.outbox.publish().unwrap();
        bench.vault.upkeep.collector.collect().unwrap();
        bench.remount().unwrap();
        assert!(bench.read("f").unwrap() == [5; 3000]);
    }
}

#[test]
fn short_mounts_get_a_base_too_and_leave_nothing_behind() {
    let mut bench = Bench::new();
    for i in 0..210 {
        bench.mkdir(&format!("d{i}"));
        bench.remount().unwrap();
        assert!(bench.store.leftovers().unwrap().is_empty(), "mount {i}");
    }
    let count = bench.store.objects(Area::Index).len();
    assert!(count < 210, "{count} objects in the index");
    assert!((0..210).all(|i| bench.stat(&format!("d{i}")).is_some()));
}

#[test]
fn a_base_written_in_a_quiet_moment_leaves_nothing_behind() {
    let mut bench = Bench::new();
    make_base_due(&bench);
    bench.vault.upkeep.snapshots.write(&mut || ()).unwrap();
    bench.remount().unwrap();
    assert!(bench.store.leftovers().unwrap().is_empty());
}
