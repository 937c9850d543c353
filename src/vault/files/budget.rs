//! Limits on writing: the memory of dirty buffers, and the free space of the store. Owns the three counters; does not
//! own the buffers or promises that they count, and does not query the store.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use crate::store::Space;
use crate::vault::log::RESERVE_BYTES;

/// Maximum memory of the dirty buffers of all files, in bytes. A writer that finds it exceeded first writes buffers
/// out.
const DIRTY_COST_MAX: usize = 32 << 20;

/// The counters.
#[derive(Default)]
pub struct Budget {
    /// Bytes in dirty buffers, with their overhead.
    dirty_cost: AtomicUsize,
    /// Bytes that fallocate(2) promised and that are not written yet.
    promised_bytes: AtomicU64,
    /// Bytes that may be written before the store has to be queried again for its free space.
    free_bytes: AtomicI64,
}

impl Budget {
    /// Replaces the cost `before` of some dirty buffers by `after`.
    pub fn recount_dirty(&self, before: usize, after: usize) {
        // Add first, so that the sum is never below the actual cost.
        self.dirty_cost.fetch_add(after, Ordering::Relaxed);
        self.dirty_cost.fetch_sub(before, Ordering::Relaxed);
    }

    /// Memory of all dirty buffers, in bytes.
    pub fn dirty_cost(&self) -> usize {
        self.dirty_cost.load(Ordering::Relaxed)
    }

    /// Whether dirty buffers have reached their limit.
    pub fn is_dirty_full(&self) -> bool {
        self.dirty_cost() >= DIRTY_COST_MAX
    }

    /// Replaces `before` promised bytes by `after`.
    pub fn recount_promised(&self, before: u64, after: u64) {
        self.promised_bytes.fetch_add(after, Ordering::Relaxed);
        self.promised_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Bytes that fallocate(2) promised and that are not written yet.
    pub fn promised_bytes(&self) -> u64 {
        self.promised_bytes.load(Ordering::Relaxed)
    }

    /// Reserves `len` bytes of the free space. Returns whether that much was known to be free.
    pub fn reserve(&self, len: i64) -> bool {
        self.free_bytes.fetch_sub(len, Ordering::Relaxed) >= len
    }

    /// Returns [`Budget::available`], and allows that many bytes to be reserved before the next refresh.
    pub fn refresh(&self, space: &Space) -> i64 {
        /// Bytes after which the store is queried again, because other programs write to the disk, too.
        const ASK_AGAIN_BYTES: i64 = 64 << 20;
        let available = self.available(space);
        self.free_bytes
            .store(available.clamp(0, ASK_AGAIN_BYTES), Ordering::Relaxed);
        available
    }

    /// Bytes of contents that fit in the store once everything dirty and everything promised is written. Negative if
    /// more was promised than is free by now.
    pub fn available(&self, space: &Space) -> i64 {
        /// The overhead of encryption and of packs is less than one part in this many.
        const OVERHEAD: i64 = 512;
        let free = i64::try_from(space.available_bytes).unwrap_or(i64::MAX);
        // The reserve is already allocated. The subtracted part of it is for frames and the ends of packs.
        let free = free - self.dirty_cost() as i64 - (RESERVE_BYTES / 4) as i64;
        free - free / OVERHEAD - self.promised_bytes() as i64
    }
}
