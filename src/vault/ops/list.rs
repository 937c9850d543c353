//! Listing directories, and looking up names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::names::{existing, name_bytes};
use crate::error::{Kind, Result};
use crate::vault::files::Files;
use crate::vault::view::find;
use crate::volume::{Attr, Dirent, FileKind, Ino};

/// An entry of a directory.
pub struct Entry {
    pub cookie: u64,
    pub name: Vec<u8>,
    pub ino: Ino,
    pub kind: FileKind,
    /// A reference for the kernel was counted.
    pub has_reference: bool,
}

impl Files {
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = name_bytes(name)?;
        let tree = self.view().tree();
        let dir = find(&tree, parent)?;
        let ix = match name {
            b"." => dir,
            b".." => tree.parent(dir),
            _ if tree.inode(dir).kind() != FileKind::Directory => {
                return Err(Kind::NotDirectory.into());
            }
            _ => tree.link(existing(&tree, dir, name)?).inode(),
        };
        tree.inode(ix).incref(1);
        let ino = tree.ino(ix);
        drop(tree);
        self.attr(ino)
    }

    /// Passes the entries of a directory after `cookie` to `take` until it returns false. With `plus`, also their
    /// attributes, and counts a reference to each except `.` and `..`.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        const BATCH: usize = 128;
        let mut cookie = cookie;
        loop {
            let batch = self.list(ino, cookie, BATCH, plus)?;
            let is_last = batch.len() < BATCH;
            for (i, entry) in batch.iter().enumerate() {
                let attr = plus.then(|| self.attr(entry.ino)).transpose();
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
                    let not_taken = batch[i..].iter().filter(|e| e.has_reference);
                    not_taken.for_each(|e| self.forget(e.ino, 1));
                    return taken.map(|_| ());
                }
            }
            match batch.last() {
                Some(entry) if !is_last => cookie = entry.cookie,
                _ => return Ok(()),
            }
        }
    }

    /// Returns at most `count` entries of a directory after `cookie`, beginning with `.` and `..`. With
    /// `with_references`, counts a reference to each of the others.
    fn list(
        &self,
        ino: Ino,
        cookie: u64,
        count: usize,
        with_references: bool,
    ) -> Result<Vec<Entry>> {
        let tree = self.view().tree();
        let dir = find(&tree, ino)?;
        if tree.inode(dir).kind() != FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        let dots = [(1, &b"."[..], dir), (2, b"..", tree.parent(dir))]
            .into_iter()
            .filter(|(at, ..)| *at > cookie);
        let names = tree
            .entries(dir, cookie.max(2))
            .map(|(at, link)| (at, link.name(), link.inode()));
        let listed = dots.chain(names).take(count).map(|(cookie, name, ix)| {
            let has_reference = with_references && cookie > 2;
            tree.inode(ix).incref(u32::from(has_reference));
            Entry {
                cookie,
                name: name.to_vec(),
                ino: tree.ino(ix),
                kind: tree.inode(ix).kind(),
                has_reference,
            }
        });
        Ok(listed.collect())
    }
}
