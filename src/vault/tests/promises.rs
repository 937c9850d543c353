//! The room that fallocate(2) promises.

use super::log::RESERVE_BYTES;
use super::*;
use crate::volume::Fallocate;

const MIB: u64 = 1 << 20;
const ALLOCATE: Fallocate = Fallocate::Allocate { keep_size: false };
const KEEP: Fallocate = Fallocate::Allocate { keep_size: true };

/// Leaves room for so much contents, and not much more.
fn leave_room(bench: &Bench, bytes: u64) {
    let store = &bench.store;
    store.set_faults(Faults::default());
    let used = (1 << 50) - crate::store::Staging::space(store).unwrap().available_bytes;
    // What writes may not take, and what is not told to be free.
    let room = bytes + bytes / 256 + RESERVE_BYTES / 4;
    store.set_faults(Faults::default().space(used + room));
}

fn blocks(bench: &Bench, ino: Ino) -> u64 {
    bench.vault.getattr(ino).unwrap().blocks_512 * 512
}

fn room(bench: &Bench) -> u64 {
    let s = bench.vault.statfs().unwrap();
    assert_eq!(s.blocks_free, s.blocks_available);
    s.blocks_available * u64::from(s.block_bytes)
}

#[test]
fn what_is_promised_nobody_else_gets() {
    let bench = Bench::new();
    bench.halt_threads();
    let (ino, other) = (bench.make("f"), bench.make("other"));
    leave_room(&bench, 8 * MIB);
    let before = room(&bench);
    assert!((5 * MIB..6 * MIB).contains(&before), "{before}");
    bench.vault.fallocate(ino, 0, 6 * MIB, ALLOCATE).unwrap();
    assert_eq!(blocks(&bench, ino), 6 * MIB);
    assert_eq!(room(&bench), 0);
    bench
        .vault
        .fallocate(ino, 5 * MIB, MIB, Fallocate::PunchHole)
        .unwrap();
    assert_eq!(room(&bench), before - 5 * MIB);
    bench.vault.fallocate(ino, 0, 6 * MIB, ALLOCATE).unwrap();
    // Again, and nothing more is taken.
    bench.vault.fallocate(ino, 0, 6 * MIB, KEEP).unwrap();
    bench.vault.fallocate(ino, MIB, MIB, ALLOCATE).unwrap();
    assert_eq!(room(&bench), 0);
    let refused = bench.vault.fallocate(other, 0, 3 * MIB, KEEP);
    assert!(refused.unwrap_err().is_no_space());
    assert_eq!((blocks(&bench, other), room(&bench)), (0, 0));

    let all = bench.vault.fallocate(other, 0, i64::MAX as u64, KEEP);
    assert!(all.unwrap_err().is_no_space());
    assert_eq!((blocks(&bench, other), room(&bench)), (0, 0));

    bench.write(other, 0, &[1; MIB as usize]);
    let refused = bench.try_write(other, MIB, &[2; 2 * MIB as usize]);
    assert!(refused.unwrap_err().is_no_space());
    for at in 0..6 {
        bench.write(ino, at * MIB, &[3; MIB as usize]);
        assert_eq!(blocks(&bench, ino), 6 * MIB);
    }
    assert_eq!(bench.vault.files.budget().promised_bytes(), 0);
    let refused = bench.try_write(ino, 6 * MIB, &[4; 2 * MIB as usize]);
    assert!(refused.unwrap_err().is_no_space());
    bench.vault.outbox.publish().unwrap();
}

#[test]
fn a_promise_ends_with_what_it_was_for() {
    let mut bench = Bench::new();
    bench.halt_threads();
    let promised = |bench: &Bench| bench.vault.files.budget().promised_bytes();
    let ino = bench.put("f", &[1; 10_000]);
    bench.vault.fallocate(ino, 1, 100_000, KEEP).unwrap();
    assert_eq!(promised(&bench), 102_400 - 10_000);
    assert_eq!(blocks(&bench, ino) / 512, 102_400 / 512);
    assert_eq!(bench.stat("f").unwrap().plain_size, 10_000);
    // The block that the new end lies in stays.
    let cut = |plain_size| SetAttr {
        plain_size: Some(plain_size),
        ..SetAttr::default()
    };
    bench.vault.setattr(ino, &cut(50_000)).unwrap();
    assert_eq!(promised(&bench), 53_248 - 10_000);
    bench
        .vault
        .fallocate(ino, 20_480, 8192, Fallocate::PunchHole)
        .unwrap();
    assert_eq!(promised(&bench), 53_248 - 10_000 - 8192);
    // Zeros are room, too, whatever lay there.
    let zeros = Fallocate::ZeroRange { keep_size: true };
    bench.vault.fallocate(ino, 0, 8192, zeros).unwrap();
    assert_eq!(promised(&bench), 53_248 - 10_000);
    assert!(bench.read("f").unwrap()[..8192].iter().all(|b| *b == 0));
    // What shows another file's bytes holds something.
    let source = bench.put("source", &[2; 16_384]);
    bench
        .vault
        .copy_file_range(source, 0, ino, 28_672, 16_384)
        .unwrap();
    assert_eq!(promised(&bench), 53_248 - 10_000 - 16_384);
    // A handle keeps it as long as it is open.
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.unlink("f");
    assert_ne!(promised(&bench), 0);
    bench.vault.release(ino, handle);
    assert_eq!(promised(&bench), 0);

    let ino = bench.make("g");
    bench.vault.fallocate(ino, 0, MIB, ALLOCATE).unwrap();
    assert_eq!(promised(&bench), MIB);
    bench.remount().unwrap();
    assert_eq!(
        (
            promised(&bench),
            blocks(&bench, bench.stat("g").unwrap().ino)
        ),
        (0, 0)
    );
}

#[test]
fn small_writes_here_and_there_leave_nothing_promised() {
    let bench = Bench::new();
    bench.halt_threads();
    let ino = bench.make("f");
    bench.vault.fallocate(ino, 0, MIB, ALLOCATE).unwrap();
    let mut dice = Dice(77);
    let mut left: Vec<u64> = (0..MIB / 1024).collect();
    while !left.is_empty() {
        let at = left.swap_remove(dice.below(left.len() as u64) as usize);
        let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
        bench
            .vault
            .write(ino, handle, at * 1024, &[5; 1024])
            .unwrap();
        if dice.below(3) == 0 {
            bench.vault.flush(ino, handle).unwrap();
        }
        bench.vault.release(ino, handle);
        assert_eq!(blocks(&bench, ino), MIB);
    }
    assert_eq!(bench.vault.files.budget().promised_bytes(), 0);
    assert!(bench.read("f").unwrap() == [5; MIB as usize]);
}
