//! The program at a pseudo-terminal, as a person uses it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Bench, MARK};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program at a terminal.
pub struct Terminal {
    child: Child,
    /// The side of the person.
    master: File,
    /// All that was shown.
    shown: String,
    /// Up to here it was waited for.
    seen: usize,
}

impl Bench {
    /// Starts the program at a terminal, which is its standard input, output and error.
    pub fn at_terminal(&self, words: &str) -> Terminal {
        self.at_terminal_into(words, None)
    }

    /// The same with something else as standard output.
    pub fn at_terminal_into(&self, words: &str, stdout: Option<Stdio>) -> Terminal {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: both descriptors are written by the call, and null is allowed for what is not wanted.
        let opened = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: both are new, and nobody else's.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // SAFETY: a descriptor of ours; the program must not have the person's side.
        unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
        let words: Vec<_> = words.split(' ').collect();
        let mut command = self.command(&words);
        command.env("HUSHFS_LOG", "warn");
        let copy = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(copy()).stderr(copy());
        command.stdout(stdout.unwrap_or_else(copy));
        // SAFETY: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let child = command.spawn().unwrap();
        Terminal {
            child,
            master,
            shown: String::new(),
            seen: 0,
        }
    }
}

impl Terminal {
    /// Waits until this is shown, after what was waited for before.
    pub fn expect(&mut self, text: &str) -> &mut Self {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                self.seen += at + text.len();
                return self;
            }
            assert!(
                self.more() && Instant::now() < end,
                "{text} is not shown: {}",
                self.shown
            );
        }
    }

    /// Waits until this is asked, and answers.
    pub fn answer(&mut self, question: &str, typed: &str) -> &mut Self {
        self.expect(question);
        self.master.write_all(typed.as_bytes()).unwrap();
        self
    }

    /// Reads what is shown; false at the end.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // The kernel answers EIO when nobody has the other side open any more.
        let len = self.master.read(&mut bytes).unwrap_or(0);
        self.shown += &String::from_utf8_lossy(&bytes[..len]);
        len > 0
    }

    /// Waits for the end: the exit code, and all that was shown, without carriage returns.
    pub fn end(mut self) -> (i32, String) {
        while self.more() {}
        let code = self.child.wait().unwrap().code().expect("it exits");
        let shown = self.shown.replace('\r', "");
        assert!(!shown.contains(MARK), "{shown}");
        assert!(!shown.contains("panicked"), "{shown}");
        (code, shown)
    }
}
