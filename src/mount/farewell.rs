//! How `hushfs umount` communicates with the process that serves a mount: umount(2) returns before everything is
//! written, and cannot be undone if the store does not answer.
//!
//! The serving process listens on an abstract socket, whose name is an attribute of the mounted root directory. The
//! client connects while the filesystem is still mounted, and asks for everything to be written out. The server sends a
//! byte now and then as long as the store answers, and another when everything is written. When the volume is closed,
//! it sends the result: 0 or the exit code, and the message. If the process dies, the connection ends without a result.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal};

use crate::error::{Error, ExitStatus, Kind, Result};
use crate::fuse::SESSION_ATTRIBUTE;

mod serving;

pub(super) use serving::Farewell;

/// How long the store may be silent while something is written out, and how long the serving process may take to answer
/// at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a forced unmount waits for an answer that it can do without.
pub(super) const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take to exit after everything is written.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// Maximum length of a message in bytes, for sending and for receiving.
const MESSAGE_LEN_MAX: usize = 4096;

/// Request to write everything out; echoed when that has ended, successfully or not.
const WRITE_OUT: u8 = b'w';
/// Request for what is not written out; answered with the same byte, the length in two bytes, and the text.
const LIST: u8 = b'l';
/// The store has answered since the last such byte.
const ALIVE: u8 = b'.';
/// The end: the exit code, then the message up to the end of the stream.
const END: u8 = b'!';

/// The outcome of connecting to the process of a mount.
pub(super) enum Asked {
    Connected(Connection),
    /// There is no process, it does not name its socket, or this user may not ask it.
    Nobody,
    /// There is a process, but it does not answer.
    Silent,
}

/// The client: a connection to the serving process.
pub(super) struct Connection {
    stream: UnixStream,
    /// The process at the other end, if it is visible from here.
    process: Option<OwnedFd>,
}

enum Message {
    Alive,
    Written,
    List(String),
    End(u8, Vec<u8>),
}

/// Whether the process of the mount at `point` claims to be this program. One that does not answer counts as such.
pub(super) fn is_ours(point: &Path) -> bool {
    !matches!(session_name(point, SHORT_PATIENCE), Ok(None))
}

/// Returns the name of the socket, or an error if the process does not answer. A child process asks for it, because a
/// process cannot even be killed while a stopped server holds its request.
fn session_name(point: &Path, patience: Duration) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    let attribute = CString::new(SESSION_ATTRIBUTE)?;
    let mut value = [0u8; 64];
    let (reader, writer) = io::pipe()?;
    // SAFETY: the child makes only async-signal-safe calls, on memory that was allocated before the fork, and exits
    // without returning.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: as above; the pointers are to buffers of the lengths given, and to strings that end with a zero byte.
        0 => unsafe {
            // Close these, so that a reader of this program's output does not wait for the child.
            for fd in 0..3 {
                libc::close(fd);
            }
            let (to, len) = (value.as_mut_ptr().cast(), value.len());
            let len = libc::getxattr(path.as_ptr(), attribute.as_ptr(), to, len);
            libc::write(writer.as_raw_fd(), to, usize::try_from(len).unwrap_or(0));
            libc::_exit(0)
        },
        child => child,
    };
    drop(writer);
    if !wait_for(&reader, patience) {
        // SAFETY: it is a child of ours that has not been waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut name = Vec::new();
    reader.take(value.len() as u64).read_to_end(&mut name)?;
    // SAFETY: as above. Closing the pipe was the last thing that it did, so this does not block.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Connects to the process that serves a mount.
pub(super) fn connect(point: &Path, patience: Duration) -> Asked {
    let name = match session_name(point, patience) {
        Ok(Some(name)) => name,
        Ok(None) => return Asked::Nobody,
        Err(_) => return Asked::Silent,
    };
    let stream = SocketAddr::from_abstract_name(&name).and_then(|a| UnixStream::connect_addr(&a));
    let Ok(stream) = stream else {
        return Asked::Nobody;
    };
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok();
    let process = peer.and_then(|p| rustix::process::pidfd_open(p.pid, PidfdFlags::empty()).ok());
    Asked::Connected(Connection { stream, process })
}

impl Connection {
    /// Returns the next message, waiting at most `patience` from one sign of life to the next.
    fn next(&self, patience: Duration) -> io::Result<Message> {
        self.stream.set_read_timeout(Some(patience))?;
        let mut stream = &self.stream;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte[0] {
            WRITE_OUT => Ok(Message::Written),
            LIST => {
                let mut len = [0; 2];
                stream.read_exact(&mut len)?;
                let mut text = vec![0; usize::from(u16::from_le_bytes(len))];
                stream.read_exact(&mut text)?;
                Ok(Message::List(printable(&text)))
            }
            END => {
                stream.read_exact(&mut byte)?;
                let mut text = Vec::new();
                stream.take(MESSAGE_LEN_MAX as u64).read_to_end(&mut text)?;
                Ok(Message::End(byte[0], text))
            }
            _ => Ok(Message::Alive),
        }
    }

    /// Has everything written out. Returns false if the store was silent for `patience` or, with `in_all`, if it took
    /// that long in total. A write error is not reported here: closing the volume meets it again.
    pub(super) fn write_out(&self, patience: Duration, in_all: bool) -> bool {
        let started = std::time::Instant::now();
        if (&self.stream).write_all(&[WRITE_OUT]).is_err() {
            return true;
        }
        loop {
            match self.next(patience) {
                Ok(Message::Written | Message::End(..)) => return true,
                Ok(_) if in_all && started.elapsed() >= patience => return false,
                Ok(_) => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Describes what is not written out yet; `None` if the process does not say.
    pub(super) fn unwritten(&self) -> Option<String> {
        (&self.stream).write_all(&[LIST]).ok()?;
        loop {
            match self.next(SHORT_PATIENCE).ok()? {
                Message::List(text) => return Some(text),
                Message::End(..) => return None,
                _ => {}
            }
        }
    }

    /// Sends the process a signal. Ignores errors: this user may not be permitted, or the process may be gone.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let _ = rustix::process::pidfd_send_signal(process, signal);
        }
    }

    /// Waits for the end, at most [`PATIENCE`] from one answer of the store to the next.
    pub(super) fn wait(self, point: &Path) -> Result<()> {
        let end = loop {
            match self.next(PATIENCE) {
                Ok(Message::End(code, text)) => break Some((code, text)),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::new(Kind::TimedOut, point.display())
                        .hint(
                            "it is unmounted here, but its process goes on: it still writes, or a container or service, \
                             which has mounts of its own, still has this one",
                        ));
                }
                // The process died, perhaps before it accepted the connection.
                Err(_) => break None,
            }
        };
        if let Some(process) = &self.process {
            exited(process);
        }
        match end {
            Some((0, _)) => Ok(()),
            Some((code, text)) => {
                let status = ExitStatus::from_code(code).unwrap_or(ExitStatus::Failure);
                Err(Error::from(Kind::Ended(status, printable(&text).into())))
            }
            None => Err(Error::new(
                Kind::Mount("its process died before all was written".into()),
                point.display(),
            )
            .hint("nothing is lost that was closed: the next mount takes it over")),
        }
    }

    /// Waits for a killed process to exit.
    pub(super) fn wait_for_exit(&self) {
        if let Some(process) = &self.process {
            exited(process);
        }
    }
}

/// Waits for a process that has nothing left to do but exit.
fn exited(process: &OwnedFd) {
    wait_for(process, LAST_STEPS);
}

/// Waits until a descriptor is readable; returns false on timeout.
fn wait_for(fd: impl AsFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut poll = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&limit))) == Ok(1)
}

/// Replaces control characters: anyone can mount something that claims to be hushfs, and its message must not control
/// the terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_dies_is_not_said_to_be_writing() {
        let (stream, peer) = UnixStream::pair().unwrap();
        let waiting = Connection {
            stream,
            process: None,
        };
        // Data that is unread when the process dies resets the connection, as does a connection that was never
        // accepted.
        (&waiting.stream).write_all(b"?").unwrap();
        drop(peer);
        let told = waiting.wait(Path::new("/mnt")).unwrap_err().to_string();
        assert!(told.contains("died before all was written"), "{told}");
    }
}
