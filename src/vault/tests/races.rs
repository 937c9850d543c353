//! Several threads at once, and what one waits for while another works.

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;

/// What one thread does to its own files, and what they hold afterwards. Whatever it reads must be what it wrote.
fn work(bench: &Bench, thread: u64, steps: u32) -> Vec<(String, Vec<u8>)> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + thread);
    let v = &bench.vault;
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for i in 0..4 {
        let name = format!("t{thread}-{i}");
        bench.put(&name, &[]);
        files.push((name, Vec::new()));
    }
    for step in 0..steps {
        let which = dice.below(files.len() as u64) as usize;
        let (name, model) = &mut files[which];
        let attr = bench.stat(name).unwrap();
        let ino = attr.ino;
        assert_eq!(attr.plain_size, model.len() as u64, "{name}");
        match dice.below(10) {
            0..=4 => {
                let handle = v.open(ino, libc::O_RDWR).unwrap();
                for _ in 0..=dice.below(6) {
                    let at = dice.below(60_000) as usize;
                    let len = match dice.below(3) {
                        0 => dice.below(30_000) as usize,
                        _ => dice.below(300) as usize,
                    } + 1;
                    let data = vec![step as u8; len];
                    v.write(ino, handle, at as u64, &data).unwrap();
                    if model.len() < at + len {
                        model.resize(at + len, 0);
                    }
                    model[at..at + len].copy_from_slice(&data);
                }
                if dice.below(3) == 0 {
                    bench.fsync(ino).unwrap();
                }
                v.flush(ino, handle).unwrap();
                v.release(ino, handle);
            }
            5 => {
                let len = dice.below(80_000);
                let change = SetAttr {
                    plain_size: Some(len),
                    ..SetAttr::default()
                };
                v.setattr(ino, &change).unwrap();
                model.resize(len as usize, 0);
            }
            6 => {
                let other = dice.below(files.len() as u64) as usize;
                let (a, b) = (files[which].0.clone(), files[other].0.clone());
                let (a, b) = (OsString::from(a), OsString::from(b));
                v.rename(ROOT, &a, ROOT, &b, RenameMode::Exchange).unwrap();
                let moved = files[which].1.clone();
                files[which].1 = std::mem::replace(&mut files[other].1, moved);
            }
            7 => {
                bench.put(&format!("{name}.new"), &[step as u8; 5000]);
                *model = vec![step as u8; 5000];
                let new = format!("{name}.new");
                let name = name.clone();
                bench.rename(&new, &name);
            }
            _ => assert!(bench.read(name).unwrap() == *model, "{name}, step {step}"),
        }
    }
    files
}

#[test]
fn threads_that_work_while_all_is_published_and_collected_read_what_they_wrote() {
    let mut bench = Bench::new();
    // This test is syncer and upkeep, and in a hurry.
    bench.halt_threads();
    let done = AtomicBool::new(false);
    let files: Vec<(String, Vec<u8>)> = std::thread::scope(|scope| {
        let (bench, done) = (&bench, &done);
        let syncer = scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                bench.vault.log.answer_syncs();
                bench.vault.files.flush_all().unwrap();
                bench.vault.log.sync().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let upkeep = scope.spawn(move || {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                if round % 4 == 0 {
                    bench.vault.outbox.publish().unwrap();
                    bench.vault.upkeep.write_snapshot_if_due().unwrap();
                }
                bench.vault.upkeep.collector.collect().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|thread| scope.spawn(move || work(bench, thread, 400)))
            .collect();
        let files = workers.into_iter().flat_map(|w| {
            let ended = w.join();
            if ended.is_err() {
                done.store(true, Ordering::Relaxed);
            }
            ended.unwrap()
        });
        let files = files.collect();
        done.store(true, Ordering::Relaxed);
        syncer.join().unwrap();
        upkeep.join().unwrap();
        files
    });
    let check = |bench: &Bench, when: &str| {
        for (name, model) in &files {
            assert!(bench.read(name).unwrap() == *model, "{name}, {when}");
        }
    };
    check(&bench, "at the end");
    assert_eq!(bench.vault.files.budget().dirty_cost(), 0);
    bench.kill().unwrap();
    check(&bench, "killed");
    bench.remount().unwrap();
    check(&bench, "remounted");
}

#[test]
fn readers_do_not_wait_for_a_slow_fsync() {
    let bench = Bench::new();
    let ino = bench.put("read", &[1; 100_000]);
    let other = bench.put("written", &[1; 100]);
    let handle = bench.vault.open(ino, libc::O_RDONLY).unwrap();
    // Reads and look-ups in half a second.
    let count = || {
        let (start, mut count, mut out) = (Instant::now(), 0u32, vec![0; 4096]);
        while start.elapsed() < Duration::from_millis(500) {
            bench.vault.read(ino, handle, 50_000, &mut out).unwrap();
            bench.stat("written").unwrap();
            count += 1;
        }
        count
    };
    let alone = count();
    bench
        .store
        .set_faults(Faults::default().sync_delay(Duration::from_millis(50)));
    let done = AtomicBool::new(false);
    let (beside, syncs) = std::thread::scope(|scope| {
        let syncer = scope.spawn(|| {
            let mut syncs = 0;
            while !done.load(Ordering::Relaxed) {
                bench.write(other, syncs, &[2; 100]);
                bench.fsync(other).unwrap();
                syncs += 1;
            }
            syncs
        });
        let beside = count();
        done.store(true, Ordering::Relaxed);
        (beside, syncer.join().unwrap())
    });
    bench.vault.release(ino, handle);
    // Waiting would leave some twenty.
    assert!(
        beside > alone / 10 && syncs >= 3,
        "{beside} beside {syncs} fsyncs, {alone} alone"
    );
}

#[test]
fn an_fsync_does_not_wait_for_the_end_of_a_base() {
    let bench = Bench::new();
    bench.halt_threads();
    for i in 0..205 {
        bench.put(&format!("f{i}"), b"x");
        bench.vault.outbox.publish().unwrap();
    }
    for i in 0..2000 {
        bench.make(&format!("g{i}"));
    }
    let mut frames = 0;
    let mut between = || {
        frames += 1;
        // On another thread, as the syncer does it: no lock is held that it needs.
        let synced = std::thread::scope(|scope| {
            let syncer = scope.spawn(|| {
                let (send, receive) = std::sync::mpsc::channel();
                let done = Box::new(move |done| send.send(done).unwrap());
                bench.vault.fsync(ROOT, Handle(0), done);
                bench.vault.log.answer_syncs();
                receive.try_recv().expect("answered in the midst of it")
            });
            syncer.join().unwrap()
        });
        synced.unwrap();
    };
    bench.vault.upkeep.snapshots.write(&mut between).unwrap();
    assert!(frames > 100, "{frames}");
}
