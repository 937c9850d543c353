//! The vault as a volume. Each request is delegated in a line or two.

use std::ffi::OsStr;

use super::Vault;
use super::files::Files;
use super::ops::NewNode;
use super::view::{Follower, find};
use crate::error::{Error, Kind, Result};
use crate::index::Tree;
use crate::volume::*;

impl Volume for Vault {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.files.lookup(parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.files
            .forget(ino, u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.files.attr(ino)
    }

    fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        self.view.path_of(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let tree = self.view.tree();
        let target = tree.inode(find(&tree, ino)?).target().map(<[u8]>::to_vec);
        target.ok_or_else(|| Kind::InvalidArgument.into())
    }

    fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        self.files.open(ino, flags)
    }

    fn release(&self, _ino: Ino, handle: Handle) {
        if let Some(written) = self.files.release(handle) {
            self.upkeep.defragmenter.record_closed(written);
        }
    }

    fn read(&self, ino: Ino, _handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        self.files.read_file(ino, plain_offset, out)
    }

    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        self.files.seek(ino, plain_offset, whence)
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        self.files.readdir(ino, cookie, plus, take)
    }

    fn follow(&self, tell: OnChange) -> Result<()> {
        if self.log.gate().is_asked_for() {
            *self.follower.lock() = Some(Follower::start(&self.view, tell)?);
        }
        Ok(())
    }

    fn statfs(&self) -> Result<Statfs> {
        self.files.statfs()
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.files.xattr_value(ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.files.xattr_names(ino)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.files.change_attrs(ino, change)
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
        self.files.make(
            parent,
            name,
            &NewNode {
                kind,
                perm,
                rdev,
                target: &[],
            },
            caller,
        )
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, perm: u16, caller: Caller) -> Result<Attr> {
        self.files.make(
            parent,
            name,
            &NewNode {
                kind: FileKind::Directory,
                perm,
                rdev: 0,
                target: &[],
            },
            caller,
        )
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &[u8], caller: Caller) -> Result<Attr> {
        self.files.make(
            parent,
            name,
            &NewNode {
                kind: FileKind::Symlink,
                perm: 0o777,
                rdev: 0,
                target,
            },
            caller,
        )
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.files.make_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.files.remove_name(parent, name, false)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.files.remove_name(parent, name, true)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.files
            .move_name((parent, name), (new_parent, new_name), mode)
    }

    fn write(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.files
            .write_file(ino, handle, plain_offset, data, false)
    }

    fn write_back(&self, ino: Ino, handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.files.write_file(ino, handle, plain_offset, data, true)
    }

    fn has_privileges(&self, ino: Ino) -> Result<bool> {
        self.files.has_privileges(ino)
    }

    fn drop_privileges(&self, ino: Ino, set_id: SetId) -> Result<bool> {
        self.files.drop_privileges(ino, set_id)
    }

    fn flush(&self, ino: Ino, handle: Handle) -> Result<()> {
        self.files.flush_handle(ino, handle)
    }

    fn fsync(&self, ino: Ino, handle: Handle, done: Done) {
        Files::fsync(&self.files, ino, handle, done);
    }

    fn fallocate(
        &self,
        ino: Ino,
        plain_offset: u64,
        plain_len: u64,
        mode: Fallocate,
    ) -> Result<()> {
        self.files.allocate(ino, plain_offset, plain_len, mode)
    }

    fn copy_file_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        self.files
            .share_range(from, from_offset, to, to_offset, len)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.files.change_xattr(ino, name, Some(value), mode)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.files.change_xattr(ino, name, None, XattrMode::Replace)
    }

    fn write_all(&self) -> Result<()> {
        self.files.write_all()
    }

    fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        self.files.unwritten()
    }

    fn silence(&self) -> Option<Silence> {
        self.view.store().calls().map(|calls| calls.silence())
    }

    fn answers(&self) -> u64 {
        self.view.store().calls().map_or(0, |calls| calls.answers())
    }

    fn close(&self) -> Result<()> {
        drop(self.follower.lock().take());
        let cache = self.cache_stats();
        log::info!("block cache: {} hits, {} misses", cache.hits, cache.misses);
        self.threads.as_ref().map_or(Ok(()), |threads| {
            let closed = self.close_writer(threads);
            closed.map_err(|e: Error| e.about("closing the library"))
        })
    }

    fn leave_memory(&self) {
        // The process is about to exit. Freeing a million inodes takes a tenth of a second, and `umount` would wait for
        // it.
        let empty = Tree::new(0, 0, Time::default());
        std::mem::forget(std::mem::replace(&mut *self.view.tree_mut(), empty));
    }
}
