//! Extended attributes.

use std::ffi::OsStr;

use fuser::{Errno, INodeNo, Request};

use super::requester::Requester;
use super::types::{shown_names, xattr_mode};
use super::{SESSION_ATTRIBUTE, Shared};
use crate::volume::{ROOT, SetAttr};

impl Shared {
    /// Sets an extended attribute. If it is an access list, set by a user who is not in the file's group, this also removes
    /// the set-group-id bit, which the kernel leaves to us.
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
                let has_bit = attr.perm & S_ISGID != 0;
                let requester = has_bit.then(|| Requester::of(req));
                if requester.is_some_and(|r| r.is_ordinary() && !r.is_in_group(attr.gid)) {
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

    /// The names of the extended attributes that the requesting user may see.
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
