//! Removals in a merge: which of them yield to what another device did meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::inode::Stamp;
use super::merge::{Block, Branch};
use super::record::{Id, Record};
use super::tree::Tree;
use crate::volume::FileKind;

/// So often it is tried which removals yield: each round settles those that depend on the ones before.
const ROUNDS_MAX: usize = 8;

/// More removals of one inode's names than this are not told apart: comparing each with each would take too long.
const NAMES_MAX: usize = 500;

/// A removal that yields.
pub(super) struct Yielding {
    /// Its place in the block.
    pub place: usize,
    /// Whose it is, and when.
    pub by: (usize, Stamp),
    /// The changes beside it.
    pub beside: Vec<(usize, Stamp)>,
    /// It is of the inode, and not of one name among several.
    pub is_whole: bool,
}

/// A name that a block makes, moves or removes.
struct Named {
    /// Its place in the block.
    place: usize,
    by: (usize, Stamp),
    link: Id,
}

/// What a block does to names, by the inode.
struct Names {
    /// Made, or moved.
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

/// What was changed in a block, and by which changes: inodes (`true`), and links.
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
            // Reading is no change.
            Record::Attr(a) if a.perm.is_some() || a.owner.is_some() => touch(true, a.inode),
            Record::Content(c) => touch(true, c.inode),
            Record::Xattr(x) => touch(true, x.inode),
            _ => {}
        }
    }
    touched
}

impl Tree {
    /// The removals that yield to what another device did meanwhile to what they remove, by the inode.
    ///
    /// A file goes with its last name. Whoever removes that, removes the file: this yields to any change of it. Whoever
    /// removes one of several names removes just that: this yields if the name itself was moved.
    pub(super) fn yielding_removals(&self, block: &Block) -> HashMap<Id, Vec<Yielding>> {
        let touched = touched(block);
        let names = Names::of(block);
        let mut yielding: HashMap<Id, Vec<Yielding>> = HashMap::new();
        for (id, removals) in &names.removed {
            // Which removals yield depends on which others do: a name whose removal yielded is still there.
            let mut void = HashSet::new();
            for _ in 0..ROUNDS_MAX {
                let found = self.judge(&names, (*id, removals), block, (&touched, &void));
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

    /// The removals of an inode's names that yield, if those at the places `void` of the block do.
    fn judge(
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
            // Whoever changed it and then removed it, too, did not mean it to stay.
            let is_withdrawn = |change: &(usize, Stamp)| {
                let mut others = removals.iter().zip(&is_whole).take(NAMES_MAX);
                others.any(|(other, is_whole)| {
                    *is_whole && !void.contains(&other.place) && block.knows(other.by, *change)
                })
            };
            let of = if *whole { id } else { removal.link };
            let all = touched.get(&(*whole, of)).into_iter().flatten().copied();
            let beside: Vec<_> = all
                .filter(|other| !block.knows(by, *other) && !block.knows(*other, by))
                .filter(|other| !is_withdrawn(other))
                .collect();
            let branch = &block.branches[by.0];
            let yields = !beside.is_empty() || self.has_unknown(id, removal.link, branch, *whole);
            let removed = Yielding {
                place: removal.place,
                by,
                beside,
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

    /// Of each removal of a name of an inode, whether it removes the inode.
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
        // A device that goes on to remove the last one meant all of them.
        let is_whole = |removal: &Named| {
            last.iter()
                .any(|last| last.place == removal.place || block.knows(last.by, removal.by))
        };
        removals.iter().map(is_whole).collect()
    }

    /// Of the removals that apply, those that must not: each of several devices removed another name, and none of them
    /// the file, so the name that was removed last stays.
    fn last_name(&self, names: &Names, id: Id, applied: Vec<(Id, Yielding)>) -> Vec<Yielding> {
        let gone: HashSet<Id> = applied.iter().map(|(link, _)| *link).collect();
        let is_removed = applied.iter().any(|(_, removed)| removed.is_whole);
        let all: HashSet<Id> = self.names_of(names, id).into_iter().collect();
        if is_removed || !all.is_subset(&gone) {
            return Vec::new();
        }
        // What a base lacks is not there to stay.
        let there = applied.iter().filter(|(link, _)| all.contains(link));
        let Some((last, _)) = there.max_by_key(|(_, removed)| removed.place) else {
            return Vec::new();
        };
        let last = *last;
        let of_last = applied.into_iter().filter(|(link, _)| *link == last);
        of_last.map(|(_, removed)| removed).collect()
    }

    /// All names that an inode has before the block or gets in it, by the ids of their links.
    fn names_of(&self, names: &Names, id: Id) -> Vec<Id> {
        let before = self
            .find_id(id)
            .into_iter()
            .flat_map(|ix| self.links_of(ix));
        let before = before.map(|link| self.link_id(link));
        let made = names.made.get(&id).into_iter().flatten();
        before.chain(made.map(|made| made.link)).collect()
    }

    /// Whether a removal takes the last name of an inode that its writer knew.
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
            // One that is there before the block is known; a name in the block may be a move of it.
            let is_new = of_link.peek().is_some()
                && self
                    .find_id(id)
                    .is_none_or(|ix| self.find_link(ix, link).is_none());
            !is_new || of_link.any(|made| block.knows(removal.by, made.by))
        };
        let is_gone = |link: Id| {
            // One that another device removed, and that yielded, was still there when this was written.
            let writer = |by: (usize, Stamp)| block.branches[by.0].writer;
            removed.iter().any(|other| {
                let counts = !void.contains(&other.place) || writer(other.by) == writer(removal.by);
                counts && other.link == link && block.knows(removal.by, other.by)
            })
        };
        let all = self.names_of(names, id);
        let mut others = all.iter().filter(|link| **link != removal.link);
        // What went before, and is in no base, its writer may have seen.
        !others.any(|link| is_known(*link) && !is_gone(*link))
            && !self.has_unseen_removal(id, &block.branches[removal.by.0], |link| {
                link == removal.link || is_gone(link)
            })
    }

    /// Whether a stamp of what was applied before the block is not known to the writer of one of its branches.
    pub(super) fn is_unknown(&self, at: Stamp, by: &Branch) -> bool {
        // What a base was written beside, it may have already.
        at.segment != by.segment && !self.is_known(at, &by.known)
    }

    /// Whether what was applied before the block has a change of this inode, or unless `is_whole` of the place of this link,
    /// that a writer with this knowledge did not know: a base of another device may be ahead of it.
    fn has_unknown(&self, inode: Id, link: Id, by: &Branch, is_whole: bool) -> bool {
        let Some(ix) = self.find_id(inode) else {
            return false;
        };
        let is_unknown = |at: Stamp| self.is_unknown(at, by);
        let place = self.find_link(ix, link).map(|l| self.link(l).at);
        if !is_whole {
            return place.is_some_and(is_unknown);
        }
        let inode = self.inode(ix);
        let extra = inode.extra.as_deref();
        let xattrs = extra
            .iter()
            .flat_map(|x| x.xattrs.iter().map(|(.., at)| *at));
        let version = (inode.kind != FileKind::Directory).then_some(inode.version);
        let registers = [
            extra.and_then(|x| x.perm_at),
            extra.and_then(|x| x.owner_at),
            version,
        ];
        registers
            .into_iter()
            .chain([place])
            .flatten()
            .chain(xattrs)
            .any(is_unknown)
    }
}
