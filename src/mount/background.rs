//! The background process that serves a mount.
//!
//! It leaves the terminal's session only when the mount answers. Until then, Ctrl-C at the terminal ends it too, and it
//! can mount over a trigger of autofs(5), which only processes in the automounter's process group may do.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::process::{Pid, WaitOptions};

use crate::error::{Error, ExitStatus, Kind, Result};
use crate::logged;

/// Which of the two processes this is.
pub(super) enum Side {
    /// The process that was started, and reports the result.
    Parent(Child),
    /// The process that serves the mount.
    Child(Ready),
}

/// The process that will serve.
pub(super) struct Child {
    pid: Pid,
    ready: PipeReader,
}

/// The pipe on which the serving process reports that the mount answers.
pub(super) struct Ready {
    pipe: PipeWriter,
}

/// Forks. There must be no other thread: only the calling one continues in the child, where locks held by the others
/// would stay locked.
pub(super) fn fork() -> Result<Side> {
    let failed = |e: io::Error| Error::new(Kind::Io(e), "the background process");
    let (reader, writer) = io::pipe().map_err(failed)?;
    // SAFETY: no other thread runs (see above), so the child may do whatever the parent could have done.
    match unsafe { libc::fork() } {
        -1 => Err(failed(io::Error::last_os_error())),
        0 => Ok(Side::Child(Ready { pipe: writer })),
        pid => {
            let pid = Pid::from_raw(pid).expect("fork gives the parent a positive id");
            Ok(Side::Parent(Child { pid, ready: reader }))
        }
    }
}

impl Child {
    /// Waits until the mount answers. If it does not, the child has printed why.
    pub(super) fn wait(mut self) -> Result<()> {
        let mut code = [0];
        let is_told = self.ready.read_exact(&mut code).is_ok();
        if is_told && code == [ExitStatus::Success as u8] {
            return Ok(());
        }
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        });
        if is_told {
            let status = ExitStatus::from_code(code[0]).unwrap_or(ExitStatus::Failure);
            return Err(Kind::Ended(status, "".into()).into());
        }
        let status = status.ok().flatten().map(|(_, status)| status);
        let why = status
            .and_then(|s| s.terminating_signal())
            .map_or_else(String::new, |s| format!(" (signal {s})"));
        Err(Error::from(Kind::Mount(
            format!("the background process was killed{why}").into(),
        )))
    }
}

impl Ready {
    /// Releases the parent, and detaches this process from the terminal.
    pub(super) fn tell(mut self) {
        // Leave the terminal's session: its hang-up, and signals typed there, are not meant for the mount.
        let _ = rustix::process::setsid();
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
            // Close a pipe: whoever started us may be waiting for end of file. Keep a file: it was meant to receive the
            // log.
            if let Some(file) = logged::file() {
                let _ = rustix::stdio::dup2_stderr(file);
            } else if !is_file(io::stderr()) {
                let _ = syslog().map_or_else(
                    |_| rustix::stdio::dup2_stderr(null),
                    rustix::stdio::dup2_stderr,
                );
            }
        }
        self.send(ExitStatus::Success);
    }

    /// Reports the exit status with which this process will end, because the mount does not answer.
    pub(super) fn fail(mut self, status: ExitStatus) {
        self.send(status);
    }

    /// Ignores errors: the parent may be gone.
    fn send(&mut self, status: ExitStatus) {
        let _ = self.pipe.write_all(&[status as u8]);
    }
}

/// Whether the log of a background mount is kept anywhere if no log file is given.
pub fn keeps_log() -> bool {
    is_file(io::stderr()) || syslog().is_ok()
}

fn is_file(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Connects to the system log, as a descriptor to which each write is a message.
fn syslog() -> io::Result<OwnedFd> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    Ok(socket.into())
}
