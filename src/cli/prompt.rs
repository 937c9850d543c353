//! Asking for a secret at the terminal, without echo.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr,
};

/// Signals with which a terminal or its user ends or stops a program.
const SIGNALS: [i32; 5] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGTSTP,
];

/// Shows `prompt` at the terminal, waits until a line is typed there, then has `read` read it. If a signal ends or
/// stops the program meanwhile, echo is turned on first.
pub fn ask<T>(prompt: &str, read: impl FnOnce(&File) -> T) -> io::Result<T> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let signals = Signals::hold()?;
    loop {
        let silent = Silent::new(&terminal)?;
        (&terminal).write_all(prompt.as_bytes())?;
        let mut ready = [
            PollFd::new(&terminal, PollFlags::IN),
            PollFd::new(&signals.arrived, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut ready, None))?;
        if ready[1].revents().is_empty() {
            return Ok(read(&terminal));
        }
        // Discard what was typed: the shell would read, and show, half a line.
        tcflush(&terminal, QueueSelector::IFlush)?;
        drop(silent);
        // The signal may be ignored, or only stop the program: then start over.
        (&terminal).write_all(b"\n")?;
        signals.let_through();
    }
}

/// A terminal with echo turned off, until this is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO);
        modes.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Now, &modes)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// [`SIGNALS`], blocked in this thread until this is dropped. There is no other thread while a person is asked.
struct Signals {
    held: libc::sigset_t,
    before: libc::sigset_t,
    /// Readable when a signal has arrived.
    arrived: OwnedFd,
}

impl Signals {
    fn hold() -> io::Result<Self> {
        // SAFETY: sets of signals are plain data, and the calls only fill in those passed to them; the descriptor is
        // new, and has no other owner.
        unsafe {
            let mut ours: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut ours);
            for signal in SIGNALS {
                libc::sigaddset(&mut ours, signal);
            }
            let arrived = libc::signalfd(-1, &ours, libc::SFD_CLOEXEC);
            if arrived < 0 {
                return Err(io::Error::last_os_error());
            }
            let arrived = OwnedFd::from_raw_fd(arrived);
            libc::pthread_sigmask(libc::SIG_BLOCK, &ours, &mut before);
            let mut held = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &ours, &mut held);
            Ok(Self {
                held,
                before,
                arrived,
            })
        }
    }

    /// Lets the signals that have arrived take effect.
    fn let_through(&self) {
        set_mask(&self.before);
        set_mask(&self.held);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        set_mask(&self.before);
    }
}

fn set_mask(mask: &libc::sigset_t) {
    // SAFETY: reads a valid set, and writes none.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}
