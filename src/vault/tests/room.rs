//! Adoption where there is little room, where it fails or is cut short, and for who only reads: what it leaves behind, and
//! how much that is.

use super::*;

/// What lies in `new/`, and how much it is.
fn left(store: &MemoryStore) -> (usize, u64) {
    let found = store.leftovers().unwrap();
    let len = |id| store.open_leftover(id).unwrap().cipher_len().unwrap();
    (found.len(), found.into_iter().map(len).sum())
}

fn used(store: &MemoryStore) -> u64 {
    let space = store.space().unwrap();
    space.total_bytes - space.available_bytes
}

const READ_ONLY: Options = Options {
    read_only: true,
    ..OPTIONS
};

#[test]
fn adoption_without_room_leaves_nothing_and_ends_with_all() {
    let bench = Bench::new();
    for i in 0..6 {
        bench.put(&format!("f{i}"), &vec![i as u8; 1 << 20]);
    }
    let store = bench.store.after_kill();
    store.reserve(0).unwrap();
    let (before, total) = (left(&store), used(&store));
    for room in [0, 1000, 2000] {
        store.set_faults(Faults::default().space(total + room));
        let refused = open(&bench.code, &store).map(drop).unwrap_err();
        assert!(refused.is_no_space(), "{refused}");
        // What was begun of a pack's end may be there: this store does not cut off a write that failed.
        assert_eq!(left(&store).0, before.0, "{room}");
        assert!(used(&store) <= total + room, "{room}");
        let shown = open_with(&bench.code, &store, &READ_ONLY).unwrap();
        assert!((0..6).all(|i| shown.lookup(ROOT, OsStr::new(&format!("f{i}"))).is_ok()));
    }
    // Far less than there is to take over: what lies in packs stays in them.
    store.set_faults(Faults::default().space(total + 200_000));
    let vault = open(&bench.code, &store).unwrap();
    let mut after = Bench {
        env: bench.env.clone(),
        code: bench.code.clone(),
        store,
        vault,
    };
    after.halt_threads();
    assert_eq!(left(&after.store), (0, 0));
    after.store.set_faults(Faults::default());
    for _ in 0..2 {
        for i in 0..6 {
            assert!(after.read(&format!("f{i}")).unwrap() == vec![i as u8; 1 << 20]);
        }
        let problem = &mut |e| panic!("{e}");
        after.vault.check_objects(problem).unwrap();
        after.remount().unwrap();
    }
}

#[test]
fn adoption_on_a_full_disk_may_be_killed_anywhere() {
    for ahead in 0..40 {
        let mut bench = Bench::new();
        bench.halt_threads();
        bench.put("a", &vec![1; 1 << 20]);
        bench.put("b", &[2; 30_000]);
        bench.vault.log.sync().unwrap();
        // Not durable: it may be gone, and then its place in the pack is nobody's.
        bench.put("c", &[3; 70_000]);
        let store = bench.store.after_power_cut(ahead);
        store.reserve(0).unwrap();
        let faults = Faults::default().space(used(&store) + 300_000);
        store.set_faults(faults.cut_after(ahead));
        let _ = open(&bench.code, &store);
        bench.store = store.after_power_cut(ahead + 1);
        let room = used(&bench.store) + 300_000;
        bench.store.set_faults(Faults::default().space(room));
        bench.vault = open(&bench.code, &bench.store).unwrap_or_else(|e| panic!("{ahead}: {e}"));
        assert!(bench.read("a").unwrap() == vec![1; 1 << 20]);
        assert!(bench.read("b").unwrap() == [2; 30_000]);
        if bench.stat("c").is_some_and(|c| c.plain_size > 0) {
            assert!(bench.read("c").unwrap() == [3; 70_000]);
        }
        bench
            .vault
            .check_objects(&mut |e| panic!("{ahead}: {e}"))
            .unwrap();
    }
}

#[test]
fn an_adoption_that_was_killed_takes_no_room_from_the_next() {
    for ahead in 0..60 {
        let mut bench = Bench::new();
        bench.halt_threads();
        for i in 0..3 {
            bench.put(&format!("f{i}"), &[i; 300_000]);
        }
        bench.vault.log.new_packs().finish_open().unwrap();
        bench.put("last", &[9; 300_000]);
        bench.store = bench.store.after_kill();
        bench.store.reserve(0).unwrap();
        let room = used(&bench.store);
        bench.store.set_faults(Faults::default().cut_after(ahead));
        let cut = open(&bench.code, &bench.store).is_err();
        // Killed once more while it removes what the first one copied.
        bench.store = bench.store.after_kill();
        bench
            .store
            .set_faults(Faults::default().cut_after(ahead % 7));
        let _ = open(&bench.code, &bench.store);
        bench.store = bench.store.after_kill();
        // Room for one copy.
        let faults = Faults::default().space(room + 500_000);
        bench.store.set_faults(faults);
        bench.vault =
            open(&bench.code, &bench.store).unwrap_or_else(|e| panic!("cut after {ahead}: {e}"));
        for i in 0..3 {
            assert!(bench.read(&format!("f{i}")).unwrap() == [i; 300_000]);
        }
        assert!(bench.read("last").unwrap() == [9; 300_000]);
        assert!(cut || ahead > 10, "nothing was cut at {ahead}");
    }
}

#[test]
fn what_is_deleted_makes_room_for_adoption() {
    let mut bench = Bench::new();
    bench.put("old", &vec![1; 3 << 20]);
    bench.remount().unwrap();
    bench.halt_threads();
    // These share a pack, which is published and needed for what is left of them to count.
    bench.put("gone", &[2; 50_000]);
    bench.vault.log.new_packs().finish_open().unwrap();
    bench.vault.log.sync().unwrap();
    let finished = bench.vault.log.new_packs().finished();
    bench.vault.log.new_packs().publish(&finished).unwrap();
    bench.put("kept", &vec![3; 1 << 20]);
    bench.unlink("gone");
    bench.unlink("old");
    let packs = bench.store.objects(crate::object::Area::Data).len();
    let mut freed = 0;
    for cut in 0..30 {
        let store = bench.store.after_kill();
        store.reserve(0).unwrap();
        let faults = Faults::default().space(used(&store) + 10_000);
        // At first without a cut.
        store.set_faults(match cut {
            0 => faults,
            _ => faults.cut_after(cut),
        });
        let opened = open(&bench.code, &store);
        assert!(cut > 0 || opened.is_ok());
        let is_freed = store.objects(crate::object::Area::Data).len() < packs;
        // What makes a pack superfluous is durable before that is removed.
        let store = match is_freed {
            true => store.after_power_cut(cut),
            false => store.after_kill(),
        };
        freed += u32::from(is_freed && opened.is_err());
        let mut after = Bench {
            env: bench.env.clone(),
            code: bench.code.clone(),
            vault: open(&bench.code, &store).unwrap(),
            store,
        };
        for _ in 0..2 {
            assert!(after.stat("old").is_none() && after.stat("gone").is_none());
            assert!(after.read("kept").unwrap() == vec![3; 1 << 20]);
            after.remount().unwrap();
        }
    }
    assert!(freed > 0);
}

#[test]
fn who_only_reads_sees_what_a_crash_left_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.put("published", &[1; 5000]);
    bench.remount().unwrap();
    bench.halt_threads();
    bench.put("new", &vec![2; 40_000]);
    bench.vault.log.sync().unwrap();
    bench.vault.log.new_packs().finish_open().unwrap();
    bench.put("in another pack", &[3; 100]);
    let moved = bench.stat("published").unwrap().ino;
    bench.write(moved, 10, &[4; 10]);
    bench.unlink("new");
    bench.put("new", &vec![5; 30_000]);
    let store = bench.store.after_kill();
    let before = (left(&store), used(&store), store.operations());
    for _ in 0..2 {
        let vault = open_with(&bench.code, &store, &READ_ONLY).unwrap();
        let shown = Bench {
            env: bench.env.clone(),
            code: bench.code.clone(),
            store: store.clone(),
            vault,
        };
        for name in ["published", "new", "in another pack"] {
            assert!(shown.read(name).unwrap() == bench.read(name).unwrap());
        }
        shown.vault.close().unwrap();
        assert_eq!((left(&store), used(&store), store.operations()), before);
    }
    // What is damaged does not show, and what is published does.
    let id = bench.vault.log.journal().open_segment().unwrap();
    store.with_leftover(id, |bytes| bytes[60] ^= 1);
    let vault = open_with(&bench.code, &store, &READ_ONLY).unwrap();
    assert!(vault.lookup(ROOT, OsStr::new("published")).is_ok());
    assert!(vault.lookup(ROOT, OsStr::new("new")).is_err());
}

#[test]
fn adoption_that_fails_anywhere_leaves_no_more_than_there_was() {
    for errno in [libc::EIO, libc::ENOSPC] {
        for ahead in 0..60 {
            let mut bench = Bench::new();
            bench.halt_threads();
            bench.put("a", &[1; 200_000]);
            bench.vault.log.new_packs().finish_open().unwrap();
            bench.put("b", &[2; 200_000]);
            bench.vault.log.sync().unwrap();
            let store = bench.store.after_kill();
            let before = used(&store);
            store.set_faults(Faults::default().fail_once(ahead, errno));
            let failed = open(&bench.code, &store).map(drop);
            if failed.is_err() {
                // A discard that fails leaves its file to the next mount.
                assert!(
                    used(&store) <= before + 210_000,
                    "{ahead}: {} and {before}",
                    used(&store)
                );
            }
            bench.store = store.after_kill();
            bench.vault = open(&bench.code, &bench.store).unwrap();
            assert!(bench.read("a").unwrap() == [1; 200_000], "{ahead}");
            assert!(bench.read("b").unwrap() == [2; 200_000], "{ahead}");
        }
    }
}
