//! Extended attributes.

use std::ffi::OsStr;

use fuser::{Errno, INodeNo, Request};

use super::asker::Asker;
use super::types::{shown_names, xattr_mode};
use super::{SESSION_ATTRIBUTE, Shared};
use crate::volume::{ROOT, SetAttr};

impl Shared {
    /// Sets an extended attribute, and takes the set-group-id bit where the kernel leaves that to us: an access list
    /// comes from somebody who is not in the file's group.
    pub(super) fn set_xattr(
        &self,
        req: &Request,
        ino: INodeNo,
        (name, value): (&OsStr, &[u8]),
        flags: i32,
    ) -> Result<(), Errno> {
        const ACCESS_LIST: &str = "system.posix_acl_access";
        const S_ISGID: u16 = 0o2000;
        self.change("setxattr", ino, |v, ino| {
            self.check_name(name)?;
            let mode = xattr_mode(flags)?;
            if name == ACCESS_LIST {
                let attr = v.getattr(ino)?;
                let is_marked = attr.perm & S_ISGID != 0;
                let asker = is_marked.then(|| Asker::of(req));
                if asker.is_some_and(|a| a.is_ordinary() && !a.is_in_group(attr.gid)) {
                    let without = SetAttr {
                        perm: Some(attr.perm & !S_ISGID),
                        ..SetAttr::default()
                    };
                    v.setattr(ino, &without)?;
                }
            }
            v.setxattr(ino, name, value, mode)
        })
    }

    /// The value of an extended attribute.
    pub(super) fn get_xattr(&self, ino: INodeNo, name: &OsStr) -> Result<Vec<u8>, Errno> {
        match &self.name {
            Some(session) if ino.0 == ROOT.0 && name == SESSION_ATTRIBUTE => {
                Ok(session.clone().into_bytes())
            }
            _ => self.call("getxattr", ino, |v, ino| {
                self.check_name(name)?;
                v.getxattr(ino, name)
            }),
        }
    }

    /// The names of the extended attributes that who asks may know.
    pub(super) fn list_xattrs(&self, req: &Request, ino: INodeNo) -> Result<Vec<u8>, Errno> {
        let names = self.call("listxattr", ino, |v, ino| v.listxattr(ino))?;
        Ok(shown_names(req, self.without_hidden(names)))
    }

    /// Removes an extended attribute.
    pub(super) fn remove_xattr(&self, ino: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.change("removexattr", ino, |v, ino| {
            self.check_name(name)?;
            v.removexattr(ino, name)
        })
    }
}
