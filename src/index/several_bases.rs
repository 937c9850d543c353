//! Several bases in use: what a newer one removed from an older one.
//!
//! A base says what there is, and nothing of what is gone. So what one base has and another lacks, although that one covers
//! it, was removed. A change that the other does not cover was made by a device that did not know of the removal: then the
//! removal yields, as any other does.

use std::collections::HashMap;

use super::inode::*;
use super::merge::Known;
use super::record::{BaseInode, LinkAt};
use super::tree::Tree;
use crate::volume::{FileKind, Time};

/// More bases than this are not told apart: they count as having everything.
const BASES_MAX: usize = 16;

/// Which of the bases in use has what: a bit each, by the slots of inodes and links.
#[derive(Debug, Default)]
pub(super) struct InBases {
    /// What each covers.
    covers: Vec<Known>,
    inodes: Vec<u16>,
    links: Vec<u16>,
    /// The links that are where the base has them, or were while it was applied.
    places: Vec<u16>,
}

impl InBases {
    /// The bit of the base that is applied now.
    fn bit(&self) -> u16 {
        match self.covers.len() {
            at @ 1..=BASES_MAX => 1 << (at - 1),
            _ => 0,
        }
    }

    /// What the bases cover that lack something which has these bits.
    fn lacking(&self, bits: u16) -> impl Iterator<Item = (usize, &Known)> {
        let covers = self.covers.iter().take(BASES_MAX).enumerate();
        covers.filter(move |(at, _)| bits & 1 << at == 0)
    }
}

fn bits(of: &[u16], at: u32) -> u16 {
    of.get(at as usize).copied().unwrap_or(0)
}

fn set_bit(of: &mut Vec<u16>, at: u32, bit: u16) {
    let at = at as usize;
    if of.len() <= at {
        of.resize(at + 1, 0);
    }
    of[at] |= bit;
}

impl Tree {
    /// One of several bases is about to be applied.
    pub fn begin_base(&mut self, covers: Known) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.in_bases.covers.push(covers);
        }
    }

    /// The base has this inode.
    pub(super) fn note_inode_in_base(&mut self, base: &BaseInode) {
        if let (Some(ix), Some(unsettled)) = (self.find_id(base.inode.id), &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            let bit = in_bases.bit();
            set_bit(&mut in_bases.inodes, ix.0, bit);
        }
    }

    /// The base has this link.
    pub(super) fn note_link_in_base(&mut self, base: &LinkAt) {
        let inode = self.find_id(base.inode.unwrap_or(base.link));
        let link = inode.and_then(|ix| self.find_link(ix, base.link));
        if let (Some(link), Some(unsettled)) = (link, &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            let bit = in_bases.bit();
            set_bit(&mut in_bases.links, link.0, bit);
        }
    }

    /// The base has this link, since `at`: if that is still so, then where the base has it.
    pub(super) fn note_place_in_base(&mut self, base: &LinkAt, at: Stamp) {
        self.note_link_in_base(base);
        let inode = self.find_id(base.inode.unwrap_or(base.link));
        let link = inode.and_then(|ix| self.find_link(ix, base.link));
        let placed = link.filter(|ix| self.link(*ix).at == at);
        if let (Some(link), Some(unsettled)) = (placed, &mut self.unsettled) {
            let in_bases = &mut unsettled.in_bases;
            let bit = in_bases.bit();
            set_bit(&mut in_bases.places, link.0, bit);
        }
    }

    /// Whether a link is where the base that is applied now has it, as far as that was read.
    pub(super) fn is_of_this_base(&self, link: LinkIx) -> bool {
        self.unsettled.as_ref().is_none_or(|unsettled| {
            let in_bases = &unsettled.in_bases;
            in_bases.covers.len() < 2 || bits(&in_bases.places, link.0) & in_bases.bit() != 0
        })
    }

    /// Removes what one of the bases in use removed from another: files first, then directories that are left empty. When
    /// all is applied that was written beside one of them: who wrote the rest saw the tree without it.
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

    /// Links that a base lacks and covers, by their inodes.
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

    /// Whether a base lacks an inode that it covers.
    fn lacks_in_a_base(&self, ix: InodeIx) -> bool {
        self.bases_without(ix).next().is_some()
    }

    /// Whether a base lacks an inode with all that was ever changed of it.
    fn is_superseded(&self, ix: InodeIx) -> bool {
        self.bases_without(ix)
            .any(|covers| self.registers(ix).all(|at| self.is_known(at, covers)))
    }

    /// What the bases cover that lack an inode, and cover its creation.
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

    /// When what a person can change of an inode was set; the contents of a directory are its names.
    fn registers(&self, ix: InodeIx) -> impl Iterator<Item = Stamp> {
        let inode = self.inode(ix);
        let extra = inode.extra.as_deref();
        let version = (inode.kind != FileKind::Directory).then_some(inode.version);
        let xattrs = extra
            .into_iter()
            .flat_map(|x| x.xattrs.iter().map(|(.., at)| *at));
        let places = self.links_of(ix).map(|link| self.link(link).at);
        let set = [
            extra.and_then(|x| x.perm_at),
            extra.and_then(|x| x.owner_at),
            version,
        ];
        set.into_iter().flatten().chain(xattrs).chain(places)
    }

    /// Removes a link as the base did: when, its times say already.
    fn take_link(&mut self, link: LinkIx) {
        self.detach(link, Stamp::new(0, 0), Time::default());
        self.remove_link(link);
    }
}
