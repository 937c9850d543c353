//! The journal: frames in the device's open segment.
//!
//! Everything that changes the tree goes through [`Journal::append`] while the journal is locked: first the frame
//! is written, then the tree changes. Readers lock only the tree, for moments, and never wait for a write.
//!
//! Owns the open segment, the closed one that waits to be published, and how many frames are durable. Does not own the
//! packs that frames name (`new_packs`), nor when something is synced or published.

use std::sync::Arc;
use std::time::Instant;

use super::published::PublishedIndex;
use crate::crypto::MasterKey;
use crate::env::Env;
use crate::error::{Error, Kind, Result};
use crate::gate::{Reason, WriteGate};
use crate::index::record::{Frame, Head, Opening, Record, StampSegment};
use crate::index::{
    ClosedSegment, Published, SEGMENT_CIPHER_LEN, SegmentExtent, SegmentReader, SegmentWriter,
};
use crate::object::{DeviceId, SegmentId};
use crate::overdue;
use crate::store::{Growing, Object, Store};
use crate::vault::view::View;
use crate::volume::Time;

/// Room that is kept back, so that a deletion can be recorded on a full disk.
pub const RESERVE_BYTES: u64 = 8 << 20;

/// The journal of a mount that writes.
pub struct Journal {
    env: Arc<Env>,
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    device: DeviceId,
    open: Option<Open>,
    /// Closed and durable, and not published yet: the next one is closed only when this one is.
    closed: Option<Published>,
    index: PublishedIndex,
    /// Frames written by this mount.
    appended: u64,
    /// How many of them are durable.
    durable: u64,
}

struct Open {
    writer: SegmentWriter,
    number_in_tree: u32,
    first_change: Instant,
    last_change: Instant,
}

impl Journal {
    /// A journal without an open segment, on top of what is published.
    pub fn new(view: &View, device: DeviceId, index: PublishedIndex) -> Self {
        Self {
            env: view.env().clone(),
            store: view.store().clone(),
            master: view.master().clone(),
            device,
            open: None,
            closed: None,
            index,
            appended: 0,
            durable: 0,
        }
    }

    /// What is published of the index.
    pub fn index(&self) -> &PublishedIndex {
        &self.index
    }

    /// The same, for whoever has published something.
    pub fn index_mut(&mut self) -> &mut PublishedIndex {
        &mut self.index
    }

    /// Whether every frame of this mount is durable.
    pub fn is_durable(&self) -> bool {
        self.durable >= self.appended
    }

    /// What a segment or base opened now would say. `number` 0 is a base's.
    pub fn opening(&self, number: u64, stamp_segments: Option<Vec<StampSegment>>) -> Opening {
        let (slots, removed_slots) = self.index.slots();
        Opening {
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

    fn create_segment(&self, opening: &Opening) -> Result<SegmentWriter> {
        let id = SegmentId(self.env.id()?);
        SegmentWriter::create(&*self.store, &self.master, id, opening)
    }

    /// The number that the next segment of this device gets.
    pub fn next_number(&self) -> u64 {
        self.index.next_number(self.device)
    }

    /// Makes sure that a segment is open; answers its number in the tree.
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
        self.open = Some(Open {
            writer,
            number_in_tree,
            first_change: now,
            last_change: now,
        });
        Ok(number_in_tree)
    }

    /// Writes a frame, then changes the tree by it. Closes `gate` where the tree refuses what is written already.
    pub fn append(
        &mut self,
        (view, gate): (&View, &WriteGate),
        wall: Time,
        records: Vec<Record>,
    ) -> Result<()> {
        gate.check_acknowledged()?;
        let makes_room = removes(&records);
        self.with_reserve(makes_room, |journal| journal.ensure_open(view))?;
        let counter = view.tree().next_counter();
        let durable_before = self.is_durable();
        let mut frame = Frame {
            counter,
            wall,
            durable_before,
            records,
        };
        self.with_reserve(makes_room, |journal| {
            match journal.write(view, &mut frame) {
                // A sync of the segment has failed: nothing was written, and a copy takes its place.
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
                    "a record that was written cannot be applied ({why}): the mount is read-only from now on"
                );
                Err(Kind::Poisoned.into())
            }
            Err(answered) => {
                open.writer.take_back();
                Err(answered)
            }
        }
    }

    /// Takes a step towards a frame. Where the disk is full and the frame makes room, the reserve is for it.
    fn with_reserve<R>(
        &mut self,
        makes_room: bool,
        mut step: impl FnMut(&mut Self) -> Result<R>,
    ) -> Result<R> {
        match step(self) {
            Err(e) if makes_room && e.is_no_space() => {
                self.store.reserve(0)?;
                step(self)
            }
            done => done,
        }
    }

    fn write(&mut self, view: &View, frame: &mut Frame) -> Result<()> {
        if let Some((old, new)) = self.replace_spoiled(view)? {
            rename_segment(&mut frame.records, old, new);
            // The copy is durable, but its packs may not be.
            frame.durable_before = self.is_durable();
        }
        self.open
            .as_mut()
            .ok_or(Kind::Poisoned)?
            .writer
            .append(frame)
    }

    /// After a sync that failed: where it was the open segment's, a copy takes its place.
    pub fn replace_unsyncable(&mut self, view: &View) -> Result<()> {
        if let Some(open) = &mut self.open
            && open.writer.file().sync().is_err()
        {
            open.writer.spoil();
        }
        self.replace_spoiled(view).map(drop)
    }

    /// Copies the frames of a segment that a write failed in into a new one; answers their ids. Stamps name the
    /// new one from now on: nobody else has seen the old.
    fn replace_spoiled(&mut self, view: &View) -> Result<Option<(SegmentId, SegmentId)>> {
        let Some(open) = self.open.as_ref().filter(|o| o.writer.is_spoiled()) else {
            return Ok(None);
        };
        let (old, expected) = (open.writer.id(), open.writer.frames());
        let kept = open.writer.kept();
        let opening = self.opening(open.writer.number(), None);
        let mut writer = self.create_segment(&opening)?;
        let new = writer.id();
        // The old file holds what was promised, and is removed: the new one has to be durable before.
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
        // Whether its packs were is not known.
        self.durable = 0;
        self.store.discard(old.object())?;
        Ok(Some((old, new)))
    }

    /// The frames that count: one whose write failed may be there nevertheless.
    fn copy_frames(
        &self,
        (old, kept): (SegmentId, Arc<dyn Object>),
        expected: u64,
        to: &mut SegmentWriter,
    ) -> Result<()> {
        let new = to.id();
        let reader = SegmentReader::open(kept, old, &self.master, SegmentExtent::Leftover)?;
        reader.frames(|mut frame| {
            if to.frames() < expected {
                rename_segment(&mut frame.records, old, new);
                // That was true of the old file. A power cut may tear this one anywhere until it is synced.
                frame.durable_before = false;
                to.append(&frame)?;
            }
            Ok(())
        })?;
        if to.frames() < expected {
            let check = "frames that were written cannot be read";
            return Err(Error::damaged(old, check));
        }
        // A power cut may bring the old file back, with the frame that failed behind those that count. With another
        // frame here the copy is the longer one of the two from the first new frame on, and is taken.
        to.append(&Frame {
            counter: 0,
            wall: Time::default(),
            durable_before: false,
            records: Vec::new(),
        })
    }

    /// The file of the open segment, and how many frames there are, for a sync: closed ones are durable.
    pub fn sync_point(&self) -> (Option<Arc<dyn Growing>>, u64) {
        let open = self.open.as_ref().map(|o| o.writer.file().clone());
        (open, self.appended)
    }

    /// Frames up to number `point`, which are in `file`, are durable; false where a copy, which is not, took its place
    /// meanwhile.
    pub fn synced(&mut self, file: Option<&dyn Growing>, point: u64) -> bool {
        let open = self.open.as_ref().map(|o| o.writer.id().object());
        let is_same = file.is_none_or(|f| Some(f.id()) == open);
        if is_same {
            self.durable = self.durable.max(point);
        }
        is_same
    }

    /// The segment that grows.
    #[cfg(test)]
    pub fn open_segment(&self) -> Option<SegmentId> {
        self.open.as_ref().map(|o| o.writer.id())
    }

    /// Whether nothing waits to be published.
    pub fn is_idle(&self) -> bool {
        self.closed.is_none() && self.changes().is_none()
    }

    /// When the open segment got its first and its last change; `None` where there is none with a frame in it.
    pub fn changes(&self) -> Option<(Instant, Instant)> {
        self.open
            .as_ref()
            .filter(|o| o.writer.frames() > 1)
            .map(|o| (o.first_change, o.last_change))
    }

    /// Whether a segment is to be published at once: the open one is long enough, or a closed one could not be.
    pub fn is_full(&self) -> bool {
        let open = self.open.as_ref();
        self.closed.is_some() || open.is_some_and(|o| o.writer.cipher_len() >= SEGMENT_CIPHER_LEN)
    }

    /// Writes the end of the open segment; nothing where the one before is not published yet. The caller, who holds
    /// the lock, has it synced and calls [`Journal::closed`] before anything is made on top of it. Where that fails, a
    /// copy without an end takes its place at the next frame.
    pub fn close_segment(&mut self, view: &View) -> Result<Option<ClosedSegment>> {
        if self.closed.is_some() {
            return Ok(None);
        }
        self.replace_spoiled(view)?;
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        if open.writer.frames() <= 1 {
            self.discard_empty()?;
            return Ok(None);
        }
        open.writer.close(Vec::new()).map(Some)
    }

    /// Takes an open segment away in which nothing is.
    pub fn discard_empty(&mut self) -> Result<()> {
        match self.open.take_if(|open| open.writer.frames() <= 1) {
            Some(empty) => self.store.discard(empty.writer.id().object()),
            None => Ok(()),
        }
    }

    /// The open segment, with this end, is durable: it is a head from now on.
    pub fn closed(&mut self, closed: ClosedSegment) {
        let (device, number) = (self.device, self.next_number());
        let sha256 = closed.sha256;
        let head = Head {
            device,
            number,
            sha256,
        };
        self.open = None;
        self.index.set_head(head);
        self.closed = Some(Published {
            id: closed.id,
            device,
            number,
            cipher_len: closed.cipher_len,
        });
    }

    /// The closed segment that waits to be published.
    pub fn to_publish(&self) -> Option<SegmentId> {
        self.closed.as_ref().map(|c| c.id)
    }

    /// The closed segment is published.
    pub fn published(&mut self) {
        if let Some(closed) = self.closed.take() {
            self.index.add(closed);
        }
    }
}

/// Whether all that these records do is to remove.
fn removes(records: &[Record]) -> bool {
    records.iter().all(|r| match r {
        Record::Unlink(_) | Record::Condemn(_) | Record::Pack(_) => true,
        Record::Xattr(x) => x.value.is_none(),
        Record::Content(c) => c.splices.iter().all(|s| s.source.is_none()),
        _ => false,
    })
}

/// Lets the stamps inside records that name segment `old` name `new`.
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
