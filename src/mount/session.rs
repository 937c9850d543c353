//! From mounting a volume to closing it, whatever ends it.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::attach::{self, Options};
use super::farewell::Farewell;
use super::point;
use crate::error::{Error, Kind, Result, io_text};
use crate::fuse;
use crate::volume::Volume;

/// How long programs with open files may continue after a signal. Then the connection is cut: whoever stops a service
/// waits for this, and what was written so far is kept either way.
const GRACE: Duration = Duration::from_secs(5);

/// Readahead of the kernel, in KiB. Its default of 128 halves the speed of streams; a quarter of this value costs 15 %,
/// twice as much gains nothing.
const READ_AHEAD_KIB: u32 = 4096;

/// Mounts `volume` at `mountpoint` (a resolved path) and serves it until it is unmounted: by `umount`, or by SIGINT,
/// SIGTERM or SIGHUP. Calls `ready` once the mount answers.
///
/// The volume is always closed, once, when nothing can reach it any more, and an error in closing it is returned.
/// `volume` should be the last reference: it is dropped before the result is sent to waiting clients. The process
/// should exit soon afterwards.
pub fn serve(
    volume: Arc<dyn Volume>,
    mountpoint: &Path,
    options: &Options,
    ready: impl FnOnce(),
) -> Result<()> {
    let farewell = Farewell::listen(&volume);
    let name = farewell.as_ref().map(|f| f.name.clone());
    let served = mount_and_wait(Arc::clone(&volume), mountpoint, options, name, ready);
    let closed = volume.close();
    volume.leave_memory();
    drop(volume);
    if let (Err(_), Err(e)) = (&served, &closed) {
        log::error!("closing {}: {e}", mountpoint.display());
    }
    let result = served.and(closed);
    if let Some(farewell) = farewell {
        farewell.tell(&result);
    }
    result
}

fn mount_and_wait(
    volume: Arc<dyn Volume>,
    mountpoint: &Path,
    options: &Options,
    name: Option<String>,
    ready: impl FnOnce(),
) -> Result<()> {
    // Handle signals before mounting, so that none can end the process without unmounting.
    let mut signals = Signals::new(signals()).map_err(|e| Error::new(Kind::Io(e), "signals"))?;
    let handle = signals.handle();
    let device = attach::attach(mountpoint, options)?;
    let mount = Mounted::find(mountpoint, options)?;
    let patience = fuse::Patience {
        timeout: options.timeout.unwrap_or(attach::TIMEOUT),
        store: options.store.clone().unwrap_or_else(|| "the store".into()),
    };
    // The channel is disconnected when the session has ended.
    let (running, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let mount = &mount;
        scope.spawn(move || {
            if signals.forever().next().is_some() {
                mount.end(&ended);
            }
        });
        let shown_as = options.shown_as;
        let session = fuse::Session::start(volume, device, name, patience, shown_as);
        let result = session.and_then(|session| {
            // The session has negotiated with the kernel, so the mount answers. Do not test this with a request: a
            // thread that waits for a request to its own process cannot be killed, and would keep the device open,
            // whose closing the kernel waits for in turn.
            mount.read_ahead();
            ready();
            notify("READY=1");
            let joined = session.join(|| mount.cut());
            // Otherwise we have cut the connection, and the mount still exists.
            mount.is_over.store(joined.is_ok(), Ordering::Relaxed);
            joined
        });
        drop(running);
        handle.close();
        result
    })
}

/// Returns the signals that end a mount. SIGHUP is left out if it is ignored, as under nohup(1).
fn signals() -> Vec<i32> {
    // SAFETY: sigaction with no new action only fills in the old one, which is plain data.
    let ignored = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(SIGHUP, std::ptr::null(), &mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    };
    let mut signals = vec![SIGINT, SIGTERM];
    if !ignored {
        signals.push(SIGHUP);
    }
    signals
}

/// The mount, as listed in the kernel's table. Dropping it unmounts it, if it is still there.
struct Mounted {
    entry: point::Entry,
    /// See [`point::Held::unique_id`].
    unique_id: Option<u64>,
    /// The kernel has ended the session: the ids of the mount may now be another's.
    is_over: AtomicBool,
}

impl Mounted {
    /// Finds what was just mounted.
    fn find(mountpoint: &Path, options: &Options) -> Result<Self> {
        let fs_type = options.fs_type();
        let lost = || {
            Error::new(
                Kind::Mount("was unmounted at once".into()),
                mountpoint.display(),
            )
        };
        let entry = point::top(mountpoint)?.filter(|e| e.fs_type == fs_type);
        let entry = entry.ok_or_else(lost)?;
        let held = point::hold(&entry.point).ok();
        let unique_id = held
            .filter(|h| h.id == Some(entry.id))
            .and_then(|h| h.unique_id);
        Ok(Self {
            entry,
            unique_id,
            is_over: AtomicBool::new(false),
        })
    }

    /// Sets the kernel's readahead. Only root may; without it, streams are slower.
    fn read_ahead(&self) {
        let _ = fs::write(
            format!("/sys/class/bdi/{}/read_ahead_kb", self.entry.device),
            READ_AHEAD_KIB.to_string(),
        );
    }

    /// Detaches the mount lazily, and only while it is the visible one at its place: another mount on top of it, or in
    /// its place, is left alone. The kernel reuses ids and device numbers immediately. So if it offers no unique ids,
    /// every field has to match, and nothing is done after the session has ended by itself.
    fn detach(&self) {
        let is_over = self.is_over.load(Ordering::Relaxed);
        if is_over && self.unique_id.is_none() {
            return;
        }
        let ours = |e: &point::Entry| match self.unique_id {
            // It may have been moved.
            Some(_) => e.id == self.entry.id && e.device == self.entry.device,
            None => *e == self.entry,
        };
        let Some(now) = point::table().ok().and_then(|t| t.into_iter().find(ours)) else {
            return;
        };
        let held = point::hold(&now.point).ok();
        let seen = held.filter(|held| match self.unique_id {
            Some(_) => held.unique_id == self.unique_id,
            None => held.id == Some(now.id) || held.id.is_none(),
        });
        let detached = match seen {
            Some(held) => attach::detach_held(held.root, &now.point),
            // The ids belong to another mount by now, so this is no mount on top of ours.
            None if is_over => return,
            None => {
                let path = now.point.display();
                log::warn!("{path}: something else is mounted on top, so it stays mounted");
                return;
            }
        };
        if let Err(e) = detached {
            log::warn!("{e}");
        }
    }

    /// Ends the mount after a signal. Runs concurrently with the session, which still answers.
    fn end(&self, ended: &mpsc::Receiver<()>) {
        notify("STOPPING=1");
        // Data written through memory maps may still be in the kernel only.
        if let Ok(root) = fs::File::open(&self.entry.point) {
            let _ = rustix::fs::syncfs(root);
        }
        self.detach();
        if ended.recv_timeout(GRACE) == Err(mpsc::RecvTimeoutError::Timeout) {
            log::warn!(
                "{}: still in use; what uses it is cut off",
                self.entry.point.display()
            );
            self.cut();
        }
    }

    /// Breaks the connection to the kernel: programs that still use the mount get ENOTCONN.
    fn cut(&self) {
        let abort = format!("{}/abort", self.entry.minor());
        let cut = fs::write(format!("/sys/fs/fuse/connections/{abort}"), "1");
        if let Err(e) = cut.or_else(|_| write_fusectl(&abort)) {
            log::warn!(
                "cannot cut the connection to the kernel, so it ends with the last open file: {e}"
            );
        }
    }
}

/// Writes to a file of fusectl, through a mount of it that is attached nowhere: root can do that if it is not mounted.
fn write_fusectl(path: &str) -> io::Result<()> {
    let context = mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_create(&context)?;
    let root = mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let file = rustix::fs::openat(root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    fs::File::from(file).write_all(b"1")
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Notifies the service manager, if there is one (sd_notify(3)).
fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &a));
    if let Err(e) = sent {
        log::warn!("{}: {}", path.display(), io_text(&e));
    }
}
