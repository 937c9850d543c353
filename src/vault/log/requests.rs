//! Work that requests queue for the two background threads: the syncer and upkeep.
//!
//! Owns the queues and the age of the oldest undurable change; does not own the work itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::gate::{Reason, WriteGate};
use crate::volume::Done;

/// Maximum age of undurable changes. When the oldest reaches it, everything is synced.
const DURABLE_AFTER: Duration = Duration::from_secs(5);
/// How often a background thread checks for work that has become due.
pub(in crate::vault) const TICK: Duration = Duration::from_millis(500);

/// The queues of both threads.
pub struct Requests {
    env: Arc<Env>,
    state: Mutex<State>,
    wake_syncer: Condvar,
    wake_upkeep: Condvar,
    /// `State::undurable_since` is set, or about to be. Most changes check only this flag, without locking.
    has_changes: AtomicBool,
    /// A write failed for lack of free space, so dead packs have to be removed.
    is_space_wanted: AtomicBool,
    /// The finished packs are synced and should be published.
    are_packs_due: AtomicBool,
    /// Contents were lost, possibly without any program having seen an error.
    has_lost: AtomicBool,
}

#[derive(Default)]
struct State {
    syncs: Vec<Done>,
    /// Called after dead packs were removed.
    collections: Vec<Done>,
    /// When the oldest change was made that may be dirty, or in the journal and not durable.
    undurable_since: Option<Instant>,
    stop: bool,
    /// The threads have ended: nothing that is queued is done.
    has_ended: bool,
}

impl Requests {
    /// Creates empty queues.
    pub fn new(env: Arc<Env>) -> Self {
        Self {
            env,
            state: Mutex::default(),
            wake_syncer: Condvar::new(),
            wake_upkeep: Condvar::new(),
            has_changes: AtomicBool::new(false),
            is_space_wanted: AtomicBool::new(false),
            are_packs_due: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
        }
    }

    /// Records that something was written, or is dirty.
    pub fn changed(&self) {
        if !self.has_changes.swap(true, Ordering::AcqRel) {
            // The first change after an idle period: both threads may be sleeping without a timeout.
            let mut state = self.state.lock();
            state.undurable_since.get_or_insert_with(|| self.env.now());
            self.wake_syncer.notify_one();
            self.wake_upkeep.notify_one();
        }
    }

    /// Whether all changes so far have to be made durable. Returns true at most once per deadline: the caller must then
    /// sync. The age of later changes is counted from the first of them.
    pub fn take_if_due(&self) -> bool {
        let is_due = |since: &mut Instant| self.env.since(*since) >= DURABLE_AFTER;
        let mut state = self.state.lock();
        let due = state.undurable_since.take_if(is_due).is_some();
        if due {
            self.has_changes.store(false, Ordering::Release);
        }
        due
    }

    /// Calls `done` when everything that is in the journal now is durable.
    pub fn request_sync(&self, done: Done) {
        let mut state = self.state.lock();
        if state.has_ended {
            drop(state);
            return done(Err(ended()));
        }
        state.syncs.push(done);
        self.wake_syncer.notify_one();
    }

    /// Calls `done` when dead packs were removed, as far as possible.
    pub fn request_collection(&self, done: Done) {
        let mut state = self.state.lock();
        if state.has_ended || state.stop {
            drop(state);
            return done(Ok(()));
        }
        state.collections.push(done);
        self.wake_upkeep.notify_one();
    }

    /// Records that a write failed for lack of free space. Unlike [`Requests::request_collection`], does not wait.
    pub fn want_space(&self) {
        if !self.is_space_wanted.swap(true, Ordering::AcqRel) {
            self.changed();
        }
    }

    /// Whether [`Requests::want_space`] was called, and no collection has begun since.
    pub fn is_space_wanted(&self) -> bool {
        self.is_space_wanted.load(Ordering::Acquire)
    }

    /// Asks upkeep to publish the finished packs, which are synced.
    pub fn request_pack_publication(&self) {
        self.are_packs_due.store(true, Ordering::Release);
        let _state = self.state.lock();
        self.wake_upkeep.notify_one();
    }

    /// Whether the finished packs should be published.
    pub fn are_packs_due(&self) -> bool {
        self.are_packs_due.load(Ordering::Acquire)
    }

    /// Records that a publication or collection begins, which covers all requests so far.
    pub fn begin_publication(&self) {
        self.are_packs_due.store(false, Ordering::Release);
        self.is_space_wanted.store(false, Ordering::Release);
    }

    /// Records that contents were lost, so that unmounting reports it.
    pub fn record_loss(&self) {
        self.has_lost.store(true, Ordering::Release);
    }

    /// Whether contents were lost since the last call.
    pub fn take_loss(&self) -> bool {
        self.has_lost.swap(false, Ordering::AcqRel)
    }

    /// Waits for a sync request, for at most one tick unless `is_idle` and nothing has changed. Returns false when the
    /// thread must end.
    pub fn wait_for_syncs(&self, is_idle: bool) -> bool {
        let mut state = self.state.lock();
        if state.syncs.is_empty() && !state.stop {
            self.wait(&self.wake_syncer, &mut state, is_idle);
        }
        !state.stop
    }

    /// Like [`Requests::wait_for_syncs`], for collection requests.
    pub fn wait_for_upkeep(&self, is_idle: bool) -> bool {
        let mut state = self.state.lock();
        if state.collections.is_empty() && !state.stop {
            self.wait(&self.wake_upkeep, &mut state, is_idle);
        }
        !state.stop
    }

    fn wait(&self, wake: &Condvar, state: &mut parking_lot::MutexGuard<'_, State>, is_idle: bool) {
        if is_idle && state.undurable_since.is_none() {
            wake.wait(state);
        } else {
            wake.wait_for(state, TICK);
        }
    }

    /// Takes the pending sync requests.
    pub fn take_syncs(&self) -> Vec<Done> {
        std::mem::take(&mut self.state.lock().syncs)
    }

    /// Takes the pending collection requests.
    pub fn take_collections(&self) -> Vec<Done> {
        std::mem::take(&mut self.state.lock().collections)
    }

    /// Tells both threads to end.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake_syncer.notify_one();
        self.wake_upkeep.notify_one();
    }

    /// Whether the threads were told to end. Long-running work is then left to the next mount.
    pub fn is_stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Fails all pending and future requests.
    pub fn end(&self) {
        let (syncs, collections) = {
            let mut state = self.state.lock();
            state.has_ended = true;
            let syncs = std::mem::take(&mut state.syncs);
            (syncs, std::mem::take(&mut state.collections))
        };
        for done in syncs.into_iter().chain(collections) {
            done(Err(ended()));
        }
    }
}

fn ended() -> Error {
    Error::new(Kind::Poisoned, "the syncer")
}

/// Completes pending sync requests with the result of the sync.
pub(super) fn answer(waiting: Vec<Done>, synced: Result<()>) {
    let failed = synced
        .as_ref()
        .err()
        .map(|e| (e.is_no_space(), e.to_string()));
    if let Some((_, text)) = &failed {
        log::error!("fsync: {text}");
    }
    for done in waiting {
        done(match &failed {
            None => Ok(()),
            Some((true, _)) => Err(Kind::NoSpace.into()),
            Some((false, text)) => Err(Error::damaged("fsync", text)),
        });
    }
}

/// If a background thread panics, closes the write gate, because nothing would be synced any more, and fails all
/// requests that wait for the thread.
pub struct PanicGuard<'a> {
    requests: &'a Requests,
    gate: &'a WriteGate,
}

impl<'a> PanicGuard<'a> {
    /// Guards the calling thread until the guard is dropped.
    pub fn new(requests: &'a Requests, gate: &'a WriteGate) -> Self {
        Self { requests, gate }
    }
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.gate.close(Reason::Panicked);
            self.requests.end();
        }
    }
}
