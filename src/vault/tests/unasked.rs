//! What the committer does without being asked, and when.

use std::time::Duration;

use super::*;
use crate::object::Area;

/// Whether all that was written is on the disk.
fn is_durable(bench: &Bench) -> bool {
    let journal = bench.vault.log.journal();
    journal.is_durable() && bench.vault.files.budget().dirty_cost() == 0
}

#[test]
fn what_is_written_is_durable_after_some_seconds_whatever_is_synced_meanwhile() {
    let bench = Bench::new();
    let (ino, other) = (bench.make("f"), bench.put("other", b"x"));
    let handle = bench.vault.open(ino, libc::O_WRONLY).unwrap();
    bench.vault.write(ino, handle, 0, &[7; 3000]).unwrap();
    bench.env.advance(Duration::from_millis(4500));
    bench.fsync(other).unwrap();
    bench.env.advance(Duration::from_millis(500));
    // The syncer looks every half second; the rest is for a slow machine.
    for _ in 0..1000 {
        if is_durable(&bench) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_durable(&bench));
    for seed in 0..16 {
        let after = bench.after_power_cut(seed).unwrap();
        assert!(after.read("f").unwrap() == [7; 3000]);
    }
    bench.vault.release(ino, handle);
}

#[test]
fn all_that_is_written_is_made_durable_at_once_when_the_oldest_is_due() {
    let bench = Bench::new();
    bench.halt_threads();
    let mut duties = Default::default();
    let mut due = || {
        bench.do_what_is_due(&mut duties);
        is_durable(&bench)
    };
    let (old, young) = (bench.make("old"), bench.make("young"));
    let handles = [old, young].map(|ino| bench.vault.open(ino, libc::O_WRONLY).unwrap());
    bench.vault.write(old, handles[0], 0, &[7; 3000]).unwrap();
    assert!(!due(), "made durable when it was new");
    bench.env.advance(Duration::from_secs(5));
    bench.vault.write(young, handles[1], 0, &[8; 3000]).unwrap();
    assert!(due());
    for seed in 0..16 {
        let after = bench.after_power_cut(seed).unwrap();
        assert!(after.read("old").unwrap() == [7; 3000]);
        assert!(after.read("young").unwrap() == [8; 3000]);
    }
    // What comes now has its own five seconds: no sync for each file.
    bench.vault.write(old, handles[0], 0, &[9; 3000]).unwrap();
    bench.put("new", b"x");
    assert!(!due());
    let before = bench.store.operations();
    assert!(!due());
    assert_eq!(bench.store.operations(), before);
    bench.env.advance(Duration::from_secs(5));
    assert!(due());
    bench.vault.release(old, handles[0]);
    bench.vault.release(young, handles[1]);
}

#[test]
fn what_could_not_be_made_durable_is_tried_again() {
    let bench = Bench::new();
    bench.halt_threads();
    let mut duties = Default::default();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_WRONLY).unwrap();
    bench.vault.write(ino, handle, 0, &[7; 3000]).unwrap();
    for _ in 0..2 {
        bench.env.advance(Duration::from_secs(5));
        bench.fail(0, libc::EIO);
        assert!(!bench.do_what_is_due(&mut duties) && !is_durable(&bench));
    }
    for _ in 0..3 {
        bench.env.advance(Duration::from_secs(5));
        bench.do_what_is_due(&mut duties);
    }
    assert!(is_durable(&bench));
    bench.vault.release(ino, handle);
}

#[test]
fn a_publication_that_keeps_failing_is_not_tried_all_the_time() {
    let bench = Bench::new();
    bench.halt_threads();
    bench.put("f", &[1; 3000]);
    // Something stands where the segment shall go.
    let segment = bench.vault.log.journal().open_segment().unwrap();
    bench.store.insert_object(Area::Index, segment, vec![]);
    bench.vault.outbox.publish().unwrap_err();
    let mut duties = Default::default();
    bench.do_what_is_due(&mut duties);
    let before = bench.store.operations();
    for _ in 0..20 {
        bench.do_what_is_due(&mut duties);
    }
    assert_eq!(bench.store.operations(), before, "tried again at once");
    // What is written meanwhile is made durable, asked or not.
    bench.put("unasked", &[2; 3000]);
    bench.env.advance(Duration::from_secs(5));
    bench.do_what_is_due(&mut duties);
    assert!(is_durable(&bench));
    let (send, receive) = std::sync::mpsc::channel();
    let ino = bench.put("asked", &[3; 3000]);
    let done = Box::new(move |done| send.send(done).unwrap());
    bench.vault.fsync(ino, Handle(0), done);
    bench.vault.log.answer_syncs();
    receive.try_recv().unwrap().unwrap();
    assert!(is_durable(&bench));
    bench.store.take_object(Area::Index, segment).unwrap();
    bench.vault.close().unwrap();
    assert_eq!(bench.store.objects(Area::Index).len(), 2);
}

#[test]
fn a_file_that_is_removed_while_it_is_rewritten_is_no_error() {
    let bench = Bench::new();
    bench.halt_threads();
    let ino = bench.make("f");
    // Blocks one after the other, each in a run of its own that the next one does not prolong.
    for i in (0..200u64).rev() {
        bench.write(ino, i * 16_384, &[i as u8; 16_384]);
    }
    assert!(bench.extents(ino) > 100);
    let vault = &bench.vault;
    vault.upkeep.defragmenter.record_closed(ino);
    bench.env.advance(Duration::from_secs(60));
    let mut remove = || {
        if bench.stat("f").is_some() {
            bench.unlink("f");
        }
        true
    };
    vault.upkeep.defragmenter.run(&mut remove).unwrap();
    assert!(bench.stat("f").is_none());
}
