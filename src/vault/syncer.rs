//! The syncer: makes things durable.
//!
//! All fsyncs that wait share one sync. Unasked, everything is made durable when the oldest of it is 5 s old, and what is
//! written out also when it exceeds 64 MiB: so steady work has one sync in 5 s. Owns no data; does not publish anything,
//! which upkeep does on a thread of its own.

use std::sync::Arc;

use super::files::Files;
use super::log::{Log, PanicGuard};
use super::upkeep::Backoff;
use crate::error::Result;

/// More than this is made durable without waiting for its age, in bytes.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// Syncs what files have written to the log.
pub(super) struct Syncer {
    log: Arc<Log>,
    files: Arc<Files>,
}

impl Syncer {
    /// Of these files.
    pub fn new(log: Arc<Log>, files: Arc<Files>) -> Self {
        Self { log, files }
    }

    /// The thread's work, until it is told to end.
    pub fn run(&self) {
        let requests = self.log.requests();
        let _guard = PanicGuard::new(requests, self.log.gate());
        let mut backoff = Backoff::default();
        let mut is_idle = false;
        while requests.wait_for_syncs(is_idle) {
            self.log.answer_syncs();
            is_idle = self.sync_if_due(&mut backoff);
        }
        self.log.answer_syncs();
    }

    /// Makes durable what is due without anybody asking. A failure is logged, and tried again. True where nothing will be
    /// due until something changes.
    pub fn sync_if_due(&self, backoff: &mut Backoff) -> bool {
        self.files.drop_unused();
        self.files.close_unneeded();
        let requests = self.log.requests();
        let is_old = requests.take_if_due();
        if is_old || self.log.new_packs().unsynced_bytes() > UNSYNCED_BYTES_MAX {
            let flushed = if is_old { self.flush_dirty() } else { Ok(()) };
            let synced = self.log.sync();
            if synced.is_ok() {
                requests.packs_are_due();
            }
            backoff.record(self.log.env().now(), synced.and(flushed));
        }
        let is_durable = self.log.journal().is_durable();
        if !is_durable || self.files.budget().dirty_cost() > 0 {
            // What failed has an age again, and is tried again when it is due.
            requests.changed();
            return false;
        }
        true
    }

    /// Writes out every file in which something is dirty, and waits for what is being written out.
    fn flush_dirty(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.files.dirty() {
            // Many files take their time, and none of the fsyncs needs to wait for all of them.
            self.log.answer_syncs();
            result = result.and(self.files.flush_and_close(file));
        }
        result
    }
}
