//! Removed links of files that have others.
//!
//! A snapshot has no trace of what was removed. But a writer that removes a link without knowing it to be the last has
//! not removed the file. So for each file from which links were removed, a snapshot has the newest removal by each
//! device. A writer that had not seen one of these removals still saw that link.

use super::inode::*;
use super::merge::Branch;
use super::record::{BaseLink, BaseStamp, Id, LinkAt, Record};
use super::tree::Tree;
use crate::volume::FileKind;

/// The name in the record, which is not used.
const NO_NAME: &[u8] = b"removed";

/// The newest removal by one device of one of several links of an inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unlinked {
    /// The link; `None` if the device removed several.
    link: Option<Id>,
    at: Stamp,
}

/// An id that no inode has: readers that do not look for removals ignore a link of it.
fn unused_id(inode: Id) -> Id {
    Id(!inode.0)
}

/// The inode whose removed link this record of a snapshot is about.
fn unlinked_from(to: &LinkAt) -> Option<Id> {
    let inode = to.inode.unwrap_or(to.link);
    (inode == unused_id(to.parent)).then_some(to.parent)
}

impl Tree {
    /// Marks the removal of a link from an inode, if that has others.
    pub(super) fn mark_unlinked(&mut self, from: InodeIx, link: Id, at: Stamp) {
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
        let newest = if self.is_later(at, known.at) {
            at
        } else {
            known.at
        };
        let link = link.filter(|_| link == known.link);
        if let Some(all) = self.unlinked.get_mut(&from) {
            all[place] = Unlinked { link, at: newest };
        }
    }

    /// Whether a link of an inode was removed before the block and this writer had not seen the removal, except for
    /// links that are gone for this writer anyway.
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

    /// About `count` records of a snapshot about removed links, of inodes from slot `from` on, and the next slot;
    /// `None` if a stamp is not in the table.
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
            let (parent, unused) = (inode.id(), unused_id(inode.id()));
            for one in all {
                let link = LinkAt {
                    link: one.link.unwrap_or(unused),
                    inode: one.link.map(|_| unused),
                    parent,
                    name: NO_NAME.to_vec(),
                };
                let at = stamp(one.at)?;
                records.push(Record::BaseLink(BaseLink { link, at }));
            }
        }
        Some((records, None))
    }

    /// Whether this record of a snapshot is about a removed link; if so, marks the removal.
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
