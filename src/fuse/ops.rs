//! The operations: one method per request of the kernel.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::Adapter;
use super::answers::answer_read;
use super::requester::Requester;
use super::types::{
    all_data, answer_xattr, fallocate_mode, file_kind, perm, rename_mode, seek_whence, set_time,
};
use crate::error::Kind;
use crate::volume::{Attr, Handle, Ino, SetAttr, SetId, Volume};

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = self.watch.track(req, reply);
        let found = self.call("lookup", parent, |v, parent| match v.lookup(parent, name) {
            Ok(attr) => Ok(Some(attr)),
            Err(e) if matches!(e.kind(), Kind::NotFound) => Ok(None),
            Err(e) => Err(e),
        });
        self.looked_up(reply, (parent, name), found);
    }

    fn forget(&self, req: &Request, ino: INodeNo, count: u64) {
        let _tracked = self.watch.track_unanswered(req);
        self.uncached.forgotten(ino);
        let _ = self.call("forget", ino, |v, ino| {
            v.forget(ino, count);
            Ok(())
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.call("getattr", ino, |v, ino| Ok(self.shown(v.getattr(ino)?))));
    }

    fn setattr(
        &self,
        req: &Request,
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
        let reply = self.watch.track(req, reply);
        let change = SetAttr {
            perm: mode.map(perm),
            uid,
            gid,
            plain_size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let attr = self.set_attr(req, ino, &change);
        reply.answer(attr.map(|attr| self.shown(attr)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.call("readlink", ino, |v, ino| v.readlink(ino)));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let reply = self.watch.track(req, reply);
        let made = self.change("mknod", parent, |v, parent| {
            let (kind, perm) = (file_kind(mode)?, self.perm_of_new(mode));
            v.mknod(parent, name, kind, perm, rdev, self.caller(req, umask))
        });
        self.entry(reply, (parent, name), made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let reply = self.watch.track(req, reply);
        let made = self.change("mkdir", parent, |v, parent| {
            let (perm, caller) = (self.perm_of_new(mode), self.caller(req, umask));
            v.mkdir(parent, name, perm, caller)
        });
        self.entry(reply, (parent, name), made);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        let removed = self.change("unlink", parent, |v, parent| v.unlink(parent, name));
        self.changed(reply, &[(parent, name)], removed);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        let removed = self.change("rmdir", parent, |v, parent| v.rmdir(parent, name));
        self.changed(reply, &[(parent, name)], removed);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let reply = self.watch.track(req, reply);
        let made = self.change("symlink", parent, |v, parent| {
            let target = target.as_os_str().as_bytes();
            v.symlink(parent, name, target, self.caller(req, 0))
        });
        self.entry(reply, (parent, name), made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let reply = self.watch.track(req, reply);
        let moved = self.change("rename", parent, |v, parent| {
            let mode = rename_mode(flags, self.caller(req, 0))?;
            v.rename(parent, name, Ino(new_parent.0), new_name, mode)
        });
        self.changed(reply, &[(parent, name), (new_parent, new_name)], moved);
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let reply = self.watch.track(req, reply);
        let linked = self.change("link", ino, |v, ino| v.link(ino, Ino(parent.0), name));
        self.entry(reply, (parent, name), linked);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let reply = self.watch.track(req, reply);
        let open = |v: &dyn Volume, ino| v.open(ino, flags.0);
        let changes = flags.0 & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY;
        let opened = if changes {
            self.change("open", ino, open)
        } else {
            self.call("open", ino, open)
        };
        self.opened(reply, ino, flags.0, opened);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let reply = self.watch.track(req, reply);
        let made = self.change("create", parent, |v, parent| {
            let (perm, caller) = (self.perm_of_new(mode), self.caller(req, umask));
            v.create(parent, name, perm, flags, caller)
        });
        self.created(reply, (parent, name), flags, made);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        plain_offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = self.watch.track(req, reply);
        answer_read(reply, size as usize, |out| {
            self.call("read", ino, |v, ino| {
                v.read(ino, Handle(fh.0), plain_offset, out)
            })
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        plain_offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let reply = self.watch.track(req, reply);
        let data_len = data.len() as u32;
        let set_id = |attr: &Attr| {
            if flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                Requester::of(req).set_id_unless_in_group(attr)
            } else {
                SetId::Keep
            }
        };
        let written = self.change_contents("write", ino, set_id, |v, ino| {
            if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                v.write_back(ino, Handle(fh.0), plain_offset, data)
            } else {
                v.write(ino, Handle(fh.0), plain_offset, data)
            }
        });
        let answer = move |result: Result<(), Errno>| {
            reply.answer(result.map(|()| data_len));
        };
        // For files that bypass the page cache, the kernel leaves O_DSYNC to us.
        if written.is_ok() && open_flags.0 & libc::O_DSYNC != 0 && self.uncached.is_open(ino) {
            self.sync("write", ino, fh, answer)
        } else {
            answer(written)
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.call("flush", ino, |v, ino| v.flush(ino, Handle(fh.0))));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let reply = self.watch.track(req, reply);
        let released = self.call("release", ino, |v, ino| {
            v.release(ino, Handle(fh.0));
            Ok(())
        });
        self.uncached.released(ino);
        self.mapped.released(ino, fh, flags.0);
        reply.answer(released);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        self.sync("fsync", ino, fh, |result| {
            reply.answer(result);
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let reply = self.watch.track(req, reply);
        if self.offers().no_opendir {
            // After this answer the kernel caches directories, and sends neither opendir nor releasedir again.
            reply.answer(Err(Errno::ENOSYS));
            return;
        }
        let opened = self.call("opendir", ino, |v, ino| v.opendir(ino));
        let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.answer(opened.map(|handle| (handle, flags)));
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectory,
    ) {
        self.list(req, ino, cookie, reply);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list_plus(req, ino, cookie, reply);
    }

    fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let reply = self.watch.track(req, reply);
        let released = self.call("releasedir", ino, |v, ino| {
            v.releasedir(ino, Handle(fh.0));
            Ok(())
        });
        reply.answer(released);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        self.sync("fsyncdir", ino, fh, |result| {
            reply.answer(result);
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.call("statfs", ino, |v, _| v.statfs()));
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.set_xattr(req, ino, (name, value), flags));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let reply = self.watch.track(req, reply);
        let value = self.get_xattr(ino, name);
        if let Some(reply) = reply.claim() {
            answer_xattr(reply, size, value);
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let reply = self.watch.track(req, reply);
        let names = self.list_xattrs(req, ino);
        if let Some(reply) = reply.claim() {
            answer_xattr(reply, size, names);
        }
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let reply = self.watch.track(req, reply);
        reply.answer(self.remove_xattr(ino, name));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready; after this answer the kernel answers poll itself.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        plain_offset: u64,
        plain_len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let reply = self.watch.track(req, reply);
        let set_id = |attr: &Attr| Requester::of(req).set_id_on_write(attr);
        let done = self.change_contents("fallocate", ino, set_id, |v, ino| {
            v.fallocate(ino, plain_offset, plain_len, fallocate_mode(mode)?)
        });
        reply.answer(done);
    }

    fn lseek(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let reply = self.watch.track(req, reply);
        let found = self.call("lseek", node, |v, ino| {
            let plain_offset = u64::try_from(offset).map_err(|_| Kind::NoSuchOffset)?;
            let whence = seek_whence(whence)?;
            if self.mapped.is_mapped_by_others(node, fh) {
                return all_data(v.getattr(ino)?.plain_size, plain_offset, whence);
            }
            v.lseek(ino, plain_offset, whence)
        });
        reply.answer(found);
    }

    fn copy_file_range(
        &self,
        req: &Request,
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
        let reply = self.watch.track(req, reply);
        // The reply has 32 bits. Whole pages keep a copy in several requests aligned.
        let len = len.min(u64::from(!4095u32));
        let set_id = |attr: &Attr| Requester::of(req).set_id_on_write(attr);
        let copied = self.change_contents("copy_file_range", to, set_id, |v, to| {
            v.copy_file_range(Ino(from.0), from_offset, to, to_offset, len)
        });
        reply.answer(copied.map(|count| count as u32));
    }
}
