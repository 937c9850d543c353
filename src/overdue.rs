//! Requests that are answered before their work is done, because the store does not answer.
//!
//! A store may hang: if the server of a network filesystem is gone, a system call can wait in the kernel for hours, and
//! cannot be interrupted. Therefore another thread answers the request with EIO. This module ensures that answers and
//! effects agree:
//!
//! - An operation that was answered with EIO is not done. Operations take effect, in memory, under the same lock under which
//!   the answer is sent ([`unless_answered`]). If the answer came first, the operation fails. A frame that it had already
//!   written is undone in the same way as one whose write failed.
//! - A lock that may be held by a thread that waits for the store is taken with [`lock`], which gives up when the request
//!   was answered. Otherwise operations would queue up after one that hangs, and take effect hours later.
//! - At most [`WAITING_MAX`] threads wait at a time; one more fails. This leaves threads for requests that do not need the
//!   store.
//!
//! A thread without a request (the committer's, or that of a test) waits without a limit.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::error::{Kind, Result};

/// How many threads with requests may wait at a time for the store, or for a thread that waits for it.
pub const WAITING_MAX: usize = 224;

/// How often a thread that waits for a lock checks whether its request was answered.
const TICK: Duration = Duration::from_millis(100);

/// The progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing has taken effect.
    Begun,
    /// The operation has taken effect; the rest seldom waits for anything.
    Done,
    /// The watching thread has answered it.
    Answered,
}

/// The request that a thread works on, if any. Each thread has one slot.
pub struct RequestSlot(Mutex<State>);

struct State {
    /// The kernel's number of the request; 0 if there is none.
    unique: u64,
    progress: Progress,
    /// The kernel expects an answer.
    has_reply: bool,
    /// The thread still works on the request, or may begin another one in this slot.
    on_thread: bool,
    /// When the watching thread first saw the request.
    seen: Option<Instant>,
}

/// What the watching thread sees in a slot.
pub struct RequestStatus {
    /// The time since the watching thread first saw the request.
    pub age: Duration,
    /// A thread is busy with it.
    pub on_thread: bool,
    /// It was answered, but its work has not ended.
    pub is_answered: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<RequestSlot>>> = const { RefCell::new(None) };
}

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A write has waited for the store for longer than any request may.
static WRITE_HANGS: AtomicBool = AtomicBool::new(false);

/// Sets whether a write has waited for the store for longer than any request may. While it does, it holds locks, and
/// [`lock`] fails immediately. Otherwise each creation in a folder would wait for its own timeout while the kernel holds
/// the folder's lock, and listing the folder would wait for all of them in turn.
pub fn set_write_hangs(hangs: bool) {
    WRITE_HANGS.store(hangs, Ordering::Relaxed);
}

/// Begins a request on this thread. Returns the thread's slot, and whether the slot is new.
pub fn begin(unique: u64, has_reply: bool) -> (Arc<RequestSlot>, bool) {
    let state = State {
        unique,
        progress: Progress::Begun,
        has_reply,
        on_thread: true,
        seen: None,
    };
    CURRENT.with_borrow_mut(|current| match current {
        Some(slot) => {
            *slot.0.lock() = state;
            (slot.clone(), false)
        }
        None => {
            let slot = Arc::new(RequestSlot(Mutex::new(state)));
            *current = Some(slot.clone());
            (slot, true)
        }
    })
}

/// Called when this thread has done its part of a request that another thread answers later.
pub fn leave() {
    if let Some(slot) = CURRENT.take() {
        slot.0.lock().on_thread = false;
    }
}

impl RequestSlot {
    /// Ends the request. Returns whether it must still be answered.
    pub fn end(&self) -> bool {
        let mut state = self.0.lock();
        state.unique = 0;
        state.progress != Progress::Answered
    }

    /// Whether there is no request.
    pub fn is_idle(&self) -> bool {
        self.0.lock().unique == 0
    }

    /// Whether there is no request, and never will be: the thread has left the slot.
    pub fn is_left(&self) -> bool {
        let state = self.0.lock();
        state.unique == 0 && !state.on_thread
    }

    /// Checks the request, and calls `answer` with its number to have it answered if it is older than `limit`. A request
    /// that has taken effect gets twice the time, because its own answer is nearly always on the way.
    pub fn check(
        &self,
        now: Instant,
        limit: Option<Duration>,
        answer: impl FnOnce(u64),
    ) -> Option<RequestStatus> {
        let mut state = self.0.lock();
        if state.unique == 0 {
            return None;
        }
        let age = now.saturating_duration_since(*state.seen.get_or_insert(now));
        let is_over = limit.is_some_and(|limit| match state.progress {
            Progress::Begun => age >= limit,
            Progress::Done => age >= limit * 2,
            Progress::Answered => false,
        });
        if is_over && state.has_reply {
            state.progress = Progress::Answered;
            answer(state.unique);
        }
        Some(RequestStatus {
            age,
            on_thread: state.on_thread,
            is_answered: state.progress == Progress::Answered,
        })
    }
}

fn with_state<R>(check: impl FnOnce(&mut State) -> R) -> Option<R> {
    CURRENT.with_borrow(|slot| {
        let mut state = slot.as_ref()?.0.lock();
        (state.unique != 0).then(|| check(&mut state))
    })
}

/// Whether the request that this thread works on was already answered.
pub fn is_answered() -> bool {
    with_state(|state| state.progress == Progress::Answered) == Some(true)
}

/// Lets an operation take effect with `apply`, unless its request was already answered ([`Kind::TimedOut`]). `apply` must
/// not wait for anything: the request cannot be answered while it runs.
pub fn unless_answered<R>(apply: impl FnOnce() -> R) -> Result<R> {
    CURRENT.with_borrow(|slot| {
        let mut state = slot.as_ref().map(|slot| slot.0.lock());
        if let Some(state) = state.as_mut().filter(|state| state.unique != 0) {
            match state.progress {
                Progress::Answered => return Err(Kind::TimedOut.into()),
                _ => state.progress = Progress::Done,
            }
        }
        Ok(apply())
    })
}

/// Called after one of several steps has taken effect: the request may have to wait again, and may be answered.
pub fn go_on() {
    with_state(|state| {
        if state.progress == Progress::Done {
            state.progress = Progress::Begun;
        }
    });
}

/// Counts a thread that waits for the store, until it is dropped.
pub struct Waiting(bool);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0 {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Called before this thread waits for the store. Fails if too many threads do, or if its request was already answered.
pub fn wait() -> Result<Waiting> {
    match with_state(|state| state.progress == Progress::Answered) {
        None => return Ok(Waiting(false)),
        Some(true) => return Err(Kind::TimedOut.into()),
        Some(false) => {}
    }
    let waiting = WAITING.fetch_add(1, Ordering::Relaxed);
    let counted = Waiting(true);
    if waiting < WAITING_MAX {
        Ok(counted)
    } else {
        Err(Kind::TimedOut.into())
    }
}

/// Takes a lock that may be held by a thread that waits for the store. Fails if the request is answered before.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Some(guard) => Ok(guard),
        None => keep_trying(|| mutex.try_lock_for(TICK), || mutex.lock()),
    }
}

/// The same for a shared lock.
pub fn read<T>(lock: &RwLock<T>) -> Result<RwLockReadGuard<'_, T>> {
    match lock.try_read() {
        Some(guard) => Ok(guard),
        None => keep_trying(|| lock.try_read_for(TICK), || lock.read()),
    }
}

fn keep_trying<G>(mut attempt: impl FnMut() -> Option<G>, block: impl FnOnce() -> G) -> Result<G> {
    let waiting = wait()?;
    if !waiting.0 {
        return Ok(block());
    }
    loop {
        if let Some(guard) = attempt() {
            return Ok(guard);
        }
        if is_answered() || WRITE_HANGS.load(Ordering::Relaxed) {
            return Err(Kind::TimedOut.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

    #[test]
    fn requests_have_an_effect_or_an_answer_but_not_both() {
        let (slot, _) = begin(7, true);
        let now = Instant::now();
        assert!(
            !slot
                .check(now, LIMIT, |_| panic!("too early"))
                .unwrap()
                .is_answered
        );
        let mut answered = None;
        let later = now + Duration::from_secs(31);
        assert!(
            slot.check(later, LIMIT, |unique| answered = Some(unique))
                .unwrap()
                .is_answered
        );
        assert_eq!(answered, Some(7));
        assert!(is_answered() && wait().is_err());
        assert!(unless_answered(|| panic!("is done")).is_err());
        assert!(!slot.end(), "it has its answer");
        assert!(slot.check(later, LIMIT, |_| panic!("is over")).is_none());

        let (slot, is_new) = begin(8, true);
        assert!(!is_new);
        slot.check(now, LIMIT, |_| ());
        unless_answered(|| ()).unwrap();
        slot.check(later, LIMIT, |_| panic!("it is done"));
        go_on();
        unless_answered(|| ()).unwrap();
        assert!(slot.end());
        leave();
        assert!(slot.is_left());
    }

    #[test]
    fn waiting_for_a_lock_ends_when_the_request_is_answered() {
        let mutex = Mutex::new(());
        let held = mutex.lock();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let mutex = &mutex;
            let waits = scope.spawn(move || {
                let (slot, _) = begin(9, true);
                tell.send(slot).unwrap();
                lock(mutex).is_err_and(|e| matches!(e.kind(), Kind::TimedOut))
            });
            let slot = told.recv().unwrap();
            let now = Instant::now();
            slot.check(now, LIMIT, |_| ());
            slot.check(now + Duration::from_secs(31), LIMIT, |_| ());
            assert!(waits.join().unwrap());
        });
        drop(held);
        // Without a request there is no hurry.
        std::thread::spawn(|| assert!(!is_answered()))
            .join()
            .unwrap();
        drop(lock(&mutex).unwrap());
    }
}
