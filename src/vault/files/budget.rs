//! How much may still be written: the memory of dirty buffers, and the free space of the store. Owns the three counts;
//! does not own the buffers or the promises that they count, and does not ask the store.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use crate::store::Space;
use crate::vault::log::RESERVE_BYTES;

/// Dirty memory of all files together, in bytes; a writer that would exceed it writes some out first.
const DIRTY_COST_MAX: usize = 32 << 20;

/// What is used, and what is left.
#[derive(Default)]
pub struct Budget {
    /// Bytes in dirty buffers, with their overhead.
    dirty_cost: AtomicUsize,
    /// Bytes that fallocate(2) promised, and that are not written yet.
    promised_bytes: AtomicU64,
    /// Bytes that may be written before the store has to be asked again how much space it has.
    free_bytes: AtomicI64,
}

impl Budget {
    /// What cost `before` in dirty buffers, costs `after` now.
    pub fn recount_dirty(&self, before: usize, after: usize) {
        // In this order: the sum is never below what there is.
        self.dirty_cost.fetch_add(after, Ordering::Relaxed);
        self.dirty_cost.fetch_sub(before, Ordering::Relaxed);
    }

    /// What dirty buffers cost, in bytes.
    pub fn dirty_cost(&self) -> usize {
        self.dirty_cost.load(Ordering::Relaxed)
    }

    /// Whether dirty buffers cost as much as they may.
    pub fn is_dirty_full(&self) -> bool {
        self.dirty_cost() >= DIRTY_COST_MAX
    }

    /// Where `before` bytes were promised, `after` are now.
    pub fn recount_promised(&self, before: u64, after: u64) {
        self.promised_bytes.fetch_add(after, Ordering::Relaxed);
        self.promised_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Bytes that fallocate(2) promised, and that are not written yet.
    pub fn promised_bytes(&self) -> u64 {
        self.promised_bytes.load(Ordering::Relaxed)
    }

    /// Takes `len` bytes of the free space; whether that was known to be there.
    pub fn take(&self, len: i64) -> bool {
        self.free_bytes.fetch_sub(len, Ordering::Relaxed) >= len
    }

    /// Bytes of contents for which the store has space when all that is dirty is written, and all that was promised.
    /// Less than 0 if more was promised than there is by now. What is left is taken from until the next look.
    pub fn look(&self, space: &Space) -> i64 {
        /// After so much, ask again: others write to the disk, too.
        const ASK_AGAIN_BYTES: i64 = 64 << 20;
        let left = self.left(space);
        self.free_bytes
            .store(left.clamp(0, ASK_AGAIN_BYTES), Ordering::Relaxed);
        left
    }

    /// The same, and nothing is taken from it.
    pub fn left(&self, space: &Space) -> i64 {
        /// What encryption adds to contents, and a pack to that, is less than one part in so many.
        const OVERHEAD: i64 = 512;
        let free = i64::try_from(space.available_bytes).unwrap_or(i64::MAX);
        // The reserve is a file already. What ends a pack, and frames, come on top.
        let free = free - self.dirty_cost() as i64 - (RESERVE_BYTES / 4) as i64;
        free - free / OVERHEAD - self.promised_bytes() as i64
    }
}
