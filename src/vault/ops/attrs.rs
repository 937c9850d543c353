//! Attributes, extended attributes, and keeping ACLs consistent with the mode.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::acl::Acl;
use super::names::{ACL_ACCESS, ACL_DEFAULT};
use crate::error::{Kind, Result};
use crate::index::record::{AttrChange, Owner, Record, Splices, XattrChange};
use crate::index::{Inode, Tree};
use crate::overdue;
use crate::vault::files::Files;
use crate::vault::log::Transaction;
use crate::vault::view::find;
use crate::volume::{
    Attr, FILE_LEN_MAX, FileKind, Ino, NAME_LEN_MAX, SetAttr, SetId, SetTime, XATTR_LEN_MAX,
    XattrMode,
};

/// Maximum length of all names of a file's extended attributes, in bytes: the limit of listxattr(2).
const XATTR_LIST_LEN_MAX: usize = 65_536;
/// Maximum length of all values of a file's extended attributes, in bytes: they are kept in memory, and in one record
/// of a snapshot.
const XATTR_ALL_LEN_MAX: usize = 1 << 20;

impl Files {
    /// Returns the attributes, with dirty data taken into account.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        // Lock the file state before the tree: a concurrent flush could otherwise move data from the buffer to the tree
        // between the two reads, and it would be counted twice.
        let file = self.opened(ino);
        let state = file.as_ref().map(|f| f.state.lock());
        let tree = self.view().tree();
        let ix = find(&tree, ino)?;
        let mut attr = tree.attr(ix);
        let Some(state) = state else { return Ok(attr) };
        let covered = |from, to| tree.inode(ix).extents().covered(from, to);
        let dirty = state.dirty.bytes_outside(covered);
        let in_flight = state
            .in_flight
            .as_ref()
            .map_or(0, |l| l.bytes_outside(covered));
        let stored = tree.inode(ix).extents().plain_bytes();
        attr.blocks_512 = (stored + dirty + in_flight + state.promised.empty_bytes).div_ceil(512);
        attr.plain_size = attr.plain_size.max(state.end());
        if let Some(mtime) = state.mtime {
            (attr.mtime, attr.ctime) = (mtime, mtime.max(attr.ctime));
        }
        Ok(attr)
    }

    pub fn change_attrs(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        if let Some(plain_size) = change.plain_size {
            self.truncate(ino, plain_size)?;
        }
        if change.mtime.is_some() {
            if let Some(file) = self.opened(ino) {
                file.state.lock().mtime_set = Some(self.log().env().now());
            }
            // A later flush of dirty data would overwrite this mtime with the time of the write.
            self.flush_ino(ino)?;
            if let Some(file) = self.opened(ino) {
                let mut state = file.state.lock();
                if state.mtime_set.is_some() {
                    // Pages written back during the flush must not set the time of an earlier write.
                    state.mtime = None;
                }
            }
        }
        self.log().commit(|tree, transaction| {
            let ix = find(tree, ino)?;
            let inode = tree.inode(ix);
            let at = |time: SetTime| match time {
                SetTime::Now => transaction.wall,
                SetTime::At(time) => time,
            };
            let is_nothing = *change == SetAttr::default();
            let owner =
                (change.uid.is_some() || change.gid.is_some() || is_nothing).then(|| Owner {
                    uid: change.uid.unwrap_or(tree.attr(ix).uid),
                    gid: change.gid.unwrap_or(inode.gid()),
                });
            let (atime, mtime) = (change.atime.map(at), change.mtime.map(at));
            if change.perm.is_some() || owner.is_some() || atime.is_some() {
                transaction.records.push(Record::Attr(AttrChange {
                    inode: inode.id(),
                    perm: change.perm.map(|p| p & 0o7777),
                    owner,
                    atime,
                    number: None,
                }));
            }
            if let (Some(perm), Some(value)) = (change.perm, inode.xattr(ACL_ACCESS)) {
                let mut acl = Acl::parse(value)?;
                acl.chmod(perm);
                transaction
                    .records
                    .push(set_xattr(inode, ACL_ACCESS, Some(acl.encode())));
            }
            if mtime.is_some() {
                let plain_size = inode.plain_size();
                transaction.change_content(tree, inode, plain_size, mtime, Splices::default());
            }
            transaction.unlinked = !inode.is_linked();
            Ok(())
        })?;
        self.attr(ino)
    }

    /// Whether a write or a change of owner would drop set-id bits or capabilities. Rarely true, so it is checked
    /// without locking the journal.
    pub fn has_privileges(&self, ino: Ino) -> Result<bool> {
        const SET_ID: u16 = 0o6000;
        let tree = self.view().tree();
        let inode = tree.inode(find(&tree, ino)?);
        let has_some = inode.perm() & SET_ID != 0 || without_capability(inode).is_some();
        Ok(has_some && inode.kind() != FileKind::Directory)
    }

    /// Called before contents or owner change: see [`Volume::drop_privileges`](crate::volume::Volume::drop_privileges).
    pub fn drop_privileges(&self, ino: Ino, set_id: SetId) -> Result<bool> {
        self.log().commit(|tree, transaction| {
            let inode = tree.inode(find(tree, ino)?);
            let perm = Some(without_set_id(inode, set_id)).filter(|p| *p != inode.perm());
            let capability = without_capability(inode);
            if perm.is_some() {
                let attrs = AttrChange {
                    inode: inode.id(),
                    perm,
                    ..Default::default()
                };
                transaction.records.push(Record::Attr(attrs));
            }
            transaction.records.extend(capability);
            transaction.unlinked = !inode.is_linked();
            Ok(!transaction.records.is_empty())
        })
    }

    pub fn truncate(&self, ino: Ino, plain_size: u64) -> Result<()> {
        self.log().check_writable()?;
        if plain_size > FILE_LEN_MAX {
            return Err(Kind::FileTooLarge.into());
        }
        let file = self.file(ino);
        let flushing = overdue::lock(&file.flushing)?;
        // Dirty data below the new size was written before the truncation, so it has to be flushed first: a crash must
        // not leave the truncation without the writes. The data to be cut off is flushed with it, because otherwise a
        // crash could leave part of a write.
        let keeps_dirty = file
            .state
            .lock()
            .dirty
            .parts(0, plain_size)
            .next()
            .is_some();
        let flushed = if keeps_dirty {
            self.flush_locked(&file, true)
        } else {
            Ok(())
        };
        let (cut, mtime) = {
            let mut state = file.state.lock();
            let before = state.dirty.cost();
            let cut = state.dirty.take_from(plain_size);
            self.budget()
                .recount_dirty(before, state.dirty.cost() + cut.cost());
            let mtime = state.mtime;
            state.mtime = mtime
                .filter(|_| !state.dirty.is_empty())
                .map(|_| self.log().env().wall());
            (cut, mtime)
        };
        let frame = |tree: &Tree, transaction: &mut Transaction| {
            let inode = tree.inode(find(tree, ino)?);
            match inode.kind() {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Kind::IsDirectory.into()),
                _ => return Err(Kind::InvalidArgument.into()),
            }
            transaction.change_content(tree, inode, plain_size, None, Splices::default());
            Ok(())
        };
        let done = flushed.and_then(|()| self.log().commit(frame));
        match &done {
            Ok(()) => {
                self.budget().recount_dirty(cut.cost(), 0);
                self.cut_promise(ino, plain_size);
            }
            // The file keeps its size and contents.
            Err(_) => {
                let mut state = file.state.lock();
                self.put_back(&mut state, &cut);
                state.mtime = mtime;
            }
        }
        drop(flushing);
        drop(file);
        self.close_file(ino);
        done
    }

    pub fn xattr_value(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let tree = self.view().tree();
        let inode = tree.inode(find(&tree, ino)?);
        inode
            .xattr(name.as_bytes())
            .map(<[u8]>::to_vec)
            .ok_or_else(|| absent(name.as_bytes()).into())
    }

    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>> {
        let tree = self.view().tree();
        let inode = tree.inode(find(&tree, ino)?);
        Ok(inode
            .xattrs()
            .flat_map(|(name, _)| name.iter().copied().chain([0]))
            .collect())
    }

    pub fn change_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let name = name.as_bytes();
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Kind::BufferTooSmall.into());
        }
        if value.is_some_and(|v| v.len() > XATTR_LEN_MAX) {
            return Err(Kind::TooBig.into());
        }
        self.log().commit(|tree, transaction| {
            let inode = tree.inode(find(tree, ino)?);
            let exists = inode.xattr(name).is_some();
            use XattrMode::{Create, CreateAndReplace, Replace};
            match (mode, exists) {
                // The kernel passes no flags for ACLs, and removing an absent list succeeds.
                _ if matches!(name, ACL_ACCESS | ACL_DEFAULT) => {}
                (Create | CreateAndReplace, true) => return Err(Kind::Exists.into()),
                (Replace | CreateAndReplace, false) => return Err(absent(name).into()),
                (_, false) if !matches!(absent(name), Kind::NoAttribute) => {
                    return Err(absent(name).into());
                }
                _ => {}
            }
            let others = || inode.xattrs().filter(|(other, _)| *other != name);
            let names_len: usize = others().map(|(n, _)| n.len() + 1).sum();
            let values_len: usize = others().map(|(_, v)| v.len()).sum();
            let names_fit = names_len + name.len() < XATTR_LIST_LEN_MAX;
            let values_fit = values_len + value.map_or(0, <[u8]>::len) <= XATTR_ALL_LEN_MAX;
            if value.is_some() && !(names_fit && values_fit) {
                return Err(Kind::NoSpace.into());
            }
            let mut value = value.map(<[u8]>::to_vec);
            if let (ACL_ACCESS | ACL_DEFAULT, Some(acl)) = (name, &value) {
                let acl = Acl::parse(acl)?;
                if name == ACL_DEFAULT && inode.kind() != FileKind::Directory {
                    return Err(Kind::AccessDenied.into());
                }
                if name == ACL_ACCESS {
                    let (perm, is_mode_only) = acl.perm_of();
                    let perm = Some(inode.perm() & 0o7000 | perm & 0o777);
                    transaction.records.push(Record::Attr(AttrChange {
                        inode: inode.id(),
                        perm,
                        ..Default::default()
                    }));
                    value = value.filter(|_| !is_mode_only);
                }
            }
            if value.is_some() || exists {
                transaction.records.push(set_xattr(inode, name, value));
            }
            transaction.unlinked = !inode.is_linked();
            Ok(())
        })
    }
}

fn set_xattr(inode: &Inode, name: &[u8], value: Option<Vec<u8>>) -> Record {
    Record::Xattr(XattrChange {
        inode: inode.id(),
        name: name.to_vec(),
        value,
    })
}

/// The permission bits without the set-id bits that are to be dropped.
fn without_set_id(inode: &Inode, set_id: SetId) -> u16 {
    let perm = inode.perm();
    let group_runs = perm & 0o010 != 0;
    match set_id {
        SetId::Keep => perm,
        SetId::Drop if !group_runs => perm & !0o4000,
        SetId::DropUnlessOf(gid) if !group_runs && inode.gid() == gid => perm & !0o4000,
        SetId::Drop | SetId::DropUnlessOf(_) => perm & !0o6000,
    }
}

/// The error for a missing attribute. Namespaces that on-disk filesystems of Linux do not store are not supported.
fn absent(name: &[u8]) -> Kind {
    const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match NAMESPACES
        .iter()
        .find_map(|namespace| name.strip_prefix(*namespace))
    {
        Some([]) => Kind::InvalidArgument,
        Some(_) => Kind::NoAttribute,
        None if matches!(name, ACL_ACCESS | ACL_DEFAULT) => Kind::NoAttribute,
        None => Kind::NotSupported,
    }
}

fn without_capability(inode: &Inode) -> Option<Record> {
    let name = b"security.capability";
    inode.xattr(name).map(|_| set_xattr(inode, name, None))
}
