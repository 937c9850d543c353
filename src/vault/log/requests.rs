//! What requests ask of the two threads that work in the background: the syncer and upkeep.
//!
//! Owns what waits and since when something is not durable; does not own the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::gate::{Reason, WriteGate};
use crate::volume::Done;

/// The maximum age of data that is not durable: when the oldest reaches it, everything is synced.
const DURABLE_AFTER: Duration = Duration::from_secs(5);
/// How often a thread that has something to do later looks whether it is due.
pub(in crate::vault) const TICK: Duration = Duration::from_millis(500);

/// What waits to be done.
pub struct Requests {
    env: Arc<Env>,
    state: Mutex<State>,
    wake_syncer: Condvar,
    wake_upkeep: Condvar,
    /// `State::undurable_since` is set, or about to be: most changes look at no more than this.
    has_changes: AtomicBool,
    /// Something could not be written for want of free space, so dead packs have to go.
    is_space_wanted: AtomicBool,
    /// The packs that are finished were synced, and are to be published.
    are_packs_due: AtomicBool,
    /// Contents were lost that nobody may have been told of.
    has_lost: AtomicBool,
}

#[derive(Default)]
struct State {
    syncs: Vec<Done>,
    /// They wait until dead packs are removed.
    collections: Vec<Done>,
    /// Since when something may be dirty, or in the journal and not durable.
    undurable_since: Option<Instant>,
    stop: bool,
    /// The threads have ended: nothing that is asked for is done.
    has_ended: bool,
}

impl Requests {
    /// Nothing waits.
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

    /// Something was written, or is dirty.
    pub fn changed(&self) {
        if !self.has_changes.swap(true, Ordering::AcqRel) {
            // The first change after a while: both threads may sleep without a limit.
            let mut state = self.state.lock();
            state.undurable_since.get_or_insert_with(|| self.env.now());
            self.wake_syncer.notify_one();
            self.wake_upkeep.notify_one();
        }
    }

    /// Whether all that was changed up to now has to be made durable. True at most once per deadline: the caller must
    /// then sync. What changes from now on has its own age.
    pub fn take_if_due(&self) -> bool {
        let is_due = |since: &mut Instant| self.env.since(*since) >= DURABLE_AFTER;
        let mut state = self.state.lock();
        let due = state.undurable_since.take_if(is_due).is_some();
        if due {
            self.has_changes.store(false, Ordering::Release);
        }
        due
    }

    /// Has `done` called when everything that is in the journal now is durable.
    pub fn sync(&self, done: Done) {
        let mut state = self.state.lock();
        if state.has_ended {
            drop(state);
            return done(Err(ended()));
        }
        state.syncs.push(done);
        self.wake_syncer.notify_one();
    }

    /// Has `done` called when dead packs were removed, as far as that could be done.
    pub fn collection(&self, done: Done) {
        let mut state = self.state.lock();
        if state.has_ended || state.stop {
            drop(state);
            return done(Ok(()));
        }
        state.collections.push(done);
        self.wake_upkeep.notify_one();
    }

    /// There was no free space to write something. Unlike [`Requests::collection`] for who cannot wait.
    pub fn want_space(&self) {
        if !self.is_space_wanted.swap(true, Ordering::AcqRel) {
            self.changed();
        }
    }

    /// Whether [`Requests::want_space`] was called and no collection has begun since.
    pub fn is_space_wanted(&self) -> bool {
        self.is_space_wanted.load(Ordering::Acquire)
    }

    /// The finished packs are synced.
    pub fn packs_are_due(&self) {
        self.are_packs_due.store(true, Ordering::Release);
        let _state = self.state.lock();
        self.wake_upkeep.notify_one();
    }

    /// Whether finished packs are to be published.
    pub fn are_packs_due(&self) -> bool {
        self.are_packs_due.load(Ordering::Acquire)
    }

    /// A publication, or collection, begins: what was asked for up to now is part of it.
    pub fn begin_publication(&self) {
        self.are_packs_due.store(false, Ordering::Release);
        self.is_space_wanted.store(false, Ordering::Release);
    }

    /// Contents were lost: whoever unmounts is told.
    pub fn note_loss(&self) {
        self.has_lost.store(true, Ordering::Release);
    }

    /// Whether contents were lost since this was asked.
    pub fn take_loss(&self) -> bool {
        self.has_lost.swap(false, Ordering::AcqRel)
    }

    /// Waits for something to sync; for a tick at most, unless `is_idle` and nothing has changed. False at the end.
    pub fn wait_for_syncs(&self, is_idle: bool) -> bool {
        let mut state = self.state.lock();
        if state.syncs.is_empty() && !state.stop {
            self.wait(&self.wake_syncer, &mut state, is_idle);
        }
        !state.stop
    }

    /// The same for upkeep.
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

    /// The syncs that wait.
    pub fn take_syncs(&self) -> Vec<Done> {
        std::mem::take(&mut self.state.lock().syncs)
    }

    /// The collections that wait.
    pub fn take_collections(&self) -> Vec<Done> {
        std::mem::take(&mut self.state.lock().collections)
    }

    /// Tells both threads to end.
    pub fn stop(&self) {
        self.state.lock().stop = true;
        self.wake_syncer.notify_one();
        self.wake_upkeep.notify_one();
    }

    /// Whether the threads were told to end: work that takes long is left to the next mount.
    pub fn is_stopping(&self) -> bool {
        self.state.lock().stop
    }

    /// Nothing is done any more of what was asked for, or is from now on.
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

/// Answers those who wait for a sync.
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

/// Where a background thread ends by a panic, nobody must wait for it for ever, nor write what it would not sync.
pub struct PanicGuard<'a> {
    requests: &'a Requests,
    gate: &'a WriteGate,
}

impl<'a> PanicGuard<'a> {
    /// Guards the calling thread until it is dropped.
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
