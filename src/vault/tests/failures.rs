//! A store that fails once, or for good.

use super::log::RESERVE_BYTES;
use super::*;
use crate::index::{SegmentReader, SegmentState};
use crate::object::Area;
use crate::volume::Fallocate;

/// Work, a publication of which one operation fails, more work, an end: everything is there afterwards.
fn publication_fails(ahead: u64, errno: i32) -> bool {
    let mut bench = Bench::new();
    let what = format!("operation {ahead}, errno {errno}");
    bench.put("published", &[1; 3000]);
    bench.vault.outbox.publish().unwrap();
    bench.put("before", &[2; 3000]);
    bench.mkdir("dir");
    bench.fail(ahead, errno);
    let at = bench.store.operations() + ahead;
    let _ = bench.vault.outbox.publish();
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
    fsync_until_it_works(&bench, ROOT);
    for seed in 0..6 {
        let after = bench.after_power_cut(seed);
        let after = after.unwrap_or_else(|e| panic!("{what}: after a power cut: {e}"));
        check(&after, "after a power cut");
    }
    let closed = bench.vault.close();
    closed.unwrap_or_else(|e| panic!("{what}: closing: {e}"));
    bench.vault =
        open(&bench.code, &bench.store).unwrap_or_else(|e| panic!("{what}: after closing: {e}"));
    check(&bench, "closed");
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
    let cost = bench.vault.files.budget().dirty_cost();
    assert!(cost <= 40 << 20, "{cost} bytes are dirty");
}

#[test]
fn deleting_works_on_a_full_disk_whatever_failed_before() {
    let mut bench = Bench::new();
    bench.store.set_faults(Faults::default().space(20 << 20));
    bench.vault.upkeep.collector.restore_reserve();
    for i in 0..50 {
        bench.make(&format!("f{i}"));
    }
    // Full to the last byte: the journal itself cannot grow.
    let free = bench.store.space().unwrap().available_bytes;
    bench.store.insert_object(
        crate::object::Area::Data,
        crate::object::ObjectId([9; 16]),
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

/// Until an fsync works, which it soon does.
fn fsync_until_it_works(bench: &Bench, ino: Ino) {
    let start = std::time::Instant::now();
    while bench.fsync(ino).is_err() {
        assert!(start.elapsed().as_secs() < 10, "no sync works any more");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn after_a_sync_that_failed_once_later_ones_work() {
    for round in 0..8 {
        let bench = Bench::new();
        let ino = bench.put("before", &[1; 3000]);
        // The pack and the segment are synced side by side: either may be the one.
        bench.fail(round % 2, libc::EIO);
        assert!(bench.fsync(ino).is_err());
        bench.put("after", &[2; 3000]);
        fsync_until_it_works(&bench, ino);
        // What the failed sync lost stays lost, and a file that was removed may be back.
        for seed in 0..32 {
            let mut after = bench.after_power_cut(seed).unwrap();
            assert!(after.read("before").unwrap() == [1; 3000]);
            assert!(after.read("after").unwrap() == [2; 3000]);
            after.remount().unwrap();
            assert!(after.read("before").unwrap() == [1; 3000]);
        }
    }
}

#[test]
fn after_a_sync_that_failed_the_next_works_without_a_change_in_between() {
    for round in 0..8 {
        let bench = Bench::new();
        let ino = bench.put("f", &[1; 3000]);
        bench.fail(round % 2, libc::EIO);
        assert!(bench.fsync(ino).is_err());
        fsync_until_it_works(&bench, ino);
        for seed in 0..16 {
            let after = bench.after_power_cut(seed).unwrap();
            assert!(after.read("f").unwrap() == [1; 3000]);
        }
    }
}

#[test]
fn what_was_durable_before_a_sync_failed_is_so_afterwards() {
    for round in 0..8 {
        let bench = Bench::new();
        let ino = bench.put("durable", &[1; 3000]);
        bench.fsync(ino).unwrap();
        bench.put("not yet", &[2; 3000]);
        bench.fail(round % 2, libc::EIO);
        assert!(bench.fsync(ino).is_err());
        // Takes the place of what failed, and is not synced itself.
        bench.put("later", &[3; 3000]);
        for seed in 0..32 {
            let after = bench.after_power_cut(seed).unwrap();
            assert!(after.read("durable").unwrap() == [1; 3000]);
            for (name, byte) in [("not yet", 2), ("later", 3)] {
                if after.stat(name).is_some() {
                    let bytes = after.read(name).unwrap();
                    assert!(bytes.is_empty() || bytes == [byte; 3000]);
                }
            }
        }
    }
}

/// Frames that can be read in the open segment.
fn frames(bench: &Bench) -> usize {
    let journal = bench.vault.log.journal();
    let (file, _) = journal.sync_point();
    let id = file.unwrap().id();
    let file = bench.store.open_leftover(id).unwrap();
    let reader = SegmentReader::open(
        file,
        id.into(),
        bench.vault.view.master(),
        SegmentState::Leftover,
    );
    let mut count = 0;
    let each = |_| {
        count += 1;
        Ok(())
    };
    reader.unwrap().frames(each).unwrap();
    count
}

/// A bench where the write of a frame failed, and all of it is there nevertheless; and the inode of a folder.
fn failed_write_that_is_there() -> (Bench, Ino) {
    let made = (0..5000).find_map(|seed| {
        let bench = Bench::new();
        let dir = bench.mkdir("dir");
        bench.fsync(dir).unwrap();
        let (before, at) = (frames(&bench), bench.store.operations());
        let faults = Faults::default().fail_once(at, libc::EIO).seed(seed);
        bench.store.set_faults(faults);
        let name = OsStr::new("failed");
        assert!(bench.vault.mkdir(ROOT, name, 0o755, CALLER).is_err());
        (frames(&bench) > before).then_some((bench, dir))
    });
    made.expect("one of the seeds does that")
}

#[test]
fn a_frame_that_failed_does_not_come_back_for_a_later_one() {
    // Which of two segments comes first is chance, and should not matter.
    for _ in 0..12 {
        let (bench, dir) = failed_write_that_is_there();
        bench.mkdir("later");
        fsync_until_it_works(&bench, dir);
        for seed in 0..32 {
            let after = bench.after_power_cut(seed).unwrap();
            assert!(after.stat("dir").is_some() && after.stat("later").is_some());
            assert!(after.stat("failed").is_none());
        }
    }
}

#[test]
fn a_truncation_that_fails_takes_nothing() {
    let bench = Bench::new();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.vault.write(ino, handle, 0, &[7; 3000]).unwrap();
    bench.fail(0, libc::EIO);
    let size = SetAttr {
        plain_size: Some(10),
        ..SetAttr::default()
    };
    assert!(bench.vault.setattr(ino, &size).is_err());
    assert!(bench.read("f").unwrap() == [7; 3000]);
    assert!(bench.vault.setattr(ino, &size).is_ok());
    assert!(bench.read("f").unwrap() == [7; 10]);
    bench.vault.release(ino, handle);
    assert_eq!(bench.vault.files.budget().dirty_cost(), 0);
}

/// Lets the store be full but for `bytes`.
fn leave_room(bench: &Bench, bytes: u64) {
    let used = (1 << 50) - bench.store.space().unwrap().available_bytes;
    bench
        .store
        .set_faults(Faults::default().space(used + bytes));
}

#[test]
fn a_new_length_is_not_found_without_what_was_written_before_it() {
    let mut bench = Bench::new();
    bench.halt_threads();
    let ino = bench.put("f", &[1; 3000]);
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.vault.write(ino, handle, 0, &[2; 2500]).unwrap();
    let size = SetAttr {
        plain_size: Some(2000),
        ..SetAttr::default()
    };
    bench.vault.setattr(ino, &size).unwrap();
    bench.kill().unwrap();
    assert!(bench.read("f").unwrap() == [2; 2000]);
}

#[test]
fn a_block_that_cannot_be_read_does_not_stop_a_write_into_it() {
    let mut bench = Bench::new();
    let ino = bench.put("f", &[1; 16384]);
    bench.remount().unwrap();
    let first = bench.store.objects(Area::Data)[0];
    for i in 0..4 {
        bench.write(ino, 1000 + i * 500, &[i as u8 + 2; 100]);
    }
    bench.remount().unwrap();
    bench.store.take_object(Area::Data, first).unwrap();
    bench.write(ino, 8000, &[99; 100]);
    assert!(bench.read("f").is_err(), "what is lost is no zeros");
    bench.vault.close().unwrap();
}

#[test]
fn what_cannot_be_written_out_does_not_keep_the_rest_from_being_published() {
    let bench = Bench::new();
    bench.halt_threads();
    bench.put("closed", &[1; 5000]);
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.vault.write(ino, handle, 0, &[1; 9000]).unwrap();
    bench.fail(0, libc::EIO);
    bench.vault.close().unwrap_err();
    assert_eq!(bench.store.objects(Area::Index).len(), 1);
}

#[test]
fn a_full_disk_and_a_pack_that_failed_are_mended_by_deleting() {
    let mut bench = Bench::new();
    for i in 0..10 {
        bench.put(&format!("old{i}"), &vec![i as u8; 3 << 20]);
    }
    bench.remount().unwrap();
    bench.halt_threads();
    for i in 0..20 {
        bench.put(&format!("new{i}"), &vec![i as u8; 1 << 20]);
    }
    leave_room(&bench, 500_000);
    let ino = bench.make("f");
    let failed = bench.try_write(ino, 0, &vec![1; 1 << 20]);
    assert!(failed.unwrap_err().is_no_space());
    bench.unlink("f");
    for i in 0..10 {
        bench.unlink(&format!("old{i}"));
    }
    bench.vault.close().unwrap();
    bench.vault = open(&bench.code, &bench.store).unwrap();
    for i in 0..20 {
        assert!(bench.read(&format!("new{i}")).unwrap() == vec![i as u8; 1 << 20]);
    }
}

#[test]
fn what_is_dead_makes_room_where_there_is_none_to_publish() {
    let bench = Bench::new();
    bench.halt_threads();
    bench.put("old", &vec![1; 3 << 20]);
    bench.vault.outbox.publish().unwrap();
    bench.put("kept", &vec![2; 1 << 20]);
    bench.unlink("old");
    // Enough for the record that condemns it, and not for the end of the open pack, nor for a copy of it.
    bench.store.reserve(0).unwrap();
    leave_room(&bench, 5_000);
    bench.vault.upkeep.collector.collect().unwrap();
    let packs = bench.store.objects(crate::object::Area::Data);
    assert!(packs.is_empty(), "{packs:?}");
    assert!(bench.stat("old").is_none());
    assert!(bench.read("kept").unwrap() == vec![2; 1 << 20]);
    let after = bench.after_power_cut(1).unwrap();
    assert!(after.stat("old").is_none());
    assert!(after.read("kept").unwrap() == vec![2; 1 << 20]);
    bench.vault.close().unwrap();
}

#[test]
fn what_is_dead_and_never_was_published_makes_room() {
    let bench = Bench::new();
    bench.halt_threads();
    bench.put("old", &vec![1; 3 << 20]);
    bench.vault.log.sync().unwrap();
    bench.unlink("old");
    bench.store.reserve(0).unwrap();
    leave_room(&bench, 5_000);
    assert!(bench.vault.upkeep.collector.is_collection_urgent().unwrap());
    bench.vault.upkeep.collector.collect().unwrap();
    let left = bench.store.leftovers().unwrap();
    assert!(left.len() <= 1, "{left:?}");
    bench.put("new", &vec![2; 1 << 20]);
    let after = bench.after_power_cut(3).unwrap();
    assert!(after.stat("old").is_none());
    bench.vault.close().unwrap();
    assert!(bench.store.leftovers().unwrap().is_empty());
}

#[test]
fn who_writes_waits_until_what_was_deleted_has_made_room() {
    let mut bench = Bench::new();
    for i in 0..3 {
        bench.put(&format!("old{i}"), &vec![1; 3 << 20]);
        bench.remount().unwrap();
    }
    leave_room(&bench, 100_000);
    let ino = bench.make("f");
    assert!(
        bench
            .try_write(ino, 0, &vec![2; 1 << 20])
            .unwrap_err()
            .is_no_space()
    );
    bench.unlink("old0");
    bench.unlink("old1");
    bench.write(ino, 0, &vec![2; 1 << 20]);
    bench.remount().unwrap();
    assert!(bench.read("f").unwrap() == vec![2; 1 << 20]);
    assert!(bench.read("old2").unwrap() == vec![1; 3 << 20]);
}

#[test]
fn an_unmount_gives_the_reserve_back() {
    let bench = Bench::new();
    let free = bench.store.space().unwrap().available_bytes;
    bench.put("f", &vec![1; 1 << 20]);
    bench.vault.outbox.publish().unwrap();
    bench.unlink("f");
    bench.vault.close().unwrap();
    assert!(bench.store.objects(crate::object::Area::Data).is_empty());
    // Only segments are there now.
    assert!(bench.store.space().unwrap().available_bytes > free);
}

#[test]
fn the_reserve_is_also_for_the_segment_that_a_deletion_needs() {
    let mut bench = Bench::new();
    bench.put("f", &[1; 3000]);
    bench.remount().unwrap();
    bench.halt_threads();
    leave_room(&bench, 10);
    assert!(
        bench
            .vault
            .mkdir(ROOT, OsStr::new("d"), 0o755, CALLER)
            .is_err()
    );
    bench.unlink("f");
    assert!(bench.stat("f").is_none());
}

#[test]
fn what_is_lost_in_a_failed_pack_does_not_hold_up_every_sync() {
    let mut bench = Bench::new();
    bench.halt_threads();
    let lost = bench.put("lost", &[1; 20_000]);
    bench.put("kept", &[3; 20_000]);
    let handle = bench.vault.open(lost, libc::O_RDWR).unwrap();
    // A write into the pack fails; then the first block of what it holds cannot be read.
    let ino = bench.make("fails");
    bench.fail(0, libc::EIO);
    assert!(bench.try_write(ino, 0, &[4; 3000]).is_err());
    let spoiled = bench.vault.log.new_packs().failed()[0];
    bench.store.with_leftover(spoiled, |bytes| bytes[100] ^= 1);
    bench.put("later", &[2; 3000]);
    bench.vault.outbox.salvage().unwrap();
    bench.vault.log.sync().unwrap();
    assert!(bench.vault.log.new_packs().failed().is_empty());
    // Who has the file open is told once, by what asks first.
    let told = [(); 2].map(|()| {
        let (send, receive) = std::sync::mpsc::channel();
        let done = Box::new(move |done| send.send(done).unwrap());
        bench.vault.fsync(lost, handle, done);
        bench.vault.log.answer_syncs();
        receive.try_recv().expect("an fsync is answered").is_err()
    });
    assert_eq!(told, [true, false]);
    bench.vault.flush(lost, handle).unwrap();
    bench.vault.release(lost, handle);
    bench.vault.outbox.publish().unwrap();
    // So is who unmounts.
    let told = [(); 2].map(|()| bench.vault.close().map_err(|e| e.to_string()));
    assert!(told[0].as_ref().unwrap_err().contains("the log lists them"));
    assert_eq!(told[1], Ok(()));
    for _ in 0..2 {
        assert!(bench.read("later").unwrap() == [2; 3000]);
        assert!(bench.read("kept").unwrap() == [3; 20_000]);
        assert_eq!(bench.read("lost").unwrap_err().errno(), libc::EIO);
        bench.kill().unwrap();
    }
}

#[test]
fn a_full_disk_is_told_who_mounts_after_a_kill() {
    let bench = Bench::new();
    for i in 0..12 {
        bench.put(&format!("f{i}"), &vec![i as u8; 1 << 20]);
    }
    let after = bench.store.after_kill();
    after.reserve(0).unwrap();
    let used = (1u64 << 50) - after.space().unwrap().available_bytes;
    after.set_faults(Faults::default().space(used + 1000));
    let refused = open(&bench.code, &after).map(drop).unwrap_err();
    assert!(
        refused.is_no_space() && refused.to_string().contains("free 3 MiB to recover"),
        "{refused}"
    );
    // What was kept back for deleting is enough.
    after.set_faults(Faults::default().space(used + RESERVE_BYTES));
    let vault = open(&bench.code, &after).unwrap();
    assert!((0..12).all(|i| vault.lookup(ROOT, OsStr::new(&format!("f{i}"))).is_ok()));
}

#[test]
fn what_is_allocated_must_have_room_but_for_what_is_there() {
    let mut bench = Bench::new();
    let ino = bench.put("f", &[1; 3 << 20]);
    bench.remount().unwrap();
    bench.halt_threads();
    leave_room(&bench, RESERVE_BYTES / 4 + (2 << 20));
    for keep_size in [true, false] {
        let allocate = |plain_len| {
            let mode = Fallocate::Allocate { keep_size };
            bench.vault.fallocate(ino, 0, plain_len, mode)
        };
        assert!(allocate(6 << 20).unwrap_err().is_no_space());
        allocate(4 << 20).unwrap();
        let plain_size = bench.stat("f").unwrap().plain_size;
        assert_eq!(plain_size, if keep_size { 3 << 20 } else { 4 << 20 });
    }
}
