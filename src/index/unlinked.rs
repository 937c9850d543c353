//! Names that were removed from files that have others.
//!
//! A base says nothing of what is gone. But whoever removes a name that he does not know to be the last one has not
//! removed the file: so a base says of each file from which names were removed when that was last done, by device. Who
//! had not seen one of these removals still saw that name.

use super::inode::*;
use super::merge::Branch;
use super::record::{BaseLink, BaseStamp, Id, LinkAt, Record};
use super::tree::Tree;
use crate::volume::FileKind;

/// What stands for the name in the record.
const NO_NAME: &[u8] = b"removed";

/// The newest removal of one of several names of an inode by a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unlinked {
    /// The link; none where the device removed others before.
    link: Option<Id>,
    at: Stamp,
}

/// An id that no inode has: a link of it is none, for who does not look for removals.
fn nobody(inode: Id) -> Id {
    Id(!inode.0)
}

/// The inode from which this record of a base says that names were removed.
fn unlinked_from(to: &LinkAt) -> Option<Id> {
    let inode = to.inode.unwrap_or(to.link);
    (inode == nobody(to.parent)).then_some(to.parent)
}

impl Tree {
    /// Notes that a link was removed from an inode, if that has others.
    pub(super) fn note_unlinked(&mut self, from: InodeIx, link: Id, at: Stamp) {
        let inode = self.inode(from);
        if inode.is_linked() && inode.kind != FileKind::Directory {
            self.add_unlinked(from, Some(link), at);
        }
    }

    fn add_unlinked(&mut self, from: InodeIx, link: Option<Id>, at: Stamp) {
        let device = self.device_of(at);
        let all = self.unlinked.get(&from).into_iter().flatten();
        let known = all.copied().enumerate();
        let mut of_device = known.filter(|(_, known)| self.device_of(known.at) == device);
        let Some((place, known)) = of_device.next() else {
            let new = Unlinked { link, at };
            self.unlinked.entry(from).or_default().push(new);
            return;
        };
        let newest = match self.is_later(at, known.at) {
            true => at,
            false => known.at,
        };
        let link = link.filter(|_| link == known.link);
        if let Some(all) = self.unlinked.get_mut(&from) {
            all[place] = Unlinked { link, at: newest };
        }
    }

    /// Whether a link was removed from an inode before the block that this writer had not seen go, other than those that
    /// are gone for him all the same.
    pub(super) fn has_unseen_removal(
        &self,
        inode: Id,
        by: &Branch,
        is_gone: impl Fn(Id) -> bool,
    ) -> bool {
        let all = self.find_id(inode).and_then(|ix| self.unlinked.get(&ix));
        let all = || all.into_iter().flatten();
        let is_seen = |link: Id| {
            let mut seen = all().filter(|one| !self.is_unknown(one.at, by));
            is_gone(link) || seen.any(|one| one.link == Some(link))
        };
        all().any(|one| self.is_unknown(one.at, by) && !one.link.is_some_and(is_seen))
    }

    /// The stamps of all these removals.
    pub(super) fn unlinked_stamps(&self) -> impl Iterator<Item = Stamp> {
        self.unlinked.values().flatten().map(|one| one.at)
    }

    /// Records of a base about the inodes from slot `from` on, about `count`, and the slot after them; `None` where a
    /// stamp is not in the table.
    pub(super) fn base_unlinked(
        &self,
        from: u32,
        count: usize,
        stamp: &impl Fn(Stamp) -> Option<BaseStamp>,
    ) -> Option<(Vec<Record>, Option<u32>)> {
        let mut records = Vec::new();
        for (ix, all) in self.unlinked.range(InodeIx(from)..) {
            if records.len() >= count {
                return Some((records, Some(ix.0)));
            }
            let inode = self.inode(*ix);
            if !inode.is_linked() {
                continue;
            }
            let (parent, nobody) = (inode.id(), nobody(inode.id()));
            for one in all {
                let link = LinkAt {
                    link: one.link.unwrap_or(nobody),
                    inode: one.link.map(|_| nobody),
                    parent,
                    name: NO_NAME.to_vec(),
                };
                let at = stamp(one.at)?;
                records.push(Record::BaseLink(BaseLink { link, at }));
            }
        }
        Some((records, None))
    }

    /// Whether this record of a base is about a removal, which is noted then.
    pub(super) fn apply_base_unlinked(&mut self, to: &LinkAt, at: Stamp) -> bool {
        let Some(from) = unlinked_from(to) else {
            return false;
        };
        if let Some(ix) = self.find_id(from)
            && self.inode(ix).kind != FileKind::Directory
        {
            self.add_unlinked(ix, to.inode.map(|_| to.link), at);
        }
        true
    }
}
