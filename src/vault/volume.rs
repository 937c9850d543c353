//! The vault as a volume: each request in a line or two.

use std::ffi::OsStr;
use std::sync::Arc;

use super::names::Wanted;
use super::view::{Follower, find};
use super::{Core, Vault};
use crate::error::{Error, Kind, Result};
use crate::index::Tree;
use crate::logged;
use crate::volume::*;

impl Vault {
    fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Volume for Vault {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.core().lookup(parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.core()
            .let_go(ino, u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.core().attr(ino)
    }

    fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        self.core().view.path_of(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let core = self.core();
        let tree = core.view.tree();
        let target = tree.inode(find(&tree, ino)?).target().map(<[u8]>::to_vec);
        target.ok_or_else(|| Kind::InvalidArgument.into())
    }

    fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        let core = self.core();
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes || flags & libc::O_TRUNC != 0 {
            core.writable()?;
        }
        {
            let tree = core.view.tree();
            let inode = tree.inode(find(&tree, ino)?);
            if inode.kind() == FileKind::Directory {
                return Err(Kind::IsDirectory.into());
            }
            inode.hold(1);
        }
        let failures = {
            let file = core.file(ino);
            let mut state = file.state.lock();
            state.handles += 1;
            state.failures
        };
        let handle = core.handles.open(ino, writes, failures);
        if flags & libc::O_TRUNC != 0
            && let Err(e) = core.truncate(ino, 0)
        {
            self.release(ino, handle);
            return Err(e);
        }
        Ok(handle)
    }

    fn release(&self, _ino: Ino, handle: Handle) {
        let core = self.core();
        let Some(open) = core.handles.close(handle) else {
            return;
        };
        if open.writes {
            // What mmap left after the last close. Nobody is there to be told; it stays dirty and is tried again.
            if let Err(e) = core.flush_ino(open.ino) {
                let name = logged::file_name(open.ino, core.view.path_of(open.ino));
                log::warn!("{name}: not written out when it was closed: {e}");
            }
        }
        if let Some(file) = core.opened(open.ino) {
            let mut state = file.state.lock();
            state.handles = state.handles.saturating_sub(1);
        }
        core.let_go(open.ino, 1);
        if open.writes {
            core.note_closed(open.ino);
        }
    }

    fn read(&self, ino: Ino, _handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        self.core().read_file(ino, plain_offset, out)
    }

    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        self.core().seek(ino, plain_offset, whence)
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        const BATCH: usize = 128;
        let core = self.core();
        let mut cookie = cookie;
        loop {
            let batch = core.list(ino, cookie, BATCH, plus)?;
            let last = batch.len() < BATCH;
            for (i, entry) in batch.iter().enumerate() {
                let attr = plus.then(|| core.attr(entry.ino)).transpose();
                let taken = attr.map(|attr| {
                    take(Dirent {
                        ino: entry.ino,
                        kind: entry.kind,
                        name: OsStr::from_bytes(&entry.name),
                        cookie: entry.cookie,
                        attr,
                    })
                });
                if !matches!(taken, Ok(true)) {
                    batch[i..]
                        .iter()
                        .filter(|e| e.held)
                        .for_each(|e| core.let_go(e.ino, 1));
                    return taken.map(drop);
                }
            }
            match batch.last() {
                Some(entry) if !last => cookie = entry.cookie,
                _ => return Ok(()),
            }
        }
    }

    fn follow(&self, tell: OnChange) -> Result<()> {
        if self.core().read_only {
            *self.follower.lock() = Some(Follower::start(&self.core().view, tell)?);
        }
        Ok(())
    }

    fn statfs(&self) -> Result<Statfs> {
        const UNIT: u64 = 4096;
        let core = self.core();
        let space = core.view.store().space()?;
        // The store may yet take 1 MiB ahead of small appends, to a pack and to a segment each; a disk wastes some, too.
        const AHEAD: i64 = 3 << 20;
        let room = (core.budget.left(&space) - AHEAD).max(0) as u64;
        let files = core.view.tree().inode_count();
        Ok(Statfs {
            block_bytes: UNIT as u32,
            blocks: space.total_bytes / UNIT,
            // Not even root may write more.
            blocks_free: room / UNIT,
            blocks_available: room / UNIT,
            // As many as there are numbers; more than 32 bits, and 32-bit programs are told nothing at all.
            files: files.max(u32::MAX.into()),
            files_free: u64::from(u32::MAX).saturating_sub(files),
        })
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.core().xattr_value(ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.core().xattr_names(ino)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.core().change_attrs(ino, change)
    }

    fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
        perm: u16,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr> {
        self.core().make(
            parent,
            name,
            &Wanted {
                kind,
                perm,
                rdev,
                target: &[],
            },
            caller,
        )
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, perm: u16, caller: Caller) -> Result<Attr> {
        self.core().make(
            parent,
            name,
            &Wanted {
                kind: FileKind::Directory,
                perm,
                rdev: 0,
                target: &[],
            },
            caller,
        )
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &[u8], caller: Caller) -> Result<Attr> {
        self.core().make(
            parent,
            name,
            &Wanted {
                kind: FileKind::Symlink,
                perm: 0o777,
                rdev: 0,
                target,
            },
            caller,
        )
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.core().make_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.core().remove_name(parent, name, false)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.core().remove_name(parent, name, true)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.core()
            .move_name((parent, name), (new_parent, new_name), mode)
    }

    fn write(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.core()
            .write_file(ino, handle, plain_offset, data, false)
    }

    fn write_back(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.core()
            .write_file(ino, handle, plain_offset, data, true)
    }

    fn has_privileges(&self, ino: Ino) -> Result<bool> {
        self.core().has_privileges(ino)
    }

    fn drop_privileges(&self, ino: Ino, set_id: SetId) -> Result<bool> {
        self.core().drop_privileges(ino, set_id)
    }

    fn flush(&self, ino: Ino, handle: Handle) -> Result<()> {
        self.core().flush_handle(ino, handle)
    }

    fn fsync(&self, ino: Ino, handle: Handle, done: Done) {
        let core = self.core();
        if core.read_only {
            return done(Ok(()));
        }
        let Some(file) = core.opened(ino) else {
            return core.commit.request(done);
        };
        // The kernel has written back before: what comes now was stored later.
        file.state.lock().mtime_set = None;
        if let Err(e) = core.flush_file(&file) {
            return done(core.tell_failures(&file, handle, Err(e)));
        }
        let teller = Arc::clone(core);
        // Looked up again: a reference that waits with it would keep the file in the table when it is closed.
        let tell = move |synced| {
            done(match teller.opened(ino) {
                Some(file) => teller.tell_failures(&file, handle, synced),
                None => synced,
            })
        };
        core.commit.request(Box::new(tell));
    }

    fn fallocate(
        &self,
        ino: Ino,
        plain_offset: u64,
        plain_len: u64,
        mode: Fallocate,
    ) -> Result<()> {
        self.core().allocate(ino, plain_offset, plain_len, mode)
    }

    fn copy_file_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        self.core()
            .share_range(from, from_offset, to, to_offset, len)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.core().change_xattr(ino, name, Some(value), mode)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.core()
            .change_xattr(ino, name, None, XattrMode::Replace)
    }

    fn write_all(&self) -> Result<()> {
        let core = self.core();
        if core.read_only {
            return Ok(());
        }
        core.flush_all()?;
        let (tell, told) = std::sync::mpsc::channel();
        core.commit.request(Box::new(move |synced| {
            let _ = tell.send(synced);
        }));
        told.recv().unwrap_or_else(|_| Err(Kind::Poisoned.into()))
    }

    fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        let core = self.core();
        let files = core.files.all();
        let unwritten = files.iter().filter_map(|file| {
            let bytes = {
                let state = file.state.lock();
                state.dirty.plain_bytes() + state.leaving.as_ref().map_or(0, |l| l.plain_bytes())
            };
            let tree = core.view.tree();
            let ix = tree.find(file.ino).filter(|_| bytes > 0)?;
            tree.inode(ix).is_linked().then(|| (tree.path(ix), bytes))
        });
        unwritten.collect()
    }

    fn silence(&self) -> Option<Silence> {
        self.core()
            .view
            .store()
            .calls()
            .map(|calls| calls.silence())
    }

    fn answers(&self) -> u64 {
        self.core()
            .view
            .store()
            .calls()
            .map_or(0, |calls| calls.answers())
    }

    fn close(&self) -> Result<()> {
        drop(self.follower.lock().take());
        let cache = self.cache_stats();
        log::info!(
            "cache of blocks: {} hits, {} misses",
            cache.hits,
            cache.misses
        );
        self.threads.as_ref().map_or(Ok(()), |threads| {
            threads.streamer.stop();
            let stopped = threads.committer.stop();
            stopped.map_err(|e: Error| e.about("closing the library"))
        })
    }

    fn leave_memory(&self) {
        // Freeing a million inodes takes a tenth of a second, for which `umount` would wait.
        let empty = Tree::new(0, 0, Time::default());
        std::mem::forget(std::mem::replace(&mut *self.core.view.tree_mut(), empty));
    }
}
