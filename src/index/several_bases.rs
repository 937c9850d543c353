//! Several snapshots in use: what a newer one removed from an older one.
//!
//! A snapshot has what exists, but no trace of what was removed. So what one snapshot has and another one covers but
//! lacks was removed. A change that the other does not cover was made by a device that did not know of the removal:
//! then the removal yields, as in any merge.

use std::collections::HashMap;

use super::inode::*;
use super::merge::Known;
use super::record::{BaseInode, LinkAt};
use super::tree::Tree;
use crate::volume::{FileKind, Time};

/// Maximum number of snapshots that are distinguished: any others count as having everything.
const BASES_MAX: usize = 16;

/// Which of the snapshots in use has what: a bit each, by the slots of inodes and links.
#[derive(Debug, Default)]
pub(super) struct InBases {
    /// What each snapshot covers.
    covers: Vec<Known>,
    inodes: Vec<u16>,
    links: Vec<u16>,
    /// The links that are, or were during its replay, where the snapshot has them.
    places: Vec<u16>,
}

impl InBases {
    /// The bit of the snapshot that is being applied.
    fn bit(&self) -> u16 {
        match self.covers.len() {
            at @ 1..=BASES_MAX => 1 << (at - 1),
            _ => 0,
        }
    }

    /// The snapshots, by index and coverage, that lack something with these bits.
    fn lacking(&self, bits: u16) -> impl Iterator<Item = (usize, &Known)> {
        let covers = self.covers.iter().take(BASES_MAX).enumerate();
        covers.filter(move |(at, _)| bits & 1 << at == 0)
    }
}

fn bits(of: &[u16], at: u32) -> u16 {
    of.get(at as usize).copied().unwrap_or(0)
}

fn set_bit(bit: u16, of: &mut Vec<u16>, at: u32) {
    let at = at as usize;
    if of.len() <= at {
        of.resize(at + 1, 0);
    }
    of[at] |= bit;
}

impl Tree {
    /// Starts to apply one of several snapshots.
    pub fn begin_base(&mut self, covers: Known) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.in_bases.covers.push(covers);
        }
    }

    /// Marks an inode as present in the snapshot.
    pub(super) fn mark_inode_in_base(&mut self, base: &BaseInode) {
        if let (Some(ix), Some(unsettled)) = (self.find_id(base.inode.id), &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            set_bit(in_bases.bit(), &mut in_bases.inodes, ix.0);
        }
    }

    /// Marks a link as present in the snapshot.
    pub(super) fn mark_link_in_base(&mut self, base: &LinkAt) {
        if let (Some(link), Some(unsettled)) = (self.find_placed(base), &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            set_bit(in_bases.bit(), &mut in_bases.links, link.0);
        }
    }

    pub(super) fn find_placed(&self, to: &LinkAt) -> Option<LinkIx> {
        let inode = self.find_id(to.inode.unwrap_or(to.link))?;
        self.find_link(inode, to.link)
    }

    /// Marks a link as present in the snapshot, and as being where the snapshot has it if its stamp is `at`.
    pub(super) fn mark_place_in_base(&mut self, base: &LinkAt, at: Stamp) {
        self.mark_link_in_base(base);
        let link = self.find_placed(base).filter(|ix| self.link(*ix).at == at);
        if let (Some(link), Some(unsettled)) = (link, &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            set_bit(in_bases.bit(), &mut in_bases.places, link.0);
        }
    }

    /// Whether a link is where the current snapshot has it, as far as that was read.
    pub(super) fn is_of_this_base(&self, link: LinkIx) -> bool {
        self.unsettled.as_ref().is_none_or(|unsettled| {
            let in_bases = &unsettled.in_bases;
            in_bases.covers.len() < 2 || bits(&in_bases.places, link.0) & in_bases.bit() != 0
        })
    }

    /// Removes what one of the snapshots in use removed from another: files first, then directories that became empty.
    /// To be called when all segments concurrent with one of the snapshots are applied: the writers of the others saw
    /// the tree without it.
    pub fn remove_superseded(&mut self) {
        let candidates = self.superseded_links();
        let mut dirs = Vec::new();
        for (inode, links) in candidates {
            if self.inode(inode).kind == FileKind::Directory {
                dirs.push((inode, links));
                continue;
            }
            let is_removed = self.is_superseded(inode);
            let keeps_a_name = links.len() < self.links_of(inode).count();
            let was_removed = self.lacks_in_a_base(inode);
            if is_removed || keeps_a_name && !was_removed {
                links.into_iter().for_each(|link| self.take_link(link));
            }
        }
        loop {
            let (empty, full): (Vec<_>, Vec<_>) = dirs
                .into_iter()
                .partition(|(inode, _)| self.is_superseded(*inode) && !self.has_entries(*inode));
            if empty.is_empty() {
                return;
            }
            for (_, links) in empty {
                links.into_iter().for_each(|link| self.take_link(link));
            }
            dirs = full;
        }
    }

    /// Links that a snapshot covers but lacks, by inode.
    fn superseded_links(&self) -> Vec<(InodeIx, Vec<LinkIx>)> {
        let Some(unsettled) = &self.unsettled else {
            return Vec::new();
        };
        let in_bases = &unsettled.in_bases;
        if in_bases.covers.len() < 2 {
            return Vec::new();
        }
        let mut found: HashMap<InodeIx, Vec<LinkIx>> = HashMap::new();
        for (at, link) in self.links.iter_from(0) {
            let has = bits(&in_bases.links, at);
            let mut lacking = in_bases.lacking(has);
            if has != 0 && lacking.any(|(_, covers)| self.is_known(link.at, covers)) {
                found.entry(link.inode).or_default().push(LinkIx(at));
            }
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_unstable_by_key(|(inode, _)| inode.0);
        found
    }

    /// Whether a snapshot covers an inode but lacks it.
    fn lacks_in_a_base(&self, ix: InodeIx) -> bool {
        self.bases_without(ix).next().is_some()
    }

    /// Whether a snapshot covers an inode with all its changes but lacks it.
    fn is_superseded(&self, ix: InodeIx) -> bool {
        let places = || self.links_of(ix).map(|link| self.link(link).at);
        let mut lacking = self.bases_without(ix);
        lacking.any(|covers| {
            let mut all = self.registers(ix).chain(places());
            all.all(|at| self.is_known(at, covers))
        })
    }

    /// What the snapshots cover that lack an inode but cover its creation.
    fn bases_without(&self, ix: InodeIx) -> impl Iterator<Item = &Known> {
        let in_bases = self.unsettled.as_ref().map(|unsettled| &unsettled.in_bases);
        let created = self.inode(ix).created;
        in_bases.into_iter().flat_map(move |in_bases| {
            let has = bits(&in_bases.inodes, ix.0);
            let lacking = in_bases.lacking(has).filter(move |_| has != 0);
            lacking
                .map(|(_, covers)| covers)
                .filter(move |covers| self.is_known(created, covers))
        })
    }

    /// The stamps of an inode's registers that users can change, except those of its links; the contents of a directory
    /// are its entries.
    pub(super) fn registers(&self, ix: InodeIx) -> impl Iterator<Item = Stamp> {
        let inode = self.inode(ix);
        let extra = inode.extra.as_deref();
        let version = (inode.kind != FileKind::Directory).then_some(inode.version);
        let xattrs = extra
            .into_iter()
            .flat_map(|x| x.xattrs.iter().map(|(.., at)| *at));
        let set = [
            extra.and_then(|x| x.perm_at),
            extra.and_then(|x| x.owner_at),
            version,
        ];
        set.into_iter().flatten().chain(xattrs)
    }

    /// Removes a link without changing times: a snapshot has those after the removal.
    pub(super) fn take_link(&mut self, link: LinkIx) {
        self.detach(link, Stamp::new(0, 0), Time::default());
        self.remove_link(link);
    }
}
