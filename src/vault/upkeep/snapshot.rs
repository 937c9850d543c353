//! Snapshots: segments that hold the whole state, so that earlier segments need not be replayed. The format page calls
//! them bases.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Task;
use crate::error::Result;
use crate::index::record::{BaseRef, Frame, Record, SegmentHeader};
use crate::index::{ClosedSegment, SegmentInfo, SegmentWriter, SnapshotCursor, StampTable};
use crate::object::{Area, SegmentId};
use crate::vault::log::Log;
use crate::vault::outbox::Outbox;
use crate::volume::Time;

/// Minimum length of live segments for a snapshot to be due, in bytes: shorter ones are replayed in milliseconds.
const LIVE_BYTES_MIN: u64 = 4 << 20;
/// Maximum number of live segments. If there are more, a snapshot is due, however short they are.
const SEGMENTS_MAX: usize = 200;
/// Number of records in a frame of a snapshot: it bounds how long the tree is locked at a time. Small in tests, so that
/// snapshots have many frames.
const RECORDS_PER_FRAME: usize = if cfg!(test) { 8 } else { 512 };

/// Owns the list of superseded segments that are not removed yet. Does not own which snapshot is the newest: the
/// journal's index does.
pub(in crate::vault) struct Snapshots {
    log: Arc<Log>,
    outbox: Arc<Outbox>,
    superseded: Mutex<Vec<SegmentInfo>>,
}

impl Snapshots {
    /// For a library in which these segments are superseded.
    pub fn new(log: Arc<Log>, outbox: Arc<Outbox>, superseded: Vec<SegmentInfo>) -> Self {
        Self {
            log,
            outbox,
            superseded: Mutex::new(superseded),
        }
    }

    /// Superseded segments that are not removed yet.
    pub fn superseded(&self) -> Vec<SegmentInfo> {
        self.superseded.lock().clone()
    }

    fn is_snapshot_due(&self) -> bool {
        let journal = self.log.journal();
        let index = journal.index();
        if index.has_lost_segments() {
            return true;
        }
        let bytes: u64 = index.uncovered().iter().map(|s| s.cipher_len).sum();
        let bytes_max = (index.snapshot_cipher_len() / 2).max(LIVE_BYTES_MIN);
        let is_long = bytes > bytes_max || index.uncovered().len() > SEGMENTS_MAX;
        is_long && !self.log.view().has_gaps()
    }

    /// Removes superseded segments. After an error, the rest is removed the next time.
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

    /// Writes a fuzzy snapshot of all published segments: in slices, without blocking other work. It may or may not
    /// include concurrent changes; the segment with those is published first, and the snapshot says that it needs it.
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
        let opening = SegmentHeader {
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

    /// Writes and publishes a snapshot that depends on the segments from `from` on. `None` if it has to be abandoned.
    fn fill(
        &self,
        mut writer: SegmentWriter,
        between_frames: &mut dyn FnMut(),
        opening: &SegmentHeader,
        table: &StampTable,
        (from, from_id): (u32, SegmentId),
    ) -> Result<Option<ClosedSegment>> {
        let mut cursor = SnapshotCursor::Inodes(0);
        while cursor != SnapshotCursor::End {
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
            // A file with very many extents has long records, each of which gets its own frame.
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
            // A write to the segment failed, and a copy with another id replaced it: the stamps in the snapshot refer
            // to a segment that does not exist.
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

    /// Called after a snapshot was published: the segments that it covers and the previous snapshots are superseded.
    fn supersede(&self, snapshot: &ClosedSegment, covered: Vec<SegmentInfo>) {
        let reference = BaseRef {
            segment: snapshot.id,
            sha256: snapshot.sha256,
        };
        let published = SegmentInfo {
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

    /// Writes a snapshot if one is due, and removes superseded segments. Ignores `_go_on`: a snapshot is also completed
    /// at the end of a mount, because a library that is only ever mounted briefly would otherwise never get one.
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
