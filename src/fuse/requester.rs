//! The user and groups that a request comes from.
//!
//! Since Linux 6.12, when mounts with mapped ids became possible, the kernel names the user only in requests that create
//! something, in terms of this mount's ids. For other requests, if it matters (mostly for set-id bits), the process is
//! looked up in `/proc`; it waits for the answer and cannot go away. This gives the ids of the machine, even if the process
//! uses a mount with mapped ids. Such a process counts as a stranger, and more set-id bits are removed than necessary.

use fuser::Request;

use crate::volume::{Attr, SetId};

/// No id. The kernel sends this instead of an id that it does not name.
const NONE: u32 = u32::MAX;

/// The user and groups that a request comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Requester {
    /// The user id, or [`NONE`] if it is not known.
    pub uid: u32,
    groups: Vec<u32>,
}

impl Requester {
    /// The origin of a request. If its process cannot be seen, for example in another PID namespace, no id is known.
    pub fn of(req: &Request) -> Self {
        let looked_up = Self::of_process(req.pid());
        match (req.uid(), looked_up) {
            (NONE, looked_up) => looked_up.unwrap_or(Self {
                uid: NONE,
                groups: Vec::new(),
            }),
            (uid, looked_up) => {
                let mut groups = looked_up.map_or(Vec::new(), |found| found.groups);
                groups.push(req.gid());
                Self { uid, groups }
            }
        }
    }

    /// The ids of a process that decide about its access to files.
    fn of_process(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let ids = line.unwrap_or_default().split_ascii_whitespace();
            ids.map_while(|id| id.parse().ok()).collect::<Vec<u32>>()
        };
        // Four ids: real, effective, saved, and that for file access.
        let mut groups = ids("Groups:");
        groups.push(*ids("Gid:").get(3)?);
        Some(Self {
            uid: *ids("Uid:").get(3)?,
            groups,
        })
    }

    /// Whether the user is not root, who has all capabilities.
    pub fn is_ordinary(&self) -> bool {
        self.uid != 0
    }

    /// Which set-id bits a file loses if this user changes its contents: none for root, who has CAP_FSETID.
    pub fn set_id_on_write(&self, attr: &Attr) -> SetId {
        if self.is_ordinary() {
            self.set_id_unless_in_group(attr)
        } else {
            SetId::Keep
        }
    }

    /// Which set-id bits a file loses by chown(2). Even root's chown(2) removes them: the new owner has not set them.
    pub fn set_id_on_chown(&self, attr: &Attr) -> SetId {
        if self.is_ordinary() {
            self.set_id_unless_in_group(attr)
        } else {
            SetId::Drop
        }
    }

    /// Both bits are removed, but a set-group-id bit without group execution stays for members of the file's group.
    pub fn set_id_unless_in_group(&self, attr: &Attr) -> SetId {
        SetId::DropUnlessOf(if self.is_in_group(attr.gid) {
            attr.gid
        } else {
            NONE
        })
    }

    /// Whether the user is in a group.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_with_its_groups() {
        let own = Requester::of_process(std::process::id()).unwrap();
        let id = (rustix::process::geteuid(), rustix::process::getegid());
        assert_eq!(own.uid, id.0.as_raw());
        let groups = rustix::process::getgroups().unwrap();
        assert!(
            groups
                .iter()
                .chain([&id.1])
                .all(|gid| own.is_in_group(gid.as_raw()))
        );
        assert!(!own.is_in_group(NONE));
        assert_eq!(Requester::of_process(0), None);
    }
}
