//! Snapshots: segments that hold the whole state, so that the segments before them need not be replayed. The format
//! page calls them bases.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Task;
use crate::error::Result;
use crate::index::record::{BaseRef, Frame, Opening, Record};
use crate::index::{BaseCursor, ClosedSegment, Published, SegmentWriter, StampTable};
use crate::object::{Area, SegmentId};
use crate::vault::log::Log;
use crate::vault::outbox::Outbox;
use crate::volume::Time;

/// Fewer bytes of segments than this are not worth a snapshot: they replay in milliseconds.
const WORTH_BYTES: u64 = 4 << 20;
/// More segments than this are, however short.
const SEGMENTS_MAX: usize = 200;
/// Records in a frame of a snapshot, and so how long the tree is locked for one. In tests few, so that there are many.
const RECORDS_PER_FRAME: usize = if cfg!(test) { 8 } else { 512 };

/// Owns the segments that a snapshot supersedes and that are not removed yet. Does not own which snapshot is the newest:
/// the journal's index says.
pub(in crate::vault) struct Snapshots {
    log: Arc<Log>,
    outbox: Arc<Outbox>,
    superseded: Mutex<Vec<Published>>,
}

impl Snapshots {
    /// In a library where these segments are superseded.
    pub fn new(log: Arc<Log>, outbox: Arc<Outbox>, superseded: Vec<Published>) -> Self {
        Self {
            log,
            outbox,
            superseded: Mutex::new(superseded),
        }
    }

    /// Segments that a snapshot supersedes and that are not removed yet.
    pub fn superseded(&self) -> Vec<Published> {
        self.superseded.lock().clone()
    }

    fn is_snapshot_due(&self) -> bool {
        let journal = self.log.journal();
        let index = journal.index();
        if index.has_lost_segments() {
            return true;
        }
        let bytes: u64 = index.uncovered().iter().map(|s| s.cipher_len).sum();
        let worth = (index.snapshot_cipher_len() / 2).max(WORTH_BYTES);
        !self.log.view().has_gaps() && (bytes > worth || index.uncovered().len() > SEGMENTS_MAX)
    }

    /// Removes segments that a snapshot supersedes. Those that could not be removed are tried again.
    pub fn remove_superseded(&self) -> Result<()> {
        if self.superseded.lock().is_empty() || !self.outbox.may_remove()? {
            return Ok(());
        }
        let mut superseded = self.superseded.lock();
        while let Some(segment) = superseded.last() {
            let store = self.log.view().store();
            store.remove(Area::Index, segment.id.object())?;
            superseded.pop();
        }
        Ok(())
    }

    /// Writes a snapshot of all published segments, in slices, while work goes on. What changes meanwhile may be in it
    /// or not: the segment that has those changes is published first, and the snapshot says that it needs it.
    pub fn write(&self, between_frames: &mut dyn FnMut()) -> Result<()> {
        let (opening, from, covered) = {
            let mut journal = self.log.journal();
            let from = journal.ensure_open(self.log.view())?;
            (
                journal.opening(0, Some(Vec::new())),
                from,
                journal.index().uncovered().to_vec(),
            )
        };
        let (table, from_id) = {
            let tree = self.log.view().tree();
            (tree.stamp_table(from), tree.segment_id(from))
        };
        let opening = Opening {
            stamp_segments: Some(table.segments.clone()),
            ..opening
        };
        let writer = SegmentWriter::create(
            &**self.log.view().store(),
            self.log.view().master(),
            SegmentId(self.log.env().id()?),
            &opening,
        )?;
        let id = writer.id();
        match self.fill(writer, between_frames, &opening, &table, (from, from_id)) {
            Ok(Some(snapshot)) => self.supersede(&snapshot, covered),
            Ok(None) => self.log.view().store().discard(id.object())?,
            Err(e) => {
                self.log.view().store().discard(id.object())?;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes and publishes a snapshot, which needs what happens from segment `from` on; `None` where it has to be given up.
    fn fill(
        &self,
        mut writer: SegmentWriter,
        between_frames: &mut dyn FnMut(),
        opening: &Opening,
        table: &StampTable,
        (from, from_id): (u32, SegmentId),
    ) -> Result<Option<ClosedSegment>> {
        let mut cursor = BaseCursor::Inodes(0);
        while cursor != BaseCursor::End {
            let Some((records, next)) =
                self.log
                    .view()
                    .tree()
                    .base_records(cursor, RECORDS_PER_FRAME, table)
            else {
                return Ok(None);
            };
            cursor = next;
            between_frames();
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
        self.outbox.publish()?;
        if self.log.view().tree().segment_id(from) != from_id {
            // A write to it failed, and a copy of another id took its place: the snapshot's stamps name one that is not.
            return Ok(None);
        }
        let needs = {
            let own = self.log.journal().index().head_of(self.log.device());
            let new = own.filter(|head| !opening.heads.contains(head));
            new.into_iter().collect()
        };
        let snapshot = writer.close(needs)?;
        snapshot.file.sync()?;
        self.outbox.publish_segment(snapshot.id, true)?;
        Ok(Some(snapshot))
    }

    /// A snapshot is published: the segments that it covers are superseded, and so are the snapshots before it.
    fn supersede(&self, snapshot: &ClosedSegment, covered: Vec<Published>) {
        let reference = BaseRef {
            segment: snapshot.id,
            sha256: snapshot.sha256,
        };
        let published = Published {
            id: snapshot.id,
            device: self.log.device(),
            number: 0,
            cipher_len: snapshot.cipher_len,
        };
        let mut journal = self.log.journal();
        let before = journal
            .index_mut()
            .replace_snapshot(reference, published, &covered);
        drop(journal);
        let mut superseded = self.superseded.lock();
        superseded.extend(covered.into_iter().chain(before));
    }
}

impl Task for Snapshots {
    fn is_due(&self) -> Result<bool> {
        let is_writable = self.log.check_writable().is_ok();
        Ok(is_writable && self.is_snapshot_due()
            || self.log.may_collect() && !self.superseded.lock().is_empty())
    }

    fn is_waiting(&self) -> bool {
        self.log.journal().index().has_lost_segments()
    }

    /// Writes a snapshot where one is due, and removes the segments that it supersedes. A snapshot is finished at the end
    /// of a mount, too: a library that is only ever mounted briefly would otherwise never get one.
    fn run(&self, _go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        if self.is_snapshot_due() && self.log.check_writable().is_ok() {
            self.write(&mut || ())?;
        }
        self.remove_superseded()
    }
}

fn is_long(record: &Record) -> bool {
    match record {
        Record::BaseInode(inode) => inode.splices.len() > RECORDS_PER_FRAME,
        Record::Relocate(more) => more.splices.len() > RECORDS_PER_FRAME,
        _ => false,
    }
}
