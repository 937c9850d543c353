//! Settles the conflicts of a merge by ordinary records, so that the tree that programs see has none.
//!
//! The records depend on the tree alone. Two devices that settle the same conflict use the same names and ids, so their
//! records merge without a new conflict. Every step is one frame: after a crash, the next mount continues.

use sha2::{Digest, Sha256};

use super::extents::Extent;
use super::inode::*;
use super::record::*;
use super::tree::*;
use super::versions::Loser;
use crate::volume::{FileKind, NAME_LEN_MAX, Time};

/// Maximum number of records per step, so of directory entries moved in one frame.
const RECORDS_PER_STEP: usize = 512;
/// Maximum number of extents per step; they take a small part of the longest frame.
const EXTENTS_PER_STEP: usize = 65_536;

/// One step towards a tree without conflicts.
pub struct Settling {
    /// The records of one frame.
    pub records: Vec<Record>,
    /// The time of that frame: the same on every device.
    pub wall: Time,
    /// A new name that it assigned, for the log.
    pub conflict: Option<Vec<u8>>,
}

impl Tree {
    /// The next step, to be applied before the following one is requested; `None` if no conflict is left.
    pub fn settle(&mut self) -> Option<Settling> {
        let wall = self.unsettled.as_ref()?.wall;
        let (records, conflict) = match self.settle_rings() {
            Some(records) => (records, None),
            None => self.settle_names().or_else(|| self.settle_contents())?,
        };
        self.keep_stamps(&records);
        Some(Settling {
            records,
            wall,
            conflict,
        })
    }

    /// Saves the stamps of links before they are moved. The settling changes them, but names derive from them and must
    /// be the same on every device.
    fn keep_stamps(&mut self, records: &[Record]) {
        for record in records {
            let Record::Link(moved) = record else {
                continue;
            };
            let at = self.find_placed(moved).map(|link| self.link(link).at);
            if let (Some(at), Some(unsettled)) = (at, &mut self.unsettled) {
                unsettled.placed.entry(moved.link).or_insert(at);
            }
        }
    }

    /// Whether segments were merged and the settling has not ended.
    #[cfg(test)]
    pub fn was_merged(&self) -> bool {
        self.unsettled.is_some()
    }

    /// Ends the settling. Returns the number of inodes that records refer to and that another device removed, in
    /// records that a snapshot has superseded.
    pub fn settled(&mut self) -> usize {
        self.unsettled.take().map_or(0, |u| u.lost.len())
    }

    /// Breaks a cycle of directories: the one that was moved last is moved to the root.
    fn settle_rings(&mut self) -> Option<Vec<Record>> {
        while let Some(dir) = self.unsettled.as_mut()?.moved.pop() {
            let Some(ring) = self.ring(dir) else { continue };
            // Other moved directories may be in this cycle, or in another one.
            self.unsettled.as_mut()?.moved.push(dir);
            let mut last = ring[0];
            for link in &ring[1..] {
                if self.is_later(self.link(*link).at, self.link(last).at) {
                    last = *link;
                }
            }
            let name = self.link(last).name.to_vec();
            return Some(vec![self.move_link(last, ROOT_ID, name)]);
        }
        None
    }

    /// The links of the cycle of directories that this directory is in or below; `None` if it is below the root.
    fn ring(&self, dir: InodeIx) -> Option<Vec<LinkIx>> {
        self.inodes.get(dir.0)?;
        let above = |at: InodeIx| self.inode(at).first_link;
        let mut at = dir;
        // A walk with as many steps as there are inodes ends in the cycle.
        for _ in 0..self.inodes.len() {
            at = self.link(above(at)?).parent;
        }
        let mut ring = Vec::new();
        let first = at;
        loop {
            let link = above(at)?;
            ring.push(link);
            at = self.link(link).parent;
            if at == first {
                return Some(ring);
            }
        }
    }

    /// Settles several links of one name: directories are joined, and of the others the latest keeps the name.
    fn settle_names(&mut self) -> Option<(Vec<Record>, Option<Vec<u8>>)> {
        loop {
            let unsettled = self.unsettled.as_mut()?;
            let (parent, name) = unsettled.contested.last().cloned()?;
            let links = match self.inodes.get(parent.0) {
                Some(_) => self.links_named(parent, &name),
                None => Vec::new(),
            };
            let (Some(last), true) = (links.last(), links.len() > 1) else {
                self.unsettled.as_mut()?.contested.pop();
                continue;
            };
            let is_dir =
                |link: &&LinkIx| self.inode(self.link(**link).inode).kind == FileKind::Directory;
            let mut dirs = links.iter().filter(is_dir);
            if let (Some(from), Some(into)) = (dirs.next(), dirs.next_back()) {
                return Some((self.join_dirs(*from, *into), None));
            }
            let lost = *links.iter().find(|link| *link != last)?;
            let link = self.link(lost);
            let inode = self.inode(link.inode);
            let is_file = inode.kind != FileKind::Directory;
            let unsettled = self.unsettled.as_ref()?;
            let placed = unsettled.placed.get(&self.link_id(lost)).copied();
            let placed = placed.unwrap_or(link.at);
            // The version of a directory does not count: it changes with any entry, even when a conflict is settled.
            let at = if is_file && self.is_later(inode.version, placed) {
                inode.version
            } else {
                placed
            };
            let free = self.conflict_name(parent, &name, at, inode.ctime.into(), is_file);
            let parent = self.inode(parent).id();
            return Some((vec![self.move_link(lost, parent, free.clone())], Some(free)));
        }
    }

    /// All links of one name, the latest last.
    fn links_named(&self, parent: InodeIx, name: &[u8]) -> Vec<LinkIx> {
        let same_hash = self.by_name.iter_hash(self.name_hash(parent, name));
        let mut links: Vec<LinkIx> = same_hash
            .copied()
            .filter(|ix| self.link(*ix).parent == parent && *self.link(*ix).name == *name)
            .collect();
        links.sort_by_key(|ix| {
            let at = self.to_wire(self.link(*ix).at);
            (at.counter, at.segment)
        });
        links
    }

    /// Moves the entries of one directory into another, then removes it. If they do not fit in one frame, that takes
    /// several steps.
    fn join_dirs(&self, from: LinkIx, into: LinkIx) -> Vec<Record> {
        let (from_ix, into_ix) = (self.link(from).inode, self.link(into).inode);
        let into = self.inode(into_ix).id();
        let Body::Entries(entries) = &self.inode(from_ix).body else {
            return Vec::new();
        };
        let moved = entries.values().take(RECORDS_PER_STEP);
        let mut records: Vec<Record> = moved
            .map(|ix| self.move_link(*ix, into, self.link(*ix).name.to_vec()))
            .collect();
        if entries.len() <= RECORDS_PER_STEP {
            let id = self.inode(from_ix).id();
            records.push(Record::Unlink(Unlink {
                link: id,
                inode: None,
                seen: self.to_wire(self.inode(from_ix).version),
            }));
        }
        records
    }

    fn move_link(&self, link: LinkIx, parent: Id, name: Vec<u8>) -> Record {
        let (id, inode) = (self.link_id(link), self.inode(self.link(link).inode).id());
        Record::Link(LinkAt {
            link: id,
            inode: (id != inode).then_some(inode),
            parent,
            name,
        })
    }

    /// Saves versions of contents that lost as files of their own. Once that is done for a file, a record without
    /// changes states that its writer knew them.
    fn settle_contents(&mut self) -> Option<(Vec<Record>, Option<Vec<u8>>)> {
        let (ix, losers) = self.unsettled.as_ref()?.losers.first_key_value()?;
        let ix = *ix;
        let step = losers.iter().find_map(|loser| self.save_loser(ix, loser));
        if step.is_some() {
            return step;
        }
        let inode = self.inode(ix);
        let known = Record::Content(Content {
            inode: inode.id(),
            base: self.to_wire(inode.version),
            plain_size: inode.plain_size,
            mtime: Some(inode.mtime.into()),
            packs: Vec::new(),
            splices: Vec::new(),
        });
        Some((vec![known], None))
    }

    /// The next step of saving a version; `None` if it is complete.
    fn save_loser(&self, ix: InodeIx, loser: &Loser) -> Option<(Vec<Record>, Option<Vec<u8>>)> {
        let id = self.loser_id(loser);
        let Some(saved) = self.find_id(id) else {
            return self.name_loser(ix, loser, id);
        };
        let saved = self.inode(saved);
        let from = saved.plain_size;
        if from >= loser.plain_size {
            return None;
        }
        // Further extents are another step: the file grows to the end of this step's.
        let rest: Vec<Extent> = loser.extents.overlapping(from, u64::MAX).to_vec();
        let part = &rest[..rest.len().min(EXTENTS_PER_STEP)];
        let plain_size = match part.last() {
            Some(last) if part.len() < rest.len() => last.plain_end(),
            _ => loser.plain_size,
        };
        let Splices { packs, list } = self.splices(part);
        let content = Record::Content(Content {
            inode: id,
            base: self.to_wire(saved.version),
            plain_size,
            mtime: Some(loser.mtime),
            packs,
            splices: list,
        });
        Some((vec![content], None))
    }

    fn name_loser(
        &self,
        ix: InodeIx,
        loser: &Loser,
        id: Id,
    ) -> Option<(Vec<Record>, Option<Vec<u8>>)> {
        let inode = self.inode(ix);
        let link = self.link(inode.first_link?);
        let note = if loser.is_patched { ", incomplete" } else { "" };
        let mark = self.conflict_mark(loser.at, loser.wall, note);
        let name = self.free_name(link.parent, &link.name, &mark, true);
        let new = Record::Inode(NewInode {
            id,
            kind: FileKind::Regular,
            perm: inode.perm,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
            target: Vec::new(),
        });
        let place = Record::Link(LinkAt {
            link: id,
            inode: None,
            parent: self.inode(link.parent).id(),
            name: name.clone(),
        });
        Some((vec![new, place], Some(name)))
    }

    /// The id of the file that a version is saved as: the same on every device.
    fn loser_id(&self, loser: &Loser) -> Id {
        let at = self.to_wire(loser.at);
        let mut hash = Sha256::new_with_prefix("hushfs conflict");
        hash.update(at.segment.object().0);
        hash.update(at.counter.to_be_bytes());
        let bytes = hash.finalize();
        let id = bytes.iter().take(16);
        Id(id.fold(0, |n, b| n << 8 | u128::from(*b)))
    }

    /// `stem (conflict, DEVICE, DATE).ext` for what was written at `at`, with a number if that is taken.
    pub(super) fn conflict_name(
        &self,
        parent: InodeIx,
        name: &[u8],
        at: Stamp,
        wall: Time,
        has_extension: bool,
    ) -> Vec<u8> {
        let mark = self.conflict_mark(at, wall, "");
        self.free_name(parent, name, &mark, has_extension)
    }

    /// The mark in the name of what was written at `at`.
    pub(super) fn conflict_mark(&self, at: Stamp, wall: Time, note: &str) -> String {
        let device = self.segments[at.segment as usize].device.to_string();
        format!(" (conflict, {}, {}{note})", &device[..8], utc_minute(wall))
    }

    /// `name` with a mark, and with a number if that is taken.
    pub(super) fn free_name(
        &self,
        parent: InodeIx,
        name: &[u8],
        mark: &str,
        has_extension: bool,
    ) -> Vec<u8> {
        let mut count = 1u64;
        loop {
            let mark = match count {
                1 => mark.to_owned(),
                n => format!("{mark} {n}"),
            };
            let free = marked_name(name, mark.as_bytes(), has_extension);
            if self.child(parent, &free).is_none() {
                return free;
            }
            count += 1;
        }
    }
}

/// `name` with `mark` before its extension; the stem is truncated at a character boundary if needed.
fn marked_name(name: &[u8], mark: &[u8], has_extension: bool) -> Vec<u8> {
    const EXTENSION_LEN_MAX: usize = 32;
    let dot = name.iter().rposition(|c| *c == b'.');
    let is_extension = |dot: usize| {
        let text = &name[dot..];
        // The time in a mark has a dot, too.
        text.len() <= EXTENSION_LEN_MAX && !text.contains(&b' ') && !text.contains(&b')')
    };
    let dot = dot.filter(|dot| has_extension && *dot > 0 && is_extension(*dot));
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let mut len = stem.len().min(NAME_LEN_MAX - mark.len() - extension.len());
    while len < stem.len() && len > 0 && stem[len] & 0xc0 == 0x80 {
        len -= 1;
    }
    [&stem[..len], mark, extension].concat()
}

/// Date, hour and minute in UTC: `2026-11-28 14.03`.
fn utc_minute(time: Time) -> String {
    // Days to a date: years start in March, in eras of 400 years of 146,097 days (proleptic Gregorian calendar).
    let minutes = time.sec.div_euclid(60);
    let (days, minute) = (minutes.div_euclid(1440), minutes.rem_euclid(1440));
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    let (hour, minute) = (minute / 60, minute % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}.{minute:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |sec| utc_minute(Time { sec, nsec: 0 });
        assert_eq!(date(0), "1970-01-01 00.00");
        assert_eq!(date(951_782_399), "2000-02-28 23.59");
        assert_eq!(date(951_782_400), "2000-02-29 00.00");
        assert_eq!(date(1_795_874_583), "2026-11-28 14.03");
        assert_eq!(date(-1), "1969-12-31 23.59");
    }

    #[test]
    fn a_mark_stands_before_the_extension_and_fits() {
        let name =
            |name: &str| String::from_utf8(marked_name(name.as_bytes(), b" (c)", true)).unwrap();
        assert_eq!(name("song.flac"), "song (c).flac");
        assert_eq!(name(".bashrc"), ".bashrc (c)");
        assert_eq!(name("a.tar.gz"), "a.tar (c).gz");
        assert_eq!(name("none"), "none (c)");
        assert_eq!(marked_name(b"dir.d", b" (c)", false), b"dir.d (c)");
        let long = name(&format!("{}.mp3", "\u{e9}".repeat(125)));
        assert_eq!(long.len(), 254);
        assert!(long.ends_with("\u{e9} (c).mp3"));
    }
}
