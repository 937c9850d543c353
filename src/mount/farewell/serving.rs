//! The server, in the process of the mount.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{ALIVE, END, LIST, MESSAGE_LEN_MAX, WRITE_OUT};
use crate::error::Result;
use crate::volume::Volume;

/// Maximum number of clients. Further connections are not accepted.
const CLIENTS_MAX: usize = 16;

/// Maximum number of unwritten files that are listed by name; of the others, only number and total size are given.
const FILES_NAMED: usize = 20;

/// Listens for clients until the result is sent.
pub(in crate::mount) struct Farewell {
    pub name: String,
    /// Closing it ends the thread.
    stop: UnixStream,
    thread: JoinHandle<Vec<UnixStream>>,
}

impl Farewell {
    /// Starts to listen. Returns `None` if that fails: unmounting then does not wait.
    pub(in crate::mount) fn listen(volume: &Arc<dyn Volume>) -> Option<Self> {
        let pid = std::process::id();
        // Any process can take a name, so several are tried.
        let (name, listener) = (0..16).find_map(|attempt| {
            let name = format!("hushfs-{pid}-{attempt}");
            let listener =
                UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).ok()?).ok()?;
            Some((name, listener))
        })?;
        listener.set_nonblocking(true).ok()?;
        let (stop, stopped) = UnixStream::pair().ok()?;
        let serving = Serving {
            volume: Arc::downgrade(volume),
            listener,
            stopped,
            clients: Vec::new(),
            writing: None,
            answers: 0,
        };
        let thread = thread::Builder::new().name("farewell".into());
        let thread = thread.spawn(move || serving.serve()).ok()?;
        Some(Self { name, stop, thread })
    }

    /// Sends the result to the clients. The library must have been released by now, except for what this thread holds
    /// of it.
    pub(in crate::mount) fn tell(self, result: &Result<()>) {
        drop(self.stop);
        let (code, text) = match result {
            Ok(()) => (0, String::new()),
            Err(e) => (e.exit_status() as u8, e.to_string()),
        };
        for mut client in self.thread.join().unwrap_or_default() {
            // A message this short always fits into the socket's buffer, so a client that has gone away does not block
            // this.
            let mut message = vec![END, code];
            message.extend_from_slice(&text.as_bytes()[..text.len().min(MESSAGE_LEN_MAX)]);
            let _ = client.write_all(&message);
        }
    }
}

struct Serving {
    volume: Weak<dyn Volume>,
    listener: UnixListener,
    stopped: UnixStream,
    clients: Vec<Client>,
    /// Set while everything is being written out; the stream ends when that has ended.
    writing: Option<(UnixStream, JoinHandle<()>)>,
    /// Number of the store's answers that the clients know of.
    answers: u64,
}

struct Client {
    stream: UnixStream,
    waits: bool,
}

impl Serving {
    fn serve(mut self) -> Vec<UnixStream> {
        const LOOK: Timespec = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        loop {
            // With as many clients as there may be, one more is not accepted yet, and must not end each wait.
            let accepted = if self.clients.len() < CLIENTS_MAX {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            let listener = PollFd::new(&self.listener, accepted);
            let mut polled = vec![readable(&self.stopped), listener];
            polled.extend(self.writing.as_ref().map(|(done, _)| readable(done)));
            polled.extend(self.clients.iter().map(|client| readable(&client.stream)));
            let limit = (!self.clients.is_empty()).then_some(&LOOK);
            let _ = rustix::event::poll(&mut polled, limit);
            let is_over = !polled[0].revents().is_empty();
            let is_written = self.writing.is_some() && !polled[2].revents().is_empty();
            drop(polled);
            while !is_over && self.clients.len() < CLIENTS_MAX {
                let Ok((stream, _)) = self.listener.accept() else {
                    break;
                };
                if stream.set_nonblocking(true).is_ok() {
                    let waits = false;
                    self.clients.push(Client { stream, waits });
                }
            }
            if is_written || is_over {
                self.written();
            }
            if is_over {
                return self.clients.into_iter().map(|c| c.stream).collect();
            }
            self.hear();
            self.tell_answers();
        }
    }

    /// Reads and handles the clients' requests.
    fn hear(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            let mut bytes = [0; 8];
            let heard = match client.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(len) => &bytes[..len],
                Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
            };
            heard.iter().all(|byte| match *byte {
                WRITE_OUT => {
                    client.waits = true;
                    self.write_out();
                    true
                }
                LIST => client.stream.write_all(&self.list(&client.stream)).is_ok(),
                _ => false,
            })
        });
        self.clients = clients;
    }

    /// Starts to write everything out, on a thread that may wait for the store.
    fn write_out(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let (Some(volume), Ok((done, doing))) = (self.volume.upgrade(), UnixStream::pair()) else {
            return;
        };
        let work = move || {
            // Whatever fails is retried, and reported, when the volume is closed.
            if let Err(e) = volume.write_all() {
                log::warn!("{e}");
            }
            drop(volume);
            drop(doing);
        };
        let thread = thread::Builder::new().name("write-out".into()).spawn(work);
        self.writing = thread.ok().map(|thread| (done, thread));
    }

    /// Waits until writing out has ended, and notifies the clients that asked for it.
    fn written(&mut self) {
        if let Some((_, thread)) = self.writing.take() {
            let _ = thread.join();
        }
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            client.waits = false;
            let _ = client.stream.write_all(&[WRITE_OUT]);
        }
    }

    fn tell_answers(&mut self) {
        let Some(volume) = self.volume.upgrade() else {
            return;
        };
        let answers = volume.answers();
        if std::mem::replace(&mut self.answers, answers) != answers {
            for client in &mut self.clients {
                let _ = client.stream.write_all(&[ALIVE]);
            }
        }
    }

    /// Describes what is not written out, with names if the client may know them.
    fn list(&self, to: &UnixStream) -> Vec<u8> {
        let files = self
            .volume
            .upgrade()
            .map_or_else(Vec::new, |v| v.unwritten());
        let peer = rustix::net::sockopt::socket_peercred(to);
        let is_owner = peer.is_ok_and(|p| p.uid.is_root() || p.uid == rustix::process::getuid());
        let text = in_words(&files, if is_owner { FILES_NAMED } else { 0 });
        let text = &text.as_bytes()[..text.len().min(MESSAGE_LEN_MAX)];
        let mut message = vec![LIST];
        message.extend_from_slice(&(text.len() as u16).to_le_bytes());
        message.extend_from_slice(text);
        message
    }
}

fn readable(stream: &impl AsFd) -> PollFd<'_> {
    PollFd::new(stream, PollFlags::IN)
}

/// Describes files and how many bytes of them are not written out, the first `named` of them by name.
fn in_words(files: &[(Vec<u8>, u64)], named: usize) -> String {
    let mut words: Vec<String> = files
        .iter()
        .take(named)
        .map(|(path, bytes)| format!("{bytes} bytes of {}", String::from_utf8_lossy(path)))
        .collect();
    let others = files.get(named..).unwrap_or_default();
    let bytes: u64 = others.iter().map(|(_, bytes)| bytes).sum();
    if !others.is_empty() {
        let more = if words.is_empty() { "" } else { " more" };
        words.push(format!("{bytes} bytes of {}{more} files", others.len()));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_named_up_to_a_bound() {
        let files = [
            (b"/a".to_vec(), 1),
            (b"/b".to_vec(), 2),
            (b"/c".to_vec(), 3),
        ];
        assert_eq!(in_words(&[], 2), "");
        assert_eq!(in_words(&files[..1], 2), "1 bytes of /a");
        assert_eq!(
            in_words(&files, 1),
            "1 bytes of /a, 5 bytes of 2 more files"
        );
        assert_eq!(in_words(&files, 0), "6 bytes of 3 files");
    }
}
