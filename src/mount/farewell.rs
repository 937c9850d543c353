//! How `hushfs umount` hears that a mount has ended, and how: umount(2) returns before everything is written.
//!
//! The serving process listens on an abstract socket, whose name is an attribute of the mounted root directory.
//! Who wants to know connects before unmounting, and is told when the volume is closed: one byte, 0 or the exit
//! code, and the message. A process that dies tells nothing, and the connection ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::process::PidfdFlags;

use crate::error::{Error, ExitStatus, Kind, Result};
use crate::fuse::SESSION_ATTRIBUTE;

/// How long the end may take: a full buffer, and the last pack and segment, on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a process may take to exit when all is written.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// The longest message told, in bytes, and the longest believed.
const MESSAGE_LEN_MAX: usize = 4096;

/// The serving side.
pub(super) struct Farewell {
    pub name: String,
    listener: UnixListener,
}

impl Farewell {
    /// Listens; `None` if that cannot be: unmounting then does not wait.
    pub(super) fn listen() -> Option<Self> {
        let pid = std::process::id();
        // Names are free for all to take, so another one is tried.
        (0..16).find_map(|attempt| {
            let name = format!("hushfs-{pid}-{attempt}");
            let listener =
                UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).ok()?).ok()?;
            listener.set_nonblocking(true).ok()?;
            Some(Self { name, listener })
        })
    }

    /// Tells those who wait. The library must be let go by now.
    pub(super) fn tell(self, result: &Result<()>) {
        let (code, text) = match result {
            Ok(()) => (0, String::new()),
            Err(e) => (e.exit_status() as u8, e.to_string()),
        };
        while let Ok((mut stream, _)) = self.listener.accept() {
            // So little always fits in the socket's buffer; who has gone away is not waited for.
            let mut message = vec![code];
            message.extend_from_slice(&text.as_bytes()[..text.len().min(MESSAGE_LEN_MAX)]);
            let _ = stream.set_nonblocking(true);
            let _ = stream.write_all(&message);
        }
    }
}

/// The waiting side.
pub(super) struct Connection {
    stream: UnixStream,
    /// The process at the other end, where it can be seen.
    process: Option<OwnedFd>,
}

/// Connects to the process behind a mount; `None` where it does not say, or may not be asked by this user.
pub(super) fn connect(point: &Path) -> Option<Connection> {
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(point, SESSION_ATTRIBUTE, &mut value).ok()?;
    let name = SocketAddr::from_abstract_name(&value[..len]).ok()?;
    let stream = UnixStream::connect_addr(&name).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok();
    let process = peer.and_then(|p| rustix::process::pidfd_open(p.pid, PidfdFlags::empty()).ok());
    Some(Connection { stream, process })
}

impl Connection {
    /// Waits for the end, at most [`PATIENCE`].
    pub(super) fn wait(self, point: &Path) -> Result<()> {
        let mut message = Vec::new();
        let limit = MESSAGE_LEN_MAX as u64 + 1;
        let read = self.stream.take(limit).read_to_end(&mut message);
        // Anything else is how it looks when the process dies before it has taken the connection.
        let is_late = |e: io::Error| e.kind() == io::ErrorKind::WouldBlock;
        if read.is_err_and(is_late) && message.is_empty() {
            return Err(Error::new(Kind::TimedOut, point.display())
                .hint("it is unmounted, but its process is still writing: wait for the process hushfs to end"));
        }
        if let Some(process) = self.process {
            exited(&process);
        }
        match message.split_first() {
            Some((0, _)) => Ok(()),
            Some((code, text)) => {
                let status = ExitStatus::from_code(*code).unwrap_or(ExitStatus::Failure);
                Err(Error::from(Kind::Ended(status, printable(text).into())))
            }
            None => Err(Error::new(
                Kind::Mount("its process died before all was written".into()),
                point.display(),
            )
            .hint("nothing is lost that was closed: the next mount takes it over")),
        }
    }
}

/// Waits for a process that has nothing left to do but to exit.
fn exited(process: &OwnedFd) {
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry is handed over, and its descriptor is open.
    unsafe { libc::poll(&mut poll, 1, LAST_STEPS.as_millis() as i32) };
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
