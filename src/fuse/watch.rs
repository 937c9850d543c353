//! Watches the requests in progress: adds threads if the existing ones wait for the store, and answers requests that have
//! waited too long.
//!
//! fuser 0.18 has a fixed number of threads, and cannot answer a request from another thread. Therefore more threads are
//! added as further sessions on the same device, and the answer, 16 bytes, is written to the device directly. The kernel
//! accepts one answer per request; the lock of the request's slot ensures that only one is sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Errno, Filesystem, Request, Session, SessionACL};
use parking_lot::{Condvar, Mutex};

use super::types::Answer;
use crate::overdue::{self, RequestSlot, WAITING_MAX};
use crate::volume::Silence;

/// How often the requests are checked while there are any. A request that has been there for a whole tick is waiting for
/// something.
const TICK: Duration = Duration::from_millis(100);

/// How many ticks without a request pass before the watching thread sleeps. To wake it costs a request more than
/// everything else here.
const IDLE_TICKS: u32 = 50;

/// How many threads should always be free to take requests.
const SPARE_THREADS: usize = 4;

/// The most threads: those that may wait for the store, and enough for requests that need not.
const THREADS_MAX: usize = WAITING_MAX + 32;

/// The requests in progress.
pub(super) struct Watch {
    slots: Mutex<Vec<Arc<RequestSlot>>>,
    /// No request is in progress, and the watching thread sleeps.
    sleeps: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
}

/// The reply to a request in progress. It is sent unless the watching thread has answered first.
pub(super) struct PendingReply<R> {
    reply: Option<R>,
    slot: Arc<RequestSlot>,
}

impl<R> PendingReply<R> {
    /// Ends the request and returns the reply, to be sent immediately; `None` if the kernel has already received an answer.
    pub(super) fn claim(mut self) -> Option<R> {
        self.take()
    }

    fn take(&mut self) -> Option<R> {
        let reply = self.reply.take()?;
        if self.slot.end() {
            return Some(reply);
        }
        // If it were dropped, fuser would send a second answer. This leaks a reference to the open device.
        std::mem::forget(reply);
        None
    }

    /// Sends the answer; returns false if the kernel has already received one.
    pub(super) fn answer<T>(self, result: Result<T, Errno>) -> bool
    where
        R: Answer<T>,
    {
        self.claim().map(|reply| reply.answer(result)).is_some()
    }
}

impl<R> Drop for PendingReply<R> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            slots: Mutex::default(),
            sleeps: AtomicBool::new(false),
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Begins a request on this thread, to be answered with `reply`.
    pub(super) fn track<R>(&self, req: &Request, reply: R) -> PendingReply<R> {
        PendingReply {
            reply: Some(reply),
            slot: self.begin(req, true),
        }
    }

    /// Begins a request that has no answer.
    pub(super) fn track_unanswered(&self, req: &Request) -> PendingReply<()> {
        PendingReply {
            reply: Some(()),
            slot: self.begin(req, false),
        }
    }

    fn begin(&self, req: &Request, has_reply: bool) -> Arc<RequestSlot> {
        let (slot, is_new) = overdue::begin(req.unique().0, has_reply);
        if is_new {
            self.slots.lock().push(slot.clone());
        }
        // Either this thread sees that the watching thread sleeps, or that one sees the request before it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeps.load(Ordering::Relaxed) && self.sleeps.swap(false, Ordering::SeqCst) {
            let _state = self.state.lock();
            self.wake.notify_one();
        }
        slot
    }
}

/// What the watching thread needs.
pub(super) struct Watcher<F> {
    pub watch: Arc<Watch>,
    pub device: OwnedFd,
    /// After this time a request is answered with EIO.
    pub timeout: Duration,
    /// The store's name in log messages.
    pub store: String,
    pub threads: usize,
    /// Makes the filesystem of a further session.
    pub filesystem: F,
}

/// The watching thread.
pub(super) struct WatchThread {
    watch: Arc<Watch>,
    thread: JoinHandle<Vec<BackgroundSession>>,
}

impl WatchThread {
    /// Ends it. The caller must join the sessions that it added.
    pub(super) fn stop(self) -> Vec<BackgroundSession> {
        self.watch.state.lock().is_over = true;
        self.watch.wake.notify_one();
        self.thread.join().unwrap_or_default()
    }
}

impl<F, A> Watcher<F>
where
    A: Filesystem + Send + Sync + 'static,
    F: Fn() -> A + Send + 'static,
{
    /// Starts the thread. `silence` returns how long the store has not answered, if that is known.
    pub(super) fn start(
        self,
        silence: impl Fn() -> Option<Silence> + Send + 'static,
    ) -> io::Result<WatchThread> {
        let watch = self.watch.clone();
        let thread = std::thread::Builder::new().name("watch".into());
        let thread = thread.spawn(move || self.run(silence))?;
        Ok(WatchThread { watch, thread })
    }

    fn run(self, silence: impl Fn() -> Option<Silence>) -> Vec<BackgroundSession> {
        let mut sessions = Vec::new();
        let mut threads = self.threads;
        let mut hangs_since: Option<Instant> = None;
        let mut idle_ticks = 0;
        while self.sleep() {
            // While the store answers, a long request is merely slow, and has no limit.
            let silence = silence();
            let is_silent = silence.map(|silence| silence.any >= self.timeout);
            overdue::set_write_hangs(silence.is_some_and(|s| s.writes >= self.timeout));
            let limit = is_silent.unwrap_or(true).then_some(self.timeout);
            let (mut in_work, mut stuck, mut answered, mut is_new) = (0, 0, 0, false);
            let now = Instant::now();
            let mut slots = self.watch.slots.lock();
            slots.retain(|slot| !slot.is_left());
            for slot in &*slots {
                let answer = |unique| {
                    is_new = true;
                    self.answer(unique);
                };
                if let Some(status) = slot.check(now, limit, answer) {
                    in_work += 1;
                    stuck += usize::from(status.on_thread && status.age >= TICK);
                    answered += usize::from(status.is_answered);
                }
            }
            drop(slots);
            if is_new && hangs_since.is_none() {
                hangs_since = Some(now);
                log::error!(
                    "{}: has not answered for {} s; requests that need it fail until it does",
                    self.store,
                    self.timeout.as_secs()
                );
            }
            if answered == 0
                && is_silent != Some(true)
                && let Some(since) = hangs_since.take_if(|since| *since != now)
            {
                let silent = (since.elapsed() + self.timeout).as_secs();
                log::warn!("{}: answers again, after {silent} s", self.store);
            }
            if stuck + SPARE_THREADS > threads && threads < THREADS_MAX {
                let more = threads.min(THREADS_MAX - threads);
                match self.add(more) {
                    Ok(session) => {
                        threads += more;
                        sessions.push(session);
                    }
                    Err(e) => log::warn!(
                        "no more threads for requests: {}",
                        crate::error::io_text(&e)
                    ),
                }
            }
            idle_ticks = if in_work == 0 && hangs_since.is_none() {
                idle_ticks + 1
            } else {
                0
            };
            let sleeps = idle_ticks >= IDLE_TICKS;
            if sleeps {
                idle_ticks = 0;
            }
            self.watch.sleeps.store(sleeps, Ordering::SeqCst);
        }
        sessions
    }

    /// Waits for the next tick; returns false when the thread must end.
    fn sleep(&self) -> bool {
        let mut state = self.watch.state.lock();
        fence(Ordering::SeqCst);
        let nothing = || {
            let slots = self.watch.slots.lock();
            slots.iter().all(|slot| slot.is_idle())
        };
        if self.watch.sleeps.load(Ordering::SeqCst) && nothing() {
            while self.watch.sleeps.load(Ordering::SeqCst) && !state.is_over {
                self.watch.wake.wait(&mut state);
            }
        }
        if !state.is_over {
            self.watch.wake.wait_for(&mut state, TICK);
        }
        !state.is_over
    }

    /// Answers a request with EIO, past fuser.
    fn answer(&self, unique: u64) {
        // struct fuse_out_header of linux/fuse.h: length, error, the request's number.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
        message[8..].copy_from_slice(&unique.to_ne_bytes());
        // This fails if the request was interrupted and the kernel has given it up: it then needs no answer.
        let _ = rustix::io::write(&self.device, &message);
    }

    /// Adds a session with `threads` threads. fuser expects a session to begin with the kernel's first message, which only
    /// the first session receives. So a copy of it is sent through a socket, whose descriptor then becomes the device.
    fn add(&self, threads: usize) -> io::Result<BackgroundSession> {
        let (ours, theirs) = UnixDatagram::pair()?;
        ours.send(&first_message())?;
        let mut config = Config::default();
        config.n_threads = Some(threads);
        let session =
            Session::from_fd((self.filesystem)(), theirs.into(), SessionACL::All, config)?;
        let descriptor = session.as_fd().as_raw_fd();
        // SAFETY: both are open, the first one here, the second one in the session, which goes on owning it; no thread
        // uses it yet.
        if unsafe { libc::dup3(self.device.as_raw_fd(), descriptor, libc::O_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
        session.spawn()
    }
}

/// A `FUSE_INIT` of linux/fuse.h that offers nothing: struct fuse_in_header and struct fuse_init_in.
fn first_message() -> Vec<u8> {
    const LEN: u32 = 40 + 64;
    const INIT: u32 = 26;
    let mut message = Vec::with_capacity(LEN as usize);
    let mut words = |words: &[u32]| {
        for word in words {
            message.extend_from_slice(&word.to_ne_bytes());
        }
    };
    // Length, what it is, number (64 bits), node (64 bits), user, group, process, extensions.
    words(&[LEN, INIT, 2, 0, 0, 0, 0, 0, 0, 0]);
    // The version, read-ahead, flags.
    words(&[7, 31, 0, 0]);
    words(&[0; 12]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_has_the_length_in_its_header() {
        assert_eq!(first_message().len(), 104);
    }
}
