//! Inode numbers, as programs see them in `st_ino`.
//!
//! An inode's own number is derived from its id, so it is the same on every device and is not stored. It has 32 bits:
//! 32-bit programs fail on larger ones, and programs that store numbers as doubles confuse those above 2^53. A new
//! inode gets an id whose number is free.
//!
//! Two inodes get the same number if two devices created them concurrently, or a writer did not check. The one that was
//! created first keeps it; the other is shown by a spare one. The next writable mount stores that (a register of the
//! inode), so that it stays when the first is deleted.

use std::collections::HashSet;
use std::hash::BuildHasher;

use minicbor::{Decode, Encode};

use super::apply::Refusal;
use super::inode::*;
use super::record::*;
use super::tree::*;
use crate::volume::{Ino, ROOT};

/// The step between numbers that are tried. It is odd, so that all 2^32 are reached.
const STEP: u32 = 0x9e37_79b9;

/// An inode number in a record: at least 2 (0 is invalid, 1 the root's), and less than 2^53, up to which a double
/// represents every integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(pub u64);

/// An assigned inode number in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseNumber {
    /// The number.
    #[n(0)]
    pub number: Number,
    /// When it was assigned.
    #[n(1)]
    pub at: BaseStamp,
}

impl Id {
    /// The inode number that follows from this id: its four 32-bit words, XORed.
    pub fn number(self) -> u32 {
        let halves = (self.0 >> 64) as u64 ^ self.0 as u64;
        (halves >> 32) as u32 ^ halves as u32
    }
}

impl Inode {
    /// Distinguishes it from an earlier inode with the same number, for NFS.
    pub(super) fn generation(&self) -> u32 {
        self.id[0] as u32
    }

    /// The number that it should have.
    fn due_number(&self) -> u64 {
        let given = self.extra.as_ref().and_then(|x| x.number);
        given.map_or(self.id().number().into(), |(number, _)| number)
    }

    fn spare_number(&self) -> Option<u64> {
        self.extra.as_ref().and_then(|x| x.spare_number)
    }

    fn number(&self) -> u64 {
        self.spare_number().unwrap_or_else(|| self.due_number())
    }
}

impl Tree {
    /// The inode with this number.
    pub fn find(&self, ino: Ino) -> Option<InodeIx> {
        let own = u32::try_from(ino.0).ok().and_then(|own| {
            self.by_id.find(self.hash.hash_one(own), |ix| {
                self.inode(*ix).number() == ino.0
            })
        });
        own.or_else(|| self.renumbered.get(&ino.0)).copied()
    }

    /// The inode with this id.
    pub fn find_id(&self, id: Id) -> Option<InodeIx> {
        let halves = halves(id);
        self.by_id
            .find(self.hash.hash_one(id.number()), |ix| {
                self.inode(*ix).id == halves
            })
            .copied()
    }

    /// The number of an inode.
    pub fn ino(&self, ix: InodeIx) -> Ino {
        Ino(self.inode(ix).number())
    }

    /// Whether a new inode may have this number.
    pub fn is_free(&self, number: u64) -> bool {
        number > ROOT.0 && self.find(Ino(number)).is_none()
    }

    /// Records that assign the spare numbers that are not stored yet.
    pub fn unstored_numbers(&self) -> Vec<AttrChange> {
        let inodes = self.contested.iter().filter_map(|ix| self.inodes.get(ix.0));
        let change = |inode: &Inode| {
            Some(AttrChange {
                inode: inode.id(),
                number: Some(Number(inode.spare_number()?)),
                ..Default::default()
            })
        };
        inodes.filter_map(change).collect()
    }

    pub(super) fn insert_inode(&mut self, inode: Inode) -> InodeIx {
        let own = inode.id().number();
        let is_free = inode.id() == ROOT_ID || self.is_free(own.into());
        let ix = InodeIx(self.inodes.insert(inode));
        let Self {
            by_id,
            inodes,
            hash,
            ..
        } = self;
        by_id.insert_unique(hash.hash_one(own), ix, |ix| {
            let inode = inodes.get(ix.0).expect("the table holds slots in use");
            hash.hash_one(inode.id().number())
        });
        if !is_free {
            self.give_spare(ix);
        }
        ix
    }

    /// Removes an inode from all tables.
    pub(super) fn remove_inode(&mut self, ix: InodeIx) -> Option<Inode> {
        self.hide_number(ix);
        let inode = self.inodes.remove(ix.0)?;
        self.unlinked.remove(&ix);
        let hash = self.hash.hash_one(inode.id().number());
        if let Ok(entry) = self.by_id.find_entry(hash, |other| *other == ix) {
            entry.remove();
        }
        Some(inode)
    }

    /// Applies an assigned number. The root's never changes.
    pub(super) fn change_number(&mut self, ix: InodeIx, Number(number): Number, at: Stamp) {
        let set_at = self.set_at(ix, |x| x.number.map(|(_, at)| at));
        if ix == ROOT_IX || !self.is_later(at, set_at) {
            return;
        }
        self.hide_number(ix);
        let other = self.find(Ino(number)).filter(|other| *other != ix);
        self.inode_mut(ix).extra_mut().number = Some((number, at));
        match other {
            Some(_) => self.give_spare(ix),
            None => self.show_due(ix),
        }
    }

    /// The same for a record of a snapshot.
    pub(super) fn merge_number(
        &mut self,
        ix: InodeIx,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
    ) -> Result<(), Refusal> {
        if let Some(given) = &base.number {
            let at = stamp(given.at)?;
            self.counter = self.counter.max(at.counter());
            self.change_number(ix, given.number, at);
        }
        Ok(())
    }

    /// At the end of a replay: of several inodes that should have one number, the one that was created first gets it,
    /// in whatever order they were applied. Afterwards numbers do not change during a mount.
    pub(super) fn settle_numbers(&mut self) {
        let mut rivals = std::mem::take(&mut self.contested);
        rivals.retain(|ix| {
            let inode = self.inodes.get(ix.0);
            inode.is_some_and(|inode| inode.spare_number().is_some())
        });
        for i in 0..rivals.len() {
            rivals.extend(self.find(Ino(self.inode(rivals[i]).due_number())));
        }
        rivals.sort_by_cached_key(|ix| {
            let inode = self.inode(*ix);
            (self.key(inode.created), inode.id())
        });
        rivals.dedup();
        rivals.iter().for_each(|ix| self.hide_number(*ix));
        let mut had = HashSet::from([0, ROOT.0]);
        let (first, others): (Vec<_>, Vec<_>) = rivals
            .into_iter()
            .partition(|ix| had.insert(self.inode(*ix).due_number()) || *ix == ROOT_IX);
        first.into_iter().for_each(|ix| self.show_due(ix));
        others.into_iter().for_each(|ix| self.give_spare(ix));
    }

    /// Inodes that are referenced in `old` keep the numbers shown there, even if another should have them now.
    pub(super) fn keep_numbers(&mut self, old: &Tree) {
        for held in old.held() {
            let (shown, ix) = (old.ino(held), self.find_id(old.inode(held).id()));
            let other = self.find(shown);
            if other == ix {
                continue;
            }
            ix.into_iter()
                .chain(other)
                .for_each(|ix| self.hide_number(ix));
            if let Some(ix) = ix {
                self.show_spare(ix, shown.0);
            }
            if let Some(other) = other {
                self.give_spare_but(other, shown.0);
            }
        }
    }

    /// Shows an inode by the number that it should have, which is free.
    fn show_due(&mut self, ix: InodeIx) {
        let inode = self.inode(ix);
        let due = inode.due_number();
        if due != u64::from(inode.id().number()) {
            self.renumbered.insert(due, ix);
        }
    }

    /// Shows an inode by the next free number. There is one, as there are fewer slots than numbers.
    fn give_spare(&mut self, ix: InodeIx) {
        self.give_spare_but(ix, 0);
    }

    /// The same, but not by number `not`.
    fn give_spare_but(&mut self, ix: InodeIx, not: u64) {
        let mut number = self.inode(ix).id().number();
        while !self.is_free(number.into()) || u64::from(number) == not {
            number = number.wrapping_add(STEP);
        }
        self.show_spare(ix, number.into());
    }

    fn show_spare(&mut self, ix: InodeIx, number: u64) {
        self.renumbered.insert(number, ix);
        self.inode_mut(ix).extra_mut().spare_number = Some(number);
        self.contested.push(ix);
    }

    /// Removes the number of an inode from the tables, and its spare number.
    fn hide_number(&mut self, ix: InodeIx) {
        let number = self.inode(ix).number();
        if self.renumbered.get(&number) == Some(&ix) {
            self.renumbered.remove(&number);
        }
        if let Some(extra) = &mut self.inode_mut(ix).extra {
            extra.spare_number = None;
        }
    }
}

#[cfg(test)]
mod tests;
