//! Writing the tree as a snapshot, and reading it back.

use super::apply::{Refusal, check_xattr};
use super::extents::{Extent, Extents};
use super::inode::*;
use super::merge::Known;
use super::record::*;
use super::tree::*;
use super::versions::Loser;
use crate::pack::Run;
use crate::volume::{FILE_LEN_MAX, FileKind, Time};

/// Maximum number of extents in one record of a snapshot; they take a small part of the longest frame.
const EXTENTS_PER_RECORD: usize = 65_536;

/// How far a snapshot has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotCursor {
    /// Inodes from this slot on, then links, removed names, directories again, packs.
    Inodes(u32),
    /// Links from this slot on, then removed names, directories again, packs.
    Links(u32),
    /// Removed names of inodes from this slot on, then directories again, packs.
    Unlinked(u32),
    /// Directories from this slot on whose entries changed during the snapshot, then packs. An entry that was removed
    /// before the links were written is not seen to disappear when the concurrent segments are applied, so the
    /// directory is written again in its later state.
    SecondPass(u32),
    /// Packs from this number on.
    Packs(u32),
    /// Everything is written.
    End,
}

/// The segments that a snapshot's stamps refer to, and their indices in its list.
pub struct StampTable {
    places: Vec<Option<u32>>,
    from: u32,
    /// The list, for the header.
    pub segments: Vec<StampSegment>,
}

impl Tree {
    /// The segments that stamps refer to, and all from number `from` on, which concurrent changes will refer to.
    pub fn stamp_table(&self, from: u32) -> StampTable {
        let mut used = vec![false; self.segments.len()];
        used[from as usize..].fill(true);
        let mut mark = |s: Stamp| used[s.segment as usize] = true;
        for (_, inode) in self.inodes.iter_from(0) {
            mark(inode.created);
            mark(inode.version);
            if let Some(x) = &inode.extra {
                let (atime_at, number_at) = (x.atime.map(|a| a.1), x.number.map(|n| n.1));
                [x.perm_at, x.owner_at, atime_at, number_at]
                    .into_iter()
                    .flatten()
                    .for_each(&mut mark);
                x.xattrs.iter().for_each(|(.., at)| mark(*at));
            }
        }
        self.links.iter_from(0).for_each(|(_, link)| mark(link.at));
        self.unlinked_stamps().for_each(&mut mark);
        let mut table = StampTable {
            places: vec![None; used.len()],
            from,
            segments: Vec::new(),
        };
        for (number, _) in used.iter().enumerate().filter(|(_, used)| **used) {
            table.places[number] = Some(table.segments.len() as u32);
            table.segments.push(self.segments[number]);
        }
        table
    }

    /// Returns about `count` records of a snapshot from `at` on, and where to continue. `None` if a stamp's segment is
    /// not in the table, because it was started later: then the snapshot has to be abandoned.
    pub fn base_records(
        &self,
        at: SnapshotCursor,
        count: usize,
        table: &StampTable,
    ) -> Option<(Vec<Record>, SnapshotCursor)> {
        let stamp = |s: Stamp| {
            let segment = table.places.get(s.segment as usize).copied().flatten()?;
            Some(BaseStamp {
                counter: s.counter(),
                segment,
            })
        };
        let mut records = Vec::with_capacity(count);
        let mut weight = 0;
        match at {
            SnapshotCursor::Inodes(from) => {
                for (slot, inode) in self.inodes.iter_from(from) {
                    if weight >= count {
                        return Some((records, SnapshotCursor::Inodes(slot)));
                    }
                    if inode.is_linked() {
                        let xattrs: usize = inode.xattrs().map(|(n, v)| n.len() + v.len()).sum();
                        weight += 1 + inode.extents().as_slice().len() + xattrs / 64;
                        self.base_inode(inode, &stamp, &mut records)?;
                    }
                }
                Some((records, SnapshotCursor::Links(0)))
            }
            SnapshotCursor::Links(from) => {
                for (slot, link) in self.links.iter_from(from) {
                    if records.len() >= count {
                        return Some((records, SnapshotCursor::Links(slot)));
                    }
                    records.push(Record::BaseLink(BaseLink {
                        link: self.link_at(LinkIx(slot)),
                        at: stamp(link.at)?,
                    }));
                }
                Some((records, SnapshotCursor::Unlinked(0)))
            }
            SnapshotCursor::Unlinked(from) => {
                let (records, next) = self.base_unlinked(from, count, &stamp)?;
                let next = next.map_or(SnapshotCursor::SecondPass(0), SnapshotCursor::Unlinked);
                Some((records, next))
            }
            SnapshotCursor::SecondPass(from) => {
                for (slot, inode) in self.inodes.iter_from(from) {
                    if records.len() >= count {
                        return Some((records, SnapshotCursor::SecondPass(slot)));
                    }
                    let changed = inode.version.segment >= table.from;
                    if changed && inode.kind == FileKind::Directory && inode.is_linked() {
                        self.base_inode(inode, &stamp, &mut records)?;
                    }
                }
                Some((records, SnapshotCursor::Packs(0)))
            }
            SnapshotCursor::Packs(from) => Some(self.base_packs(from, count)),
            SnapshotCursor::End => Some((records, SnapshotCursor::End)),
        }
    }

    fn link_at(&self, ix: LinkIx) -> LinkAt {
        let (link, id) = (self.link(ix), self.link_id(ix));
        let inode = self.inode(link.inode).id();
        LinkAt {
            link: id,
            inode: (id != inode).then_some(inode),
            parent: self.inode(link.parent).id(),
            name: link.name.to_vec(),
        }
    }

    fn base_packs(&self, from: u32, count: usize) -> (Vec<Record>, SnapshotCursor) {
        let packs = self.packs.iter().skip(from as usize).take(count);
        // A pack without live data is left out. A condemned one is included until it is deleted.
        let condemned = packs.clone().filter(|p| p.condemned);
        let mut records: Vec<Record> = condemned.map(|p| Record::Condemn(vec![p.id])).collect();
        let lens = packs
            .clone()
            .filter(|p| p.live_plain_bytes > 0 && !p.condemned);
        records.extend(lens.filter_map(|p| {
            p.cipher_len.map(|cipher_len| {
                Record::Pack(PackLen {
                    pack: p.id,
                    cipher_len,
                })
            })
        }));
        let next = from + packs.len() as u32;
        if next as usize >= self.packs.len() {
            (records, SnapshotCursor::End)
        } else {
            (records, SnapshotCursor::Packs(next))
        }
    }

    /// Makes a name free for a link of a fuzzy snapshot, which has some links as they were before a change and others
    /// as they were after. Of two links with one name, the earlier has since left it. If a directory would be below
    /// itself, those above it have moved; then the result is false, and the link is left out. A record of a concurrent
    /// segment has the new place.
    fn evict_stale_link(&mut self, at: Stamp, to: &LinkAt) -> bool {
        let (Some(parent), Some(inode)) = (
            self.find_id(to.parent),
            self.find_id(to.inode.unwrap_or(to.link)),
        ) else {
            return true;
        };
        if let Some(other) = self.child(parent, &to.name) {
            // A link that another snapshot placed there may be gone by now, or is a conflict; placing this one marks
            // the name.
            let set_at = self.link(other).at;
            if self.is_of_this_base(other) {
                if !self.is_later(at, set_at) {
                    return false;
                }
                self.take_link(other);
            }
        }
        !(self.inode(inode).kind == FileKind::Directory && self.is_within(parent, inode))
    }

    fn base_inode(
        &self,
        inode: &Inode,
        stamp: &impl Fn(Stamp) -> Option<BaseStamp>,
        records: &mut Vec<Record>,
    ) -> Option<()> {
        let extra = inode.extra.as_deref();
        let own = |at: Option<Stamp>| match at {
            Some(at) => stamp(at).map(Some),
            None => Some(None),
        };
        let mut xattrs = Vec::new();
        for (name, value, at) in extra.iter().flat_map(|x| &x.xattrs) {
            xattrs.push(BaseXattr {
                name: name.to_vec(),
                value: value.to_vec(),
                at: stamp(*at)?,
            });
        }
        let number = match extra.and_then(|x| x.number) {
            Some((number, at)) => Some(BaseNumber {
                number: Number(number),
                at: stamp(at)?,
            }),
            None => None,
        };
        let mut parts = inode.extents().as_slice().chunks(EXTENTS_PER_RECORD);
        let splices = self.splices(parts.next().unwrap_or_default());
        records.push(Record::BaseInode(Box::new(BaseInode {
            inode: NewInode {
                id: inode.id(),
                kind: inode.kind,
                perm: inode.perm,
                uid: inode.uid,
                gid: inode.gid,
                rdev: inode.rdev,
                target: inode.target().unwrap_or_default().to_vec(),
            },
            created: stamp(inode.created)?,
            perm_at: own(extra.and_then(|x| x.perm_at))?,
            owner_at: own(extra.and_then(|x| x.owner_at))?,
            atime_at: own(extra.and_then(|x| x.atime).map(|(_, at)| at))?,
            version: stamp(inode.version)?,
            atime: inode.atime().into(),
            mtime: inode.mtime.into(),
            ctime: inode.ctime.into(),
            btime: inode.btime.into(),
            plain_size: inode.plain_size,
            packs: splices.packs,
            splices: splices.list,
            xattrs,
            number,
        })));
        // What does not fit into one record follows as if it had been relocated.
        records.extend(parts.map(|part| {
            let Splices { packs, list } = self.splices(part);
            let (inode, version) = (inode.id(), self.to_wire(inode.version));
            Record::Relocate(Relocate {
                inode,
                version,
                packs,
                splices: list,
            })
        }));
        Some(())
    }

    /// Extents as splices.
    pub(super) fn splices(&self, extents: &[Extent]) -> Splices {
        let mut splices = Splices::default();
        for e in extents {
            let run = Run {
                pack: self.packs[e.pack as usize].id,
                cipher_offset: e.cipher_offset,
                plain_len: e.run_len,
            };
            splices.data(e.plain_offset, u64::from(e.plain_len), run, e.start);
        }
        splices
    }

    /// Applies a record of a snapshot that covers `covers` and whose stamps index `numbers`.
    pub fn apply_base(
        &mut self,
        record: &Record,
        numbers: &[u32],
        covers: &Known,
    ) -> Result<(), Refusal> {
        let stamp = |s: BaseStamp| {
            let segment = *numbers
                .get(s.segment as usize)
                .ok_or("a stamp of an unlisted segment")?;
            Ok(Stamp::new(s.counter, segment))
        };
        match record {
            Record::BaseInode(base) => {
                self.apply_base_inode(base, &stamp, covers)?;
                self.mark_inode_in_base(base);
                Ok(())
            }
            Record::BaseLink(base) => {
                let at = stamp(base.at)?;
                self.counter = self.counter.max(at.counter());
                if self.apply_base_unlinked(&base.link, at) {
                    return Ok(());
                }
                let parent = self.find_id(base.link.parent);
                self.mark_link_in_base(&base.link);
                if !self.evict_stale_link(at, &base.link) {
                    return Ok(());
                }
                let times = parent.map(|p| {
                    (
                        p,
                        self.inode(p).mtime,
                        self.inode(p).ctime,
                        self.inode(p).version,
                    )
                });
                let inode = self.find_id(base.link.inode.unwrap_or(base.link.link));
                let ctime = inode.map(|i| (i, self.inode(i).ctime));
                self.place(at, Time::default(), &base.link)?;
                self.mark_place_in_base(&base.link, at);
                // The snapshot has the times themselves.
                if let Some((ix, ctime)) = ctime {
                    self.inode_mut(ix).ctime = ctime;
                }
                if let Some((ix, mtime, ctime, version)) = times {
                    let dir = self.inode_mut(ix);
                    (dir.mtime, dir.ctime, dir.version) = (mtime, ctime, version);
                }
                Ok(())
            }
            Record::Pack(pack) => self.finish_pack(pack),
            Record::Relocate(more) => self.relocate(more),
            Record::Condemn(_) => self.apply(Stamp::new(0, 0), Time::default(), record),
            _ => Err("a record of this kind in a base"),
        }
    }

    /// Adds an inode. Of an existing directory, sets what is newer: see [`SnapshotCursor::SecondPass`].
    fn apply_base_inode(
        &mut self,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
        covers: &Known,
    ) -> Result<(), Refusal> {
        let created = stamp(base.created)?;
        let version = stamp(base.version)?;
        let known = self.find_id(base.inode.id);
        let ix = match known {
            None => {
                self.create(created, base.btime, &base.inode)?;
                let made = self.find_id(base.inode.id);
                made.expect("an inode that was created is found")
            }
            Some(ROOT_IX) => ROOT_IX,
            Some(ix) => {
                let kinds = [self.inode(ix).kind, base.inode.kind];
                if kinds == [FileKind::Regular; 2] {
                    return self.merge_base_file(ix, base, stamp, covers);
                }
                if kinds != [FileKind::Directory; 2] {
                    return self.merge_number(ix, base, stamp);
                }
                ix
            }
        };
        let changes = self.extent_changes(&base.packs, &base.splices)?;
        if base.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        self.splice(
            ix,
            &changes,
            (base.inode.kind == FileKind::Regular).then_some(base.plain_size),
        );
        if ix == ROOT_IX {
            self.inode_mut(ix).created = created;
        }
        self.merge_attrs(ix, base, stamp)?;
        self.merge_xattrs(ix, base, stamp)?;
        self.merge_number(ix, base, stamp)?;
        self.counter = self.counter.max(version.counter()).max(created.counter());
        if !self.is_later(self.inode(ix).version, version) {
            let inode = self.inode_mut(ix);
            inode.version = version;
            inode.mtime = base.mtime.into();
            (inode.ctime, inode.btime) = (base.ctime.into(), base.btime.into());
        }
        Ok(())
    }

    /// Merges a file that another snapshot has, too.
    fn merge_base_file(
        &mut self,
        ix: InodeIx,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
        covers: &Known,
    ) -> Result<(), Refusal> {
        if base.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        let changes = self.extent_changes(&base.packs, &base.splices)?;
        let mut extents = Extents::default();
        extents.splice(&changes, &mut |_, _| {});
        extents.truncate(base.plain_size, &mut |_, _| {});
        let other = Loser {
            at: stamp(base.version)?,
            extents,
            plain_size: base.plain_size,
            mtime: base.mtime,
            wall: base.ctime,
            is_patched: false,
        };
        self.counter = self.counter.max(other.at.counter());
        self.merge_version(ix, other, covers);
        self.merge_attrs(ix, base, stamp)?;
        self.merge_xattrs(ix, base, stamp)?;
        self.merge_number(ix, base, stamp)
    }

    fn merge_attrs(
        &mut self,
        ix: InodeIx,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
    ) -> Result<(), Refusal> {
        let created = self.inode(ix).created;
        for (own, at) in [(0, base.perm_at), (1, base.owner_at), (2, base.atime_at)] {
            let at = at.map(stamp).transpose()?;
            self.counter = self.counter.max(at.map_or(0, Stamp::counter));
            let set_at = match own {
                0 => self.set_at(ix, |x| x.perm_at),
                1 => self.set_at(ix, |x| x.owner_at),
                _ => self.set_at(ix, |x| x.atime.map(|(_, at)| at)),
            };
            if self.is_later(set_at, at.unwrap_or(created)) {
                continue;
            }
            let inode = self.inode_mut(ix);
            match own {
                0 => inode.perm = base.inode.perm & 0o7777,
                1 => (inode.uid, inode.gid) = (base.inode.uid, base.inode.gid),
                _ => {}
            }
            let Some(at) = at else { continue };
            let extra = inode.extra_mut();
            match own {
                0 => extra.perm_at = Some(at),
                1 => extra.owner_at = Some(at),
                _ => extra.atime = Some((base.atime.into(), at)),
            }
        }
        Ok(())
    }

    fn merge_xattrs(
        &mut self,
        ix: InodeIx,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
    ) -> Result<(), Refusal> {
        for x in &base.xattrs {
            check_xattr(&x.name, Some(&x.value))?;
            let at = stamp(x.at)?;
            self.counter = self.counter.max(at.counter());
            let known = self.inode(ix).extra.iter().flat_map(|e| &e.xattrs);
            let place = known.clone().position(|(name, ..)| **name == *x.name);
            let set_at = place.and_then(|i| known.clone().nth(i)).map(|x| x.2);
            if set_at.is_some_and(|set_at| self.is_later(set_at, at)) {
                continue;
            }
            let xattrs = &mut self.inode_mut(ix).extra_mut().xattrs;
            let new = (x.name.as_slice().into(), x.value.as_slice().into(), at);
            match place {
                Some(i) => xattrs[i] = new,
                None => xattrs.push(new),
            }
        }
        Ok(())
    }
}
