//! Waiting for the next request awake.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a thread stays awake after a reply. A program that makes many small calls has the next one here in less;
/// to wake a thread on another CPU, a virtual one above all, takes as long.
const AWAKE: Duration = Duration::from_micros(50);
/// Credit that waits which paid can build up.
const CREDIT_MAX: i32 = 8;
/// What a wait in vain costs.
const FINE: i32 = 2;
/// Without credit, this many requests are answered before staying awake is tried again.
const REST: i32 = 16;

/// Keeps one thread, at most, awake after a reply, while that pays: programs that compute in between get their CPU.
pub(super) struct Linger {
    device: OwnedFd,
    taken: AtomicBool,
    /// Below zero: how many requests more are not waited for.
    credit: AtomicI32,
    /// With one CPU, whoever asks next cannot run meanwhile.
    useful: bool,
}

impl Linger {
    /// For the requests that come from `device`.
    pub fn new(device: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            device: device.try_clone()?,
            taken: AtomicBool::new(false),
            credit: AtomicI32::new(0),
            useful: available_parallelism().is_ok_and(|n| n.get() > 1),
        })
    }

    /// Called after each request is answered: returns when the next is there, or after a while without. A kind of
    /// request that left this out would send the thread to sleep, and the next ones would wake one after the other.
    pub fn wait(&self) {
        // What another thread does to the credit in between makes it a little wrong, and harms nothing.
        let credit = self.credit.load(Ordering::Relaxed);
        if credit < 0 {
            self.credit.store(credit + 1, Ordering::Relaxed);
            return;
        }
        if !self.useful || self.taken.swap(true, Ordering::Acquire) {
            return;
        }
        let credit = match self.comes() {
            true => (credit + 1).min(CREDIT_MAX),
            false if credit < FINE => -REST,
            false => credit - FINE,
        };
        self.credit.store(credit, Ordering::Relaxed);
        self.taken.store(false, Ordering::Release);
    }

    /// Whether a request, or the end, comes in time.
    fn comes(&self) -> bool {
        let end = Instant::now() + AWAKE;
        let mut device = [PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN)];
        while Instant::now() < end {
            if !matches!(poll(&mut device, Some(&Timespec::default())), Ok(0)) {
                return true;
            }
        }
        false
    }
}
