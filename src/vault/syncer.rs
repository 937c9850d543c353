//! The syncer: the thread that makes changes durable.
//!
//! All pending fsyncs share one sync. Without an fsync, everything is made durable when the oldest change is 5 s old,
//! and data in packs as soon as it exceeds 64 MiB: a steady load causes one sync every 5 s. Owns no data; does not
//! publish, which upkeep does on its own thread.

use std::sync::Arc;

use super::files::Files;
use super::log::{Log, PanicGuard};
use super::salvage::Salvage;
use super::upkeep::Backoff;
use crate::error::Result;

/// Maximum length of unsynced data in packs, in bytes. Beyond it, everything in the log is synced regardless of age.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// Syncs the log, and flushes files whose changes are old.
pub(super) struct Syncer {
    log: Arc<Log>,
    files: Arc<Files>,
    salvage: Arc<Salvage>,
}

impl Syncer {
    /// Creates a syncer of a log and the files that write to it.
    pub fn new(log: Arc<Log>, files: Arc<Files>, salvage: Arc<Salvage>) -> Self {
        Self {
            log,
            files,
            salvage,
        }
    }

    /// Runs until the thread is told to end.
    pub fn run(&self) {
        let requests = self.log.requests();
        let _guard = PanicGuard::new(requests, self.log.gate());
        let mut backoff = Backoff::default();
        let mut is_idle = false;
        while requests.wait_for_syncs(is_idle) {
            self.answer_syncs();
            is_idle = self.sync_if_due(&mut backoff);
        }
        self.answer_syncs();
    }

    /// Answers the fsyncs that wait. A failed pack would fail every sync, so its data is copied before.
    fn answer_syncs(&self) {
        if !self.log.new_packs().failed().is_empty() {
            // Upkeep tries again, and logs why it fails.
            let _ = self.salvage.run();
        }
        self.log.answer_syncs();
    }

    /// Syncs if changes are old enough or large enough. A failure is logged and retried. Returns true if nothing will
    /// be due until something changes.
    pub fn sync_if_due(&self, backoff: &mut Backoff) -> bool {
        self.files.drop_unused();
        self.files.close_unneeded();
        let requests = self.log.requests();
        let is_old = requests.take_if_due();
        if is_old || self.log.new_packs().unsynced_bytes() > UNSYNCED_BYTES_MAX {
            let flushed = if is_old { self.flush_dirty() } else { Ok(()) };
            let synced = self.log.sync();
            if synced.is_ok() {
                requests.request_pack_publication();
            }
            backoff.record(self.log.env().now(), synced.and(flushed));
        }
        let is_durable = self.log.journal().is_durable();
        if !is_durable || self.files.budget().dirty_cost() > 0 {
            // After a failure the age is counted again, and the next deadline retries.
            requests.changed();
            return false;
        }
        true
    }

    /// Flushes every file with dirty data, and waits for running flushes.
    fn flush_dirty(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.files.dirty() {
            // Flushing many files takes long, and fsyncs need not wait for all of them.
            self.log.answer_syncs();
            result = result.and(self.files.flush_and_close(file));
        }
        result
    }
}
