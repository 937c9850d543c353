//! Requests that are answered before their work is done, because the store does not answer.
//!
//! A store may hang: a network filesystem whose server is gone answers neither yes nor no, for hours. Who waits for it in
//! the kernel cannot be called back. So another thread answers the request, with EIO, and this module keeps what was
//! answered and what is done in step:
//!
//! - What was answered with EIO is not done. An operation takes effect, in memory, under the lock that the answer is given
//!   under ([`unless_answered`]); if the answer was first, the operation fails. A frame that was written by then is taken
//!   back as one whose write failed is.
//! - Locks that are held while the store is waited for are waited for with [`lock`], which gives up when the request was
//!   answered. So behind one operation that hangs there is no queue of others that are done hours later.
//! - Only so many threads wait at once; what would be one more fails. So some are left for what needs no store.
//!
//! A thread without a request (the committer's, a test's) waits for as long as it takes.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

use crate::error::{Kind, Result};

/// So many threads of requests may wait for the store, or for who does, at once.
pub const WAITING_MAX: usize = 224;

/// Who waits for a lock looks so often whether the request was answered.
const LOOK: Duration = Duration::from_millis(100);

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has taken effect.
    Begun,
    /// Something has; what is left seldom waits for anything.
    Done,
    /// It was answered from outside.
    Answered,
}

/// A request in work, or the place of a thread for one.
pub struct Slot(Mutex<State>);

struct State {
    /// The kernel's number of the request; 0 where there is none.
    unique: u64,
    stage: Stage,
    /// Somebody waits for an answer.
    has_reply: bool,
    /// A thread is at work on it.
    on_thread: bool,
    /// When it was first looked at from outside.
    seen: Option<Instant>,
}

/// What who watches sees of a slot.
pub struct Look {
    /// How long the request has been known.
    pub age: Duration,
    /// It keeps a thread.
    pub on_thread: bool,
    /// It was answered, and goes on.
    pub is_answered: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A write has waited for the store for so long that its request was given up.
static WRITE_HANGS: AtomicBool = AtomicBool::new(false);

/// Says whether a write has waited for the store longer than any request may. Locks are held meanwhile, so others that
/// want them fail at once: the kernel locks a folder while a name is made in it, and listing it would wait for all of
/// them, one after the other.
pub fn set_write_hangs(hangs: bool) {
    WRITE_HANGS.store(hangs, Ordering::Relaxed);
}

/// This thread begins to work on a request. Answers its slot, and whether that is a new one.
pub fn begin(unique: u64, has_reply: bool) -> (Arc<Slot>, bool) {
    let state = State {
        unique,
        stage: Stage::Begun,
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
            let slot = Arc::new(Slot(Mutex::new(state)));
            *current = Some(slot.clone());
            (slot, true)
        }
    })
}

/// This thread has done its part of a request that is answered later, from another one.
pub fn leave() {
    if let Some(slot) = CURRENT.take() {
        slot.0.lock().on_thread = false;
    }
}

impl Slot {
    /// Ends the request; whether it is still to be answered.
    pub fn end(&self) -> bool {
        let mut state = self.0.lock();
        state.unique = 0;
        state.stage != Stage::Answered
    }

    /// There is no request.
    pub fn is_idle(&self) -> bool {
        self.0.lock().unique == 0
    }

    /// Nobody works on a request here, and no thread will begin one.
    pub fn is_left(&self) -> bool {
        let state = self.0.lock();
        state.unique == 0 && !state.on_thread
    }

    /// Looks at it; `answer` gives the answer to the request with this number, if it is older than `limit`. What has
    /// taken effect has twice the time: it nearly always has its answer on the way.
    pub fn look(
        &self,
        now: Instant,
        limit: Option<Duration>,
        answer: impl FnOnce(u64),
    ) -> Option<Look> {
        let mut state = self.0.lock();
        if state.unique == 0 {
            return None;
        }
        let age = now.saturating_duration_since(*state.seen.get_or_insert(now));
        let is_over = limit.is_some_and(|limit| match state.stage {
            Stage::Begun => age >= limit,
            Stage::Done => age >= limit * 2,
            Stage::Answered => false,
        });
        if is_over && state.has_reply {
            state.stage = Stage::Answered;
            answer(state.unique);
        }
        Some(Look {
            age,
            on_thread: state.on_thread,
            is_answered: state.stage == Stage::Answered,
        })
    }
}

fn with_state<R>(look: impl FnOnce(&mut State) -> R) -> Option<R> {
    CURRENT.with_borrow(|slot| {
        let mut state = slot.as_ref()?.0.lock();
        (state.unique != 0).then(|| look(&mut state))
    })
}

/// Whether the request that this thread works on was answered already.
pub fn is_answered() -> bool {
    with_state(|state| state.stage == Stage::Answered) == Some(true)
}

/// Lets an operation take effect, unless the request was answered already. `apply` waits for nothing: meanwhile it cannot
/// be answered.
pub fn unless_answered<R>(apply: impl FnOnce() -> R) -> Result<R> {
    CURRENT.with_borrow(|slot| {
        let mut state = slot.as_ref().map(|slot| slot.0.lock());
        if let Some(state) = state.as_mut().filter(|state| state.unique != 0) {
            match state.stage {
                Stage::Answered => return Err(Kind::TimedOut.into()),
                _ => state.stage = Stage::Done,
            }
        }
        Ok(apply())
    })
}

/// What has taken effect was a step only: the request may have to wait once more.
pub fn go_on() {
    with_state(|state| {
        if state.stage == Stage::Done {
            state.stage = Stage::Begun;
        }
    });
}

/// A thread that waits for the store.
pub struct Waiting(bool);

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.0 {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// This thread is about to wait for the store; an error where too many do, or where nobody waits for it any more.
pub fn wait() -> Result<Waiting> {
    match with_state(|state| state.stage == Stage::Answered) {
        None => return Ok(Waiting(false)),
        Some(true) => return Err(Kind::TimedOut.into()),
        Some(false) => {}
    }
    let waiting = WAITING.fetch_add(1, Ordering::Relaxed);
    let counted = Waiting(true);
    match waiting < WAITING_MAX {
        true => Ok(counted),
        false => Err(Kind::TimedOut.into()),
    }
}

/// Locks what may be held by who waits for the store; an error where the request was answered meanwhile.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Some(guard) => Ok(guard),
        None => keep_trying(|| mutex.try_lock_for(LOOK), || mutex.lock()),
    }
}

/// The same for a lock that is shared.
pub fn read<T>(lock: &RwLock<T>) -> Result<RwLockReadGuard<'_, T>> {
    match lock.try_read() {
        Some(guard) => Ok(guard),
        None => keep_trying(|| lock.try_read_for(LOOK), || lock.read()),
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
    fn what_was_answered_is_not_done_and_what_was_done_is_not_answered() {
        let (slot, _) = begin(7, true);
        let now = Instant::now();
        assert!(
            !slot
                .look(now, LIMIT, |_| panic!("too early"))
                .unwrap()
                .is_answered
        );
        let mut answered = None;
        let later = now + Duration::from_secs(31);
        assert!(
            slot.look(later, LIMIT, |unique| answered = Some(unique))
                .unwrap()
                .is_answered
        );
        assert_eq!(answered, Some(7));
        assert!(is_answered() && wait().is_err());
        assert!(unless_answered(|| panic!("is done")).is_err());
        assert!(!slot.end(), "it has its answer");
        assert!(slot.look(later, LIMIT, |_| panic!("is over")).is_none());

        let (slot, is_new) = begin(8, true);
        assert!(!is_new);
        slot.look(now, LIMIT, |_| ());
        unless_answered(|| ()).unwrap();
        slot.look(later, LIMIT, |_| panic!("it is done"));
        go_on();
        unless_answered(|| ()).unwrap();
        assert!(slot.end());
        leave();
        assert!(slot.is_left());
    }

    #[test]
    fn who_waits_for_a_lock_gives_up_when_the_request_is_answered() {
        let mutex = Mutex::new(());
        let held = mutex.lock();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let mutex = &mutex;
            let waits = scope.spawn(move || {
                let (slot, _) = begin(9, true);
                tell.send(slot).unwrap();
                lock(mutex).map(drop)
            });
            let slot = told.recv().unwrap();
            let now = Instant::now();
            slot.look(now, LIMIT, |_| ());
            slot.look(now + Duration::from_secs(31), LIMIT, |_| ());
            let error = waits.join().unwrap().unwrap_err();
            assert!(matches!(error.kind(), Kind::TimedOut));
        });
        drop(held);
        // Without a request there is no hurry.
        std::thread::spawn(|| assert!(!is_answered()))
            .join()
            .unwrap();
        lock(&mutex).map(drop).unwrap();
    }
}
