//! What waits to be published, in the mount and across mounts.

use super::*;
use crate::object::Area;

/// Three closed segments, each with a file, of which none is published.
fn waiting() -> Bench {
    let bench = Bench::new();
    bench.halt_threads();
    for i in 0..3 {
        bench.put(&format!("f{i}"), &[i; 1000]);
        assert!(bench.vault.outbox.close_open_files().unwrap());
    }
    assert!(bench.vault.outbox.is_waiting());
    assert!(bench.store.objects(Area::Index).is_empty());
    bench
}

fn check(bench: &Bench) {
    for i in 0..3 {
        assert!(bench.read(&format!("f{i}")).unwrap() == [i; 1000]);
    }
}

#[test]
fn waiting_segments_are_published_in_their_order_and_failures_delay_them() {
    // Each operation of the publication fails once: a publication that is tried again finishes it.
    for ahead in 0..12 {
        let mut bench = waiting();
        bench.fail(ahead, libc::EIO);
        if bench.vault.outbox.publish().is_err() {
            bench.vault.outbox.publish().unwrap();
        }
        assert!(!bench.vault.outbox.is_waiting());
        assert_eq!(bench.store.objects(Area::Index).len(), 3);
        check(&bench);
        bench.kill().unwrap();
        check(&bench);
    }
}

#[test]
fn waiting_segments_are_published_by_the_next_mount() {
    let mut bench = waiting();
    bench.kill().unwrap();
    check(&bench);
    assert_eq!(bench.store.objects(Area::Index).len(), 3);
    for seed in 0..8 {
        let mut bench = waiting();
        bench.power_cut(seed).unwrap();
        check(&bench);
    }
}
