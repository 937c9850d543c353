//! Merging contents: versions of one file that were written concurrently.
//!
//! Contents that are not based on the newest version are a fork. Each version is built from the one it is based on; the
//! latest that has data of its own wins, and the others are kept as [`Loser`]s.

use std::collections::HashMap;

use super::apply::Refusal;
use super::extents::Extents;
use super::inode::*;
use super::merge::{Block, Branch, Change, Known};
use super::record::*;
use super::removals::Yielding;
use super::tree::*;
use crate::volume::{FILE_LEN_MAX, FileKind, Time};

/// A version of a file's contents that lost to another one.
#[derive(Debug)]
pub(super) struct Loser {
    pub at: Stamp,
    pub extents: Extents,
    pub plain_size: u64,
    pub mtime: Time,
    pub wall: Time,
    /// Parts that its writer did not write are of another version than the one it is based on.
    pub is_patched: bool,
}

/// A version of a file's contents in a block. The first is the one before the block, which all writers know.
struct Version {
    at: Stamp,
    branch: Option<usize>,
    extents: Extents,
    plain_size: u64,
    mtime: Time,
    wall: Time,
    /// The version that it is based on is not available: what it did not write itself is of another one.
    is_patched: bool,
    /// It lost in an earlier block.
    has_lost: bool,
}

impl Tree {
    /// Merges another snapshot's version of a file. If one snapshot covers the other's version, it has replaced it.
    /// Otherwise the later version wins, and the other is kept.
    pub(super) fn merge_version(&mut self, ix: InodeIx, other: Loser, covers: &Known) {
        let own = self.inode(ix).version;
        let is_ours_newer = self
            .unsettled
            .as_ref()
            .is_none_or(|u| self.is_known(other.at, &u.covered));
        if own == other.at || is_ours_newer {
            return;
        }
        let is_theirs_newer = self.is_known(own, covers);
        let inode = self.inode(ix);
        let mine = Loser {
            at: own,
            extents: inode.extents().clone(),
            plain_size: inode.plain_size,
            mtime: inode.mtime.into(),
            wall: inode.ctime.into(),
            is_patched: false,
        };
        let (winner, loser) = if is_theirs_newer || self.is_later(other.at, own) {
            (other, mine)
        } else {
            (mine, other)
        };
        let inode = self.inode_mut(ix);
        (inode.version, inode.plain_size) = (winner.at, winner.plain_size);
        inode.mtime = winner.mtime.into();
        let losers = if is_theirs_newer {
            Vec::new()
        } else {
            vec![loser]
        };
        self.put_contents(ix, winner.extents, losers);
    }

    /// Files with a version that is not based on the newest preceding one, or whose removal yields, with the indices of
    /// their contents records in the block.
    pub(super) fn forks(
        &self,
        block: &Block,
        yielding: &HashMap<Id, Vec<Yielding>>,
    ) -> HashMap<Id, Vec<usize>> {
        struct Run {
            version: WireStamp,
            last: Option<usize>,
            is_forked: bool,
            places: Vec<usize>,
        }
        let mut runs: HashMap<Id, Run> = HashMap::new();
        let start = |version| Run {
            version,
            last: None,
            is_forked: false,
            places: Vec::new(),
        };
        for (i, change) in block.changes.iter().enumerate() {
            match change.record {
                Record::Inode(new) if self.find_id(new.id).is_none() => {
                    runs.entry(new.id)
                        .or_insert_with(|| start(self.to_wire(change.at)));
                }
                Record::Content(content) => {
                    let id = content.inode;
                    let known = self.find_id(id).map(|ix| self.inode(ix));
                    if known.is_some_and(|inode| inode.kind != FileKind::Regular) {
                        continue;
                    }
                    let run = match known {
                        Some(inode) => runs
                            .entry(id)
                            .or_insert_with(|| start(self.to_wire(inode.version))),
                        None => match runs.get_mut(&id) {
                            Some(run) => run,
                            None => continue,
                        },
                    };
                    // A snapshot concurrent with it already has it.
                    let has_it = |at: Stamp| {
                        at.segment == change.at.segment && !self.is_later(change.at, at)
                    };
                    if known.is_some_and(|inode| has_it(inode.version)) {
                        continue;
                    }
                    let knows_last = run.last.is_none_or(|last| {
                        let last = block.changes[last];
                        block.knows((change.branch, change.at), (last.branch, last.at))
                    });
                    run.is_forked |=
                        content.base != run.version && (!knows_last || run.last.is_none());
                    (run.version, run.last) = (self.to_wire(change.at), Some(i));
                    run.places.push(i);
                }
                Record::Relocate(moved) => {
                    if let Some(run) = runs.get_mut(&moved.inode) {
                        run.places.push(i);
                    }
                }
                _ => {}
            }
        }
        // A writer that removed the file afterwards may have left no contents.
        runs.retain(|id, run| run.is_forked || yielding.contains_key(id) && !run.places.is_empty());
        runs.into_iter().map(|(id, run)| (id, run.places)).collect()
    }

    /// Builds every version of a file, lets the latest win, and keeps the others that have data of their own.
    pub(super) fn merge_contents(
        &mut self,
        ix: InodeIx,
        block: &Block,
        places: &[usize],
        removals: &[Yielding],
    ) -> Result<(), (u32, Refusal)> {
        let inode = self.inode(ix);
        let mut versions = vec![Version {
            at: inode.version,
            branch: None,
            extents: inode.extents().clone(),
            plain_size: inode.plain_size,
            mtime: inode.mtime.into(),
            wall: inode.ctime.into(),
            is_patched: false,
            has_lost: false,
        }];
        // A later session may continue a version that lost to one that its writer did not know.
        versions.extend(self.lost_versions(ix));
        for change in places.iter().map(|i| block.changes[*i]) {
            let refused = |why| (change.at.segment, why);
            match change.record {
                Record::Content(content) => {
                    let (made_on, is_named) = self.made_on(content, change, &versions, block);
                    let built = self.next_version(content, change, &versions[made_on]);
                    let built = built.map_err(refused)?;
                    versions.push(Version {
                        is_patched: !covers_all(content) && (built.is_patched || !is_named),
                        ..built
                    });
                }
                Record::Relocate(moved) => {
                    let changes = self
                        .extent_changes(&moved.packs, &moved.splices)
                        .map_err(refused)?;
                    if let Some(version) = versions
                        .iter_mut()
                        .find(|v| self.to_wire(v.at) == moved.version)
                    {
                        version.extents.splice(&changes, &mut |_, _| {});
                        version.extents.truncate(version.plain_size, &mut |_, _| {});
                    }
                }
                _ => {}
            }
        }
        let knows = |by: (usize, Stamp), v: &Version| {
            v.branch
                .is_some_and(|branch| block.knows(by, (branch, v.at)))
        };
        // A device that removed the file afterwards abandoned its own last versions, unless another one continued them.
        let is_given_up = |v: &Version| {
            removals.iter().filter(|r| r.is_whole).any(|removal| {
                let goes_on = |c: &(usize, Stamp)| c.1 == v.at || knows(*c, v);
                knows(removal.by, v) && !removal.concurrent.iter().any(goes_on)
            })
        };
        versions.retain(|v| !is_given_up(v));
        self.choose(ix, block, versions);
        Ok(())
    }

    /// The index of the version that contents are based on, and whether it is exactly that one. If it is not available,
    /// because a snapshot of another device is newer, it is the newest that the writer knew.
    fn made_on(
        &self,
        content: &Content,
        by: Change,
        versions: &[Version],
        block: &Block,
    ) -> (usize, bool) {
        let named = versions
            .iter()
            .position(|v| self.to_wire(v.at) == content.base);
        let is_known = |v: &Version| {
            let here = (by.branch, by.at);
            v.branch
                .is_none_or(|branch| block.knows(here, (branch, v.at)))
        };
        match named {
            Some(named) => (named, true),
            None => (versions.iter().rposition(is_known).unwrap_or(0), false),
        }
    }

    fn next_version(
        &mut self,
        content: &Content,
        change: Change,
        base: &Version,
    ) -> Result<Version, Refusal> {
        if content.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        let changes = self.extent_changes(&content.packs, &content.splices)?;
        let mut extents = base.extents.clone();
        extents.splice(&changes, &mut |_, _| {});
        extents.truncate(content.plain_size, &mut |_, _| {});
        Ok(Version {
            at: change.at,
            branch: Some(change.branch),
            extents,
            plain_size: content.plain_size,
            mtime: content.mtime.unwrap_or(change.wall),
            wall: change.wall,
            is_patched: base.is_patched,
            has_lost: false,
        })
    }

    /// The versions of a file that lost in earlier blocks.
    fn lost_versions(&self, ix: InodeIx) -> Vec<Version> {
        let losers = self.unsettled.as_ref().and_then(|u| u.losers.get(&ix));
        let version = |loser: &Loser| Version {
            at: loser.at,
            branch: None,
            extents: loser.extents.clone(),
            plain_size: loser.plain_size,
            mtime: loser.mtime,
            wall: loser.wall,
            is_patched: loser.is_patched,
            has_lost: true,
        };
        losers.into_iter().flatten().map(version).collect()
    }

    fn choose(&mut self, ix: InodeIx, block: &Block, mut versions: Vec<Version>) {
        // A file that two devices created, to save the same version that lost, started empty on both.
        let began_empty = self.inode(ix).created == versions[0].at;
        let knows = |by: &Version, other: &Version| match (by.branch, other.branch) {
            (Some(b), Some(o)) => block.knows((b, by.at), (o, other.at)),
            (Some(b), None) => {
                let branch = &block.branches[b];
                let is_own = branch.segment == other.at.segment;
                began_empty || is_own || self.is_known(other.at, &branch.known)
            }
            (None, _) => false,
        };
        let is_tip = |v: &Version| !versions.iter().any(|by| by.at != v.at && knows(by, v));
        let tips: Vec<usize> = (0..versions.len())
            .filter(|i| is_tip(&versions[*i]))
            .collect();
        let same =
            |a: &Version, b: &Version| a.plain_size == b.plain_size && a.extents == b.extents;
        // A tip has no data of its own if its bytes are those of a version that another tip, with other bytes, is based
        // on: it was only touched. Of two touched tips with the same bytes, one stays.
        let adds_nothing = |tip: usize| {
            let others = || {
                tips.iter()
                    .filter(|other| !same(&versions[**other], &versions[tip]))
            };
            let seen = |v: &Version| others().any(|other| knows(&versions[*other], v));
            versions
                .iter()
                .any(|v| v.at != versions[tip].at && same(v, &versions[tip]) && seen(v))
        };
        let with_own: Vec<usize> = tips
            .iter()
            .copied()
            .filter(|tip| !adds_nothing(*tip))
            .collect();
        let mut kept: Vec<usize> = Vec::new();
        let mut candidates = if with_own.is_empty() {
            tips.clone()
        } else {
            with_own.clone()
        };
        let rank = |v: &Version| (!v.is_patched, !v.has_lost);
        candidates.sort_by_key(|tip| (rank(&versions[*tip]), *tip));
        // Latest first: of equal ones the latest stays.
        for tip in candidates.iter().rev() {
            if kept.iter().all(|k| !same(&versions[*k], &versions[*tip])) {
                kept.push(*tip);
            }
            if with_own.is_empty() {
                break;
            }
        }
        let mut losers = Vec::new();
        for lost in kept.drain(1..).collect::<Vec<_>>() {
            let v = &mut versions[lost];
            losers.push(Loser {
                at: v.at,
                extents: std::mem::take(&mut v.extents),
                plain_size: v.plain_size,
                mtime: v.mtime,
                wall: v.wall,
                is_patched: v.is_patched,
            });
        }
        let winner = &mut versions[kept[0]];
        let extents = std::mem::take(&mut winner.extents);
        let (at, plain_size, mtime) = (winner.at, winner.plain_size, winner.mtime);
        self.put_contents(ix, extents, losers);
        let inode = self.inode_mut(ix);
        (inode.version, inode.plain_size, inode.mtime) = (at, plain_size, mtime.into());
    }

    fn put_contents(&mut self, ix: InodeIx, extents: Extents, losers: Vec<Loser>) {
        self.forget_losers(ix);
        for loser in &losers {
            self.count_live(&loser.extents, 1);
        }
        self.count_live(&extents, 1);
        if let Body::Extents(own) = &mut self.inode_mut(ix).body {
            let old = std::mem::replace(own, extents);
            self.count_live(&old, -1);
        }
        if let Some(unsettled) = &mut self.unsettled
            && !losers.is_empty()
        {
            unsettled.losers.insert(ix, losers);
        }
    }

    fn count_live(&mut self, extents: &Extents, sign: i64) {
        for e in extents.as_slice() {
            let live = &mut self.packs[e.pack as usize].live_plain_bytes;
            *live = live.saturating_add_signed(sign * i64::from(e.plain_len));
        }
    }

    /// Removes the versions of a file that lost before and that this writer did not know, and returns them. A writer on
    /// top of the known ones has kept those, or is one of them.
    pub(super) fn take_losers_unknown_to(&mut self, ix: InodeIx, by: &Branch) -> Vec<Loser> {
        let losers = self.unsettled.as_mut().and_then(|u| u.losers.remove(&ix));
        let is_known =
            |loser: &Loser| by.segment == loser.at.segment || self.is_known(loser.at, &by.known);
        let (known, unknown): (Vec<_>, Vec<_>) = losers.into_iter().flatten().partition(is_known);
        self.add_losers(ix, known);
        unknown
    }

    /// Adds versions that lost and that are counted already.
    pub(super) fn add_losers(&mut self, ix: InodeIx, losers: Vec<Loser>) {
        if let Some(unsettled) = &mut self.unsettled
            && !losers.is_empty()
        {
            unsettled.losers.entry(ix).or_default().extend(losers);
        }
    }

    /// Drops the versions of a file that lost: they were saved, or the file was deleted.
    pub(super) fn forget_losers(&mut self, ix: InodeIx) {
        let Some(unsettled) = &mut self.unsettled else {
            return;
        };
        for loser in unsettled.losers.remove(&ix).into_iter().flatten() {
            self.count_live(&loser.extents, -1);
        }
    }
}

/// Whether the splices cover every byte of the file.
pub(super) fn covers_all(content: &Content) -> bool {
    let mut end = 0;
    for splice in &content.splices {
        if splice.plain_offset != end {
            return false;
        }
        end += splice.plain_len;
    }
    end >= content.plain_size
}
