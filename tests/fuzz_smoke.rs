//! The fuzz targets, for some seconds each: arbitrary bytes, and valid ones with changes. What one run may allocate
//! is bounded.
//!
//! `HUSHFS_FUZZ_SECONDS` sets how long each target runs; a failure prints the input, which is then kept as a case.
#![allow(
    clippy::unwrap_used,
    reason = "a test that has nothing to go on with fails"
)]

#[path = "../fuzz/src/lib.rs"]
mod targets;

#[path = "../src/dice.rs"]
mod dice;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use dice::Dice;

/// Counts what each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is handed to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; what is given back was allocated by `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a run may hold beyond this multiple of its input, in bytes: file buffers, a catalogue, a tree.
const MEMORY_MAX: isize = 24 << 20;
const MEMORY_PER_BYTE: isize = 4096;

fn below(dice: &mut Dice, n: usize) -> usize {
    dice.below(n.max(1) as u64) as usize
}

/// Arbitrary bytes, or a seed with a few changes.
fn input(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = if seeds.is_empty() || below(dice, 4) == 0 {
        let len = 1 << below(dice, 12);
        (0..below(dice, len)).map(|_| dice.next() as u8).collect()
    } else {
        seeds[below(dice, seeds.len())].clone()
    };
    for _ in 0..below(dice, 6) {
        let at = below(dice, data.len());
        match below(dice, 6) {
            0 if !data.is_empty() => data[at] ^= 1 << below(dice, 8),
            1 if !data.is_empty() => data[at] = dice.next() as u8,
            2 if !data.is_empty() => data[at] = [0, 0x7f, 0x80, 0x9b, 0x5b, 0xff][below(dice, 6)],
            3 => data.insert(at, dice.next() as u8),
            4 if !data.is_empty() => {
                data.drain(at..(at + below(dice, 9)).min(data.len()));
            }
            _ => {
                let from = below(dice, data.len());
                let part = data[from..(from + below(dice, 30)).min(data.len())].to_vec();
                data.splice(at..at, part);
            }
        }
    }
    data
}

fn run(name: &str, target: targets::Target, data: &[u8]) {
    let before = HELD.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let result = std::panic::catch_unwind(|| target(data));
    let used = PEAK.with(Cell::get) - before;
    let hex: String = data.iter().map(|b| format!("{b:02x}")).collect();
    assert!(result.is_ok(), "{name} panicked on {hex}");
    let allowed = MEMORY_MAX + MEMORY_PER_BYTE * data.len() as isize;
    assert!(used <= allowed, "{name} took {used} bytes on {hex}");
}

fn smoke(name: &str) {
    let seconds = std::env::var("HUSHFS_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(2);
    let (_, target) = targets::ALL.iter().find(|(n, _)| *n == name).unwrap();
    let seeds = targets::seeds(name);
    // One of the key, so that making it is not counted as memory of a run.
    target(&[]);
    seeds.iter().for_each(|seed| run(name, *target, seed));
    let mut dice = Dice::new(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0;
    while Instant::now() < end {
        run(name, *target, &input(&mut dice, &seeds));
        runs += 1;
    }
    println!("{name}: {runs} runs");
}

/// What once failed: a target, and its input in hex.
const CASES: &[(&str, &str)] = &[
    // Two inodes with a low half of 0, or with the root's: a loop without end, and another root.
    (
        "tree",
        "8091a2b3c4d5e6f708f52a3b4c5d6e7f90a1b2c3d4e5f60718293a4b5c6d7e8fa0b1c2d3e4f5061728394a5b6c7d8e9fb0c1d2e3f405\
         162738495a6b7c8d9eafc0d1e2f30415263748596a7b8c9daebfd0e1f2031425364758697a8b9cadbecfe0f102132435465768798a9b\
         acbdcedff00112233445566778899aabbccddeef001122334455667788ff102132435465768798a9bacbdcedfe0f20ff425364758697\
         a8b9cadbecfd0e1ff60718293a4b5c6d7e8fa0b1c2d37788ffe4f5061728394a5b6c7d30415263748596a7b8c9daebfc0d1e2f405162\
         738495a6b7",
    ),
];

#[test]
fn former_failures_do_not_fail() {
    for (name, hex) in CASES {
        let (_, target) = targets::ALL.iter().find(|(n, _)| n == name).unwrap();
        let pair = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let data: Vec<u8> = (0..hex.len()).step_by(2).map(pair).collect();
        target(&[]);
        run(name, *target, &data);
    }
}

/// A target of the fuzzer is one of these, and the other way round.
#[test]
fn no_program_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let programs = std::fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        assert!(
            text.contains(&format!("hushfs_fuzz::{name}(data)")),
            "{name}"
        );
        name
    });
    let programs: std::collections::BTreeSet<String> = programs.collect();
    let all = targets::ALL.iter().map(|(name, _)| name.to_string());
    assert_eq!(programs, all.collect());
}

macro_rules! smoke_tests {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            smoke(stringify!($name));
        }
    )*
        #[test]
        fn no_target_is_forgotten() {
            let here = [$(stringify!($name)),*];
            let all: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
            assert_eq!(here[..], all[..]);
        }
    };
}

smoke_tests!(
    slot,
    pack,
    segment,
    records,
    tree,
    state,
    acl,
    padding,
    mms_index,
    mms_library,
    medusa_frames,
    medusa_manifest,
    images_file,
    foreign_settings
);
