//! Bases: segments that hold the whole state, so that those before them need not be replayed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Core;
use crate::error::Result;
use crate::index::record::{BaseRef, Frame, Opening, Record};
use crate::index::{BaseCursor, ClosedSegment, Published, SegmentWriter, StampTable};
use crate::object::SegmentId;
use crate::volume::Time;

/// Fewer bytes of segments than this are not worth a base: they replay in milliseconds.
const BASE_WORTH_BYTES: u64 = 4 << 20;
/// More segments than this are, however short.
const SEGMENTS_MAX: usize = 200;
/// Records in a frame of a base, and so how long the tree is locked for one. In tests few, so that there are many.
const RECORDS_PER_FRAME: usize = if cfg!(test) { 8 } else { 512 };

/// The bases in use. Does not own the segments that they cover (`super::collect`), nor what the journal says of the
/// newest base.
pub(super) struct Bases {
    used: Mutex<Vec<Published>>,
    /// The length of the newest one.
    cipher_len: AtomicU64,
    /// Segments were removed under the mount: a base has to say again what they said.
    is_lost: AtomicBool,
}

impl Bases {
    /// Those that the library was opened from.
    pub fn new(used: Vec<Published>, cipher_len: u64) -> Self {
        Self {
            used: Mutex::new(used),
            cipher_len: AtomicU64::new(cipher_len),
            is_lost: AtomicBool::new(false),
        }
    }

    /// Their ids.
    pub fn ids(&self) -> Vec<SegmentId> {
        self.used.lock().iter().map(|base| base.id).collect()
    }

    /// Notes that segments were removed: a base is due.
    pub fn note_loss(&self) {
        self.is_lost.store(true, Ordering::Release);
    }

    /// Whether segments were removed that no base has replaced yet.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// The length of the newest one.
    fn cipher_len(&self) -> u64 {
        self.cipher_len.load(Ordering::Relaxed)
    }

    /// A new one is published; answers those that it supersedes.
    fn replace(&self, base: Published) -> Vec<Published> {
        self.cipher_len.store(base.cipher_len, Ordering::Relaxed);
        if self.is_lost.swap(false, Ordering::AcqRel) {
            log::warn!(
                "index: files were removed from it while it is mounted; it is written again"
            );
        }
        std::mem::replace(&mut *self.used.lock(), vec![base])
    }
}

impl Core {
    /// After a publication: a base where one is due, and without the segments that it makes superfluous.
    pub(super) fn maintain(&self) -> Result<()> {
        let is_lost = self.bases.is_lost();
        if (is_lost || self.is_base_due()) && self.writable().is_ok() {
            self.write_base()?;
        }
        self.remove_covered()
    }

    fn is_base_due(&self) -> bool {
        let journal = self.journal.lock();
        let bytes: u64 = journal.uncovered.iter().map(|s| s.cipher_len).sum();
        let worth = (self.bases.cipher_len() / 2).max(BASE_WORTH_BYTES);
        !self.view.has_gaps() && (bytes > worth || journal.uncovered.len() > SEGMENTS_MAX)
    }

    /// Writes a base of all published segments, in slices, while work goes on. What changes meanwhile may be in it
    /// or not: the segment that has those changes is published first, and the base says that it needs it.
    pub(super) fn write_base(&self) -> Result<()> {
        let (opening, from, covered) = {
            let mut journal = self.journal.lock();
            let from = journal.ensure_open(&self.view)?;
            (
                journal.opening(0, Some(Vec::new())),
                from,
                journal.uncovered.clone(),
            )
        };
        let (table, from_id) = {
            let tree = self.view.tree();
            (tree.stamp_table(from), tree.segment_id(from))
        };
        let opening = Opening {
            stamp_segments: Some(table.segments.clone()),
            ..opening
        };
        let writer = SegmentWriter::create(&**self.view.store(), self.view.master(), &opening)?;
        let id = writer.id();
        match self.fill_base(writer, &opening, &table, (from, from_id)) {
            Ok(Some(base)) => self.note_base(&base, covered),
            Ok(None) => self.view.store().discard(id.object())?,
            Err(e) => {
                self.view.store().discard(id.object())?;
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
                self.view
                    .tree()
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
        if self.view.tree().segment_id(from) != from_id {
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
        let before = self.bases.replace(Published {
            id: base.id,
            device: self.device,
            number: 0,
            cipher_len: base.cipher_len,
        });
        self.garbage.supersede(covered.into_iter().chain(before));
    }
}

fn is_long(record: &Record) -> bool {
    match record {
        Record::BaseInode(base) => base.splices.len() > RECORDS_PER_FRAME,
        Record::Relocate(more) => more.splices.len() > RECORDS_PER_FRAME,
        _ => false,
    }
}
