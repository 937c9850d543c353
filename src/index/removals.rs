//! Which removals of a merge yield to concurrent changes.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::inode::Stamp;
use super::merge::{Block, Branch};
use super::record::{Id, Record};
use super::tree::Tree;

/// Maximum number of rounds to decide which removals yield: each settles those that depend on the previous ones.
const ROUNDS_MAX: usize = 8;

/// Maximum number of removals of one inode's links that are compared with each other, as the time is quadratic.
const NAMES_MAX: usize = 500;

/// A removal that yields.
pub(super) struct Yielding {
    /// Its index in the block.
    pub place: usize,
    /// Its branch and stamp.
    pub by: (usize, Stamp),
    /// The concurrent changes that it yields to.
    pub concurrent: Vec<(usize, Stamp)>,
    /// It removes the inode, not one of several links.
    pub is_whole: bool,
}

/// A link that a block creates, moves or removes.
struct Named {
    /// Its index in the block.
    place: usize,
    by: (usize, Stamp),
    link: Id,
}

/// The link records of a block, by inode.
struct Names {
    /// Created or moved.
    made: HashMap<Id, Vec<Named>>,
    removed: BTreeMap<Id, Vec<Named>>,
}

impl Names {
    fn of(block: &Block) -> Self {
        let mut names = Self {
            made: HashMap::new(),
            removed: BTreeMap::new(),
        };
        for (place, change) in block.changes.iter().enumerate() {
            let by = (change.branch, change.at);
            let of = |link| Named { place, by, link };
            match change.record {
                Record::Link(l) => {
                    let made = names.made.entry(l.inode.unwrap_or(l.link));
                    made.or_default().push(of(l.link));
                }
                Record::Unlink(gone) => {
                    let removed = names.removed.entry(gone.inode.unwrap_or(gone.link));
                    removed.or_default().push(of(gone.link));
                }
                _ => {}
            }
        }
        names
    }
}

/// What a block changes, and the changes: inodes (`true`) and links (`false`).
type Touched = HashMap<(bool, Id), Vec<(usize, Stamp)>>;

fn touched(block: &Block) -> Touched {
    let mut touched = Touched::new();
    for change in &block.changes {
        let here = (change.branch, change.at);
        let mut touch = |is_inode: bool, id: Id| {
            touched.entry((is_inode, id)).or_default().push(here);
        };
        match change.record {
            Record::Inode(new) => touch(true, new.id),
            Record::Link(l) => {
                touch(true, l.inode.unwrap_or(l.link));
                touch(true, l.parent);
                touch(false, l.link);
            }
            // A new atime is not a change.
            Record::Attr(a) if a.perm.is_some() || a.owner.is_some() => touch(true, a.inode),
            Record::Content(c) => touch(true, c.inode),
            Record::Xattr(x) => touch(true, x.inode),
            _ => {}
        }
    }
    touched
}

impl Tree {
    /// The removals that yield to concurrent changes of what they remove, by inode.
    ///
    /// Removing the last link removes the file, so it yields to any change of the file. Removing one of several links
    /// yields only if that link was moved.
    pub(super) fn yielding_removals(&self, block: &Block) -> HashMap<Id, Vec<Yielding>> {
        let touched = touched(block);
        let names = Names::of(block);
        let mut yielding: HashMap<Id, Vec<Yielding>> = HashMap::new();
        for (id, removals) in &names.removed {
            // Which removals yield depends on which others do: a link whose removal yielded still exists.
            let mut void = HashSet::new();
            for _ in 0..ROUNDS_MAX {
                let found = self.find_yielding(&names, (*id, removals), block, (&touched, &void));
                let now = found.iter().map(|removal| removal.place).collect();
                yielding.insert(*id, found);
                if std::mem::replace(&mut void, now) == void {
                    break;
                }
            }
        }
        yielding.retain(|_, removals| !removals.is_empty());
        yielding
    }

    /// The removals of an inode's links that yield, if those at the indices `void` do.
    fn find_yielding(
        &self,
        names: &Names,
        (id, removals): (Id, &[Named]),
        block: &Block,
        (touched, void): (&Touched, &HashSet<usize>),
    ) -> Vec<Yielding> {
        let is_whole = self.are_whole(names, id, removals, block, void);
        let (mut yielding, mut applied) = (Vec::new(), Vec::new());
        for (removal, whole) in removals.iter().zip(&is_whole) {
            let by = removal.by;
            // A change does not count if a removal of the whole file that does not yield knew of it.
            let is_withdrawn = |change: &(usize, Stamp)| {
                let mut others = removals.iter().zip(&is_whole).take(NAMES_MAX);
                others.any(|(other, is_whole)| {
                    *is_whole && !void.contains(&other.place) && block.knows(other.by, *change)
                })
            };
            let of = if *whole { id } else { removal.link };
            let all = touched.get(&(*whole, of)).into_iter().flatten().copied();
            let concurrent: Vec<_> = all
                .filter(|other| !block.knows(by, *other) && !block.knows(*other, by))
                .filter(|other| !is_withdrawn(other))
                .collect();
            let branch = &block.branches[by.0];
            let yields =
                !concurrent.is_empty() || self.has_unknown(id, removal.link, branch, *whole);
            let removed = Yielding {
                place: removal.place,
                by,
                concurrent,
                is_whole: *whole,
            };
            if yields {
                yielding.push(removed);
            } else {
                applied.push((removal.link, removed));
            }
        }
        yielding.extend(self.last_name(names, id, applied));
        yielding
    }

    /// For each removal of a link of an inode: whether it removes the inode.
    fn are_whole(
        &self,
        names: &Names,
        id: Id,
        removals: &[Named],
        block: &Block,
        void: &HashSet<usize>,
    ) -> Vec<bool> {
        if removals.len() > NAMES_MAX {
            return vec![true; removals.len()];
        }
        let last: Vec<&Named> = removals
            .iter()
            .filter(|removal| self.is_last_name(names, id, removal, block, void))
            .collect();
        // If a device goes on to remove the last one, all its earlier ones were part of that.
        let is_whole = |removal: &Named| {
            last.iter()
                .any(|last| last.place == removal.place || block.knows(last.by, removal.by))
        };
        removals.iter().map(is_whole).collect()
    }

    /// Which of the applied removals must yield after all: if several devices each removed another link, and none of
    /// them the file, the link that was removed last stays.
    fn last_name(&self, names: &Names, id: Id, applied: Vec<(Id, Yielding)>) -> Vec<Yielding> {
        let gone: HashSet<Id> = applied.iter().map(|(link, _)| *link).collect();
        let is_removed = applied.iter().any(|(_, removed)| removed.is_whole);
        let all: HashSet<Id> = self.names_of(names, id).into_iter().collect();
        if is_removed || !all.is_subset(&gone) {
            return Vec::new();
        }
        // A link that a snapshot lacks cannot stay.
        let there = applied.iter().filter(|(link, _)| all.contains(link));
        let Some((last, _)) = there.max_by_key(|(_, removed)| removed.place) else {
            return Vec::new();
        };
        let last = *last;
        let of_last = applied.into_iter().filter(|(link, _)| *link == last);
        of_last.map(|(_, removed)| removed).collect()
    }

    /// The ids of all links that an inode has before the block or gets in it.
    fn names_of(&self, names: &Names, id: Id) -> Vec<Id> {
        let before = self
            .find_id(id)
            .into_iter()
            .flat_map(|ix| self.links_of(ix));
        let before = before.map(|link| self.link_id(link));
        let made = names.made.get(&id).into_iter().flatten();
        before.chain(made.map(|made| made.link)).collect()
    }

    /// Whether a removal removes the last link that its writer knew.
    fn is_last_name(
        &self,
        names: &Names,
        id: Id,
        removal: &Named,
        block: &Block,
        void: &HashSet<usize>,
    ) -> bool {
        let made = names.made.get(&id).map_or(&[][..], Vec::as_slice);
        let removed = names.removed.get(&id).map_or(&[][..], Vec::as_slice);
        let is_known = |link: Id| {
            let mut of_link = made.iter().filter(|made| made.link == link).peekable();
            // One that exists before the block is known; a record in the block may move it.
            let is_new = of_link.peek().is_some()
                && self
                    .find_id(id)
                    .is_none_or(|ix| self.find_link(ix, link).is_none());
            !is_new || of_link.any(|made| block.knows(removal.by, made.by))
        };
        let is_gone = |link: Id| {
            // A link whose removal by another device yielded still existed when this was written.
            let writer = |by: (usize, Stamp)| block.branches[by.0].writer;
            removed.iter().any(|other| {
                let counts = !void.contains(&other.place) || writer(other.by) == writer(removal.by);
                counts && other.link == link && block.knows(removal.by, other.by)
            })
        };
        let all = self.names_of(names, id);
        let mut others = all.iter().filter(|link| **link != removal.link);
        // The writer may have seen links that were removed earlier and are in no snapshot.
        !others.any(|link| is_known(*link) && !is_gone(*link))
            && !self.has_unseen_removal(id, &block.branches[removal.by.0], |link| {
                link == removal.link || is_gone(link)
            })
    }

    /// Whether the writer of a branch did not know the record with this stamp, which was applied before the block.
    pub(super) fn is_unknown(&self, at: Stamp, by: &Branch) -> bool {
        // A snapshot may contain records of a concurrent segment.
        at.segment != by.segment && !self.is_known(at, &by.known)
    }

    /// Whether a writer did not know a change of this inode (or, unless `is_whole`, of this link's place) that was
    /// applied before the block: a snapshot of another device may have it.
    fn has_unknown(&self, inode: Id, link: Id, by: &Branch, is_whole: bool) -> bool {
        let Some(ix) = self.find_id(inode) else {
            return false;
        };
        let is_unknown = |at: Stamp| self.is_unknown(at, by);
        let place = self.find_link(ix, link).map(|l| self.link(l).at);
        if !is_whole {
            return place.is_some_and(is_unknown);
        }
        self.registers(ix).chain(place).any(is_unknown)
    }
}
