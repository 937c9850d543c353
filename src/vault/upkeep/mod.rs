//! Upkeep: background work that no request waits for. Each task says when it is due; one thread runs them, in this
//! order: salvage, publication with collection, snapshots, defragmentation. A task that fails is retried later, and
//! does not delay the others.
//!
//! Owns the tasks and their state. Does not own the order of publication (`outbox`), what is live (the tree), or
//! fsyncs, which the syncer answers on a thread of its own.

use std::sync::Arc;

use super::files::Files;
use super::log::{Log, PanicGuard};
use super::outbox::Outbox;
use crate::error::Result;
use crate::index::SegmentInfo;

mod backoff;
mod collect;
mod defragment;
mod snapshot;

pub(super) use backoff::Backoff;
pub(super) use collect::Collector;
pub(super) use defragment::Defragmenter;
pub(super) use snapshot::Snapshots;

/// Work that is done in the background.
pub(super) trait Task {
    /// Whether there is work to do now.
    fn is_due(&self) -> Result<bool>;

    /// Whether there will be work to do later, even if nothing changes.
    fn is_waiting(&self) -> bool;

    /// Does the work. Calls `go_on` between the steps of long work, holding no lock, and ends early if it returns
    /// false.
    fn run(&self, go_on: &mut dyn FnMut() -> bool) -> Result<()>;
}

/// The background tasks of a library.
pub(super) struct Upkeep {
    log: Arc<Log>,
    outbox: Arc<Outbox>,
    pub collector: Collector,
    pub snapshots: Snapshots,
    pub defragmenter: Defragmenter,
}

/// The backoffs of the tasks, in their order.
pub(super) type Backoffs = [Backoff; 4];

impl Upkeep {
    /// The tasks of a library in which a snapshot supersedes the segments `covered`.
    pub fn new(
        log: &Arc<Log>,
        outbox: &Arc<Outbox>,
        files: &Arc<Files>,
        covered: Vec<SegmentInfo>,
    ) -> Self {
        Self {
            collector: Collector::new(log.clone(), outbox.clone()),
            snapshots: Snapshots::new(log.clone(), outbox.clone(), covered),
            defragmenter: Defragmenter::new(log.clone(), files.clone()),
            log: log.clone(),
            outbox: outbox.clone(),
        }
    }

    /// The main function of the thread. Returns once the thread is asked to stop.
    pub fn run(&self) {
        let requests = self.log.requests();
        let _guard = PanicGuard::new(requests, self.log.gate());
        let mut backoffs = Backoffs::default();
        let mut is_idle = false;
        while requests.wait_for_upkeep(is_idle) {
            self.answer_collections();
            is_idle = self.run_due_tasks(&mut backoffs);
        }
        self.answer_collections();
    }

    /// Removes dead packs if requests wait for free space, and wakes them.
    pub fn answer_collections(&self) {
        let waiting = self.log.requests().take_collections();
        if waiting.is_empty() {
            return;
        }
        if let Err(e) = self.collector.collect() {
            log::warn!("{e}");
        }
        // The requests check themselves whether there is enough space now.
        waiting.into_iter().for_each(|done| done(Ok(())));
    }

    /// Writes a snapshot if one is due, at the end of a mount.
    pub fn write_snapshot_if_due(&self) -> Result<()> {
        self.snapshots.run(&mut || true)
    }

    /// Runs each task that is due. Returns true if no task will be due until something changes.
    pub fn run_due_tasks(&self, backoffs: &mut Backoffs) -> bool {
        let salvage = Salvaging(&self.log, &self.outbox);
        let tasks: [&dyn Task; 4] = [
            &salvage,
            &self.collector,
            &self.snapshots,
            &self.defragmenter,
        ];
        let env = self.log.env();
        let mut go_on = || !self.log.requests().is_stopping();
        for (task, backoff) in tasks.iter().zip(backoffs) {
            if !backoff.is_ready(env.now()) {
                continue;
            }
            match task.is_due() {
                Ok(true) => backoff.record(env.now(), task.run(&mut go_on)),
                Ok(false) => {}
                Err(e) => backoff.record(env.now(), Err(e)),
            }
        }
        !tasks.iter().any(|task| task.is_waiting())
    }
}

/// Salvage as a task. It belongs to the outbox, because nothing is published before it.
struct Salvaging<'a>(&'a Log, &'a Outbox);

impl Task for Salvaging<'_> {
    fn is_due(&self) -> Result<bool> {
        Ok(self.is_waiting())
    }

    fn is_waiting(&self) -> bool {
        !self.0.new_packs().failed().is_empty()
    }

    fn run(&self, _go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        self.1.salvage()
    }
}
