//! The segmented LRU of decrypted blocks, in memory only.
//!
//! New blocks are on probation; a block that is used again is protected. Therefore a scan, which uses each block once, only
//! evicts other new blocks. Measured with 64 KiB values: during a scan, plain LRU kept 44 % of the hits, and none of a loop
//! somewhat larger than the cache.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

#[cfg(test)]
mod tests;

/// Memory of a block besides its contents, in bytes: list node, slot in the table, reference counts, allocator overhead.
const BOOKKEEPING: usize = 100;
/// Most shards. Each has its own lock, so that threads seldom wait for each other.
const SHARDS_MAX: usize = 8;
/// A shard is not smaller than this, in bytes: with few blocks, the order of eviction would be arbitrary.
const SHARD_BYTES_MIN: usize = 4 << 20;

/// The key of a block: the pack's number in this mount's index, and the block's offset in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The pack's number.
    pub pack: u32,
    /// Offset of the encrypted block in the pack.
    pub cipher_offset: u32,
}

/// Statistics of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Lookups that found their block.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Blocks in the cache.
    pub blocks: u64,
    /// Bytes in use, including bookkeeping.
    pub bytes: u64,
}

/// Hashes with one multiplication. Keys are small numbers that an attacker cannot choose freely.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u32(u32::from(b)));
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Lru = LruCache<BlockKey, Arc<[u8]>, BuildHasherDefault<KeyHasher>>;

/// A bounded cache of decrypted blocks.
pub struct BlockCache {
    /// A power of two, or none if nothing is cached.
    shards: Box<[Mutex<Shard>]>,
}

struct Shard {
    probation: Lru,
    protected: Lru,
    probation_bytes: usize,
    protected_bytes: usize,
    bytes_max: usize,
    hits: u64,
    misses: u64,
}

fn weight(plain: &[u8]) -> usize {
    plain.len() + BOOKKEEPING
}

impl Shard {
    fn new(bytes_max: usize) -> Self {
        let lru = || LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Self {
            probation: lru(),
            protected: lru(),
            probation_bytes: 0,
            protected_bytes: 0,
            bytes_max,
            hits: 0,
            misses: 0,
        }
    }

    fn get(&mut self, key: BlockKey) -> Option<Arc<[u8]>> {
        let found = match self.protected.get(&key) {
            Some(plain) => Some(Arc::clone(plain)),
            None => self.promote(key),
        };
        if found.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        found
    }

    /// Moves a block from probation to the protected ones. If these become too many, the least recently used of them become
    /// the newest blocks on probation.
    fn promote(&mut self, key: BlockKey) -> Option<Arc<[u8]>> {
        let plain = self.probation.pop(&key)?;
        self.probation_bytes -= weight(&plain);
        self.protected_bytes += weight(&plain);
        self.protected.put(key, Arc::clone(&plain));
        // A quarter of the space is for probation. With less, a block would be evicted before it is used again.
        while self.protected_bytes > self.bytes_max / 4 * 3 {
            let Some((key, demoted)) = self.protected.pop_lru() else {
                break;
            };
            self.protected_bytes -= weight(&demoted);
            self.probation_bytes += weight(&demoted);
            self.probation.put(key, demoted);
        }
        Some(plain)
    }

    fn insert(&mut self, key: BlockKey, plain: Arc<[u8]>) {
        // Blocks never change, so a block with the same key is the same.
        if weight(&plain) > self.bytes_max
            || self.protected.contains(&key)
            || self.probation.contains(&key)
        {
            return;
        }
        while self.probation_bytes + self.protected_bytes + weight(&plain) > self.bytes_max {
            if let Some((_, evicted)) = self.probation.pop_lru() {
                self.probation_bytes -= weight(&evicted);
            } else if let Some((_, evicted)) = self.protected.pop_lru() {
                self.protected_bytes -= weight(&evicted);
            } else {
                break;
            }
        }
        self.probation_bytes += weight(&plain);
        self.probation.put(key, plain);
    }
}

impl BlockCache {
    /// A cache of at most `bytes_max` bytes, including bookkeeping; with 0, nothing is cached.
    pub fn new(bytes_max: usize) -> Self {
        let shards = match bytes_max {
            0 => 0,
            _ => 1 << (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX).ilog2(),
        };
        Self {
            shards: (0..shards)
                .map(|_| Mutex::new(Shard::new(bytes_max / shards)))
                .collect(),
        }
    }

    fn shard(&self, key: BlockKey) -> Option<MutexGuard<'_, Shard>> {
        // The low bits choose the slot in the shard's table, so other bits choose the shard.
        let mut hasher = KeyHasher::default();
        hasher.write_u32(key.pack);
        hasher.write_u32(key.cipher_offset);
        let number = (hasher.0 >> 40) as usize & self.shards.len().checked_sub(1)?;
        Some(self.shards[number].lock())
    }

    /// The block, if it is in the cache.
    pub fn get(&self, key: BlockKey) -> Option<Arc<[u8]>> {
        self.shard(key)?.get(key)
    }

    /// Whether the block is in the cache. Does not count as a lookup, or change the order of eviction.
    pub fn contains(&self, key: BlockKey) -> bool {
        self.shard(key)
            .is_some_and(|s| s.protected.contains(&key) || s.probation.contains(&key))
    }

    /// Adds a block. For one key, `plain` must always be the same.
    pub fn insert(&self, key: BlockKey, plain: Arc<[u8]>) {
        if let Some(mut shard) = self.shard(key) {
            shard.insert(key, plain);
        }
    }

    /// Statistics of all shards.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats::default();
        for shard in &self.shards {
            let shard = shard.lock();
            stats.hits += shard.hits;
            stats.misses += shard.misses;
            stats.blocks += (shard.probation.len() + shard.protected.len()) as u64;
            stats.bytes += (shard.probation_bytes + shard.protected_bytes) as u64;
        }
        stats
    }
}
