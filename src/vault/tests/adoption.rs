//! What a crash left: several leftovers, copies that were not finished, contents in many packs.

use super::*;

#[test]
fn contents_of_two_packs_are_not_taken_for_each_other() {
    let mut bench = Bench::new();
    let from = bench.put("from", &[1; 5000]);
    bench.remount().unwrap();
    let from = bench.stat("from").map_or(from, |a| a.ino);
    // The copy shows a part of a block of one pack, "h" the block at the same place of another.
    let copy = bench.make("copy");
    bench.vault.copy_file_range(from, 0, copy, 0, 100).unwrap();
    bench.put("h", &[2; 100]);
    bench.kill().unwrap();
    assert!(bench.read("copy").unwrap() == [1; 100]);
    assert!(bench.read("h").unwrap() == [2; 100]);
}

#[test]
fn what_was_made_on_top_of_a_torn_segment_does_not_count() {
    // The first segment is closed and never gets durable; the second one is.
    for seed in 0..40 {
        let mut bench = Bench::new();
        for i in 0..20 {
            bench.mkdir(&format!("first{i}"));
        }
        let vault = &bench.vault;
        let mut journal = vault.log.journal();
        let closed = journal.close_segment(&vault.view).unwrap();
        journal.closed(&closed.unwrap());
        drop(journal);
        for i in 0..20 {
            bench.mkdir(&format!("second{i}"));
        }
        bench.power_cut(seed).unwrap();
        let there = |name: String| bench.stat(&name).is_some();
        let first = (0..20).filter(|i| there(format!("first{i}"))).count();
        let second = (0..20).filter(|i| there(format!("second{i}"))).count();
        assert!(
            second == 0 || first == 20,
            "seed {seed}: {second} of what came after, {first} of what came before"
        );
    }
}

#[test]
fn a_copy_of_the_open_segment_that_was_not_finished_does_no_harm() {
    // A write fails; at some moment of copying the segment to a new one, the process is killed.
    for ahead in 0..12 {
        let mut bench = Bench::new();
        for i in 0..5 {
            bench.mkdir(&format!("d{i}"));
        }
        bench.fail(0, libc::EIO);
        let failed = bench
            .vault
            .mkdir(ROOT, OsStr::new("failing"), 0o755, CALLER);
        assert!(failed.is_err());
        let at = bench.store.operations() + ahead;
        bench.store.set_faults(Faults::default().cut_after(at));
        let made = bench.vault.mkdir(ROOT, OsStr::new("later"), 0o755, CALLER);
        for _ in 0..2 {
            bench.kill().unwrap();
            for i in 0..5 {
                assert!(bench.stat(&format!("d{i}")).is_some(), "d{i}, {ahead}");
            }
            assert!(made.is_err() || bench.stat("later").is_some());
        }
        bench.remount().unwrap();
    }
}

#[test]
fn a_failed_operation_does_not_take_effect_later() {
    for seed in 0..60 {
        let mut bench = Bench::new();
        bench.mkdir("before");
        let at = bench.store.operations();
        bench
            .store
            .set_faults(Faults::default().fail_once(at, libc::EIO).seed(seed));
        let failed = bench.vault.mkdir(ROOT, OsStr::new("d"), 0o755, CALLER);
        assert!(failed.is_err());
        bench.mkdir("d");
        bench.remount().unwrap();
        assert!(bench.stat("d").is_some());
    }
}

#[test]
fn a_pack_that_was_collected_is_not_asked_for() {
    let mut bench = Bench::new();
    let from = bench.put("from", &[1; 5000]);
    bench.vault.outbox.publish().unwrap();
    // These frames are in the segment that the condemnation will be in.
    let copy = bench.make("copy");
    bench.vault.copy_file_range(from, 0, copy, 0, 5000).unwrap();
    bench.unlink("copy");
    bench.unlink("from");
    bench.vault.upkeep.collector.collect().unwrap();
    assert!(bench.store.objects(crate::object::Area::Data).is_empty());
    let ino = bench.put("after", b"after");
    bench.fsync(ino).unwrap();
    bench.mkdir("last");
    bench.kill().unwrap();
    assert!(bench.read("after").unwrap() == b"after");
    assert!(bench.stat("last").is_some());
}

#[test]
fn a_full_pack_that_is_adopted_can_be_collected() {
    let mut bench = Bench::new();
    let ino = bench.put("f", &[1; 5000]);
    bench.vault.log.new_packs().finish_open().unwrap();
    bench.fsync(ino).unwrap();
    bench.kill().unwrap();
    assert_eq!(bench.store.objects(crate::object::Area::Data).len(), 1);
    assert!(bench.read("f").unwrap() == [1; 5000]);
    bench.unlink("f");
    bench.vault.upkeep.collector.collect().unwrap();
    assert!(bench.store.objects(crate::object::Area::Data).is_empty());
}

/// Changes a byte of the open segment, at this part of its length.
fn damage(bench: &Bench, part: f64) {
    let open = bench.vault.log.journal().open_segment().unwrap();
    let damaged = bench.store.with_leftover(open, |bytes| {
        let at = (bytes.len() as f64 * part) as usize;
        bytes[at] ^= 1;
    });
    assert!(damaged.is_some());
}

fn open_accepting(bench: &Bench) -> Result<Arc<Vault>> {
    let options = Options {
        accept_rollback: true,
        ..OPTIONS
    };
    open_with(&bench.code, &bench.store.after_kill(), &options)
}

#[test]
fn what_was_durable_is_not_dropped_behind_a_damaged_frame() {
    for part in [0.1, 0.3, 0.6, 0.9] {
        let mut bench = Bench::new();
        for i in 0..30 {
            let dir = bench.mkdir(&format!("d{i}"));
            bench.fsync(dir).unwrap();
        }
        // One more, so that a frame says that the thirtieth was durable.
        bench.mkdir("last");
        damage(&bench, part);
        let before = bench.store.after_kill().leftovers().unwrap();
        let refused = bench.kill().unwrap_err();
        assert_eq!(
            refused.exit_status(),
            crate::error::ExitStatus::Damaged,
            "{refused}"
        );
        assert_eq!(
            bench.store.after_kill().leftovers().unwrap().len(),
            before.len()
        );
        // Who gives it up gets what comes before the damage.
        let vault = open_accepting(&bench).unwrap();
        let there = |i: usize| vault.lookup(ROOT, OsStr::new(&format!("d{i}"))).is_ok();
        let count = (0..30).take_while(|i| there(*i)).count();
        assert_eq!((0..30).filter(|i| there(*i)).count(), count);
        assert!(
            count.abs_diff((part * 30.0) as usize) < 4,
            "{count} at {part}"
        );
    }
}

#[test]
fn a_damaged_first_frame_hides_nothing_durable() {
    let mut bench = Bench::new();
    let dir = bench.mkdir("d");
    bench.fsync(dir).unwrap();
    bench.mkdir("last");
    let open = bench.vault.log.journal().open_segment().unwrap();
    // In the magic, in the reserved bytes of the header, in the id, in the length of the first frame, and in that.
    for at in [0, 7, 28, 40, 50, crate::crypto::HEADER_LEN + 40] {
        bench.store.with_leftover(open, |bytes| bytes[at] ^= 1);
        let refused = bench.kill().unwrap_err();
        assert_eq!(
            refused.exit_status(),
            crate::error::ExitStatus::Damaged,
            "{refused}"
        );
        open_accepting(&bench).unwrap();
        bench.store.with_leftover(open, |bytes| bytes[at] ^= 1);
    }
    bench.kill().unwrap();
    assert!(bench.stat("d").is_some() && bench.stat("last").is_some());
}

#[test]
fn a_front_of_zeros_hides_nothing_durable() {
    for zeros in [crate::crypto::HEADER_LEN, 512, 4096] {
        let mut bench = Bench::new();
        for i in 0..60 {
            let dir = bench.mkdir(&format!("d{i}"));
            bench.fsync(dir).unwrap();
        }
        let open = bench.vault.log.journal().open_segment().unwrap();
        let whole = bench.store.with_leftover(open, |bytes| {
            let whole = bytes.clone();
            bytes[..zeros].fill(0);
            whole
        });
        let refused = bench.kill().unwrap_err();
        assert_eq!(refused.errno(), libc::EIO, "{refused}");
        bench
            .store
            .with_leftover(open, |bytes| *bytes = whole.unwrap());
        bench.kill().unwrap();
        assert!(bench.stat("d59").is_some());
    }
}

/// Closes the open segment, which then waits in vain for being published.
fn close_unpublished(bench: &Bench) {
    let vault = &bench.vault;
    let mut journal = vault.log.journal();
    let closed = journal.close_segment(&vault.view).unwrap().unwrap();
    closed.file.sync().unwrap();
    journal.closed(&closed);
}

#[test]
fn a_damaged_first_frame_behind_a_whole_segment_hides_nothing_durable() {
    let mut bench = Bench::new();
    bench.halt_threads();
    bench.mkdir("closed");
    close_unpublished(&bench);
    for i in 0..3 {
        bench.mkdir(&format!("d{i}"));
        bench.vault.log.sync().unwrap();
    }
    let open = bench.vault.log.journal().open_segment().unwrap();
    let at = crate::crypto::HEADER_LEN + 40;
    bench.store.with_leftover(open, |bytes| bytes[at] ^= 1);
    let refused = bench.kill().unwrap_err();
    assert_eq!(refused.errno(), libc::EIO, "{refused}");
    bench.store.with_leftover(open, |bytes| bytes[at] ^= 1);
    bench.kill().unwrap();
    assert!(bench.stat("closed").is_some() && bench.stat("d2").is_some());
}

#[test]
fn a_full_pack_whose_adoption_is_cut_short_can_be_collected() {
    let mut bench = Bench::new();
    let ino = bench.put("f", &[1; 5000]);
    bench.vault.log.new_packs().finish_open().unwrap();
    bench.fsync(ino).unwrap();
    let pack = bench.vault.log.new_packs().finished()[0].pack;
    bench.store = bench.store.after_kill();
    bench
        .store
        .publish(pack.object(), crate::object::Area::Data)
        .unwrap();
    bench.kill().unwrap();
    assert!(bench.read("f").unwrap() == [1; 5000]);
    assert!(
        bench
            .vault
            .view
            .tree()
            .find_pack(pack)
            .unwrap()
            .cipher_len
            .is_some()
    );
    bench.unlink("f");
    bench.vault.upkeep.collector.collect().unwrap();
    assert!(bench.store.objects(crate::object::Area::Data).is_empty());
}

#[test]
fn behind_a_damaged_frame_only_what_was_durable_matters() {
    let mut bench = Bench::new();
    for i in 0..30 {
        bench.mkdir(&format!("d{i}"));
    }
    damage(&bench, 0.5);
    bench.kill().unwrap();
    assert!(bench.stat("d2").is_some() && bench.stat("d29").is_none());
}

#[test]
fn what_is_of_no_known_kind_stays() {
    let mut bench = Bench::new();
    bench.mkdir("d");
    let strange = crate::object::ObjectId([7; 16]);
    let file = bench.store.create(strange).unwrap();
    file.write_at(&[b'?'; 100], 0).unwrap();
    for _ in 0..2 {
        bench.kill().unwrap();
        assert!(bench.stat("d").is_some());
        assert!(bench.store.leftovers().unwrap().contains(&strange));
    }
}

#[test]
fn adoption_that_is_cut_short_between_two_segments_goes_on() {
    for ahead in 0..40 {
        let mut bench = Bench::new();
        bench.halt_threads();
        for i in 0..4 {
            bench.put(&format!("f{i}"), &[i; 100]);
        }
        // The first segment is closed and durable, and not published; what is in the second builds on it.
        let vault = &bench.vault;
        vault.log.new_packs().finish_open().unwrap();
        let first_pack = vault.log.new_packs().finished()[0].pack;
        vault.log.sync().unwrap();
        let mut journal = vault.log.journal();
        let closed = journal.close_segment(&vault.view).unwrap().unwrap();
        closed.file.sync().unwrap();
        journal.closed(&closed);
        drop(journal);
        bench.unlink("f0");
        let ino = bench.stat("f1").unwrap().ino;
        bench.write(ino, 50, &[9; 100]);
        let moved = bench.stat("f2").unwrap().ino;
        assert!(super::super::copy::copy_ranges(&bench.vault.log, moved, &[(0, 100)]).unwrap());
        bench.store = bench.store.after_kill();
        bench.store.set_faults(Faults::default().cut_after(ahead));
        let cut = open(&bench.code, &bench.store).is_err();
        bench.kill().unwrap();
        assert!(bench.stat("f0").is_none(), "{ahead}");
        let changed = [&[1; 50][..], &[9; 100]].concat();
        assert!(bench.read("f1").unwrap() == changed, "{ahead}");
        assert!(bench.read("f3").unwrap() == [3; 100], "{ahead}");
        let users = bench.vault.view.tree().users_of(first_pack);
        assert!(users.iter().all(|(ino, _)| *ino != moved), "moved, {ahead}");
        assert!(cut || ahead > 20, "nothing was cut at {ahead}");
    }
}
