//! The FUSE edge: requests of the kernel become [`Volume`] calls, errors become errnos.
//!
//! The one file that knows fuser, and no logic in it. What the kernel is told here it may keep for a day: below
//! a mount we are the only writer.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};

use crate::error::{Error, Kind, Result};
use crate::volume::{Handle, Ino, NAME_LEN_MAX, ROOT, SetAttr, Volume, Whence, XATTR_LEN_MAX};

mod types;

use types::*;

/// The largest read or write in one request, in bytes: what the kernel's 256 pages per request allow.
pub const TRANSFER_LEN_MAX: u32 = 1 << 20;

/// An attribute of the root directory that says where [`crate::mount::unmount`] hears how the mount ended. In
/// `system.`, which needs no permission to read and which programs that copy attributes leave alone.
pub const SESSION_ATTRIBUTE: &str = "system.hushfs.session";

/// Requests that the kernel may send ahead of need. Its default of 16 starves parallel read-ahead.
const BACKGROUND_MAX: u16 = 64;

/// Threads that take requests. More did not help streams on two CPUs; these keep a slow read from stopping all.
const THREADS: usize = 4;

/// Wanted from the kernel where it offers them. Locks are not here, so the kernel keeps them itself; nor is the
/// write-back cache, with which the kernel would own sizes and times; nor HANDLE_KILLPRIV_V2, under which it
/// goes on honouring a set-user-id bit from its cache after a write has cleared it.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_CACHE_SYMLINKS);

thread_local! {
    /// Where reads are decrypted to, at most [`TRANSFER_LEN_MAX`] bytes a thread: not allocated anew per request.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A volume that answers the kernel.
pub struct Session {
    session: BackgroundSession,
    /// Nothing is ever sent; hangs up when the last thread has let go of the volume.
    gone: mpsc::Receiver<()>,
}

impl Session {
    /// Answers the requests that come from `device`, an open `/dev/fuse` that is mounted already. `name` is the
    /// value of [`SESSION_ATTRIBUTE`].
    pub fn start(volume: Arc<dyn Volume>, device: OwnedFd, name: Option<String>) -> Result<Self> {
        let (alive, gone) = mpsc::channel();
        let adapter = Adapter { volume, name, read_only: AtomicBool::new(false), no_opendir: false, _alive: alive };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        // The kernel checks who may ask (allow_other). fuser's own check would also refuse what the kernel
        // sends for a program that has changed its user id: the flush behind close(2), for one.
        let session = fuser::Session::from_fd(adapter, device, SessionACL::All, config)
            .and_then(fuser::Session::spawn)
            .map_err(|e| Error::new(Kind::Io(e), "/dev/fuse"))?;
        Ok(Self { session, gone })
    }

    /// Waits for the end: until nothing is mounted and no thread can reach the volume. If a thread of fuser
    /// fails, the others would go on without it: `abort` then has to break the connection.
    pub fn join(self, abort: impl FnOnce()) -> Result<()> {
        let result = self.session.join();
        if result.is_err() {
            abort();
        }
        let _ = self.gone.recv();
        result.map_err(|e| Error::new(Kind::Io(e), "the FUSE session"))
    }
}

struct Adapter {
    volume: Arc<dyn Volume>,
    name: Option<String>,
    /// Set by the first panic: whatever it left half done, nothing is written on top.
    read_only: AtomicBool,
    no_opendir: bool,
    _alive: mpsc::Sender<()>,
}

impl Adapter {
    /// Runs one operation. A panic ends neither the thread nor the mount.
    fn call<T>(&self, op: &'static str, ino: INodeNo, run: impl FnOnce(&dyn Volume) -> Result<T>) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| run(&*self.volume))) {
            Ok(result) => result.map_err(|e| errno(op, ino, &e)),
            Err(panic) => {
                self.read_only.store(true, Ordering::Relaxed);
                let what = panic_text(&*panic);
                log::error!("{op} of inode {ino} panicked; read-only from now on: {what}");
                Err(Errno::EIO)
            }
        }
    }

    /// Runs one operation that changes something.
    fn change<T>(&self, op: &'static str, ino: INodeNo, run: impl FnOnce(&dyn Volume) -> Result<T>) -> Result<T, Errno> {
        if self.read_only.load(Ordering::Relaxed) {
            return Err(Errno::EROFS);
        }
        self.call(op, ino, run)
    }

    /// Replies when the volume says so, from whichever thread that is. A callback that is dropped unused drops
    /// the reply, and fuser then sends EIO.
    fn sync(&self, op: &'static str, ino: INodeNo, reply: ReplyEmpty) {
        let _ = self.call(op, ino, |volume| {
            let done = move |result: Result<()>| reply_empty(reply, result.map_err(|e| errno(op, ino, &e)));
            volume.fsync(Ino(ino.0), Box::new(done));
            Ok(())
        });
    }
}

/// What a program is told of an error. What is wrong with the store, rather than with the question, is logged,
/// here and nowhere else.
fn errno(op: &str, ino: INodeNo, error: &Error) -> Errno {
    if error.is_fault() {
        log::warn!("{op} of inode {ino}: {error}");
    }
    Errno::from_i32(error.errno())
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        // Nothing here is refused: flags are among those offered, numbers within fuser's bounds.
        let refused = || io::Error::from_raw_os_error(libc::EPROTO);
        config.add_capabilities(WANTED & offered).map_err(|_| refused())?;
        config.set_max_write(TRANSFER_LEN_MAX).map_err(|_| refused())?;
        config.set_max_background(BACKGROUND_MAX).map_err(|_| refused())?;
        config.set_time_granularity(Duration::from_nanos(1)).map_err(|_| refused())?;
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.call("lookup", parent, |volume| match volume.lookup(Ino(parent.0), name) {
            Ok(attr) => Ok(Some(attr)),
            Err(e) if matches!(e.kind(), Kind::NotFound) => Ok(None),
            Err(e) => Err(e),
        });
        match found {
            Ok(Some(attr)) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            Ok(None) => reply.entry(&TTL, &NEGATIVE, GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        let _ = self.call("forget", ino, |volume| {
            volume.forget(Ino(ino.0), count);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.call("getattr", ino, |volume| volume.getattr(Ino(ino.0))));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        plain_size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change =
            SetAttr { perm: mode.map(perm), uid, gid, plain_size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        reply_attr(reply, self.change("setattr", ino, |volume| volume.setattr(Ino(ino.0), &change)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.call("readlink", ino, |volume| volume.readlink(Ino(ino.0))) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let made = self.change("mknod", parent, |volume| {
            let kind = file_kind(mode)?;
            volume.mknod(Ino(parent.0), name, kind, perm(mode), rdev, caller(req, umask))
        });
        reply_entry(reply, made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.change("mkdir", parent, |volume| volume.mkdir(Ino(parent.0), name, perm(mode), caller(req, umask)));
        reply_entry(reply, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.change("unlink", parent, |volume| volume.unlink(Ino(parent.0), name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.change("rmdir", parent, |volume| volume.rmdir(Ino(parent.0), name)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.change("symlink", parent, |volume| {
            volume.symlink(Ino(parent.0), name, target.as_os_str().as_bytes(), caller(req, 0))
        });
        reply_entry(reply, made);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let moved = self.change("rename", parent, |volume| {
            volume.rename(Ino(parent.0), name, Ino(new_parent.0), new_name, rename_mode(flags)?)
        });
        reply_empty(reply, moved);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let made = self.change("link", ino, |volume| volume.link(Ino(ino.0), Ino(parent.0), name));
        reply_entry(reply, made);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let open = |volume: &dyn Volume| volume.open(Ino(ino.0), flags.0);
        let changes = flags.0 & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY;
        let opened = if changes { self.change("open", ino, open) } else { self.call("open", ino, open) };
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle.0), fopen_flags(flags.0)),
            Err(e) => reply.error(e),
        }
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let made =
            self.change("create", parent, |volume| volume.create(Ino(parent.0), name, perm(mode), flags, caller(req, umask)));
        match made {
            Ok((attr, handle)) => {
                reply.created(&TTL, &file_attr(&attr), GENERATION, FileHandle(handle.0), fopen_flags(flags));
            }
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        plain_offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            // The mount option max_read bounds this. Answering less would read as zeros before the end of a file.
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let out = &mut buffer[..size];
            match self.call("read", ino, |volume| volume.read(Ino(ino.0), Handle(fh.0), plain_offset, out)) {
                Ok(count) => reply.data(&buffer[..count.min(size)]),
                Err(e) => reply.error(e),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        plain_offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change("write", ino, |volume| volume.write(Ino(ino.0), Handle(fh.0), plain_offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply_empty(reply, self.call("flush", ino, |volume| volume.flush(Ino(ino.0), Handle(fh.0))));
    }

    fn release(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, _: Option<LockOwner>, _: bool, reply: ReplyEmpty) {
        let released = self.call("release", ino, |volume| {
            volume.release(Ino(ino.0), Handle(fh.0));
            Ok(())
        });
        reply_empty(reply, released);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync("fsync", ino, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            // The kernel then caches directories, and never again asks to open or close one.
            return reply.error(Errno::ENOSYS);
        }
        match self.call("opendir", ino, |volume| volume.opendir(Ino(ino.0))) {
            Ok(handle) => {
                let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                reply.opened(FileHandle(handle.0), flags);
            }
            Err(e) => reply.error(e),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, cookie: u64, mut reply: ReplyDirectory) {
        let listed = self.call("readdir", ino, |volume| {
            volume.readdir(Ino(ino.0), cookie, false, &mut |entry| {
                !reply.add(INodeNo(entry.ino.0), entry.cookie, file_type(entry.kind), entry.name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, cookie: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.call("readdirplus", ino, |volume| {
            volume.readdir(Ino(ino.0), cookie, true, &mut |entry| {
                let attr = entry.attr.as_ref().expect("readdir with plus fills in attributes");
                !reply.add(INodeNo(entry.ino.0), entry.cookie, entry.name, &TTL, &file_attr(attr), GENERATION)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let released = self.call("releasedir", ino, |volume| {
            volume.releasedir(Ino(ino.0), Handle(fh.0));
            Ok(())
        });
        reply_empty(reply, released);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync("fsyncdir", ino, reply);
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.call("statfs", ino, |volume| volume.statfs()) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_bytes,
                NAME_LEN_MAX as u32,
                s.block_bytes,
            ),
            Err(e) => reply.error(e),
        }
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        let set = self.change("setxattr", ino, |volume| {
            if value.len() > XATTR_LEN_MAX {
                return Err(Kind::TooBig.into());
            }
            volume.setxattr(Ino(ino.0), name, value, xattr_mode(flags)?)
        });
        reply_empty(reply, set);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = match &self.name {
            Some(session) if ino.0 == ROOT.0 && name == SESSION_ATTRIBUTE => Ok(session.clone().into_bytes()),
            _ => self.call("getxattr", ino, |volume| volume.getxattr(Ino(ino.0), name)),
        };
        reply_xattr(reply, size, value);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.call("listxattr", ino, |volume| volume.listxattr(Ino(ino.0))));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.change("removexattr", ino, |volume| volume.removexattr(Ino(ino.0), name)));
    }

    fn ioctl(&self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _: u32, _: &[u8], _: u32, reply: ReplyIoctl) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(&self, _: &Request, _: INodeNo, _: FileHandle, _: PollNotifier, _: PollEvents, _: PollFlags, reply: ReplyPoll) {
        // Files are always ready; told once, the kernel answers that itself.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        plain_offset: u64,
        plain_len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done =
            self.change("fallocate", ino, |volume| volume.fallocate(Ino(ino.0), plain_offset, plain_len, fallocate_mode(mode)?));
        reply_empty(reply, done);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.call("lseek", ino, |volume| {
            let plain_offset = u64::try_from(offset).map_err(|_| Kind::NoSuchOffset)?;
            let whence = match whence {
                libc::SEEK_DATA => Whence::Data,
                libc::SEEK_HOLE => Whence::Hole,
                _ => return Err(Kind::InvalidArgument.into()),
            };
            volume.lseek(Ino(ino.0), plain_offset, whence)
        });
        match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(e) => reply.error(e),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits. Whole pages, so that a copy in several pieces stays aligned.
        let len = len.min(u64::from(!4095u32));
        let copied = self
            .change("copy_file_range", to, |volume| volume.copy_file_range(Ino(from.0), from_offset, Ino(to.0), to_offset, len));
        match copied {
            Ok(count) => reply.written(count as u32),
            Err(e) => reply.error(e),
        }
    }
}
