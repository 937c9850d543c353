//! The journal: frames in the device's open segment.
//!
//! Everything that changes the tree goes through [`Journal::append`] while the journal is locked: first the frame
//! is written, then the tree changes. Readers lock only the tree, for moments, and never wait for a write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::index::record::{BaseRef, Frame, Opening, Record, StampSegment};
use crate::index::{
    ClosedSegment, Published, SEGMENT_CIPHER_LEN, SegmentExtent, SegmentReader, SegmentWriter, Tree,
};
use crate::state::Head;
use crate::store::{DeviceId, Growing, ObjectId, Store};
use crate::volume::Time;

/// Room that is kept back, so that a deletion can be recorded on a full disk.
pub const RESERVE_BYTES: u64 = 8 << 20;

/// The journal of a mount that writes.
pub struct Journal {
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    device: DeviceId,
    open: Option<Open>,
    /// The newest published (or closed) segment of each device that is in the tree.
    pub heads: BTreeMap<DeviceId, Head>,
    /// The newest base.
    pub base: Option<BaseRef>,
    /// Slots that there are, and those that were removed.
    pub slots: (Vec<ObjectId>, Vec<ObjectId>),
    /// Segments that the newest base does not cover.
    pub uncovered: Vec<Published>,
    /// Frames written by this mount.
    pub appended: u64,
    /// How many of them are durable.
    pub durable: u64,
    /// A frame was refused by the tree: what is on disk and in memory may differ, so nothing more is written.
    poisoned: bool,
}

struct Open {
    writer: SegmentWriter,
    number_in_tree: u32,
    first_change: Instant,
    last_change: Instant,
}

/// What the journal starts from.
pub struct Start {
    /// See [`Journal::heads`].
    pub heads: BTreeMap<DeviceId, Head>,
    /// See [`Journal::base`].
    pub base: Option<BaseRef>,
    /// See [`Journal::slots`].
    pub slots: (Vec<ObjectId>, Vec<ObjectId>),
    /// See [`Journal::uncovered`].
    pub uncovered: Vec<Published>,
}

impl Journal {
    /// A journal without an open segment.
    pub fn new(
        store: Arc<dyn Store>,
        master: Arc<MasterKey>,
        device: DeviceId,
        start: Start,
    ) -> Self {
        let Start {
            heads,
            base,
            slots,
            uncovered,
        } = start;
        let (appended, durable, poisoned) = (0, 0, false);
        Self {
            store,
            master,
            device,
            open: None,
            heads,
            base,
            slots,
            uncovered,
            appended,
            durable,
            poisoned,
        }
    }

    /// What a segment or base opened now would say. `number` 0 is a base's.
    pub fn opening(&self, number: u64, stamp_segments: Option<Vec<StampSegment>>) -> Opening {
        Opening {
            device: self.device,
            number,
            heads: self.heads.values().copied().collect(),
            newest_base: self.base,
            slots: self.slots.0.clone(),
            removed_slots: self.slots.1.clone(),
            stamp_segments,
            adopts: None,
        }
    }

    /// The number that the next segment of this device gets.
    pub fn next_number(&self) -> u64 {
        self.heads.get(&self.device).map_or(1, |h| h.number + 1)
    }

    /// Makes sure that a segment is open; answers its number in the tree.
    pub fn ensure_open(&mut self, tree: &RwLock<Tree>) -> Result<u32> {
        if let Some(open) = &self.open {
            return Ok(open.number_in_tree);
        }
        let opening = self.opening(self.next_number(), None);
        let writer = SegmentWriter::create(&*self.store, &self.master, &opening)?;
        let number_in_tree = tree.write().intern_segment(StampSegment {
            segment: writer.id(),
            device: self.device,
            number: opening.number,
        });
        let now = Instant::now();
        self.open = Some(Open {
            writer,
            number_in_tree,
            first_change: now,
            last_change: now,
        });
        Ok(number_in_tree)
    }

    /// Writes a frame, then changes the tree by it.
    pub fn append(&mut self, tree: &RwLock<Tree>, wall: Time, records: Vec<Record>) -> Result<()> {
        if self.poisoned {
            return Err(Error::from(Kind::Poisoned).hint("unmount and mount again"));
        }
        self.ensure_open(tree)?;
        let counter = tree.read().next_counter();
        let durable_before = self.durable == self.appended;
        let frame = Frame {
            counter,
            wall,
            durable_before,
            records,
        };
        if let Err(e) = self.write(&frame) {
            if !e.is_no_space() || !removes(&frame.records) {
                self.replace_segment(tree)
                    .unwrap_or_else(|e| log::error!("the open segment could not be replaced: {e}"));
                return Err(e);
            }
            // The disk is full, and this makes room: now the reserve is for it.
            self.store.reserve(0)?;
            self.replace_segment(tree)?;
            self.write(&frame)?;
        }
        self.appended += 1;
        let open = self.open.as_mut().ok_or(Kind::Poisoned)?;
        open.last_change = Instant::now();
        let applied = tree.write().apply_frame(open.number_in_tree, &frame);
        applied.map_err(|why| {
            self.poisoned = true;
            log::error!("a record that was written cannot be applied ({why}): the mount is read-only from now on");
            Error::from(Kind::Poisoned)
        })
    }

    fn write(&mut self, frame: &Frame) -> Result<()> {
        self.open
            .as_mut()
            .ok_or(Kind::Poisoned)?
            .writer
            .append(frame)
    }

    /// Copies the frames of a segment that a write failed in into a new one. Stamps name the new one from now on:
    /// nobody else has seen the old.
    fn replace_segment(&mut self, tree: &RwLock<Tree>) -> Result<()> {
        let Some(open) = self.open.as_ref().filter(|o| o.writer.is_spoiled()) else {
            return Ok(());
        };
        let (old, number) = (open.writer.id(), open.writer.number());
        let number_in_tree = open.number_in_tree;
        let mut opening = self.opening(number, None);
        opening.adopts = None;
        let mut writer = SegmentWriter::create(&*self.store, &self.master, &opening)?;
        let new = writer.id();
        let file = self.store.open_leftover(old)?;
        let reader = SegmentReader::open(file, old, &self.master, SegmentExtent::Leftover)?;
        let mut frames = 1;
        let expected = open.writer.frames();
        let copied = reader.frames(|mut frame| {
            frames += 1;
            rename_segment(&mut frame.records, old, new);
            writer.append(&frame)
        });
        if let Err(e) = copied.and_then(|_| {
            if frames < expected {
                Err(Error::damaged(
                    old,
                    "frames that were written cannot be read",
                ))
            } else {
                Ok(())
            }
        }) {
            self.store.discard(new)?;
            return Err(e);
        }
        tree.write().rename_segment(number_in_tree, new);
        if let Some(open) = self.open.as_mut() {
            open.writer = writer;
        }
        // What was synced of the old file is not synced of the new one.
        self.durable = 0;
        self.store.discard(old)
    }

    /// The open segment's file and how many frames there are, for a sync.
    pub fn sync_point(&self) -> (Option<Arc<dyn Growing>>, u64) {
        (
            self.open.as_ref().map(|o| o.writer.file().clone()),
            self.appended,
        )
    }

    /// When the open segment got its first and its last change; `None` where there is none with a frame in it.
    pub fn changes(&self) -> Option<(Instant, Instant)> {
        self.open
            .as_ref()
            .filter(|o| o.writer.frames() > 1)
            .map(|o| (o.first_change, o.last_change))
    }

    /// Whether the open segment is long enough to be published.
    pub fn is_full(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|o| o.writer.cipher_len() >= SEGMENT_CIPHER_LEN)
    }

    /// Closes the open segment; it is a head from now on, and must be synced and published next.
    pub fn close_segment(&mut self) -> Result<Option<ClosedSegment>> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let number = open.writer.number();
        if open.writer.frames() <= 1 {
            self.store.discard(open.writer.id())?;
            return Ok(None);
        }
        let closed = open.writer.close(Vec::new())?;
        let head = Head {
            device: self.device,
            number,
            sha256: closed.sha256,
        };
        self.heads.insert(self.device, head);
        let published = Published {
            id: closed.id,
            device: self.device,
            number,
            cipher_len: closed.cipher_len,
        };
        self.uncovered.push(published);
        Ok(Some(closed))
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
pub fn rename_segment(records: &mut [Record], old: ObjectId, new: ObjectId) {
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
