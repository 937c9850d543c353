//! Creating, linking, renaming and removing names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::acl::Acl;
use crate::error::{Kind, Result};
use crate::index::record::{Id, LinkAt, NewInode, Record, Unlink, XattrChange};
use crate::index::{InodeIx, LinkIx, Tree};
use crate::vault::files::Files;
use crate::vault::log::Transaction;
use crate::vault::view::find;
use crate::volume::{Attr, Caller, FileKind, Ino, NAME_LEN_MAX, RenameMode, TARGET_LEN_MAX};

pub(super) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

const S_ISGID: u16 = 0o2000;

/// A request to create an inode.
pub struct NewNode<'a> {
    pub kind: FileKind,
    pub perm: u16,
    pub rdev: u32,
    pub target: &'a [u8],
}

/// What RENAME_WHITEOUT leaves at the old name: character device 0, 0 with mode 0.
const WHITEOUT: NewNode<'_> = NewNode {
    kind: FileKind::CharDevice,
    perm: 0,
    rdev: 0,
    target: &[],
};

impl Files {
    pub fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        wanted: &NewNode<'_>,
        caller: Caller,
    ) -> Result<Attr> {
        let name = name_bytes(name)?;
        if wanted.target.len() > TARGET_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        let id = self.log().commit(|tree, transaction| {
            let dir = directory(tree, parent)?;
            if tree.child(dir, name).is_some() {
                return Err(Kind::Exists.into());
            }
            self.create(tree, transaction, (dir, name), wanted, caller)
        })?;
        let tree = self.view().tree();
        let ix = tree.find_id(id).ok_or(Kind::Stale)?;
        tree.inode(ix).incref(1);
        Ok(tree.attr(ix))
    }

    /// Adds records for a new inode and its first link to a transaction. The name must be free.
    fn create(
        &self,
        tree: &Tree,
        transaction: &mut Transaction,
        (dir, name): (InodeIx, &[u8]),
        wanted: &NewNode<'_>,
        caller: Caller,
    ) -> Result<Id> {
        let id = self.log().next_id(tree)?;
        let folder = tree.inode(dir);
        let is_dir = wanted.kind == FileKind::Directory;
        let (mut perm, acls) = inherited(folder.xattr(ACL_DEFAULT), wanted, caller.umask)?;
        let inherits_group = folder.perm() & S_ISGID != 0;
        if inherits_group && is_dir {
            perm |= S_ISGID;
        }
        transaction.records.push(Record::Inode(NewInode {
            id,
            kind: wanted.kind,
            perm,
            uid: caller.uid,
            gid: if inherits_group {
                folder.gid()
            } else {
                caller.gid
            },
            rdev: wanted.rdev,
            target: wanted.target.to_vec(),
        }));
        let place = LinkAt {
            link: id,
            inode: None,
            parent: folder.id(),
            name: name.to_vec(),
        };
        transaction.records.push(Record::Link(place));
        for (name, value) in acls {
            transaction.records.push(Record::Xattr(XattrChange {
                inode: id,
                name: name.to_vec(),
                value: Some(value),
            }));
        }
        Ok(id)
    }

    pub fn make_link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = name_bytes(name)?;
        self.flush_ino(ino)?;
        self.log().commit(|tree, transaction| {
            let ix = find(tree, ino)?;
            let inode = tree.inode(ix);
            if inode.kind() == FileKind::Directory {
                return Err(Kind::NotPermitted.into());
            }
            if !inode.is_linked() {
                return Err(Kind::NotFound.into());
            }
            let dir = directory(tree, parent)?;
            if tree.child(dir, name).is_some() {
                return Err(Kind::Exists.into());
            }
            let link = self.log().next_id(tree)?;
            let place = LinkAt {
                link,
                inode: Some(inode.id()),
                parent: tree.inode(dir).id(),
                name: name.to_vec(),
            };
            transaction.records.push(Record::Link(place));
            Ok(())
        })?;
        let tree = self.view().tree();
        let ix = find(&tree, ino)?;
        tree.inode(ix).incref(1);
        drop(tree);
        self.attr(ino)
    }

    pub fn remove_name(&self, parent: Ino, name: &OsStr, is_rmdir: bool) -> Result<()> {
        let name = name_bytes(name)?;
        let ino = self.log().commit(|tree, transaction| {
            let dir = directory(tree, parent)?;
            let link = existing(tree, dir, name)?;
            let ix = tree.link(link).inode();
            let inode = tree.inode(ix);
            match (inode.kind() == FileKind::Directory, is_rmdir) {
                (true, false) => return Err(Kind::IsDirectory.into()),
                (false, true) => return Err(Kind::NotDirectory.into()),
                (true, true) if !inode.is_empty_dir() => return Err(Kind::NotEmpty.into()),
                _ => transaction.unlink(tree, link),
            }
            Ok(tree.ino(ix))
        })?;
        self.close_file(ino);
        Ok(())
    }

    pub fn move_name(
        &self,
        (parent, name): (Ino, &OsStr),
        (new_parent, new_name): (Ino, &OsStr),
        mode: RenameMode,
    ) -> Result<()> {
        let (name, new_name) = (name_bytes(name)?, name_bytes(new_name)?);
        // Programs replace a file by writing a new one and renaming it without fsync(2): after a crash the new name
        // must not refer to incomplete contents.
        let moved = {
            let tree = self.view().tree();
            let dir = directory(&tree, parent)?;
            let link = existing(&tree, dir, name)?;
            tree.ino(tree.link(link).inode())
        };
        self.flush_ino(moved)?;
        let replaced = self.log().commit(|tree, transaction| {
            let from = directory(tree, parent)?;
            let to = directory(tree, new_parent)?;
            let source = existing(tree, from, name)?;
            let target = tree.child(to, new_name);
            let source_ix = tree.link(source).inode();
            if tree.inode(source_ix).kind() == FileKind::Directory && tree.is_within(to, source_ix)
            {
                return Err(Kind::InvalidArgument.into());
            }
            let mut replaced = None;
            match (mode, target) {
                (
                    RenameMode::NoReplace
                    | RenameMode::Whiteout {
                        no_replace: true, ..
                    },
                    Some(_),
                ) => return Err(Kind::Exists.into()),
                (RenameMode::Exchange, None) => return Err(Kind::NotFound.into()),
                (RenameMode::Exchange, Some(target)) => {
                    let target_ix = tree.link(target).inode();
                    if tree.inode(target_ix).kind() == FileKind::Directory
                        && tree.is_within(from, target_ix)
                    {
                        return Err(Kind::InvalidArgument.into());
                    }
                    if source != target {
                        transaction.place(tree, target, from, name);
                        transaction.place(tree, source, to, new_name);
                    }
                    return Ok(None);
                }
                (_, Some(target)) => {
                    let target_ix = tree.link(target).inode();
                    if target_ix == source_ix {
                        // Two links to the same inode: rename(2) does nothing.
                        return Ok(None);
                    }
                    check_replace(tree, source_ix, target_ix)?;
                    transaction.unlink(tree, target);
                    transaction.place(tree, source, to, new_name);
                    replaced = Some(tree.ino(target_ix));
                }
                (_, None) => transaction.place(tree, source, to, new_name),
            }
            if let RenameMode::Whiteout { caller, .. } = mode {
                self.create(tree, transaction, (from, name), &WHITEOUT, caller)?;
            }
            Ok(replaced)
        })?;
        replaced.into_iter().for_each(|ino| self.close_file(ino));
        Ok(())
    }
}

/// Finds a directory in which names can be created.
fn directory(tree: &Tree, ino: Ino) -> Result<InodeIx> {
    let ix = find(tree, ino)?;
    let inode = tree.inode(ix);
    match inode.kind() {
        FileKind::Directory if inode.is_linked() => Ok(ix),
        FileKind::Directory => Err(Kind::NotFound.into()),
        _ => Err(Kind::NotDirectory.into()),
    }
}

/// Returns the bytes of a name, if it is not too long.
pub fn name_bytes(name: &OsStr) -> Result<&[u8]> {
    let name = name.as_bytes();
    if name.len() > NAME_LEN_MAX {
        Err(Kind::NameTooLong.into())
    } else {
        Ok(name)
    }
}

/// Finds the link of an existing name.
pub fn existing(tree: &Tree, parent: InodeIx, name: &[u8]) -> Result<LinkIx> {
    tree.child(parent, name)
        .ok_or_else(|| Kind::NotFound.into())
}

fn check_replace(tree: &Tree, source: InodeIx, target: InodeIx) -> Result<()> {
    let is_dir = |ix| tree.inode(ix).kind() == FileKind::Directory;
    match (is_dir(source), is_dir(target)) {
        (true, false) => Err(Kind::NotDirectory.into()),
        (false, true) => Err(Kind::IsDirectory.into()),
        (true, true) if !tree.inode(target).is_empty_dir() => Err(Kind::NotEmpty.into()),
        _ => Ok(()),
    }
}

type Xattrs = Vec<(&'static [u8], Vec<u8>)>;

/// Returns the permission bits and ACLs of a new inode: from the default ACL of the directory if it has one, otherwise
/// from the umask.
fn inherited(default: Option<&[u8]>, wanted: &NewNode<'_>, umask: u16) -> Result<(u16, Xattrs)> {
    if wanted.kind == FileKind::Symlink {
        return Ok((0o777, Vec::new()));
    }
    let Some(value) = default else {
        return Ok((wanted.perm & !umask & 0o7777, Vec::new()));
    };
    let acl = Acl::parse(value)?;
    let (perm, access) = Acl::inherit(&acl, wanted.perm);
    let mut acls: Xattrs = Vec::new();
    acls.extend(access.map(|a| (ACL_ACCESS, a.encode())));
    if wanted.kind == FileKind::Directory {
        acls.push((ACL_DEFAULT, value.to_vec()));
    }
    Ok((perm, acls))
}

impl Transaction {
    fn unlink(&mut self, tree: &Tree, link: LinkIx) {
        let id = tree.link_id(link);
        let inode = tree.inode(tree.link(link).inode());
        self.records.push(Record::Unlink(Unlink {
            link: id,
            inode: (id != inode.id()).then_some(inode.id()),
            seen: tree.to_wire(inode.version()),
        }));
    }

    fn place(&mut self, tree: &Tree, link: LinkIx, parent: InodeIx, name: &[u8]) {
        let id = tree.link_id(link);
        let inode = tree.inode(tree.link(link).inode()).id();
        self.records.push(Record::Link(LinkAt {
            link: id,
            inode: (id != inode).then_some(inode),
            parent: tree.inode(parent).id(),
            name: name.to_vec(),
        }));
    }
}
