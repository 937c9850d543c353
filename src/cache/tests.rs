use proptest::prelude::*;

use super::*;
use crate::dice::Dice;

fn key(n: u32) -> BlockKey {
    BlockKey {
        pack: n / 4000,
        cipher_offset: 48 + n % 4000 * 16412,
    }
}

fn block(len: usize) -> Arc<[u8]> {
    vec![0; len].into()
}

/// Looks a block up and adds it where it is not, as a reader does. True for a hit.
fn read(cache: &BlockCache, n: u32, plain: &Arc<[u8]>) -> bool {
    let hit = cache.get(key(n)).is_some();
    if !hit {
        cache.insert(key(n), Arc::clone(plain));
    }
    hit
}

#[test]
fn inserted_blocks_are_found_and_counted() {
    let cache = BlockCache::new(1 << 20);
    assert!(cache.get(key(1)).is_none());
    cache.insert(key(1), Arc::from(&b"one"[..]));
    assert_eq!(cache.get(key(1)).as_deref(), Some(&b"one"[..]));
    assert_eq!(
        cache.stats(),
        CacheStats {
            hits: 1,
            misses: 1,
            blocks: 1,
            bytes: 103
        }
    );
}

#[test]
fn a_cache_of_nothing_holds_nothing() {
    let cache = BlockCache::new(0);
    cache.insert(key(1), block(1));
    assert!(cache.get(key(1)).is_none());
    let small = BlockCache::new(1000);
    small.insert(key(1), block(16384));
    assert_eq!(small.stats().blocks, 0);
}

/// A working set of zipf(0.9) over four times the capacity, alone and with a scan beside it, 1:1.
#[test]
fn a_scan_leaves_the_working_set_alone() {
    const CAPACITY: usize = 2000;
    let plain = block(1024);
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for n in 1..=4 * CAPACITY {
        sum += (n as f64).powf(-0.9);
        sums.push(sum);
    }
    let ratio = |scan: bool| {
        let cache = BlockCache::new(CAPACITY * weight(&plain));
        let mut dice = Dice::new(42);
        let (mut hits, mut reads) = (0, 0);
        for n in 0..200_000_u32 {
            let at = (dice.next() >> 11) as f64 / (1u64 << 53) as f64 * sum;
            let hit = read(&cache, sums.partition_point(|&s| s < at) as u32, &plain);
            if n >= 50_000 {
                hits += u32::from(hit);
                reads += 1;
            }
            if scan {
                read(&cache, 1_000_000 + n, &plain);
            }
        }
        f64::from(hits) / f64::from(reads)
    };
    let (alone, scanned) = (ratio(false), ratio(true));
    println!("zipf 0.9: {alone:.2} alone, {scanned:.2} beside a scan");
    assert!(scanned > 0.9 * alone, "{scanned} of {alone}");
}

#[test]
fn a_loop_longer_than_the_cache_still_hits() {
    const CAPACITY: usize = 2000;
    let plain = block(1024);
    let cache = BlockCache::new(CAPACITY * weight(&plain));
    // Something must have been asked for twice before the loop, or nothing is ever protected.
    for n in 0..CAPACITY as u32 {
        read(&cache, n, &plain);
        read(&cache, n, &plain);
    }
    let mut hits = 0;
    for n in 0..10 * CAPACITY as u32 * 5 / 4 {
        hits += u32::from(read(&cache, n % (CAPACITY as u32 * 5 / 4), &plain));
    }
    let ratio = f64::from(hits) / (10.0 * CAPACITY as f64 * 1.25);
    println!("loop over 1.25 times the capacity: {ratio:.2}");
    assert!(ratio > 0.5, "{ratio}");
}

#[test]
fn new_blocks_get_in_when_all_others_are_protected() {
    const CAPACITY: u32 = 1000;
    let plain = block(1024);
    let cache = BlockCache::new(CAPACITY as usize * weight(&plain));
    for n in (0..CAPACITY).chain(0..CAPACITY).chain(0..CAPACITY) {
        read(&cache, n, &plain);
    }
    let mut hits = 0;
    for n in (0..CAPACITY / 5).chain(0..CAPACITY / 5) {
        hits += u32::from(read(&cache, 10 * CAPACITY + n, &plain));
    }
    assert_eq!(hits, CAPACITY / 5, "the second time, all");
}

proptest! {
    #[test]
    fn the_bound_holds_after_every_step(
        bytes_max in 0usize..20_000_000,
        steps in prop::collection::vec((0u32..300, 0usize..200_000, any::<bool>()), 0..600),
    ) {
        let cache = BlockCache::new(bytes_max);
        for (n, len, insert) in steps {
            if insert {
                cache.insert(key(n), block(len));
            } else {
                cache.get(key(n));
            }
            let held: usize = cache.shards.iter().map(|shard| {
                let shard = shard.lock();
                shard.probation.iter().chain(shard.protected.iter()).map(|(_, plain)| weight(plain)).sum::<usize>()
            }).sum();
            prop_assert!(held <= bytes_max);
            prop_assert_eq!(held as u64, cache.stats().bytes);
        }
    }
}
