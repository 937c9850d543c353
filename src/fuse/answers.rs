//! Answers that take more than a line, and what must be undone if the kernel has already received another answer.

use std::cell::RefCell;
use std::ffi::OsStr;

use fuser::{
    Errno, FileHandle, Generation, INodeNo, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};

use super::Shared;
use super::types::{Answer, NEGATIVE, ShownAttr, TTL, file_type, fopen_flags, refuse};
use super::watch::PendingReply;
use crate::error::Result;
use crate::volume::{Attr, Handle, Ino};

/// Bytes of a page.
const PAGE_LEN: usize = 4096;

thread_local! {
    /// Reads are decrypted into this buffer. It is kept because allocating one per request costs time; it grows to
    /// [`READ_LEN_MAX`](super::READ_LEN_MAX) bytes and a page.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a read: `read` fills the `size` bytes that it is given, and returns how many it read.
pub(super) fn answer_read(
    reply: PendingReply<ReplyData>,
    size: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) {
    READ_BUFFER.with_borrow_mut(|buffer| {
        // The mount option max_read bounds `size`. All of it must be read: the kernel takes a shorter answer for the
        // end of the file, or fills it up with zeros.
        if buffer.len() < size + PAGE_LEN {
            buffer.resize(size + PAGE_LEN, 0);
        }
        // The kernel copies the answer into pages, which takes twice as long if it does not start at one.
        let start = buffer.as_ptr().align_offset(PAGE_LEN);
        let out = &mut buffer[start..][..size];
        match (read(out), reply.claim()) {
            (_, None) => {}
            (Ok(count), Some(reply)) => reply.data(&out[..count.min(size)]),
            (Err(e), Some(reply)) => reply.error(e),
        }
    });
}

impl Shared {
    /// Answers a request that looked up or created a name. If the kernel has already received another answer, it holds no
    /// reference to the inode, and may have cached that the name does not exist.
    pub(super) fn entry(
        &self,
        reply: PendingReply<ReplyEntry>,
        (parent, name): (INodeNo, &OsStr),
        made: Result<Attr, Errno>,
    ) {
        let ino = made.as_ref().ok().map(|attr| attr.ino);
        if !reply.answer(made.map(|attr| self.shown(attr)))
            && let Some(ino) = ino
        {
            self.volume.forget(ino, 1);
            self.invalidate_entry(parent, name);
        }
    }

    /// Answers a request that changed what these names refer to.
    pub(super) fn changed(
        &self,
        reply: PendingReply<ReplyEmpty>,
        names: &[(INodeNo, &OsStr)],
        result: Result<(), Errno>,
    ) {
        let is_done = result.is_ok();
        if !reply.answer(result) && is_done {
            for (parent, name) in names {
                self.invalidate_entry(*parent, name);
            }
        }
    }

    /// Makes the kernel look up a name again.
    fn invalidate_entry(&self, parent: INodeNo, name: &OsStr) {
        if let Some(kernel) = self.kernel.get()
            && let Err(e) = kernel.inval_entry(parent, name)
        {
            log::debug!("inode {parent}: cannot invalidate the kernel's entry: {e}");
        }
    }

    /// Answers a lookup of a name that may not exist.
    pub(super) fn looked_up(
        &self,
        reply: PendingReply<ReplyEntry>,
        name: (INodeNo, &OsStr),
        found: Result<Option<Attr>, Errno>,
    ) {
        match found.transpose() {
            Some(found) => self.entry(reply, name, found),
            None => {
                if let Some(reply) = reply.claim() {
                    reply.entry(&TTL, &NEGATIVE, Generation(0));
                }
            }
        }
    }

    /// Answers an open. If the kernel does not receive the handle, it is closed again.
    pub(super) fn opened(
        &self,
        reply: PendingReply<ReplyOpen>,
        ino: INodeNo,
        flags: i32,
        opened: Result<Handle, Errno>,
    ) {
        let (handle, reply) = match (opened, reply.claim()) {
            (Ok(handle), Some(reply)) => (handle, reply),
            (Ok(handle), None) => return self.volume.release(Ino(ino.0), handle),
            (Err(e), reply) => return refuse(reply, e),
        };
        self.record_opened(ino, FileHandle(handle.0), flags);
        let opened = self.uncached.opened(ino, fopen_flags(flags));
        reply.give((handle, opened));
    }

    /// Answers a create: a lookup and an open in one.
    pub(super) fn created(
        &self,
        reply: PendingReply<ReplyCreate>,
        (parent, name): (INodeNo, &OsStr),
        flags: i32,
        made: Result<(Attr, Handle), Errno>,
    ) {
        match (made, reply.claim()) {
            (Ok((attr, handle)), None) => {
                self.volume.release(attr.ino, handle);
                self.volume.forget(attr.ino, 1);
                self.invalidate_entry(parent, name);
            }
            (Ok((attr, handle)), Some(reply)) => {
                let ino = INodeNo(attr.ino.0);
                self.mapped.opened(ino, FileHandle(handle.0), flags);
                let mut opened = fopen_flags(flags);
                if self.offers().may_uncache {
                    opened |= self.uncached.created(ino, flags);
                }
                reply.give((self.shown(attr), handle, opened));
            }
            (Err(e), reply) => refuse(reply, e),
        }
    }

    /// Answers with the names of a directory.
    pub(super) fn list(&self, req: &Request, ino: INodeNo, cookie: u64, mut reply: ReplyDirectory) {
        let pending = self.watch.track(req, ());
        let mut some = false;
        let listed = self.call("readdir", ino, |v, ino| {
            v.readdir(ino, cookie, false, &mut |entry| {
                let (ino, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
                let full = reply.add(ino, entry.cookie, kind, entry.name);
                some |= !full;
                !full
            })
        });
        match (pending.claim(), listed) {
            // The kernel has already received an answer; dropping `reply` would send another one.
            (None, _) => std::mem::forget(reply),
            (_, Err(e)) if !some => reply.error(e),
            // After an error, the entries before it are sent: the kernel must know them to forget them later. It asks for
            // the rest, and meets the error then.
            _ => reply.ok(),
        }
    }

    /// The same, with attributes.
    pub(super) fn list_plus(
        &self,
        req: &Request,
        ino: INodeNo,
        cookie: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let pending = self.watch.track(req, ());
        let mut some = false;
        let listed = self.call("readdirplus", ino, |v, ino| {
            v.readdir(ino, cookie, true, &mut |entry| {
                let attr = entry.attr.expect("readdir with plus fills in attributes");
                let (ino, shown) = (INodeNo(entry.ino.0), self.shown(attr));
                let ShownAttr { attr, ttl, .. } = &shown;
                let full = reply.add(ino, entry.cookie, entry.name, ttl, attr, shown.generation);
                some |= !full;
                !full
            })
        });
        match (pending.claim(), listed) {
            // The kernel has already received an answer; dropping `reply` would send another one.
            (None, _) => std::mem::forget(reply),
            (_, Err(e)) if !some => reply.error(e),
            // After an error, the entries before it are sent: the kernel must know them to forget them later. It asks for
            // the rest, and meets the error then.
            _ => reply.ok(),
        }
    }
}
