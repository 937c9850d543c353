//! Watches the requests in work: adds threads where those that there are wait for the store, and answers what has waited
//! too long.
//!
//! fuser 0.18 has a fixed number of threads and no answer from outside. So further threads are those of further sessions
//! on the same device, and the answer, 16 bytes, is written to it directly. The kernel takes one answer to a request; that
//! there is just one is agreed under the lock of its slot.

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
use crate::overdue::{self, Slot, WAITING_MAX};
use crate::volume::Silence;

/// So often it is looked, while there is something to be seen; what was there at the last look waits for something.
const LOOK: Duration = Duration::from_millis(100);

/// So often it is looked once more after the last request: to be woken costs a request more than all else here.
const LOOKS_IDLE: u32 = 50;

/// So many threads are kept from waiting, where that can be.
const SPARE: usize = 4;

/// The most threads: those that may wait, and enough for what need not.
const THREADS_MAX: usize = WAITING_MAX + 32;

/// The requests in work.
pub(super) struct Watch {
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Nothing is in work, so nobody looks.
    sleeps: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    is_over: bool,
}

/// A request, of which `reply` is sent unless it was answered from outside.
pub(super) struct Held<R> {
    reply: Option<R>,
    slot: Arc<Slot>,
}

impl<R> Held<R> {
    /// The reply, to be given now; `None` where the kernel has had its answer.
    pub(super) fn claim(mut self) -> Option<R> {
        self.take()
    }

    fn take(&mut self) -> Option<R> {
        let reply = self.reply.take()?;
        if self.slot.end() {
            return Some(reply);
        }
        // Dropped, fuser would answer once more. What is lost is a count of who has the device open.
        std::mem::forget(reply);
        None
    }

    /// Gives the answer; false where the kernel has had one.
    pub(super) fn answer<T>(self, result: Result<T, Errno>) -> bool
    where
        R: Answer<T>,
    {
        self.claim().map(|reply| reply.answer(result)).is_some()
    }
}

impl<R> Drop for Held<R> {
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

    /// This thread begins to work on a request that is answered with `reply`.
    pub(super) fn hold<R>(&self, req: &Request, reply: R) -> Held<R> {
        Held {
            reply: Some(reply),
            slot: self.begin(req, true),
        }
    }

    /// The same for a request without an answer.
    pub(super) fn hold_unanswered(&self, req: &Request) -> Held<()> {
        Held {
            reply: Some(()),
            slot: self.begin(req, false),
        }
    }

    fn begin(&self, req: &Request, has_reply: bool) -> Arc<Slot> {
        let (slot, is_new) = overdue::begin(req.unique().0, has_reply);
        if is_new {
            self.slots.lock().push(slot.clone());
        }
        // Either this sees that nobody looks, or who is about to sleep sees the request.
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
    /// After so long a request is answered with EIO.
    pub timeout: Duration,
    /// What is to be called the store in the log.
    pub store: String,
    pub threads: usize,
    /// Makes what another session answers with.
    pub filesystem: F,
}

/// The thread that watches.
pub(super) struct Running {
    watch: Arc<Watch>,
    thread: JoinHandle<Vec<BackgroundSession>>,
}

impl Running {
    /// Ends it; the sessions that were added are still to be joined.
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
    /// Starts to watch. `silence` is how long somebody has waited for the store, where that is known.
    pub(super) fn start(
        self,
        silence: impl Fn() -> Option<Silence> + Send + 'static,
    ) -> io::Result<Running> {
        let watch = self.watch.clone();
        let thread = std::thread::Builder::new().name("watch".into());
        let thread = thread.spawn(move || self.run(silence))?;
        Ok(Running { watch, thread })
    }

    fn run(self, silence: impl Fn() -> Option<Silence>) -> Vec<BackgroundSession> {
        let mut sessions = Vec::new();
        let mut threads = self.threads;
        // Since when the store is known not to answer.
        let mut hangs: Option<Instant> = None;
        let mut looks_idle = 0;
        while self.sleep() {
            // While the store answers, what takes long is only slow.
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
                if let Some(look) = slot.look(now, limit, answer) {
                    in_work += 1;
                    stuck += usize::from(look.on_thread && look.age >= LOOK);
                    answered += usize::from(look.is_answered);
                }
            }
            drop(slots);
            if is_new && hangs.is_none() {
                hangs = Some(now);
                log::error!(
                    "{}: has not answered for {} s; what needs it fails until it does",
                    self.store,
                    self.timeout.as_secs()
                );
            }
            if answered == 0
                && is_silent != Some(true)
                && let Some(since) = hangs.take_if(|since| *since != now)
            {
                let silent = (since.elapsed() + self.timeout).as_secs();
                log::warn!("{}: answers again, after {silent} s", self.store);
            }
            if stuck + SPARE > threads && threads < THREADS_MAX {
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
            looks_idle = match in_work == 0 && hangs.is_none() {
                true => looks_idle + 1,
                false => 0,
            };
            let sleeps = looks_idle >= LOOKS_IDLE;
            if sleeps {
                looks_idle = 0;
            }
            self.watch.sleeps.store(sleeps, Ordering::SeqCst);
        }
        sessions
    }

    /// Waits until it is time to look; false where it is over.
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
            self.watch.wake.wait_for(&mut state, LOOK);
        }
        !state.is_over
    }

    /// Answers a request with EIO.
    fn answer(&self, unique: u64) {
        // struct fuse_out_header of linux/fuse.h: length, error, the request's number.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..8].copy_from_slice(&(-libc::EIO).to_ne_bytes());
        message[8..].copy_from_slice(&unique.to_ne_bytes());
        // One that was interrupted and given up by the kernel needs none.
        let _ = rustix::io::write(&self.device, &message);
    }

    /// Adds a session with so many threads. fuser begins each with the kernel's first message, which has been answered
    /// long ago: so it is given one through a socket, which then becomes the device.
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
    fn the_first_message_is_as_long_as_it_says() {
        assert_eq!(first_message().len(), 104);
    }
}
