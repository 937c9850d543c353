//! Answers that take more than a line, and what is to be undone where the kernel has had another one.

use std::ffi::OsStr;

use fuser::{
    Errno, FileHandle, Generation, INodeNo, ReplyCreate, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};

use super::Shared;
use super::types::*;
use super::watch::Held;
use crate::error::Result;
use crate::volume::{Attr, Handle, Ino};

impl Shared {
    /// Answers a request that has made a name known. Where the kernel has had another answer, it does not know the name,
    /// holds no reference, and may keep that there is none.
    pub(super) fn entry(
        &self,
        reply: Held<ReplyEntry>,
        (parent, name): (INodeNo, &OsStr),
        made: Result<Attr, Errno>,
    ) {
        let ino = made.as_ref().ok().map(|attr| attr.ino);
        if !reply.answer(made.map(|attr| self.shown(attr)))
            && let Some(ino) = ino
        {
            self.volume.forget(ino, 1);
            self.call_back_entry(parent, name);
        }
    }

    /// Answers a request that has changed what these names mean.
    pub(super) fn changed(
        &self,
        reply: Held<ReplyEmpty>,
        names: &[(INodeNo, &OsStr)],
        result: Result<(), Errno>,
    ) {
        let is_done = result.is_ok();
        if !reply.answer(result) && is_done {
            for (parent, name) in names {
                self.call_back_entry(*parent, name);
            }
        }
    }

    /// Has the kernel look up a name again.
    fn call_back_entry(&self, parent: INodeNo, name: &OsStr) {
        if let Some(kernel) = self.kernel.get()
            && let Err(e) = kernel.inval_entry(parent, name)
        {
            log::debug!("inode {parent}: the kernel was not told that a name changed: {e}");
        }
    }

    /// Answers a lookup, of a name that may not be there.
    pub(super) fn looked_up(
        &self,
        reply: Held<ReplyEntry>,
        place: (INodeNo, &OsStr),
        found: Result<Option<Attr>, Errno>,
    ) {
        match found.transpose() {
            Some(found) => self.entry(reply, place, found),
            None => {
                if let Some(reply) = reply.claim() {
                    reply.entry(&TTL, &NEGATIVE, Generation(0));
                }
            }
        }
    }

    /// Answers an open. A handle that nobody is told of is closed again.
    pub(super) fn opened(
        &self,
        reply: Held<ReplyOpen>,
        ino: INodeNo,
        flags: i32,
        opened: Result<Handle, Errno>,
    ) {
        let (handle, reply) = match (opened, reply.claim()) {
            (Ok(handle), Some(reply)) => (handle, reply),
            (Ok(handle), None) => return self.volume.release(Ino(ino.0), handle),
            (Err(e), reply) => return refuse(reply, e),
        };
        self.note_opened(ino, FileHandle(handle.0), flags);
        let opened = self.uncached.opened(ino, fopen_flags(flags));
        reply.give((handle, opened));
    }

    /// Answers a create: an entry and an open in one.
    pub(super) fn created(
        &self,
        reply: Held<ReplyCreate>,
        (parent, name): (INodeNo, &OsStr),
        flags: i32,
        made: Result<(Attr, Handle), Errno>,
    ) {
        match (made, reply.claim()) {
            (Ok((attr, handle)), None) => {
                self.volume.release(attr.ino, handle);
                self.volume.forget(attr.ino, 1);
                self.call_back_entry(parent, name);
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
        let held = self.watch.hold(req, ());
        let mut some = false;
        let listed = self.call("readdir", ino, |v, ino| {
            v.readdir(ino, cookie, false, &mut |entry| {
                let (ino, kind) = (INodeNo(entry.ino.0), file_type(entry.kind));
                let full = reply.add(ino, entry.cookie, kind, entry.name);
                some |= !full;
                !full
            })
        });
        match (held.claim(), listed) {
            // The kernel has had its answer; dropped, this would be another one.
            (None, _) => std::mem::forget(reply),
            (_, Err(e)) if !some => reply.error(e),
            // An error further on is met again there: the entries so far are the kernel's to know, and to forget.
            _ => reply.ok(),
        }
    }

    /// The same with attributes.
    pub(super) fn list_plus(
        &self,
        req: &Request,
        ino: INodeNo,
        cookie: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let held = self.watch.hold(req, ());
        let mut some = false;
        let listed = self.call("readdirplus", ino, |v, ino| {
            v.readdir(ino, cookie, true, &mut |entry| {
                let attr = entry.attr.expect("readdir with plus fills in attributes");
                let (ino, shown) = (INodeNo(entry.ino.0), self.shown(attr));
                let Shown { attr, ttl, .. } = &shown;
                let full = reply.add(ino, entry.cookie, entry.name, ttl, attr, shown.generation);
                some |= !full;
                !full
            })
        });
        match (held.claim(), listed) {
            // The kernel has had its answer; dropped, this would be another one.
            (None, _) => std::mem::forget(reply),
            (_, Err(e)) if !some => reply.error(e),
            // An error further on is met again there: the entries so far are the kernel's to know, and to forget.
            _ => reply.ok(),
        }
    }
}
