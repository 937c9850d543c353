//! Contents of one file: flushes in pieces, sizes and times.

use std::time::Duration;

use super::*;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::volume::{SetTime, Time};

const BLOCK: u64 = BLOCK_PLAIN_LEN as u64;

/// A file whose first two blocks lie in many pieces.
fn in_pieces(bench: &Bench) -> (Ino, Vec<u8>) {
    let mut model = vec![1; 2 * BLOCK as usize];
    let ino = bench.put("f", &model);
    // Each write in the middle of an extent makes two more: nine in each block.
    for i in 0..4u64 {
        for block in 0..2 {
            let at = block * BLOCK + 1000 + i * 500;
            bench.write(ino, at, &[i as u8 + 2; 100]);
            model[at as usize..][..100].fill(i as u8 + 2);
        }
    }
    (ino, model)
}

#[test]
fn a_write_over_the_edge_of_a_block_in_pieces_is_framed_once() {
    // The ranges come before, over and behind the block that is rewritten whole.
    for ranges in [
        [(100, 100), (BLOCK - 384, 1000)],
        [(BLOCK - 384, 1000), (BLOCK + 3616, 100)],
        [(BLOCK - 384, 384), (BLOCK + 1, 100)],
    ] {
        let mut bench = Bench::new();
        let (ino, mut model) = in_pieces(&bench);
        let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
        for (at, len) in ranges {
            bench
                .vault
                .write(ino, handle, at, &vec![99; len as usize])
                .unwrap();
            model[at as usize..][..len as usize].fill(99);
        }
        bench.vault.flush(ino, handle).unwrap();
        bench.vault.release(ino, handle);
        assert!(bench.read("f").unwrap() == model);
        bench.remount().unwrap();
        assert!(bench.read("f").unwrap() == model);
    }
}

#[test]
fn a_write_beside_a_flush_does_not_cut_the_file() {
    let bench = Bench::new();
    let ino = bench.put("f", &[1; 100]);
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    let end = 200_000u64;
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            for _ in 0..2000 {
                bench.vault.files.flush_ino(ino).unwrap();
            }
        });
        let mut at = 100;
        while !flusher.is_finished() && at < end {
            bench.vault.write(ino, handle, at, &[2; 10]).unwrap();
            bench.vault.write(ino, handle, 0, &[3; 10]).unwrap();
            at += 10;
            let size = bench.vault.getattr(ino).unwrap().plain_size;
            assert_eq!(size, at, "a write within the file changed its length");
        }
    });
    bench.vault.release(ino, handle);
}

#[test]
fn times_that_were_told_stay_when_data_are_written_out() {
    let mut bench = Bench::new();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.vault.write(ino, handle, 0, b"data").unwrap();
    let told = bench.vault.getattr(ino).unwrap();
    bench.env.advance(std::time::Duration::from_millis(5));
    bench.vault.flush(ino, handle).unwrap();
    let after = bench.vault.getattr(ino).unwrap();
    assert_eq!((told.mtime, told.ctime), (after.mtime, after.ctime));
    // A change of mode in between is later than the write, and stays so.
    bench.vault.write(ino, handle, 4, b"more").unwrap();
    let change = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    bench.vault.setattr(ino, &change).unwrap();
    let told = bench.vault.getattr(ino).unwrap();
    bench.vault.flush(ino, handle).unwrap();
    let after = bench.vault.getattr(ino).unwrap();
    assert_eq!((told.mtime, told.ctime), (after.mtime, after.ctime));
    bench.vault.release(ino, handle);
    bench.remount().unwrap();
    let after = bench.stat("f").unwrap();
    assert_eq!((told.mtime, told.ctime), (after.mtime, after.ctime));
}

#[test]
fn many_small_appends_take_little_memory() {
    let bench = Bench::new();
    let ino = bench.make("log");
    const APPENDS: u64 = 10_000;
    for i in 0..APPENDS {
        bench.write(ino, i * 100, &[i as u8; 100]);
    }
    let blocks = (APPENDS * 100).div_ceil(BLOCK) as usize;
    let extents = bench.extents(ino);
    assert!(
        extents <= 8 * blocks + 8,
        "{extents} extents in {blocks} blocks"
    );
    assert_eq!(bench.vault.files.budget().dirty_cost(), 0);
    assert!(bench.vault.files.all().is_empty());
    let bytes = bench.read("log").unwrap();
    assert!((0..APPENDS).all(|i| bytes[i as usize * 100..][..100] == [i as u8; 100]));
}

#[test]
fn what_was_in_memory_of_a_removed_file_is_given_back() {
    let bench = Bench::new();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    bench.vault.write(ino, handle, 0, &[1; 5000]).unwrap();
    bench.unlink("f");
    bench.vault.write(ino, handle, 5000, &[1; 5000]).unwrap();
    bench.vault.release(ino, handle);
    assert_eq!(bench.vault.files.budget().dirty_cost(), 0);
    assert!(bench.vault.files.all().is_empty());
}

/// Writes a long file in odd pieces; the handle, which is still open, and bytes that tell where they belong.
fn stream(bench: &Bench, ino: Ino) -> (Handle, Vec<u8>) {
    let pattern = |i: usize| (i / 251 % 256) as u8 ^ i as u8;
    let data: Vec<u8> = (0..20_000_000).map(pattern).collect();
    let handle = bench.vault.open(ino, libc::O_WRONLY).unwrap();
    for (i, part) in data.chunks(1_000_000).enumerate() {
        let at = i as u64 * 1_000_000;
        bench.vault.write(ino, handle, at, part).unwrap();
    }
    (handle, data)
}

#[test]
fn a_stream_of_odd_writes_is_cut_where_blocks_end() {
    let bench = Bench::new();
    let ino = bench.make("f");
    let (handle, data) = stream(&bench, ino);
    bench.vault.flush(ino, handle).unwrap();
    bench.vault.release(ino, handle);
    assert!(bench.read("f").unwrap() == data);
    let tree = bench.vault.view.tree();
    let extents = tree.inode(tree.find(ino).unwrap()).extents().as_slice();
    assert!(extents.iter().all(|e| e.plain_offset.is_multiple_of(BLOCK)));
}

#[test]
fn a_kill_in_a_stream_leaves_what_was_written_first() {
    let mut bench = Bench::new();
    // It would write out the tail, were this slow.
    bench.halt_threads();
    let ino = bench.make("f");
    let (_, data) = stream(&bench, ino);
    bench.kill().unwrap();
    let left = bench.read("f").unwrap();
    // What was in memory is gone, which is at most what is dirty and what is on its way; nothing stands in its place.
    assert!(!left.is_empty() && left.len() < data.len());
    assert!(left == data[..left.len()]);
}

#[test]
fn a_tail_that_a_stream_leaves_behind_is_as_old_as_it_is() {
    let bench = Bench::new();
    bench.halt_threads();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_WRONLY).unwrap();
    bench.vault.write(ino, handle, 1 << 30, b"far").unwrap();
    let file = bench.vault.files.opened(ino).unwrap();
    bench.env.advance(std::time::Duration::from_secs(5));
    let data = vec![1; 1 << 20];
    for i in 0..8 {
        bench.vault.write(ino, handle, i << 20, &data).unwrap();
        bench.vault.files.flush_stream(&file).unwrap();
        assert_eq!(file.state.lock().dirty.end(), (1 << 30) + 3);
    }
    bench.do_what_is_due(&mut Default::default());
    assert!(file.state.lock().dirty.is_empty());
    bench.vault.release(ino, handle);
}

#[test]
fn what_is_written_back_keeps_a_time_that_was_set_just_now() {
    let bench = Bench::new();
    let ino = bench.make("f");
    let handle = bench.vault.open(ino, libc::O_RDWR).unwrap();
    let mtime = || bench.stat("f").unwrap().mtime;
    let set = Time { sec: 7, nsec: 7 };
    let set_mtime = || {
        let change = SetAttr {
            mtime: Some(SetTime::At(set)),
            ..SetAttr::default()
        };
        bench.vault.setattr(ino, &change).unwrap();
    };
    let write_back = || bench.vault.write_back(ino, handle, 0, b"data").unwrap();

    // Written back before and after; shown before it is written out, and after.
    write_back();
    set_mtime();
    let ctime = bench.stat("f").unwrap().ctime;
    write_back();
    assert_eq!(mtime(), set);
    bench.vault.files.flush_ino(ino).unwrap();
    assert_eq!((mtime(), bench.stat("f").unwrap().ctime), (set, ctime));

    // Whatever says that it was stored later.
    let later: [&dyn Fn(); 4] = [
        &|| bench.vault.write(ino, handle, 0, b"data").unwrap(),
        &|| bench.vault.flush(ino, handle).unwrap(),
        &|| bench.fsync(ino).unwrap(),
        &|| {
            bench.env.advance(Duration::from_secs(6));
        },
    ];
    for happens in later {
        set_mtime();
        happens();
        write_back();
        assert!(mtime() > set);
        bench.vault.files.flush_ino(ino).unwrap();
        assert!(mtime() > set);
    }
    bench.vault.release(ino, handle);
}
