//! The journal: frames in the device's open segment.
//!
//! Every change of the tree goes through [`Journal::append`] while the journal is locked: the frame is written first,
//! then the tree changes. Readers lock only the tree, briefly, and never wait for a write.
//!
//! Owns the open segment and the number of durable frames. Does not own the
//! packs that frames refer to (`new_packs`), or the decision when to sync or publish.

use std::sync::Arc;
use std::time::Instant;

use super::published::PublishedIndex;
use crate::crypto::MasterKey;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::gate::{Reason, WriteGate};
use crate::index::record::{Frame, Head, Record, SegmentHeader, StampSegment};
use crate::index::{
    ClosedSegment, SEGMENT_CIPHER_LEN, SegmentInfo, SegmentReader, SegmentState, SegmentWriter,
};
use crate::object::{DeviceId, SegmentId};
use crate::overdue;
use crate::store::{Growing, Object, Store};
use crate::vault::view::View;
use crate::volume::Time;

/// Disk space held in reserve so that deletions can be recorded on a full disk, in bytes.
pub const RESERVE_BYTES: u64 = 8 << 20;

/// The journal of a mount that writes.
pub struct Journal {
    env: Arc<Env>,
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    device: DeviceId,
    open: Option<OpenSegment>,
    index: PublishedIndex,
    /// Frames written by this mount.
    appended: u64,
    /// Number of these that are durable.
    durable: u64,
}

struct OpenSegment {
    writer: SegmentWriter,
    number_in_tree: u32,
    first_change: Instant,
    last_change: Instant,
}

impl Journal {
    /// Creates a journal without an open segment that continues the published index.
    pub fn new(view: &View, device: DeviceId, index: PublishedIndex) -> Self {
        Self {
            env: view.env().clone(),
            store: view.store().clone(),
            master: view.master().clone(),
            device,
            open: None,
            index,
            appended: 0,
            durable: 0,
        }
    }

    /// The published index.
    pub fn index(&self) -> &PublishedIndex {
        &self.index
    }

    /// The published index, to be updated after a publication.
    pub fn index_mut(&mut self) -> &mut PublishedIndex {
        &mut self.index
    }

    /// Whether every frame of this mount is durable.
    pub fn is_durable(&self) -> bool {
        self.durable >= self.appended
    }

    /// Returns the opening record of a segment or snapshot created now. A snapshot has `number` 0.
    pub fn opening(&self, number: u64, stamp_segments: Option<Vec<StampSegment>>) -> SegmentHeader {
        let (slots, removed_slots) = self.index.slots();
        SegmentHeader {
            device: self.device,
            number,
            heads: self.index.heads(),
            newest_base: self.index.snapshot(),
            slots: slots.to_vec(),
            removed_slots: removed_slots.to_vec(),
            stamp_segments,
            adopts: None,
        }
    }

    fn create_segment(&self, opening: &SegmentHeader) -> Result<SegmentWriter> {
        let id = SegmentId(self.env.id()?);
        SegmentWriter::create(&*self.store, &self.master, id, opening)
    }

    /// The number of the next segment of this device.
    pub fn next_number(&self) -> u64 {
        self.index.next_number(self.device)
    }

    /// Opens a segment if none is open. Returns its number in the tree.
    pub fn ensure_open(&mut self, view: &View) -> Result<u32> {
        if let Some(open) = &self.open {
            return Ok(open.number_in_tree);
        }
        let opening = self.opening(self.next_number(), None);
        let writer = self.create_segment(&opening)?;
        let number_in_tree = view.tree_mut().intern_segment(StampSegment {
            segment: writer.id(),
            device: self.device,
            number: opening.number,
        });
        let now = self.env.now();
        self.open = Some(OpenSegment {
            writer,
            number_in_tree,
            first_change: now,
            last_change: now,
        });
        Ok(number_in_tree)
    }

    /// Writes a frame, then applies it to the tree. Closes `gate` if the tree refuses a frame that is already written.
    pub fn append(
        &mut self,
        (view, gate): (&View, &WriteGate),
        wall: Time,
        records: Vec<Record>,
    ) -> Result<()> {
        gate.check_acknowledged()?;
        let frees_space = only_removes(&records);
        self.with_reserve(frees_space, |journal| journal.ensure_open(view))?;
        let counter = view.tree().next_counter();
        let durable_before = self.is_durable();
        let mut frame = Frame {
            counter,
            wall,
            durable_before,
            records,
        };
        self.with_reserve(frees_space, |journal| {
            match journal.write(view, &mut frame) {
                // A sync of the segment failed earlier: nothing was written. The retry replaces the segment by a copy.
                Err(e) if matches!(e.kind(), Kind::Poisoned) => journal.write(view, &mut frame),
                written => written,
            }
        })?;
        let open = self.open.as_mut().ok_or(Kind::Poisoned)?;
        let applied = overdue::unless_answered(|| {
            self.appended += 1;
            open.last_change = self.env.now();
            let mut tree = view.tree_mut();
            let applied = tree.apply_frame(open.number_in_tree, &frame);
            tree.drop_removed(&frame.records);
            applied
        });
        match applied {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                gate.close(Reason::RecordRefused);
                log::error!(
                    "a record was written but cannot be applied ({why}): continuing read-only"
                );
                Err(Kind::Poisoned.into())
            }
            Err(answered) => {
                open.writer.take_back();
                Err(answered)
            }
        }
    }

    /// Runs `step`. If the disk is full and the frame frees space, releases the reserve and runs `step` again.
    fn with_reserve<R>(
        &mut self,
        frees_space: bool,
        mut step: impl FnMut(&mut Self) -> Result<R>,
    ) -> Result<R> {
        match step(self) {
            Err(e) if frees_space && e.is_no_space() => {
                self.store.reserve(0)?;
                step(self)
            }
            done => done,
        }
    }

    fn write(&mut self, view: &View, frame: &mut Frame) -> Result<()> {
        if let Some((old, new)) = self.replace_failed(view)? {
            rename_segment(&mut frame.records, old, new);
            // The copy is durable, but the packs that it refers to may not be.
            frame.durable_before = self.is_durable();
        }
        self.open
            .as_mut()
            .ok_or(Kind::Poisoned)?
            .writer
            .append(frame)
    }

    /// Called after a failed sync. If the open segment cannot be synced, replaces it by a copy.
    pub fn replace_unsyncable(&mut self, view: &View) -> Result<()> {
        if let Some(open) = &mut self.open
            && open.writer.file().sync().is_err()
        {
            open.writer.mark_failed();
        }
        self.replace_failed(view).map(drop)
    }

    /// If a write to the open segment failed, copies its frames into a new one and returns the ids of both. Stamps in
    /// the tree refer to the new one from now on, which is safe because the old one was never published.
    fn replace_failed(&mut self, view: &View) -> Result<Option<(SegmentId, SegmentId)>> {
        let Some(open) = self.open.as_ref().filter(|o| o.writer.is_failed()) else {
            return Ok(None);
        };
        let (old, expected) = (open.writer.id(), open.writer.frames());
        let kept = open.writer.kept();
        let opening = self.opening(open.writer.number(), None);
        let mut writer = self.create_segment(&opening)?;
        let new = writer.id();
        // The old file holds acknowledged changes: the new one has to be durable before the old one is removed.
        let copied = self
            .copy_frames((old, kept), expected, &mut writer)
            .and_then(|()| writer.file().sync());
        if let Err(e) = copied {
            self.store.discard(new.object())?;
            return Err(e);
        }
        if let Some(open) = self.open.as_mut() {
            view.tree_mut().rename_segment(open.number_in_tree, new);
            open.writer = writer;
        }
        // It is unknown whether the packs that it refers to are durable.
        self.durable = 0;
        self.store.discard(old.object())?;
        Ok(Some((old, new)))
    }

    /// Copies the valid frames only: the old file may also contain a frame whose write was reported as failed.
    fn copy_frames(
        &self,
        (old, kept): (SegmentId, Arc<dyn Object>),
        expected: u64,
        to: &mut SegmentWriter,
    ) -> Result<()> {
        let new = to.id();
        let reader = SegmentReader::open(kept, old, &self.master, SegmentState::Leftover)?;
        reader.frames(|mut frame| {
            if to.frames() < expected {
                rename_segment(&mut frame.records, old, new);
                // This was true of the old file. Until the copy is synced, a power cut may truncate it anywhere.
                frame.durable_before = false;
                to.append(&frame)?;
            }
            Ok(())
        })?;
        if to.frames() < expected {
            let check = "frames that were written cannot be read back";
            return Err(Error::damaged(old, check));
        }
        // After a power cut the old file may reappear, with the failed frame after the valid ones. Because of this
        // extra frame the copy is longer than the old file as soon as it has one new frame, and recovery prefers it.
        to.append(&Frame {
            counter: 0,
            wall: Time::default(),
            durable_before: false,
            records: Vec::new(),
        })
    }

    /// Returns the file of the open segment and the number of frames, for a sync. Closed segments are durable already.
    pub fn sync_point(&self) -> (Option<Arc<dyn Growing>>, u64) {
        let open = self.open.as_ref().map(|o| o.writer.file().clone());
        (open, self.appended)
    }

    /// Records that frames up to number `point`, stored in `file`, are durable. Returns false if a copy, which is not
    /// durable, has replaced `file` in the meantime.
    pub fn synced(&mut self, file: Option<&dyn Growing>, point: u64) -> bool {
        let open = self.open.as_ref().map(|o| o.writer.id().object());
        let is_same = file.is_none_or(|f| Some(f.id()) == open);
        if is_same {
            self.durable = self.durable.max(point);
        }
        is_same
    }

    /// The open segment.
    #[cfg(test)]
    pub fn open_segment(&self) -> Option<SegmentId> {
        self.open.as_ref().map(|o| o.writer.id())
    }

    /// Whether there is nothing to publish.
    pub fn is_idle(&self) -> bool {
        self.changes().is_none()
    }

    /// When the first and the last change were appended to the open segment; `None` if it has no changes.
    pub fn changes(&self) -> Option<(Instant, Instant)> {
        self.open
            .as_ref()
            .filter(|o| o.writer.frames() > 1)
            .map(|o| (o.first_change, o.last_change))
    }

    /// Whether the open segment has reached its maximum length.
    pub fn is_full(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|o| o.writer.cipher_len() >= SEGMENT_CIPHER_LEN)
    }

    /// Writes the end of the open segment. The caller keeps the journal locked, syncs the segment and calls [`Journal::closed`] before anything builds on it. If that fails,
    /// the next frame replaces the segment by a copy without an end.
    pub fn close_segment(&mut self, view: &View) -> Result<Option<ClosedSegment>> {
        self.replace_failed(view)?;
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        if open.writer.frames() <= 1 {
            self.discard_empty()?;
            return Ok(None);
        }
        open.writer.close(Vec::new()).map(Some)
    }

    /// Removes the open segment if it has no changes.
    pub fn discard_empty(&mut self) -> Result<()> {
        match self.open.take_if(|open| open.writer.frames() <= 1) {
            Some(empty) => self.store.discard(empty.writer.id().object()),
            None => Ok(()),
        }
    }

    /// Records that the open segment, with its end, is durable: it is now the head. Returns what the outbox publishes.
    pub fn closed(&mut self, closed: &ClosedSegment) -> SegmentInfo {
        let (device, number) = (self.device, self.next_number());
        self.open = None;
        self.index.set_head(Head {
            device,
            number,
            sha256: closed.sha256,
        });
        SegmentInfo {
            id: closed.id,
            device,
            number,
            cipher_len: closed.cipher_len,
        }
    }
}

/// Whether these records only remove things.
fn only_removes(records: &[Record]) -> bool {
    records.iter().all(|r| match r {
        Record::Unlink(_) | Record::Condemn(_) | Record::Pack(_) => true,
        Record::Xattr(x) => x.value.is_none(),
        Record::Content(c) => c.splices.iter().all(|s| s.source.is_none()),
        _ => false,
    })
}

/// Changes stamps inside records from segment `old` to `new`.
pub fn rename_segment(records: &mut [Record], old: SegmentId, new: SegmentId) {
    for record in records {
        let stamp = match record {
            Record::Unlink(u) => &mut u.seen,
            Record::Content(c) => &mut c.base,
            Record::Relocate(r) => &mut r.version,
            _ => continue,
        };
        if stamp.segment == old {
            stamp.segment = new;
        }
    }
}
