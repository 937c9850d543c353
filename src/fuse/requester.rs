//! Who asks.
//!
//! Since mounts may be mapped to other ids (Linux 6.12), the kernel says who asks only where something is made, in terms of
//! this mount's ids. Otherwise the process is looked up, where it matters: for what becomes of set-id bits, mostly. It waits for
//! the answer meanwhile. Its ids are then those of this machine, also where a mapping makes others of them: who comes
//! through one is then taken for a stranger, and more set-id bits go than had to.

use fuser::Request;

use crate::volume::{Attr, SetId};

/// No id, and what the kernel sends for one that it does not say.
const NONE: u32 = u32::MAX;

/// Who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asker {
    /// The user, as far as the kernel tells.
    pub uid: u32,
    groups: Vec<u32>,
}

impl Asker {
    /// Who made a request. A process that cannot be seen from here (in another PID namespace, for one) is nobody.
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

    /// The ids by which a process is judged when it asks for files.
    fn of_process(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let ids = line.unwrap_or_default().split_ascii_whitespace();
            ids.map_while(|id| id.parse().ok()).collect::<Vec<u32>>()
        };
        // Real, effective, saved, and that for files.
        let mut groups = ids("Groups:");
        groups.push(*ids("Gid:").get(3)?);
        Some(Self {
            uid: *ids("Uid:").get(3)?,
            groups,
        })
    }

    /// Whether who asks has no capabilities, as far as the kernel tells.
    pub fn is_ordinary(&self) -> bool {
        self.uid != 0
    }

    /// What becomes of a file's set-id bits when who asks changes its contents. Root has CAP_FSETID.
    pub fn set_id_on_write(&self, attr: &Attr) -> SetId {
        match self.is_ordinary() {
            true => self.set_id_unless_in_group(attr),
            false => SetId::Keep,
        }
    }

    /// The same for chown(2), whoever asks: who owns the file now was not asked.
    pub fn set_id_on_chown(&self, attr: &Attr) -> SetId {
        match self.is_ordinary() {
            true => self.set_id_unless_in_group(attr),
            false => SetId::Drop,
        }
    }

    /// They go, and the mark only where who asks is not in the file's group.
    pub fn set_id_unless_in_group(&self, attr: &Attr) -> SetId {
        SetId::DropUnlessOf(match self.is_in_group(attr.gid) {
            true => attr.gid,
            false => NONE,
        })
    }

    /// Whether who asks is in a group.
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_with_its_groups() {
        let own = Asker::of_process(std::process::id()).unwrap();
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
        assert_eq!(Asker::of_process(0), None);
    }
}
