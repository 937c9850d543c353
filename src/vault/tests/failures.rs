//! A store that fails once, or for good.

use super::*;

/// Work, a publication of which one operation fails, more work, an end: everything is there afterwards.
fn publication_fails(ahead: u64, errno: i32) -> bool {
    let mut bench = Bench::new();
    let what = format!("operation {ahead}, errno {errno}");
    bench.put("published", &[1; 3000]);
    bench.core().publish().unwrap();
    bench.put("before", &[2; 3000]);
    bench.mkdir("dir");
    bench.fail(ahead, errno);
    let at = bench.store.operations() + ahead;
    let _ = bench.core().publish();
    let met = bench.store.operations() > at;
    bench.store.set_faults(Faults::default());
    bench.put("after", &[3; 3000]);
    let check = |bench: &Bench, moment: &str| {
        for (name, byte) in [("published", 1), ("before", 2), ("after", 3)] {
            let bytes = bench.read(name);
            let bytes = bytes.unwrap_or_else(|e| panic!("{what}, {moment}: {name}: {e}"));
            assert!(bytes == [byte; 3000], "{what}, {moment}: {name}");
        }
        assert!(bench.stat("dir").is_some(), "{what}, {moment}");
    };
    check(&bench, "at once");
    let synced = bench.fsync(ROOT).is_ok();
    for seed in 0..6 {
        if synced {
            let after = bench.store.after_power_cut(seed);
            let vault = open(&bench.code, &after)
                .unwrap_or_else(|e| panic!("{what}: after a power cut: {e}"));
            let after = Bench {
                code: bench.code.clone(),
                store: after,
                vault,
            };
            check(&after, "after a power cut");
        }
    }
    let closed = bench.vault.close();
    if closed.is_ok() {
        bench.vault = open(&bench.code, &bench.store)
            .unwrap_or_else(|e| panic!("{what}: after closing: {e}"));
        check(&bench, "closed");
    } else {
        assert!(
            bench.vault.close().is_err() || bench.store.leftovers().unwrap().is_empty(),
            "{what}: closing failed, and the second time it did not say so"
        );
    }
    bench
        .kill()
        .unwrap_or_else(|e| panic!("{what}: killed: {e}"));
    check(&bench, "killed");
    bench
        .remount()
        .unwrap_or_else(|e| panic!("{what}: remounted: {e}"));
    check(&bench, "remounted");
    met
}

#[test]
fn a_publication_that_fails_at_any_operation_loses_nothing() {
    for errno in [libc::ENOSPC, libc::EIO] {
        let mut ahead = 0;
        while publication_fails(ahead, errno) {
            ahead += 1;
        }
        assert!(ahead >= 5, "only {ahead} operations in a publication");
    }
}

#[test]
fn dirty_memory_is_bounded_when_the_store_is_gone() {
    let bench = Bench::new();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench
        .store
        .set_faults(Faults::default().cut_after(bench.store.operations()));
    for i in 0..100u64 {
        let _ = bench.vault.write(ino, handle, i << 20, &vec![1; 1 << 20]);
    }
    let cost = bench.core().dirty_cost.load(Ordering::Relaxed);
    assert!(cost <= 40 << 20, "{cost} bytes are dirty");
}

#[test]
fn deleting_works_on_a_full_disk_whatever_failed_before() {
    let mut bench = Bench::new();
    bench.store.set_faults(Faults::default().space(20 << 20));
    bench.core().restore_reserve();
    for i in 0..50 {
        bench.make(&format!("f{i}"));
    }
    // Full to the last byte: the journal itself cannot grow.
    let free = bench.store.space().unwrap().available_bytes;
    bench.store.insert_object(
        crate::store::Area::Data,
        crate::store::ObjectId([9; 16]),
        vec![0; free as usize],
    );
    for i in 0..3 {
        let made = bench
            .vault
            .mkdir(ROOT, OsStr::new(&format!("d{i}")), 0o755, CALLER);
        assert_eq!(made.unwrap_err().errno(), libc::ENOSPC);
    }
    for i in 0..50 {
        bench.unlink(&format!("f{i}"));
    }
    bench.kill().unwrap();
    assert!(bench.stat("f7").is_none());
}
