//! The mirror as a volume: each request in a few lines.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::Mirror;
use super::tree::Body;
use crate::error::{Error, Kind, Result};
use crate::volume::{
    Attr, Caller, Dirent, Done, FileKind, Handle, Ino, RenameMode, SetAttr, Statfs, Volume, Whence,
};

impl Volume for Mirror {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let ino = {
            let mut tree = self.tree.write();
            let ino = match name.as_bytes() {
                b"." => Some(parent),
                b".." => Some(tree.node(parent)?.parent),
                _ => tree.child(parent, name),
            };
            let ino = ino.ok_or(Kind::NotFound)?;
            tree.node_mut(ino)?.references += 1;
            ino
        };
        self.attr(ino).inspect_err(|_| self.forget(ino, 1))
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.tree.write().release(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(ino)
    }

    fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        let path = self.path(ino).ok()?;
        Some(path.into_os_string().into_vec())
    }

    fn readlink(&self, _ino: Ino) -> Result<Vec<u8>> {
        Err(Kind::InvalidArgument.into())
    }

    fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let cuts = flags & libc::O_TRUNC != 0;
        if writes || cuts {
            self.writable()?;
            self.check_change(ino, &self.path(ino)?)?;
        }
        let file = self.content(ino)?;
        {
            let mut content = file.lock();
            if cuts {
                let plain_path = self.path(ino)?;
                self.account(&mut content, |c| c.truncate(&*self.format, &plain_path, 0))?;
            }
            content.handles += 1;
        }
        self.tree.write().node_mut(ino)?.references += 1;
        Ok(self.new_handle(ino, writes))
    }

    fn release(&self, _ino: Ino, handle: Handle) {
        let Some((ino, writes)) = self.handles.lock().remove(&handle.0) else {
            return;
        };
        if let Some(file) = self.opened(ino) {
            let mut content = file.lock();
            content.handles -= 1;
            // Changes that a memory map left after the last close. No program receives the error; unmounting tries again.
            if writes && let Err(e) = self.publish(ino, &mut content) {
                log::error!("{}: {e}", self.path(ino).unwrap_or_default().display());
            }
        }
        self.close_content(ino);
        self.tree.write().release(ino, 1);
    }

    fn read(&self, ino: Ino, _handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let file = self.content(ino)?;
        let mut content = file.lock();
        let plain_path = || self.path(ino).unwrap_or_default();
        if let Some((reader, plain_size)) = content.plain_base() {
            drop(content);
            let left = plain_size.saturating_sub(plain_offset);
            let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = reader.read_exact_at(plain_offset, &mut out[..len]);
            return read
                .map(|()| len)
                .map_err(|e| e.about(plain_path().display()));
        }
        let path = plain_path();
        let read = self.account(&mut content, |c| {
            c.read(&*self.format, &path, plain_offset, out)
        });
        read.map_err(|e| e.about(path.display()))
    }

    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        let plain_size = self.attr(ino)?.plain_size;
        if plain_offset >= plain_size {
            return Err(Kind::NoSuchOffset.into());
        }
        // There are no holes.
        Ok(match whence {
            Whence::Data => plain_offset,
            Whence::Hole => plain_size,
        })
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        /// How many entries are looked up under one lock.
        const BATCH: usize = 64;
        let parent = self.tree.read().node(ino)?.parent;
        for (number, name, target) in [(1, ".", ino), (2, "..", parent)] {
            if cookie >= number {
                continue;
            }
            let attr = plus.then(|| self.attr(target)).transpose()?;
            let (kind, name) = (FileKind::Directory, OsStr::new(name));
            if !take(Dirent {
                ino: target,
                kind,
                name,
                cookie: number,
                attr,
            }) {
                return Ok(());
            }
        }
        let mut cookie = cookie.max(2);
        loop {
            let batch: Vec<_> = {
                let mut tree = self.tree.write();
                let inos: Vec<u64> = tree
                    .children(ino)?
                    .0
                    .range(cookie + 1..)
                    .take(BATCH)
                    .copied()
                    .collect();
                let mut batch = Vec::with_capacity(inos.len());
                for child in inos {
                    let node = tree.node_mut(Ino(child))?;
                    node.references += u64::from(plus);
                    batch.push((Ino(child), node.kind(), node.name.clone()));
                }
                batch
            };
            let mut full = batch.is_empty();
            for (child, kind, name) in batch {
                cookie = child.0;
                let attr = if plus && !full {
                    self.attr(child).ok()
                } else {
                    None
                };
                let entry = Dirent {
                    ino: child,
                    kind,
                    name: &name,
                    cookie,
                    attr,
                };
                let taken = !full && (!plus || attr.is_some()) && take(entry);
                // An entry that was just removed is skipped; one that does not fit is sent with the next request.
                full |= !taken && (!plus || attr.is_some());
                if plus && !taken {
                    self.forget(child, 1);
                }
            }
            if full {
                return Ok(());
            }
        }
    }

    fn statfs(&self) -> Result<Statfs> {
        let root = self.format.root().to_owned();
        let subject = root.display().to_string();
        let mut known = self.space.get(&subject, move || {
            let s = rustix::fs::statvfs(&root).map_err(|e| Error::io(e.into(), &root))?;
            Ok(Statfs {
                block_bytes: u32::try_from(s.f_frsize).unwrap_or(4096),
                blocks: s.f_blocks,
                blocks_free: s.f_bfree,
                blocks_available: s.f_bavail,
                files: s.f_ffree,
                files_free: s.f_ffree,
            })
        })?;
        known.files = known.files.saturating_add(self.tree.read().len());
        Ok(known)
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let xattrs = self.xattrs(ino)?;
        let found = xattrs.into_iter().find(|(known, _)| name == known.as_str());
        found
            .map(|(_, value)| value)
            .ok_or_else(|| Kind::NoAttribute.into())
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        for (name, _) in self.xattrs(ino)? {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.set_attr(ino, change)
    }

    fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
        perm: u16,
        _rdev: u32,
        caller: Caller,
    ) -> Result<Attr> {
        if kind != FileKind::Regular {
            return Err(Kind::NotPermitted.into());
        }
        let (ino, file) = self.create_file(parent, name, perm, caller)?;
        self.tree.write().node_mut(ino)?.references += 1;
        let published = self.publish(ino, &mut file.lock());
        drop(file);
        self.close_content(ino);
        published
            .and_then(|()| self.attr(ino))
            .inspect_err(|_| self.forget(ino, 1))
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        perm: u16,
        _flags: i32,
        caller: Caller,
    ) -> Result<(Attr, Handle)> {
        let (ino, file) = self.create_file(parent, name, perm, caller)?;
        file.lock().handles += 1;
        // One for the entry, one for the handle.
        self.tree.write().node_mut(ino)?.references += 2;
        let handle = self.new_handle(ino, true);
        Ok((self.attr(ino)?, handle))
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, perm: u16, caller: Caller) -> Result<Attr> {
        let ino = self.make_dir(parent, name, perm, caller)?;
        self.tree.write().node_mut(ino)?.references += 1;
        self.attr(ino)
    }

    fn symlink(&self, _: Ino, _: &OsStr, _: &[u8], _: Caller) -> Result<Attr> {
        self.writable()?;
        Err(Kind::NotPermitted.into())
    }

    fn link(&self, _ino: Ino, _parent: Ino, _name: &OsStr) -> Result<Attr> {
        self.writable()?;
        Err(Kind::NotPermitted.into())
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove_file(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove_dir(parent, name)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.move_name(parent, name, new_parent, new_name, mode)
    }

    fn write(&self, ino: Ino, _handle: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        self.writable()?;
        let file = self.content(ino)?;
        let mut content = file.lock();
        let plain_path = self.path(ino)?;
        let cost_max = self.cost_max();
        let format = &*self.format;
        let written = self.account(&mut content, |c| {
            c.write(format, &plain_path, plain_offset, data, cost_max)
        });
        written.map_err(|e| e.about(plain_path.display()))
    }

    fn flush(&self, ino: Ino, _handle: Handle) -> Result<()> {
        match self.opened(ino) {
            Some(file) => self.publish(ino, &mut file.lock()),
            None => Ok(()),
        }
    }

    fn fsync(&self, ino: Ino, _: Handle, done: Done) {
        // Publishing also makes the file durable.
        done(match self.opened(ino) {
            Some(file) => self.publish(ino, &mut file.lock()),
            None => Ok(()),
        });
    }

    fn close(&self) -> Result<()> {
        self.publish_all()
    }
}

impl Mirror {
    fn xattrs(&self, ino: Ino) -> Result<Vec<(String, Vec<u8>)>> {
        let tree = self.tree.read();
        match &tree.node(ino)?.body {
            Body::File(Some(entry)) => Ok(self.format.xattrs(entry)),
            _ => Ok(Vec::new()),
        }
    }
}
