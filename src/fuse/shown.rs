//! Owners and permission bits as mount options set them, independent of what is stored: a library that root wrote on one
//! machine can be used by an ordinary user on another.
//!
//! The stored attributes do not change. The kernel checks access against what is shown. Access lists would contradict that,
//! so they are hidden and cannot be set. Bits that are hidden keep their stored value.

use std::ffi::OsStr;

use fuser::Request;

use super::Shared;
use super::types::{self, perm};
use crate::error::{Error, Kind, Result};
use crate::volume::{Attr, Caller, FileKind, Ino, SetAttr, Volume};

/// The set-id bits. If another owner is shown, a program with these bits would run with the rights of that owner.
const SET_ID: u16 = 0o6000;

/// How the owners and permissions of all files are shown. The default shows them as they are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShownAs {
    /// The owner of all files, if not the stored one.
    pub uid: Option<u32>,
    /// The group of all files, if not the stored one.
    pub gid: Option<u32>,
    /// Permission bits that are hidden. Symbolic links keep theirs, which have no meaning.
    pub umask: u16,
}

impl ShownAs {
    /// Whether anything is shown differently from how it is stored.
    pub(super) fn differs(&self) -> bool {
        *self != Self::default()
    }

    fn has_owner(&self) -> bool {
        self.uid.or(self.gid).is_some()
    }

    /// The permission bits that are hidden.
    fn hidden(&self) -> u16 {
        self.umask | if self.has_owner() { SET_ID } else { 0 }
    }

    /// Changes stored attributes into those that are shown.
    pub(super) fn show(&self, attr: &mut Attr) {
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        if attr.kind != FileKind::Symlink {
            attr.perm &= !self.hidden();
        }
    }

    /// Which part of a change must be stored for a file with the attributes `stored`. If an owner is shown for all files, a
    /// file can be given to that owner, which changes nothing, but to no other ([`Kind::NotPermitted`]).
    fn to_store(self, stored: &Attr, change: &SetAttr) -> Result<SetAttr> {
        let owner = |shown: Option<u32>, new: Option<u32>| match (shown, new) {
            (Some(shown), Some(new)) if shown != new => Err(Error::from(Kind::NotPermitted)),
            (Some(_), _) => Ok(None),
            (None, new) => Ok(new),
        };
        let hidden = self.hidden();
        Ok(SetAttr {
            uid: owner(self.uid, change.uid)?,
            gid: owner(self.gid, change.gid)?,
            perm: change
                .perm
                .map(|perm| perm & !hidden | stored.perm & hidden),
            ..*change
        })
    }

    /// Whether an extended attribute is hidden and cannot be set.
    fn hides(&self, name: &[u8]) -> bool {
        self.differs()
            && matches!(
                name,
                b"system.posix_acl_access" | b"system.posix_acl_default"
            )
    }
}

impl Shared {
    /// The owner of a new file. If one owner is shown for all files, the user who mounted owns new ones.
    pub(super) fn caller(&self, req: &Request, umask: u32) -> Caller {
        let mut caller = types::caller(req, umask);
        if self.shown_as.uid.is_some() {
            caller.uid = rustix::process::getuid().as_raw();
        }
        if self.shown_as.gid.is_some() {
            caller.gid = rustix::process::getgid().as_raw();
        }
        caller
    }

    /// The permission bits of a new file.
    pub(super) fn perm_of_new(&self, mode: u32) -> u16 {
        if self.shown_as.has_owner() {
            perm(mode) & !SET_ID
        } else {
            perm(mode)
        }
    }

    /// Which part of a change must be stored; `None` if nothing of it.
    pub(super) fn to_store(
        &self,
        volume: &dyn Volume,
        ino: Ino,
        change: &SetAttr,
    ) -> Result<Option<SetAttr>> {
        if !self.shown_as.differs() || *change == SetAttr::default() {
            return Ok(Some(*change));
        }
        let stored = self.shown_as.to_store(&volume.getattr(ino)?, change)?;
        Ok(Some(stored).filter(|stored| *stored != SetAttr::default()))
    }

    /// Refuses a hidden attribute, as a filesystem that does not support it would.
    pub(super) fn check_name(&self, name: &OsStr) -> Result<()> {
        if self.shown_as.hides(name.as_encoded_bytes()) {
            Err(Kind::NotSupported.into())
        } else {
            Ok(())
        }
    }

    /// Removes the names of hidden attributes.
    pub(super) fn without_hidden(&self, names: Vec<u8>) -> Vec<u8> {
        if !self.shown_as.differs() {
            return names;
        }
        let shown = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !self.shown_as.hides(&name[..name.len() - 1]));
        shown.collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Time;

    fn attr(kind: FileKind, perm: u16) -> Attr {
        Attr {
            ino: Ino(2),
            generation: 0,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 5,
            rdev: 0,
            plain_size: 0,
            blocks_512: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
        }
    }

    fn shown(shown_as: ShownAs, kind: FileKind, perm: u16) -> (u32, u32, u16) {
        let mut attr = attr(kind, perm);
        shown_as.show(&mut attr);
        (attr.uid, attr.gid, attr.perm)
    }

    const MINE: ShownAs = ShownAs {
        uid: Some(1000),
        gid: None,
        umask: 0o027,
    };

    #[test]
    fn by_default_all_is_shown_as_it_is_stored() {
        let none = ShownAs::default();
        assert!(!none.differs() && !none.hides(b"system.posix_acl_access"));
        assert_eq!(shown(none, FileKind::Regular, 0o6755), (0, 5, 0o6755));
        let change = SetAttr {
            uid: Some(7),
            gid: Some(8),
            perm: Some(0o4755),
            ..SetAttr::default()
        };
        assert_eq!(
            none.to_store(&attr(FileKind::Regular, 0), &change).unwrap(),
            change
        );
    }

    #[test]
    fn the_owner_is_another_and_bits_are_masked() {
        assert_eq!(shown(MINE, FileKind::Regular, 0o6777), (1000, 5, 0o750));
        assert_eq!(shown(MINE, FileKind::Directory, 0o1777), (1000, 5, 0o1750));
        assert_eq!(shown(MINE, FileKind::Symlink, 0o777), (1000, 5, 0o777));
        let masked = ShownAs {
            umask: 0o077,
            ..ShownAs::default()
        };
        assert_eq!(shown(masked, FileKind::Regular, 0o4755), (0, 5, 0o4700));
        assert!(
            MINE.hides(b"system.posix_acl_default") && masked.hides(b"system.posix_acl_access")
        );
        assert!(!MINE.hides(b"user.posix_acl_access"));
    }

    #[test]
    fn hidden_bits_keep_their_stored_value() {
        let file = attr(FileKind::Regular, 0o4715);
        let chmod = |perm| SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        let stored = MINE.to_store(&file, &chmod(0o640)).unwrap();
        // 0o640 & !0o027 of the change, and 0o4715 & 0o6027 of what is stored.
        assert_eq!(stored, chmod(0o4645));
    }

    #[test]
    fn a_file_can_be_given_only_to_the_shown_owner() {
        let file = attr(FileKind::Regular, 0o644);
        let chown = |uid, gid| SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        };
        let to_store = |uid, gid| MINE.to_store(&file, &chown(uid, gid));
        assert_eq!(to_store(Some(1000), None).unwrap(), SetAttr::default());
        assert_eq!(to_store(Some(1000), Some(9)).unwrap(), chown(None, Some(9)));
        for other in [0, 1001] {
            let refused = to_store(Some(other), None).unwrap_err();
            assert_eq!(refused.errno(), libc::EPERM);
        }
    }
}
