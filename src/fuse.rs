//! The FUSE adapter: requests of the kernel become [`Volume`] calls, and errors become errnos.
//!
//! Only this module and its submodules use fuser. `ops` has one method per request. `uncached`, `mapped` and `shown` decide
//! what the kernel caches, and which attributes it sees; `watch` answers requests if the store hangs. The kernel may cache
//! every answer for a day, because nothing else changes the volume. [`Volume::follow`] reports the exceptions.

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
mod faults;
mod mapped;
mod ops;
mod requester;
mod shown;
mod types;
mod uncached;
mod watch;
mod xattrs;

use faults::Faults;
use mapped::{Mapped, seems_empty};
use requester::Requester;
pub use shown::ShownAs;
use types::{ShownAttr, TTL, file_attr};
use uncached::Uncached;
use watch::{Watch, WatchThread, Watcher};

/// The largest write in one request, in bytes. The kernel allows 256 pages per request.
pub const WRITE_LEN_MAX: u32 = 1 << 20;

/// The largest read in one request, in bytes. Measured: sequential reads are about 7 % faster than with 1 MiB; 128 KiB
/// is no better.
pub const READ_LEN_MAX: u32 = 256 << 10;

/// An extended attribute of the root directory: the address at which [`crate::mount::unmount`] learns how the mount ended.
/// It is in the namespace `system.`, which anyone may read and which programs that copy attributes ignore.
pub const SESSION_ATTRIBUTE: &str = "system.hushfs.session";

/// How many background requests (read-ahead, for example) the kernel may send at a time. Its default of 16 starves
/// parallel readers.
const BACKGROUND_MAX: u16 = 64;

/// Threads that answer requests, so that a slow read does not stop the others. Measured on two CPUs: with eight threads,
/// small files are created about 8 % faster than with four and sequential I/O is as fast; sixteen gain no more.
const THREADS: usize = 8;

/// Features that are enabled if the kernel offers them. Not enabled are:
/// - locks: the kernel then manages them itself;
/// - the write-back cache: the kernel would then be the authority on sizes and times;
/// - ATOMIC_O_TRUNC: `open(O_RDONLY | O_TRUNC)` of a running program would truncate it and only then fail with ETXTBSY.
///   Without it, the kernel truncates with a separate setattr, after its checks.
///
/// With ALLOW_IDMAP, the kernel names the requesting user only in requests that create something: see [`requester`].
///
/// HANDLE_KILLPRIV_V2 saves a getxattr before each write. But the kernel keeps honouring a cached set-user-id bit after a
/// write has cleared it, so the cached attributes are invalidated before such a write is answered.
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

/// What to do if the store does not answer.
pub struct Patience {
    /// How long a request waits for the store before it is answered with EIO.
    pub timeout: Duration,
    /// The store's name in log messages.
    pub store: String,
}

/// A volume that answers the kernel.
pub struct Session {
    session: BackgroundSession,
    watching: WatchThread,
    /// Nothing is ever sent. The channel closes when the last thread has released the volume.
    gone: mpsc::Receiver<()>,
}

impl Session {
    /// Starts to answer the requests from `device`, an open `/dev/fuse` that is already mounted. `name` is the value of
    /// [`SESSION_ATTRIBUTE`].
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
        // The kernel checks access (allow_other). fuser's own check would also refuse requests that the kernel sends for
        // a program that has changed its user id, such as the flush after close(2).
        let session = fuser::Session::from_fd(adapter, device, SessionACL::All, config)
            .and_then(|session| {
                let _ = shared.kernel.set(session.notifier());
                session.spawn()
            })
            .map_err(failed)?;
        // A weak reference, because the volume keeps the closure until it is closed.
        let listener = Arc::downgrade(&shared);
        followed.follow(Box::new(move |changed| {
            if let Some(shared) = listener.upgrade() {
                invalidate(&shared.kernel, changed);
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

    /// Waits until the filesystem is unmounted and no thread can reach the volume any more. If a thread of fuser fails, the
    /// others would continue without it: `abort` must then break the connection.
    pub fn join(self, abort: impl FnOnce()) -> Result<()> {
        let join = |session: BackgroundSession| match session.join() {
            // A normal end, seen by a thread that was just taking a request: the kernel has closed the connection.
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

/// The filesystem of one fuser session. All sessions share one state.
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
    /// Set by the first panic, which may have left something half done: nothing is written on top of that.
    read_only: AtomicBool,
    /// Set by the first session.
    offers: OnceLock<Offers>,
    uncached: Uncached,
    mapped: Mapped,
    watch: Arc<Watch>,
    /// Sends invalidations to the kernel. Set before the first request is taken.
    kernel: OnceLock<Notifier>,
}

/// What the kernel offered when the first session started.
#[derive(Default, Clone, Copy)]
struct Offers {
    no_opendir: bool,
    /// The kernel drops cached pages before direct writes. Linux does so since 6.6, the first version that offers
    /// DIRECT_IO_ALLOW_MMAP.
    may_uncache: bool,
}

impl Shared {
    fn offers(&self) -> Offers {
        self.offers.get().copied().unwrap_or_default()
    }

    /// Enables features of the kernel, and records what it offers. Does nothing in any but the first session.
    fn negotiate(&self, config: &mut KernelConfig) -> io::Result<()> {
        if self.offers.get().is_some() {
            return Ok(());
        }
        let offered = config.capabilities();
        // The kernel would check stored access lists instead of the permissions that are shown.
        let wanted = if self.shown_as.differs() {
            WANTED - InitFlags::FUSE_POSIX_ACL
        } else {
            WANTED
        };
        // None of this should fail: the flags were offered, and the numbers are within fuser's bounds.
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

    /// Runs one operation. If it panics, the thread and the mount go on, but nothing is written any more.
    fn call<T>(
        &self,
        op: &'static str,
        ino: INodeNo,
        run: impl FnOnce(&dyn Volume, Ino) -> Result<T>,
    ) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| run(&*self.volume, Ino(ino.0)))) {
            Ok(result) => result.map_err(|e| self.faults.report(op, ino, &e)),
            Err(panic) => {
                self.read_only.store(true, Ordering::Relaxed);
                let what = panic_text(&*panic);
                log::error!("{op} of inode {ino} panicked, continuing read-only: {what}");
                Err(Errno::EIO)
            }
        }
    }

    /// Runs one operation that changes something; EROFS after a panic.
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

    /// Invalidates the kernel's cached attributes of a file, including those in a reply that is on its way. Cached pages
    /// are kept: to invalidate them from inside a request could wait for that very request.
    fn invalidate_attrs(&self, ino: INodeNo) {
        const ATTRIBUTES_ONLY: i64 = -1;
        if let Some(kernel) = self.kernel.get()
            && let Err(e) = kernel.inval_inode(ino, ATTRIBUTES_ONLY, 0)
        {
            log::debug!("inode {ino}: cannot invalidate the kernel's attributes: {e}");
        }
    }

    /// The attributes of a file for the kernel.
    fn shown(&self, mut attr: Attr) -> ShownAttr {
        let mut ttl = TTL;
        if self.mapped.may_hide_data(&attr) {
            attr.blocks_512 = 1;
            ttl = Duration::ZERO;
        }
        self.shown_as.show(&mut attr);
        ShownAttr {
            attr: file_attr(&attr),
            generation: Generation(attr.generation.into()),
            ttl,
        }
    }

    /// Called after an existing file was opened. Attributes that the kernel cached earlier may become wrong once programs
    /// can change the file through memory maps.
    fn record_opened(&self, ino: INodeNo, handle: FileHandle, flags: i32) {
        let is_mappable = self.mapped.opened(ino, handle, flags);
        // Nearly all files have blocks, so that their attributes stay cached.
        let seems_empty = |v: &dyn Volume, ino| Ok(seems_empty(&v.getattr(ino)?));
        if is_mappable && self.call("open", ino, seems_empty) == Ok(true) {
            self.invalidate_attrs(ino);
        }
    }

    /// Called before contents change: removes the privileges that a file must lose, and invalidates its cached attributes.
    fn drop_privileges(
        &self,
        ino: INodeNo,
        set_id: impl FnOnce(&Attr) -> SetId,
    ) -> Result<(), Errno> {
        let dropped = self.change("write", ino, |v, ino| drop_privileges(v, ino, set_id))?;
        if dropped {
            self.invalidate_attrs(ino);
        }
        Ok(())
    }

    /// Changes contents, after removing the privileges that a file must lose by that.
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

    /// Changes attributes, and removes the privileges that a file must lose by that.
    fn set_attr(&self, req: &Request, ino: INodeNo, change: &SetAttr) -> Result<Attr, Errno> {
        self.change("setattr", ino, |v, ino| {
            // chown(-1, -1) arrives as an empty change, which the kernel does not check for permission. Before a write to a
            // file with set-id bits, the kernel also sends an empty change, for any writer; the write then removes the bits
            // itself.
            let is_nothing = *change == SetAttr::default();
            if is_nothing {
                let (attr, requester) = (v.getattr(ino)?, Requester::of(req));
                let owner = self.shown_as.uid.unwrap_or(attr.uid);
                if requester.is_ordinary() && owner != requester.uid {
                    return Ok(attr);
                }
            }
            let Some(change) = self.to_store(v, ino, change)? else {
                return v.getattr(ino);
            };
            // The answer contains the new mode, so no invalidation is needed.
            if change.plain_size.is_some() {
                drop_privileges(v, ino, |attr| Requester::of(req).set_id_on_write(attr))?;
            } else if is_nothing || change.uid.or(change.gid).is_some() {
                drop_privileges(v, ino, |attr| Requester::of(req).set_id_on_chown(attr))?;
            }
            v.setattr(ino, &change)
        })
    }

    /// Makes a file durable. `answer` is called, on any thread, when the volume is done. If it is dropped unused, so is the
    /// reply, and fuser then sends EIO.
    fn sync(
        &self,
        op: &'static str,
        ino: INodeNo,
        fh: FileHandle,
        answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        let faults = self.faults.clone();
        let _ = self.call(op, ino, |volume, node| {
            let done =
                move |result: Result<()>| answer(result.map_err(|e| faults.report(op, ino, &e)));
            volume.fsync(node, Handle(fh.0), Box::new(done));
            Ok(())
        });
        overdue::leave();
    }
}

/// Removes the privileges that a file must lose, and returns whether there were any. Nearly always there are none; who
/// asks is looked up only if there are.
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

/// Invalidates what the kernel has cached of something that another device changed. Waits for requests that are being
/// answered.
fn invalidate(kernel: &OnceLock<Notifier>, changed: &Changed) {
    let Some(kernel) = kernel.get() else { return };
    let sent = match changed {
        Changed::Inode(ino) => kernel.inval_inode(INodeNo(ino.0), 0, 0),
        Changed::Name(parent, name) => kernel.inval_entry(INodeNo(parent.0), name),
    };
    // The kernel reports NotFound for what it has not cached.
    if let Err(e) = sent
        && e.kind() != io::ErrorKind::NotFound
    {
        log::debug!("cannot invalidate what the kernel has cached: {e}");
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
