//! Merging: applying segments that were written concurrently.
//!
//! A segment whose writer knew all preceding ones is applied on its own. Several concurrent ones form a *block*: their
//! records are applied together in the order of their stamps, which does not depend on the order of arrival. Two rules
//! depend on what a writer knew:
//!
//! - a removal yields to a change of what it removes, if neither writer knew the other's record;
//! - contents that are not based on the newest version are a fork (see [`super::versions`]).
//!
//! The heads of a segment are what its writer knew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::apply::{COUNTER_MAX, Refusal};
use super::inode::*;
use super::record::*;
use super::several_bases::InBases;
use super::tree::*;
use super::versions::{Loser, covers_all};
use crate::object::DeviceId;
use crate::volume::{FileKind, Time};

/// The newest segment of each device that a writer had applied.
pub type Known = BTreeMap<DeviceId, u64>;

/// A segment to be merged with others.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    /// Its number in the tree's table.
    pub segment: u32,
    /// Its writer.
    pub writer: DeviceId,
    /// Its number in its writer's order.
    pub number: u64,
    /// What its writer had applied, including its own earlier segments.
    pub known: Known,
    /// It was concurrent with a snapshot, which may lack what it goes on to remove.
    pub is_in_base: bool,
    /// Its frames.
    pub frames: Vec<Frame>,
}

/// Conflicts that a merge leaves to be settled by records (see [`super::conflicts`]).
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// Names that two links may have.
    pub contested: Vec<(InodeIx, Box<[u8]>)>,
    /// Directories that were moved: some may be below themselves.
    pub moved: Vec<InodeIx>,
    /// The stamps that links had before the settling moved them.
    pub placed: HashMap<Id, Stamp>,
    /// Versions of contents that lost.
    pub losers: BTreeMap<InodeIx, Vec<Loser>>,
    /// The latest time of a merged record.
    pub wall: Time,
    /// What the snapshots cover that were applied so far.
    pub covered: Known,
    /// Which snapshot has which inodes and links, if several are in use.
    pub in_bases: InBases,
    /// Inodes that records change and that do not exist: there is no trace of their removal.
    pub lost: HashSet<Id>,
}

/// Splits segments, given as (writer, number, known) in causal order, into the smallest blocks such that every segment
/// knows all preceding blocks.
pub(super) fn blocks(segments: &[(DeviceId, u64, Known)]) -> Vec<Range<usize>> {
    // What all segments from index `i` on know, computed from the end.
    let mut known_by_rest: Vec<Option<Known>> = vec![None; segments.len() + 1];
    for (i, (.., known)) in segments.iter().enumerate().rev() {
        known_by_rest[i] = Some(match &known_by_rest[i + 1] {
            None => known.clone(),
            Some(rest) => both(known, rest),
        });
    }
    let mut before = Known::new();
    let mut blocks = Vec::new();
    let mut start = 0;
    for (i, (writer, number, _)) in segments.iter().enumerate() {
        before.insert(*writer, *number);
        let ends = known_by_rest[i + 1]
            .as_ref()
            .is_none_or(|rest| before.iter().all(|(d, n)| rest.get(d) >= Some(n)));
        if ends {
            blocks.push(start..i + 1);
            start = i + 1;
        }
    }
    blocks
}

fn both(a: &Known, b: &Known) -> Known {
    let shared = a.iter().filter_map(|(d, n)| Some((*d, *n.min(b.get(d)?))));
    shared.collect()
}

/// A record of a block.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    pub at: Stamp,
    pub branch: usize,
    pub wall: Time,
    pub record: &'a Record,
}

pub(super) struct Block<'a> {
    pub branches: &'a [Branch],
    pub changes: Vec<Change<'a>>,
}

impl Block<'_> {
    /// Whether the writer of the record at `at` in branch `by` knew the one at `other` in branch `of`.
    pub fn knows(&self, (by, at): (usize, Stamp), (of, other): (usize, Stamp)) -> bool {
        if by == of {
            return other.counter() < at.counter();
        }
        let of = &self.branches[of];
        self.branches[by].known.get(&of.writer) >= Some(&of.number)
    }
}

impl Tree {
    /// Starts to keep track of conflicts.
    pub fn expect_conflicts(&mut self) {
        self.unsettled.get_or_insert_default();
    }

    /// Marks what a snapshot covers as applied.
    pub(super) fn mark_covered(&mut self, covers: &Known) {
        let Some(unsettled) = &mut self.unsettled else {
            return;
        };
        for (device, number) in covers {
            let covered = unsettled.covered.entry(*device).or_default();
            *covered = *number.max(covered);
        }
    }

    /// Applies concurrent segments and keeps track of the conflicts between them.
    ///
    /// The error has the number of the segment with the refused record.
    pub(super) fn merge(&mut self, branches: &[Branch]) -> Result<(), (u32, Refusal)> {
        self.expect_conflicts();
        let mut changes = Vec::new();
        for (branch, source) in branches.iter().enumerate() {
            for frame in &source.frames {
                let last = frame.counter.saturating_add(frame.records.len() as u64);
                if last > COUNTER_MAX {
                    return Err((source.segment, "counter absurdly ahead"));
                }
                self.counter = self.counter.max(last);
                let stamps = (frame.counter..).map(|counter| Stamp::new(counter, source.segment));
                changes.extend(frame.records.iter().zip(stamps).map(|(record, at)| Change {
                    at,
                    branch,
                    wall: frame.wall,
                    record,
                }));
            }
        }
        let id = |at: Stamp| self.segments[at.segment as usize].segment;
        changes.sort_by_key(|c| (c.at.counter(), id(c.at)));
        let block = Block { branches, changes };
        self.revive(&block);
        let yielding = self.yielding_removals(&block);
        let void: HashSet<usize> = yielding.values().flatten().map(|r| r.place).collect();
        let forked = self.forks(&block, &yielding);
        for (i, change) in block.changes.iter().enumerate() {
            self.mark_lost(change);
            let inode = match change.record {
                Record::Content(c) => Some(c.inode),
                Record::Relocate(r) => Some(r.inode),
                _ => None,
            };
            match inode {
                _ if void.contains(&i) => {}
                Some(id) if forked.contains_key(&id) => {
                    if let (Record::Content(_), Some(ix)) = (change.record, self.find_id(id)) {
                        self.update_ctime(ix, change.wall);
                    }
                }
                _ => {
                    let inode = inode.and_then(|id| self.find_id(id));
                    let by = &block.branches[change.branch];
                    let kept = inode.map(|ix| (ix, self.take_losers_unknown_to(ix, by)));
                    let applied = self.apply(change.at, change.wall, change.record);
                    applied.map_err(|why| (change.at.segment, why))?;
                    if let Some((ix, kept)) = kept {
                        self.add_losers(ix, kept);
                    }
                }
            }
            if let Some(unsettled) = &mut self.unsettled {
                unsettled.wall = unsettled.wall.max(change.wall);
            }
        }
        let mut forked: Vec<_> = forked.into_iter().collect();
        forked.sort();
        for (id, contents) in forked {
            let Some(ix) = self.find_id(id) else {
                continue;
            };
            let removals = yielding.get(&id).map_or(&[][..], Vec::as_slice);
            self.merge_contents(ix, &block, &contents, removals)?;
        }
        Ok(())
    }

    /// Recreates files that records of the block write to and that do not exist: another device removed them, and only
    /// a snapshot without them is left of that. The written data must not be lost, so the recreated file has it.
    fn revive(&mut self, block: &Block) {
        let mut made: HashSet<Id> = HashSet::new();
        let mut placed: HashSet<Id> = HashSet::new();
        for change in &block.changes {
            match change.record {
                Record::Inode(new) => {
                    made.insert(new.id);
                }
                Record::Link(l) => {
                    placed.insert(l.inode.unwrap_or(l.link));
                }
                _ => {}
            }
        }
        for change in &block.changes {
            let Record::Content(content) = change.record else {
                continue;
            };
            let id = content.inode;
            // A directory has no contents.
            let is_file = content.plain_size > 0;
            let is_in_base = block.branches[change.branch].is_in_base;
            if !is_file || is_in_base || made.contains(&id) || self.find_id(id).is_some() {
                continue;
            }
            let root = self.attr(ROOT_IX);
            let new = NewInode {
                id,
                kind: FileKind::Regular,
                perm: 0o600,
                uid: root.uid,
                gid: root.gid,
                rdev: 0,
                target: Vec::new(),
            };
            let note = if covers_all(content) {
                ""
            } else {
                ", incomplete"
            };
            let mark = self.conflict_mark(change.at, change.wall, note);
            let name = self.free_name(ROOT_IX, b"recovered", &mark, true);
            let place = LinkAt {
                link: id,
                inode: None,
                parent: ROOT_ID,
                name,
            };
            // Neither can be refused. Their stamp is earlier than any record that refers to the file.
            let begin = Stamp::new(0, change.at.segment);
            let _ = self.create(begin, change.wall, &new);
            if !placed.contains(&id) {
                let _ = self.place(begin, change.wall, &place);
            }
        }
    }

    fn mark_lost(&mut self, change: &Change) {
        let id = match change.record {
            Record::Content(c) => c.inode,
            Record::Link(l) => l.inode.unwrap_or(l.link),
            _ => return,
        };
        if self.find_id(id).is_none()
            && let Some(unsettled) = &mut self.unsettled
        {
            unsettled.lost.insert(id);
        }
    }

    /// Whether this knowledge includes the record with this stamp, which was applied before the block.
    pub(super) fn is_known(&self, at: Stamp, known: &Known) -> bool {
        let segment = self.segments[at.segment as usize];
        segment.number == 0 || known.get(&segment.device) >= Some(&segment.number)
    }

    /// Marks possible conflicts of a link that is placed; called before it is in the table of names.
    pub(super) fn mark_placed(&mut self, ix: LinkIx) {
        if self.unsettled.is_none() {
            return;
        }
        let link = self.link(ix);
        let (inode, parent) = (link.inode, link.parent);
        let is_taken = self.child(parent, &link.name).is_some();
        let name = link.name.clone();
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        if let Some(unsettled) = &mut self.unsettled {
            if is_taken {
                unsettled.contested.push((parent, name));
            }
            if is_dir {
                unsettled.moved.push(inode);
            }
        }
    }
}
