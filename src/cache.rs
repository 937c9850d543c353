//! The segmented LRU of decrypted blocks, in memory only.

use std::sync::Arc;

/// Which block: the pack's number in this mount's index, and where in the pack the block starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The pack's number.
    pub pack: u32,
    /// Where its sealed bytes start.
    pub cipher_offset: u32,
}

/// How the cache does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Look-ups that found their block.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Bytes held, bookkeeping counted in.
    pub bytes: u64,
}

/// A bounded cache of decrypted blocks.
pub struct BlockCache {}

impl BlockCache {
    /// Holds at most `bytes_max` bytes, bookkeeping counted in; 0 caches nothing.
    pub fn new(_bytes_max: usize) -> Self {
        unimplemented!()
    }
    /// The block, if it is here.
    pub fn get(&self, _key: BlockKey) -> Option<Arc<[u8]>> {
        unimplemented!()
    }
    /// Adds a block.
    pub fn insert(&self, _key: BlockKey, _plain: Arc<[u8]>) {
        unimplemented!()
    }
    /// Hits, misses, size.
    pub fn stats(&self) -> CacheStats {
        unimplemented!()
    }
}
