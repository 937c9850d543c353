//! How `hushfs umount` speaks with the process of a mount: umount(2) returns before everything is written, and cannot be
//! taken back where the store does not answer.
//!
//! The serving process listens on an abstract socket, whose name is an attribute of the mounted root directory. Who
//! unmounts connects before, and asks for all to be written out, while it is still mounted. A byte comes now and then as
//! long as the store answers, and one when it is done. When the volume is closed, the end is told: 0 or the exit code, and
//! the message. A process that dies tells nothing, and the connection ends.

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

/// How long a store may be silent while something is written out, and the process of a mount before it answers at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long who takes a mount away by force waits for what it can do without.
pub(super) const SHORT_PATIENCE: Duration = Duration::from_secs(2);

/// How long a process may take to exit when all is written.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// The longest message told, in bytes, and the longest believed.
const MESSAGE_LEN_MAX: usize = 4096;

/// Asks for all to be written out; answered with the same when that has ended, well or not.
const WRITE_OUT: u8 = b'w';
/// Asks what is not written out; answered with the same, the length in two bytes, and the text.
const LIST: u8 = b'l';
/// The store has answered since the last one.
const ALIVE: u8 = b'.';
/// The end: the exit code, and the message up to the end of the stream.
const END: u8 = b'!';

/// What the process of a mount says to who connects.
pub(super) enum Asked {
    Connected(Connection),
    /// There is none, it does not say, or may not be asked by this user.
    Nobody,
    /// It is there, and does not answer.
    Silent,
}

/// The waiting side.
pub(super) struct Connection {
    stream: UnixStream,
    /// The process at the other end, where it can be seen.
    process: Option<OwnedFd>,
}

enum Message {
    Alive,
    Written,
    List(String),
    End(u8, Vec<u8>),
}

/// Whether the process of the mount at `point` is one of this program, as far as it says.
pub(super) fn is_ours(point: &Path) -> bool {
    !matches!(session_name(point, SHORT_PATIENCE), Ok(None))
}

/// The name of the socket; an error where the process does not answer. It is asked by a process of its own: who waits
/// for one that was stopped with the request in its hands cannot even be killed.
fn session_name(point: &Path, patience: Duration) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(point.as_os_str().as_bytes())?;
    let attribute = CString::new(SESSION_ATTRIBUTE)?;
    let mut value = [0u8; 64];
    let (reader, writer) = io::pipe()?;
    // SAFETY: the child calls only what may be called where other threads were, with memory that was made before, and
    // ends without a return.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: as above; the pointers are to buffers of the lengths given, and to strings that end with a zero byte.
        0 => unsafe {
            // Who reads what this program prints must not wait for the child.
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
        // SAFETY: a child of ours that nobody has waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut name = Vec::new();
    reader.take(value.len() as u64).read_to_end(&mut name)?;
    // SAFETY: as above; it has closed the pipe as the last thing that it did.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// Connects to the process behind a mount.
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
    /// Waits, at most `patience` from one sign of life to the next.
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

    /// Has all written out. False where the store has been silent for `patience`; with `in_all`, where it has taken
    /// so long. A failure is no matter of this: it is met again when the volume is closed.
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

    /// What is not written out yet, in words; nothing where it does not say.
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

    /// Sends the process a signal; that it is not allowed, or gone, is no matter.
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
                // It dies, maybe before it has taken the connection.
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

    /// Waits for a process that was killed.
    pub(super) fn wait_for_exit(&self) {
        if let Some(process) = &self.process {
            exited(process);
        }
    }
}

/// Waits for a process that has nothing left to do but to exit.
fn exited(process: &OwnedFd) {
    wait_for(process, LAST_STEPS);
}

/// Waits until a descriptor is readable; false where it is not in time.
fn wait_for(fd: impl AsFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: 0,
    };
    let mut poll = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut poll, Some(&limit))) == Ok(1)
}

/// Anybody can mount something that calls itself hushfs: nothing of its message may steer a terminal.
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
        // What is not read when it dies resets the connection, as one does that was never accepted.
        (&waiting.stream).write_all(b"?").unwrap();
        drop(peer);
        let told = waiting.wait(Path::new("/mnt")).unwrap_err().to_string();
        assert!(told.contains("died before all was written"), "{told}");
    }
}
