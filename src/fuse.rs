//! The FUSE edge: requests of the kernel become [`Volume`] calls, errors become errnos.
//!
//! The one file that knows fuser, and no logic in it. What the kernel is told here it may keep for a day: below
//! a mount we are the only writer.

use std::any::Any;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use fuser::{
    BackgroundSession, Config, Errno, FileHandle, Generation, INodeNo, InitFlags, KernelConfig,
    Notifier, Request, SessionACL,
};

use crate::error::{Error, Kind, Result};
use crate::overdue;
use crate::volume::{Attr, Changed, Handle, Ino, SetAttr, SetId, Volume};

mod answers;
mod asker;
mod faults;
mod mapped;
mod ops;
mod shown;
mod types;
mod uncached;
mod watch;
mod xattrs;

use asker::Asker;
use faults::Faults;
use mapped::{Mapped, seems_empty};
pub use shown::ShownAs;
use types::{Shown, TTL, file_attr};
use uncached::Uncached;
use watch::{Running, Watch, Watcher};

/// The largest write in one request, in bytes: what the kernel's 256 pages per request allow.
pub const WRITE_LEN_MAX: u32 = 1 << 20;

/// The largest read in one request, in bytes. Measured: streams gain some 7 % over 1 MiB; half of it is no
/// better.
pub const READ_LEN_MAX: u32 = 256 << 10;

/// An attribute of the root directory that says where [`crate::mount::unmount`] hears how the mount ended. In
/// `system.`, which needs no permission to read and which programs that copy attributes leave alone.
pub const SESSION_ATTRIBUTE: &str = "system.hushfs.session";

/// Requests that the kernel may send ahead of need. Its default of 16 starves parallel read-ahead.
const BACKGROUND_MAX: u16 = 64;

/// Threads that take requests: a slow read must not stop all. The kernel wakes the one that has slept longest; with
/// eight, not four, small files are created some 8 % faster on two CPUs, streams are as fast, and sixteen gain no more.
const THREADS: usize = 8;

/// Wanted from the kernel where it offers them. Not wanted:
/// - locks, so the kernel keeps them itself;
/// - the write-back cache, with which the kernel would own sizes and times;
/// - ATOMIC_O_TRUNC, under which `open(O_RDONLY | O_TRUNC)` of a program that runs cuts it, and only then fails with
///   ETXTBSY. Without, the cut is a setattr of its own, after the checks.
///
/// ALLOW_IDMAP has the kernel say who asks only where something is made: see [`asker`].
///
/// HANDLE_KILLPRIV_V2 saves a getxattr before each write. Under it the kernel goes on honouring a set-user-id bit
/// from its cache after a write has cleared it, so the cached attributes are called back before such a write is
/// answered.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_ALLOW_IDMAP);

/// What is done where the store does not answer.
pub struct Patience {
    /// So long a request waits for it; then it is answered with EIO.
    pub timeout: Duration,
    /// What the log calls the store.
    pub store: String,
}

/// A volume that answers the kernel.
pub struct Session {
    session: BackgroundSession,
    watching: Running,
    /// Nothing is ever sent; hangs up when the last thread has let go of the volume.
    gone: mpsc::Receiver<()>,
}

impl Session {
    /// Answers the requests that come from `device`, an open `/dev/fuse` that is mounted already. `name` is the
    /// value of [`SESSION_ATTRIBUTE`].
    pub fn start(
        volume: Arc<dyn Volume>,
        device: OwnedFd,
        name: Option<String>,
        patience: Patience,
        shown_as: ShownAs,
    ) -> Result<Self> {
        let failed = |e| Error::new(Kind::Io(e), "/dev/fuse");
        let watched_device = device.try_clone().map_err(failed)?;
        let watched_volume = Arc::downgrade(&volume);
        let (alive, gone) = mpsc::channel();
        let followed = Arc::clone(&volume);
        let shared = Arc::new(Shared {
            faults: Arc::new(Faults::new(Arc::downgrade(&volume))),
            volume,
            name,
            shown_as,
            read_only: AtomicBool::new(false),
            offers: OnceLock::new(),
            uncached: Uncached::default(),
            mapped: Mapped::default(),
            watch: Arc::new(Watch::new()),
            kernel: OnceLock::new(),
        });
        let adapter = Adapter {
            shared: shared.clone(),
            _alive: alive.clone(),
        };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        // The kernel checks who may ask (allow_other). fuser's own check would also refuse what the kernel
        // sends for a program that has changed its user id: the flush behind close(2), for one.
        let session = fuser::Session::from_fd(adapter, device, SessionACL::All, config)
            .and_then(|session| {
                let _ = shared.kernel.set(session.notifier());
                session.spawn()
            })
            .map_err(failed)?;
        // Weak, as the volume keeps this until it is closed.
        let told = Arc::downgrade(&shared);
        followed.follow(Box::new(move |changed| {
            if let Some(shared) = told.upgrade() {
                tell_kernel(&shared.kernel, changed);
            }
        }))?;
        drop(followed);
        let watcher = Watcher {
            watch: shared.watch.clone(),
            device: watched_device,
            timeout: patience.timeout,
            store: patience.store,
            threads: THREADS,
            filesystem: move || Adapter {
                shared: shared.clone(),
                _alive: alive.clone(),
            },
        };
        let silence = move || watched_volume.upgrade().and_then(|volume| volume.silence());
        let watching = watcher.start(silence).map_err(failed)?;
        Ok(Self {
            session,
            watching,
            gone,
        })
    }

    /// Waits for the end: until nothing is mounted and no thread can reach the volume. If a thread of fuser
    /// fails, the others would go on without it: `abort` then has to break the connection.
    pub fn join(self, abort: impl FnOnce()) -> Result<()> {
        let join = |session: BackgroundSession| match session.join() {
            // How the end looks to a thread that was just taking a request: the kernel has cut the connection.
            Err(e) if e.raw_os_error() != Some(libc::ECONNABORTED) => Err(e),
            _ => Ok(()),
        };
        let mut result = join(self.session);
        if result.is_err() {
            abort();
        }
        for session in self.watching.stop() {
            result = result.and(join(session));
        }
        let _ = self.gone.recv();
        result.map_err(|e| Error::new(Kind::Io(e), "the FUSE session"))
    }
}

/// What a session of fuser answers with: all of them with the same.
struct Adapter {
    shared: Arc<Shared>,
    _alive: mpsc::Sender<()>,
}

impl Deref for Adapter {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

struct Shared {
    faults: Arc<Faults>,
    volume: Arc<dyn Volume>,
    name: Option<String>,
    shown_as: ShownAs,
    /// Set by the first panic: whatever it left half done, nothing is written on top.
    read_only: AtomicBool,
    /// Set by the first session.
    offers: OnceLock<Offers>,
    uncached: Uncached,
    mapped: Mapped,
    watch: Arc<Watch>,
    /// For what the kernel has to be told; there before the first request is taken.
    kernel: OnceLock<Notifier>,
}

/// What the kernel offers.
#[derive(Default, Clone, Copy)]
struct Offers {
    no_opendir: bool,
    /// The kernel drops cached pages before direct writes: Linux since 6.6, which is when it began to offer
    /// DIRECT_IO_ALLOW_MMAP.
    may_uncache: bool,
}

impl Shared {
    fn offers(&self) -> Offers {
        self.offers.get().copied().unwrap_or_default()
    }

    /// Tells the kernel what is wanted of it, and notes what it offers. Only the first session does.
    fn negotiate(&self, config: &mut KernelConfig) -> io::Result<()> {
        if self.offers.get().is_some() {
            return Ok(());
        }
        let offered = config.capabilities();
        // By access lists the kernel would check something else than what is shown.
        let wanted = match self.shown_as.differs() {
            true => WANTED - InitFlags::FUSE_POSIX_ACL,
            false => WANTED,
        };
        // Nothing here is refused: flags are among those offered, numbers within fuser's bounds.
        let set = config.add_capabilities(wanted & offered).is_ok()
            && config.set_max_write(WRITE_LEN_MAX).is_ok()
            && config.set_max_background(BACKGROUND_MAX).is_ok()
            && config.set_time_granularity(Duration::from_nanos(1)).is_ok();
        if !set {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        let _ = self.offers.set(Offers {
            may_uncache: offered.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP),
            no_opendir: offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        });
        Ok(())
    }

    /// Runs one operation. A panic ends neither the thread nor the mount.
    fn call<T>(
        &self,
        op: &'static str,
        ino: INodeNo,
        run: impl FnOnce(&dyn Volume, Ino) -> Result<T>,
    ) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| run(&*self.volume, Ino(ino.0)))) {
            Ok(result) => result.map_err(|e| self.faults.errno(op, ino, &e)),
            Err(panic) => {
                self.read_only.store(true, Ordering::Relaxed);
                let what = panic_text(&*panic);
                log::error!("{op} of inode {ino} panicked; read-only from now on: {what}");
                Err(Errno::EIO)
            }
        }
    }

    /// Runs one operation that changes something.
    fn change<T>(
        &self,
        op: &'static str,
        ino: INodeNo,
        run: impl FnOnce(&dyn Volume, Ino) -> Result<T>,
    ) -> Result<T, Errno> {
        if self.read_only.load(Ordering::Relaxed) {
            return Err(Errno::EROFS);
        }
        self.call(op, ino, run)
    }

    /// Has the kernel ask for the attributes of a file again, also where a reply with them is on its way. Only those:
    /// calling back pages from inside a request could wait for the request itself.
    fn call_back_attrs(&self, ino: INodeNo) {
        const ATTRIBUTES_ONLY: i64 = -1;
        if let Some(kernel) = self.kernel.get()
            && let Err(e) = kernel.inval_inode(ino, ATTRIBUTES_ONLY, 0)
        {
            log::debug!("inode {ino}: the kernel was not told that its attributes changed: {e}");
        }
    }

    /// What the kernel is told of a file.
    fn shown(&self, mut attr: Attr) -> Shown {
        let ttl = match self.mapped.count_in(&mut attr) {
            true => Duration::ZERO,
            false => TTL,
        };
        self.shown_as.show(&mut attr);
        Shown {
            attr: file_attr(&attr),
            generation: Generation(attr.generation.into()),
            ttl,
        }
    }

    /// A file that was there was opened. What the kernel knows of it may be from before there could be maps.
    fn note_opened(&self, ino: INodeNo, handle: FileHandle, flags: i32) {
        let is_mappable = self.mapped.opened(ino, handle, flags);
        // Nearly all files have blocks: their attributes stay where they are.
        let seems_empty = |v: &dyn Volume, ino| Ok(seems_empty(&v.getattr(ino)?));
        if is_mappable && self.call("open", ino, seems_empty) == Ok(true) {
            self.call_back_attrs(ino);
        }
    }

    /// Before contents change: takes the privileges that a file must lose, and has the kernel ask for its attributes
    /// again.
    fn drop_privileges(
        &self,
        ino: INodeNo,
        set_id: impl FnOnce(&Attr) -> SetId,
    ) -> Result<(), Errno> {
        let dropped = self.change("write", ino, |v, ino| drop_privileges(v, ino, set_id))?;
        if dropped {
            self.call_back_attrs(ino);
        }
        Ok(())
    }

    /// Changes contents, and takes the privileges that a file must lose by that.
    fn change_contents<T>(
        &self,
        op: &'static str,
        ino: INodeNo,
        set_id: impl FnOnce(&Attr) -> SetId,
        run: impl FnOnce(&dyn Volume, Ino) -> Result<T>,
    ) -> Result<T, Errno> {
        self.drop_privileges(ino, set_id)?;
        self.change(op, ino, run)
    }

    /// Changes attributes, and takes the privileges that a file must lose by that.
    fn set_attr(&self, req: &Request, ino: INodeNo, change: &SetAttr) -> Result<Attr, Errno> {
        self.change("setattr", ino, |v, ino| {
            // chown(-1, -1) comes as a change of nothing, without a check of who may do it. So does what precedes a
            // write to a file with set-id bits, whoever writes; the write then takes them itself.
            let is_nothing = *change == SetAttr::default();
            if is_nothing {
                let (attr, asker) = (v.getattr(ino)?, Asker::of(req));
                let owner = self.shown_as.uid.unwrap_or(attr.uid);
                if asker.is_ordinary() && owner != asker.uid {
                    return Ok(attr);
                }
            }
            let Some(change) = self.to_store(v, ino, change)? else {
                return v.getattr(ino);
            };
            // The attributes that are answered have the new mode, so the kernel need not be told.
            if change.plain_size.is_some() {
                drop_privileges(v, ino, |attr| Asker::of(req).set_id_on_write(attr))?;
            } else if is_nothing || change.uid.or(change.gid).is_some() {
                drop_privileges(v, ino, |attr| Asker::of(req).set_id_on_chown(attr))?;
            }
            v.setattr(ino, &change)
        })
    }

    /// Has all of a file made durable. `answer` is called when the volume says so, from whichever thread that is; with
    /// one that is dropped unused, the reply is dropped, and fuser then sends EIO.
    fn sync(
        &self,
        op: &'static str,
        ino: INodeNo,
        fh: FileHandle,
        answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let faults = self.faults.clone();
        let _ = self.call(op, ino, |volume, node| {
            let told =
                move |result: Result<()>| answer(result.map_err(|e| faults.errno(op, ino, &e)));
            volume.fsync(node, Handle(fh.0), Box::new(told));
            Ok(())
        });
        overdue::leave();
    }
}

/// Takes the privileges that a file must lose. Nearly always it has none, and who asks does not matter.
fn drop_privileges(
    volume: &dyn Volume,
    ino: Ino,
    set_id: impl FnOnce(&Attr) -> SetId,
) -> Result<bool> {
    if !volume.has_privileges(ino)? {
        return Ok(false);
    }
    volume.drop_privileges(ino, set_id(&volume.getattr(ino)?))
}

/// Has the kernel forget what changed elsewhere. Waits for requests that are being answered.
fn tell_kernel(kernel: &OnceLock<Notifier>, changed: &Changed) {
    let Some(kernel) = kernel.get() else { return };
    let told = match changed {
        Changed::Inode(ino) => kernel.inval_inode(INodeNo(ino.0), 0, 0),
        Changed::Name(parent, name) => kernel.inval_entry(INodeNo(parent.0), name),
    };
    // What it does not know, it need not forget.
    if let Err(e) = told
        && e.kind() != io::ErrorKind::NotFound
    {
        log::debug!("the kernel was not told of a change: {e}");
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
