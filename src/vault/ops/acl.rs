//! POSIX access control lists, in the format of `system.posix_acl_access` and `system.posix_acl_default`: inheritance,
//! and keeping the list consistent with the mode.
//!
//! The kernel checks permissions with these lists. A FUSE filesystem that stores them has to implement what
//! `posix_acl_create`, `posix_acl_chmod` and `posix_acl_equiv_mode` do for filesystems in the kernel.

use crate::error::{Error, Kind, Result};
use crate::volume::XATTR_LEN_MAX;

const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// ACL_UNDEFINED_ID: the id in entries without a user or group. Not a valid id in other entries.
const NO_ID: u32 = u32::MAX;

/// Read, write and execute, in the three lowest bits.
const RWX: u16 = 0o7;

/// A valid access control list. Permissions are read, write and execute in the three lowest bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    owner: u16,
    users: Vec<(u32, u16)>,
    group: u16,
    groups: Vec<(u32, u16)>,
    mask: Option<u16>,
    other: u16,
}

impl Acl {
    /// Parses the value of an extended attribute. Accepts what the kernel accepts: version 2, known tags in order,
    /// exactly one entry each for owner, group and others, at most one mask, which is required with named users or
    /// groups.
    ///
    /// # Errors
    /// [`Kind::NotSupported`] for another version, [`Kind::TooBig`] for a value longer than an attribute may be,
    /// [`Kind::InvalidArgument`] otherwise.
    pub fn parse(value: &[u8]) -> Result<Self> {
        if value.len() > XATTR_LEN_MAX {
            return Err(Kind::TooBig.into());
        }
        let (version, entries) = value
            .split_first_chunk::<HEADER_LEN>()
            .ok_or_else(invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Kind::NotSupported.into());
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() {
            return Err(invalid());
        }
        let mut acl = Self {
            owner: 0,
            users: vec![],
            group: 0,
            groups: vec![],
            mask: None,
            other: 0,
        };
        // The tag of the last entry: tags are in ascending order, and only USER and GROUP may repeat.
        let mut last = 0;
        let mut seen = 0;
        for &[tag0, tag1, perm0, perm1, id @ ..] in entries {
            let (tag, perm) = (
                u16::from_le_bytes([tag0, tag1]),
                u16::from_le_bytes([perm0, perm1]),
            );
            let id = u32::from_le_bytes(id);
            if perm & !RWX != 0 || tag < last || (tag == last && tag != USER && tag != GROUP) {
                return Err(invalid());
            }
            match tag {
                USER_OBJ => acl.owner = perm,
                USER if id != NO_ID => acl.users.push((id, perm)),
                GROUP_OBJ => acl.group = perm,
                GROUP if id != NO_ID => acl.groups.push((id, perm)),
                MASK => acl.mask = Some(perm),
                OTHER => acl.other = perm,
                _ => return Err(invalid()),
            }
            last = tag;
            seen |= tag;
        }
        let needed = match seen & (USER | GROUP) {
            0 => USER_OBJ | GROUP_OBJ | OTHER,
            _ => USER_OBJ | GROUP_OBJ | OTHER | MASK,
        };
        if seen & needed != needed {
            Err(invalid())
        } else {
            Ok(acl)
        }
    }

    /// Returns the value of the extended attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut value =
            Vec::with_capacity(HEADER_LEN + ENTRY_LEN * (4 + self.users.len() + self.groups.len()));
        value.extend_from_slice(&VERSION.to_le_bytes());
        let mut add = |tag: u16, perm: u16, id: u32| {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        };
        add(USER_OBJ, self.owner, NO_ID);
        self.users
            .iter()
            .for_each(|&(id, perm)| add(USER, perm, id));
        add(GROUP_OBJ, self.group, NO_ID);
        self.groups
            .iter()
            .for_each(|&(id, perm)| add(GROUP, perm, id));
        if let Some(mask) = self.mask {
            add(MASK, mask, NO_ID);
        }
        add(OTHER, self.other, NO_ID);
        value
    }

    /// Returns the permission bits and the access list of a new inode in a directory with this default list. The access
    /// list is `None` if the bits are equivalent. `perm` is the requested mode without the umask applied, because the
    /// umask is ignored if there is a default list. Set-id and sticky bits are kept. (A new directory also inherits the
    /// default list as its own.)
    pub fn inherit(&self, perm: u16) -> (u16, Option<Acl>) {
        let mut acl = self.clone();
        acl.owner &= perm >> 6;
        acl.other &= perm;
        // If there is a mask, the group bits of a mode refer to it; the entry of the group is kept.
        *acl.group_class() &= perm >> 3;
        let (bits, equivalent) = acl.perm_of();
        (perm & !0o777 | bits, (!equivalent).then_some(acl))
    }

    /// Applies chmod(2) with `perm` to the access list.
    pub fn chmod(&mut self, perm: u16) {
        self.owner = perm >> 6 & RWX;
        self.other = perm & RWX;
        *self.group_class() = perm >> 3 & RWX;
    }

    /// Returns the nine permission bits of this access list, and whether they are equivalent to it, so that the list
    /// need not be stored.
    pub fn perm_of(&self) -> (u16, bool) {
        let perm = self.owner << 6 | self.mask.unwrap_or(self.group) << 3 | self.other;
        // Named entries require a mask, so without one there are none.
        (perm, self.mask.is_none())
    }

    fn group_class(&mut self) -> &mut u16 {
        self.mask.as_mut().unwrap_or(&mut self.group)
    }
}

fn invalid() -> Error {
    Kind::InvalidArgument.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `setfacl -m u:1000:rwx,g:50:r-x,m::rw- FILE` on a file of mode 0640, as getfattr(1) shows it.
    const NAMED: &[u8] = &[
        2, 0, 0, 0, //
        1, 0, 6, 0, 255, 255, 255, 255, //
        2, 0, 7, 0, 232, 3, 0, 0, //
        4, 0, 4, 0, 255, 255, 255, 255, //
        8, 0, 5, 0, 50, 0, 0, 0, //
        16, 0, 6, 0, 255, 255, 255, 255, //
        32, 0, 0, 0, 255, 255, 255, 255,
    ];

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            value.extend(
                tag.to_le_bytes()
                    .iter()
                    .chain(&perm.to_le_bytes())
                    .chain(&id.to_le_bytes()),
            );
        }
        value
    }

    #[test]
    fn lists_survive_both_ways() {
        let acl = Acl::parse(NAMED).unwrap();
        assert_eq!(acl.users, [(1000, 7)]);
        assert_eq!(acl.groups, [(50, 5)]);
        assert_eq!(acl.encode(), NAMED);
        // ls(1) shows the mask as the group bits.
        assert_eq!(acl.perm_of(), (0o660, false));
        let plain = Acl::parse(&value(&[(1, 7, NO_ID), (4, 5, NO_ID), (32, 4, NO_ID)])).unwrap();
        assert_eq!(plain.perm_of(), (0o754, true));
        let masked = Acl::parse(&value(&[(1, 7, 0), (4, 5, 0), (16, 1, 0), (32, 4, 0)])).unwrap();
        assert_eq!(masked.perm_of(), (0o714, false));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        let (u, g, o, m) = ((1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID), (16, 7, NO_ID));
        let named = (2, 7, 1000);
        for wrong in [
            vec![],
            vec![u, g],
            vec![u, o],
            vec![g, o],
            vec![u, u, g, o],
            vec![u, g, g, o],
            vec![u, g, o, o],
            vec![g, u, o],
            vec![u, o, g],
            vec![u, named, g, o],
            vec![u, g, (8, 7, 1000), o],
            vec![named, u, g, m, o],
            vec![u, g, m, m, o],
            vec![u, g, o, m],
            vec![u, (2, 7, NO_ID), g, m, o],
            vec![u, g, (8, 7, NO_ID), m, o],
            vec![(1, 8, NO_ID), g, o],
            vec![u, g, (64, 0, NO_ID), o],
            vec![u, (3, 0, NO_ID), g, o],
            vec![(0, 0, NO_ID), u, g, o],
        ] {
            let error = Acl::parse(&value(&wrong)).unwrap_err();
            assert!(matches!(error.kind(), Kind::InvalidArgument), "{wrong:?}");
        }
        Acl::parse(&value(&[
            u,
            named,
            (2, 1, 3),
            g,
            (8, 7, 9),
            (8, 7, 1),
            m,
            o,
        ]))
        .unwrap();
        assert!(matches!(
            Acl::parse(&NAMED[..NAMED.len() - 1]).unwrap_err().kind(),
            Kind::InvalidArgument
        ));
        assert!(matches!(
            Acl::parse(&[2, 0, 0]).unwrap_err().kind(),
            Kind::InvalidArgument
        ));
        assert!(matches!(
            Acl::parse(&[1, 0, 0, 0]).unwrap_err().kind(),
            Kind::NotSupported
        ));
        assert!(matches!(
            Acl::parse(&vec![0; XATTR_LEN_MAX + 1]).unwrap_err().kind(),
            Kind::TooBig
        ));
    }

    #[test]
    fn inheriting_is_posix_acl_create() {
        // setfacl -d -m u::rwx,u:1000:rwx,g::r-x,m::rwx,o::--- DIR
        let default = Acl::parse(&value(&[
            (1, 7, NO_ID),
            (2, 7, 1000),
            (4, 5, NO_ID),
            (16, 7, NO_ID),
            (32, 0, NO_ID),
        ]))
        .unwrap();
        // touch requests 0666. The mask loses x; the entry of the group keeps it.
        let (perm, acl) = Acl::inherit(&default, 0o666);
        let acl = acl.unwrap();
        assert_eq!(perm, 0o660);
        assert_eq!(
            (acl.owner, acl.group, acl.mask, acl.other),
            (6, 5, Some(6), 0)
        );
        assert_eq!(acl.users, [(1000, 7)]);
        // mkdir with set-group-id.
        assert_eq!(Acl::inherit(&default, 0o2777).0, 0o2770);

        // setfacl -d -m u::rwx,g::r-x,o::r-x: no mask, so the mode is equivalent.
        let default = Acl::parse(&value(&[(1, 7, NO_ID), (4, 5, NO_ID), (32, 5, NO_ID)])).unwrap();
        assert_eq!(Acl::inherit(&default, 0o666), (0o644, None));
        assert_eq!(Acl::inherit(&default, 0o4700), (0o4700, None));
    }

    #[test]
    fn chmod_is_posix_acl_chmod() {
        let mut acl = Acl::parse(NAMED).unwrap();
        acl.chmod(0o4751);
        assert_eq!(
            (acl.owner, acl.group, acl.mask, acl.other),
            (7, 4, Some(5), 1)
        );
        assert_eq!(acl.perm_of(), (0o751, false));
        let mut plain =
            Acl::parse(&value(&[(1, 7, NO_ID), (4, 5, NO_ID), (32, 4, NO_ID)])).unwrap();
        plain.chmod(0o640);
        assert_eq!(
            (plain.owner, plain.group, plain.mask, plain.other),
            (6, 4, None, 0)
        );
    }
}
