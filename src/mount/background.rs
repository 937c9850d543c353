//! A process of its own for the mount.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::process::{Pid, WaitOptions};

use crate::error::{Error, ExitStatus, Kind, Result};

/// Which of the two processes this is.
pub(super) enum Side {
    /// The one that was started, and reports.
    Parent(Child),
    /// The one that serves.
    Child(Ready),
}

/// The process that will serve.
pub(super) struct Child {
    pid: Pid,
    ready: PipeReader,
}

/// By which the serving process says that the mount answers.
pub(super) struct Ready {
    pipe: PipeWriter,
}

/// Splits in two. There must be no other thread: only the one that calls this goes on in the child, and locks that
/// others hold would stay locked.
pub(super) fn fork() -> Result<Side> {
    let failed = |e: io::Error| Error::new(Kind::Io(e), "the background process");
    let (reader, writer) = io::pipe().map_err(failed)?;
    // SAFETY: no other thread runs (see above), so the child may do whatever the parent could have done.
    match unsafe { libc::fork() } {
        -1 => Err(failed(io::Error::last_os_error())),
        0 => {
            // Out of the terminal's session: its hang-up, and signals typed there, are not meant for the mount.
            rustix::process::setsid().map_err(|e| failed(e.into()))?;
            Ok(Side::Child(Ready { pipe: writer }))
        }
        pid => {
            let pid = Pid::from_raw(pid).expect("fork gives the parent a positive id");
            Ok(Side::Parent(Child { pid, ready: reader }))
        }
    }
}

impl Child {
    /// Waits until the mount answers. If the child ends first it has printed why, and this process ends the same
    /// way: it does not return.
    pub(super) fn wait(mut self) -> Result<()> {
        if self.ready.read_exact(&mut [0]).is_ok() {
            return Ok(());
        }
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        });
        let status = status.ok().flatten().map(|(_, status)| status);
        match status.and_then(|s| s.exit_status()) {
            Some(code) if code != 0 => std::process::exit(code),
            Some(_) => Ok(()),
            None => {
                let why = status
                    .and_then(|s| s.terminating_signal())
                    .map_or_else(String::new, |s| format!(" (signal {s})"));
                Err(Error::from(Kind::Mount(
                    format!("the background process was killed{why}").into(),
                )))
            }
        }
    }
}

impl Ready {
    /// Lets the parent go, and what the process has from the terminal.
    pub(super) fn tell(mut self) {
        // A working directory would keep its filesystem from being unmounted.
        let _ = rustix::process::chdir("/");
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from);
        if let Ok(null) = &null {
            let _ = rustix::stdio::dup2_stdin(null);
            let _ = rustix::stdio::dup2_stdout(null);
            // A pipe must be let go: who started us may wait for its end. A file was meant for the log.
            if !is_file(io::stderr()) {
                let _ = syslog().map_or_else(
                    |_| rustix::stdio::dup2_stderr(null),
                    rustix::stdio::dup2_stderr,
                );
            }
        }
        // The parent may be gone; nobody then waits.
        let _ = self.pipe.write_all(&[ExitStatus::Success as u8]);
    }
}

fn is_file(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
}

/// The system's log as a place to write to: each write is a message.
fn syslog() -> io::Result<OwnedFd> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    Ok(socket.into())
}
