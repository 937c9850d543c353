//! What keeps a library fast: bases, copying out of packs that failed, and rewriting what lies in too many pieces.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Core;
use super::contents::Subject;
use crate::error::{Kind, Result};
use crate::index::record::{BaseRef, Frame, Opening, Record, Relocate, SegmentId, Splices};
use crate::index::{BaseCursor, ClosedSegment, Published, SegmentWriter, Stamp, StampTable};
use crate::logged;
use crate::pack::{BLOCK_PLAIN_LEN, PackId};
use crate::volume::{Ino, Time};

/// Fewer bytes of segments than this are not worth a base: they replay in milliseconds.
const BASE_WORTH_BYTES: u64 = 4 << 20;
/// More segments than this are, however short.
const SEGMENTS_MAX: usize = 200;
/// Records in a frame of a base, and so how long the tree is locked for one. In tests few, so that there are many.
const RECORDS_PER_FRAME: usize = if cfg!(test) { 8 } else { 512 };
/// A file whose extents are shorter on average is rewritten, in bytes.
const EXTENT_LEN_MIN: u64 = 64 * 1024;
/// A file in fewer extents is left alone.
const EXTENTS_MIN: usize = 16;
/// A file is rewritten so long after it was closed: who writes in rounds is not hindered.
const REWRITE_AFTER: Duration = Duration::from_secs(10);
/// What is read and sealed in one piece, in bytes.
const REWRITE_LEN: u64 = 4 << 20;

impl Core {
    /// After a publication: a base where one is due, and without the segments that it makes superfluous.
    pub(super) fn maintain(&self) -> Result<()> {
        let is_lost = self.is_index_lost.load(Ordering::Acquire);
        if (is_lost || self.is_base_due()) && self.writable().is_ok() {
            self.write_base()?;
        }
        self.remove_covered()
    }

    fn is_base_due(&self) -> bool {
        let journal = self.journal.lock();
        let bytes: u64 = journal.uncovered.iter().map(|s| s.cipher_len).sum();
        let worth = (self.base_bytes.load(Ordering::Relaxed) / 2).max(BASE_WORTH_BYTES);
        !self.has_gaps && (bytes > worth || journal.uncovered.len() > SEGMENTS_MAX)
    }

    /// Writes a base of all published segments, in slices, while work goes on. What changes meanwhile may be in it
    /// or not: the segment that has those changes is published first, and the base says that it needs it.
    pub(super) fn write_base(&self) -> Result<()> {
        let (opening, from, covered) = {
            let mut journal = self.journal.lock();
            let from = journal.ensure_open(&self.tree)?;
            (
                journal.opening(0, Some(Vec::new())),
                from,
                journal.uncovered.clone(),
            )
        };
        let (table, from_id) = {
            let tree = self.tree.read();
            (tree.stamp_table(from), tree.segment_id(from))
        };
        let opening = Opening {
            stamp_segments: Some(table.segments.clone()),
            ..opening
        };
        let writer = SegmentWriter::create(&*self.store, &self.master, &opening)?;
        let id = writer.id();
        match self.fill_base(writer, &opening, &table, (from, from_id)) {
            Ok(Some(base)) => self.note_base(&base, covered),
            Ok(None) => self.store.discard(id)?,
            Err(e) => {
                self.store.discard(id)?;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes and publishes a base, which needs what happens from segment `from` on; `None` where it has to be given up.
    fn fill_base(
        &self,
        mut writer: SegmentWriter,
        opening: &Opening,
        table: &StampTable,
        (from, from_id): (u32, SegmentId),
    ) -> Result<Option<ClosedSegment>> {
        let mut cursor = BaseCursor::Inodes(0);
        while cursor != BaseCursor::End {
            let Some((records, next)) =
                self.tree
                    .read()
                    .base_records(cursor, RECORDS_PER_FRAME, table)
            else {
                return Ok(None);
            };
            cursor = next;
            self.serve();
            // A file in very many pieces has records that fill a frame of their own.
            for records in records.chunk_by(|a, b| !is_long(a) && !is_long(b)) {
                let frame = Frame {
                    counter: 0,
                    wall: Time::default(),
                    durable_before: false,
                    records: records.to_vec(),
                };
                writer.append(&frame)?;
            }
        }
        self.publish()?;
        if self.tree.read().segment_id(from) != from_id {
            // A write to it failed, and a copy of another id took its place: the base's stamps name one that is not.
            return Ok(None);
        }
        let needs = {
            let journal = self.journal.lock();
            let new = journal
                .heads
                .get(&self.device)
                .filter(|h| opening.heads.iter().all(|old| old != *h));
            new.copied().into_iter().collect()
        };
        let base = writer.close(needs)?;
        base.file.sync()?;
        self.publish_segment(base.id, true)?;
        Ok(Some(base))
    }

    /// A base is published: what it covers is superfluous, and so are those before it.
    fn note_base(&self, base: &ClosedSegment, covered: Vec<Published>) {
        let mut journal = self.journal.lock();
        journal.base = Some(BaseRef {
            segment: base.id,
            sha256: base.sha256,
        });
        journal
            .uncovered
            .retain(|s| !covered.iter().any(|c| c.id == s.id));
        drop(journal);
        self.base_bytes.store(base.cipher_len, Ordering::Relaxed);
        if self.is_index_lost.swap(false, Ordering::AcqRel) {
            log::warn!("index: files were removed from it under the mount, and it is written anew");
        }
        let mut superfluous = self.covered.lock();
        superfluous.extend(covered);
        superfluous.extend(self.bases.lock().drain(..));
        self.bases.lock().push(Published {
            id: base.id,
            device: self.device,
            number: 0,
            cipher_len: base.cipher_len,
        });
    }

    /// Copies what is live in packs that a write or a sync failed in, so that those can go. What does not open there
    /// is lost, and must not hold up the rest: every sync would fail for it.
    pub(super) fn empty_spoiled(&self) -> Result<()> {
        let mut result = Ok(());
        for id in self.contents.spoiled() {
            result = result.and(self.empty_pack(id));
        }
        result
    }

    fn empty_pack(&self, id: PackId) -> Result<()> {
        let mut lost: Vec<(Ino, u64, u64)> = Vec::new();
        let users = self.tree.read().users_of(id);
        for (ino, ranges) in users {
            self.copy_readable(ino, &ranges, &mut lost)?;
        }
        // What a flush sealed into it and did not frame yet is not seen in the tree.
        let sealing = self.sealing.write();
        let pack = self.tree.read().find_pack(id).copied();
        if pack.is_some_and(|p| p.live_plain_bytes > 0) && !self.is_lost(id, &lost) {
            return Ok(());
        }
        // Frames name it that come before the copies: it goes when it is known to be condemned, as any pack.
        self.transact_promised(|_, draft| {
            draft.records.push(Record::Condemn(vec![id]));
            Ok(())
        })?;
        drop(sealing);
        self.contents.forget_unsynced(id);
        self.sync()?;
        self.contents.discard_spoiled(id)
    }

    /// Whether all that is live in a pack is among these bytes of files.
    fn is_lost(&self, id: PackId, lost: &[(Ino, u64, u64)]) -> bool {
        if lost.is_empty() {
            return false;
        }
        let users = self.tree.read().users_of(id);
        let mut live = users
            .iter()
            .flat_map(|(ino, ranges)| ranges.iter().map(|range| (*ino, range.0, range.1)));
        live.all(|range| is_within(range, lost))
    }

    /// Copies what opens of these ranges of a file, and notes what does not.
    fn copy_readable(
        &self,
        ino: Ino,
        ranges: &[(u64, u64)],
        lost: &mut Vec<(Ino, u64, u64)>,
    ) -> Result<()> {
        const BLOCK: u64 = BLOCK_PLAIN_LEN as u64;
        let mut left = vec![ranges.to_vec()];
        while let Some(ranges) = left.pop() {
            match (self.copy_ranges(ino, &ranges), &ranges[..]) {
                (Ok(_), _) => {}
                (Err(e), _) if !matches!(e.kind(), Kind::Damaged(_)) => return Err(e),
                (Err(e), &[(from, to)]) if to - from <= BLOCK => {
                    let name = logged::file_name(ino, self.path_of(ino));
                    log::error!("{name}: bytes {from} to {to} are lost: {e}");
                    lost.push((ino, from, to));
                    if let Some(file) = self.opened(ino) {
                        // Who closes it is told.
                        let mut state = file.state.lock();
                        state.failures += 1;
                        state.failed_for_space = false;
                    }
                }
                (Err(_), &[(from, to)]) => {
                    let middle = from + (to - from).div_ceil(2 * BLOCK) * BLOCK;
                    left.extend([vec![(middle, to)], vec![(from, middle)]]);
                }
                (Err(_), many) => left.extend(many.iter().map(|range| vec![*range])),
            }
        }
        Ok(())
    }

    /// Notes a file that was closed, to be rewritten where it lies in too many pieces.
    pub(super) fn note_closed(&self, ino: Ino) {
        const QUEUE_MAX: usize = 1024;
        let fragmented = {
            let tree = self.tree.read();
            tree.find(ino).is_some_and(|ix| {
                let extents = tree.inode(ix).extents();
                let count = extents.as_slice().len();
                count >= EXTENTS_MIN && extents.plain_bytes() / (count as u64) < EXTENT_LEN_MIN
            })
        };
        if fragmented {
            let mut queue = self.fragmented.lock();
            queue.retain(|(other, _)| *other != ino);
            if queue.len() < QUEUE_MAX {
                queue.push((ino, Instant::now()));
            }
            self.commit.changed();
        }
    }

    /// Rewrites one file that was closed a while ago. True where more wait.
    pub(super) fn rewrite_fragmented(&self) -> Result<bool> {
        let due = {
            let mut queue = self.fragmented.lock();
            let due = queue
                .iter()
                .position(|(_, closed)| closed.elapsed() >= REWRITE_AFTER);
            due.map(|i| queue.remove(i).0)
        };
        if let Some(ino) = due
            && self.opened(ino).is_none()
            && self.writable().is_ok()
        {
            self.rewrite(ino)?;
        }
        Ok(!self.fragmented.lock().is_empty())
    }

    fn rewrite(&self, ino: Ino) -> Result<()> {
        let plain_size = match self.locate(ino, 0, 0) {
            Ok(located) => located.plain_size,
            Err(_) => return Ok(()), // removed meanwhile
        };
        let mut at = 0;
        while at < plain_size {
            self.serve();
            let end = (at + REWRITE_LEN).min(plain_size);
            let Ok(located) = self.locate(ino, at, end) else {
                return Ok(()); // removed meanwhile
            };
            let bytes: u64 = located
                .extents
                .iter()
                .map(|(e, _)| u64::from(e.plain_len))
                .sum();
            let count = located.extents.len() as u64;
            // Holes stay holes: only what lies between them is copied.
            if count > 1
                && bytes / count < EXTENT_LEN_MIN
                && !self.copy_ranges(ino, &joined(&located.extents))?
            {
                return Ok(()); // written to meanwhile: it will be closed again
            }
            at = end;
        }
        Ok(())
    }

    /// Seals ranges of a file anew and frames where they are now. False where the file was written to meanwhile:
    /// then the copies count for nothing.
    pub(super) fn copy_ranges(&self, ino: Ino, ranges: &[(u64, u64)]) -> Result<bool> {
        let _sealing = self.sealing.read();
        let (subject, version) = {
            let tree = self.tree.read();
            let Some(ix) = tree.find(ino) else {
                return Ok(true);
            };
            let inode = tree.inode(ix);
            let subject = Subject {
                inode: inode.id(),
                path: tree.path(ix),
                counter: tree.next_counter(),
            };
            (subject, inode.version())
        };
        let mut splices = Splices::default();
        for (from, to) in ranges {
            let mut at = *from;
            while at < *to {
                let end = (at + REWRITE_LEN).min(*to);
                let mut plain = vec![0; (end - at) as usize];
                let filled = self
                    .locate(ino, at, end)
                    .and_then(|located| self.fill(&located.extents, at, &mut plain, true));
                match filled {
                    Ok(()) => {}
                    // Removed, or written to: then its packs may be gone, too.
                    Err(e) if matches!(e.kind(), Kind::Stale | Kind::Missing) => {
                        return match self.has_version(ino, version) {
                            None => Ok(true),
                            Some(false) => Ok(false),
                            Some(true) => Err(e),
                        };
                    }
                    Err(e) => return Err(e),
                }
                self.contents.seal(&subject, at, &[&plain], &mut splices)?;
                at = end;
            }
        }
        let Splices {
            packs,
            list: splices,
        } = splices;
        self.transact_promised(|tree, draft| {
            let Some(ix) = tree.find(ino) else {
                return Ok(true);
            };
            let inode = tree.inode(ix);
            if inode.version() != version {
                return Ok(false);
            }
            draft.unlinked = !inode.is_linked();
            let version = tree.wire(version);
            draft.records.push(Record::Relocate(Relocate {
                inode: inode.id(),
                version,
                packs,
                splices,
            }));
            Ok(true)
        })
    }

    /// Whether a file is still as it was; `None` where it is gone.
    fn has_version(&self, ino: Ino, version: Stamp) -> Option<bool> {
        let tree = self.tree.read();
        Some(tree.inode(tree.find(ino)?).version() == version)
    }
}

/// Whether these bytes of a file are among those, which are in order and may adjoin.
fn is_within((ino, mut from, to): (Ino, u64, u64), ranges: &[(Ino, u64, u64)]) -> bool {
    for (_, start, end) in ranges.iter().filter(|range| range.0 == ino) {
        if (*start..*end).contains(&from) {
            from = *end;
        }
    }
    from >= to
}

/// Ranges without holes that the extents (ascending) cover.
fn joined(extents: &[(crate::index::extents::Extent, PackId)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (e, _) in extents {
        match ranges.last_mut() {
            Some((_, end)) if *end == e.plain_offset => *end = e.plain_end(),
            _ => ranges.push((e.plain_offset, e.plain_end())),
        }
    }
    ranges
}

fn is_long(record: &Record) -> bool {
    match record {
        Record::BaseInode(base) => base.splices.len() > RECORDS_PER_FRAME,
        Record::Relocate(more) => more.splices.len() > RECORDS_PER_FRAME,
        _ => false,
    }
}
