//! Adoption: what a crash left in this device's `new/` folder.
//!
//! Leftover segments are copied, in their order, into new ones that are published at once; contents that lie in
//! packs which were never finished are copied with them. Nothing is ever added to a leftover. Frames after the last
//! one that says "durable before here" count only while everything that they name opens: after a power cut their
//! contents may be missing. The first that does not open ends the journal.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Core;
use super::contents::Subject;
use super::journal::rename_segment;
use crate::crypto::{HEADER_LEN, Magic};
use crate::error::{Error, Kind, Result};
use crate::index::extents::Extent;
use crate::index::record::{Frame, Opening, PackLen, Record, Splice, Splices, StampSegment};
use crate::index::{Published, SegmentExtent, SegmentReader, SegmentWriter};
use crate::pack::{PackId, PackReader};
use crate::state::Head;
use crate::store::{Area, Growing, ObjectId};

#[derive(Default)]
struct Leftovers {
    segments: Vec<LeftSegment>,
    /// Packs that have no end.
    packs: HashMap<PackId, Arc<dyn Growing>>,
    /// Packs that had one, and are published now.
    finished: Vec<PackLen>,
    /// Packs that frames condemn: they may be gone, and nothing that is in them matters.
    condemned: HashSet<PackId>,
    /// What is of no use.
    garbage: Vec<ObjectId>,
}

struct LeftSegment {
    id: ObjectId,
    opening: Opening,
    frames: Vec<Frame>,
    /// Its writer closed it: it is whole, and others may build on it.
    is_closed: bool,
}

impl Core {
    /// Adopts what there is; afterwards the folder is empty.
    pub(super) fn adopt_leftovers(&self) -> Result<()> {
        let found = self.store.leftovers()?;
        if found.is_empty() {
            return Ok(());
        }
        let mut left = self.sort_leftovers(&found)?;
        for (id, file) in &left.packs {
            self.packs.pin(*id, file.clone())?;
        }
        // Of two with one number one is a copy of the other, made when a write failed: the one with more counts.
        left.segments
            .sort_by_key(|s| (s.opening.number, std::cmp::Reverse(s.frames.len())));
        left.segments.dedup_by_key(|s| s.opening.number);
        let count = left.segments.len();
        let mut segments = std::mem::take(&mut left.segments);
        left.condemned = segments
            .iter()
            .flat_map(|s| &s.frames)
            .flat_map(|f| &f.records)
            .filter_map(|r| match r {
                Record::Condemn(packs) => Some(packs),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        let mut renamed: Vec<(ObjectId, ObjectId)> = Vec::new();
        for segment in &mut segments {
            if segment.opening.number != self.journal.lock().next_number() {
                break; // the one before it is lost
            }
            for (old, new) in &renamed {
                segment
                    .frames
                    .iter_mut()
                    .for_each(|f| rename_segment(&mut f.records, *old, *new));
            }
            let whole = self.adopt_segment(segment, &left, &mut renamed)?;
            if !whole {
                break; // what comes after a torn frame was made on top of it
            }
        }
        for id in found {
            self.packs.forget(id);
            self.store.discard(id)?;
        }
        log::info!(
            "{} files that were left over are adopted",
            count + left.packs.len() + left.finished.len() + left.garbage.len()
        );
        Ok(())
    }

    fn sort_leftovers(&self, found: &[ObjectId]) -> Result<Leftovers> {
        let mut left = Leftovers::default();
        let published = self
            .journal
            .lock()
            .heads
            .get(&self.device)
            .map_or(0, |h| h.number);
        for id in found {
            let file = self.store.open_leftover(*id)?;
            match magic(&*file)? {
                Some(Magic::Segment) => match self.read_segment(file, *id) {
                    // One that was published already, or a copy or a base that was not finished.
                    Ok(segment)
                        if segment.opening.adopts.is_some()
                            || segment.opening.number <= published
                            || segment.opening.device != self.device =>
                    {
                        left.garbage.push(*id);
                    }
                    Ok(segment) => left.segments.push(segment),
                    // Torn in its first frame: nothing was promised yet.
                    Err(e) if is_torn(&e) => left.garbage.push(*id),
                    Err(e) => return Err(e),
                },
                Some(Magic::Pack) => match PackReader::open(file.clone(), *id, &self.master) {
                    Ok(reader) => match reader.trailer() {
                        // Finished: it can be published as it is. Whether all in it opens, the frames will tell.
                        Ok(_) => {
                            let cipher_len = file.cipher_len()? as u32;
                            file.sync()?;
                            self.store.publish(*id, Area::Data)?;
                            left.finished.push(PackLen {
                                pack: *id,
                                cipher_len,
                            });
                        }
                        Err(e) if is_torn(&e) => drop(left.packs.insert(*id, file)),
                        Err(e) => return Err(e),
                    },
                    Err(e) if is_torn(&e) => left.garbage.push(*id),
                    Err(e) => return Err(e),
                },
                _ => left.garbage.push(*id),
            }
        }
        Ok(left)
    }

    fn read_segment(&self, file: Arc<dyn Growing>, id: ObjectId) -> Result<LeftSegment> {
        let reader = SegmentReader::open(file, id, &self.master, SegmentExtent::Leftover)?;
        let opening = reader.opening().clone();
        let mut frames = Vec::new();
        let mut is_closed = false;
        if opening.stamp_segments.is_none() {
            let ending = reader.frames(|frame| {
                frames.push(frame);
                Ok(())
            })?;
            is_closed = ending.closing.is_some();
        }
        Ok(LeftSegment {
            id,
            opening,
            frames,
            is_closed,
        })
    }

    /// Copies one segment and publishes the copy. False where it ended before its end.
    fn adopt_segment(
        &self,
        left: &mut LeftSegment,
        others: &Leftovers,
        renamed: &mut Vec<(ObjectId, ObjectId)>,
    ) -> Result<bool> {
        let mut opening = self.journal.lock().opening(left.opening.number, None);
        opening.adopts = Some(left.id);
        let mut writer = SegmentWriter::create(&*self.store, &self.master, &opening)?;
        renamed.push((left.id, writer.id()));
        let stamp = StampSegment {
            segment: writer.id(),
            device: self.device,
            number: opening.number,
        };
        let number_in_tree = self.tree.write().intern_segment(stamp);
        let durable = left
            .frames
            .iter()
            .rposition(|f| f.durable_before)
            .unwrap_or(0);
        let mut whole = left.is_closed;
        for (i, frame) in left.frames.iter_mut().enumerate() {
            rename_segment(&mut frame.records, left.id, writer.id());
            match self.adopt_contents(frame, others) {
                Ok(()) => {}
                Err(e) if i >= durable && !e.is_no_space() => {
                    log::info!("frame {i} of the last journal does not count: {e}");
                    whole = false;
                    break;
                }
                Err(e) => {
                    return Err(e.hint(
                        "the library was not closed cleanly, and what was durable is damaged",
                    ));
                }
            }
            writer.append(frame)?;
            let applied = self.tree.write().apply_frame(number_in_tree, frame);
            applied.map_err(|why| {
                Error::damaged(format_args!("new/{}/{}", self.device, left.id), why)
            })?;
        }
        self.finish_adopted(writer, &others.finished)?;
        Ok(whole)
    }

    fn finish_adopted(&self, mut writer: SegmentWriter, published: &[PackLen]) -> Result<()> {
        self.contents.finish_open()?;
        let finished = self.contents.finished();
        let packs = finished.iter().chain(published);
        let records: Vec<Record> = packs.map(|p| Record::Pack(*p)).collect();
        if !records.is_empty() {
            let counter = self.tree.read().next_counter();
            let frame = Frame {
                counter,
                wall: crate::volume::Time::now(),
                durable_before: false,
                records,
            };
            writer.append(&frame)?;
            let applied = self.tree.write().apply_frame(0, &frame);
            applied.map_err(|why| Error::damaged("adopted packs", why))?;
        }
        let number = writer.number();
        let closed = writer.close(Vec::new())?;
        for file in self.contents.take_unsynced() {
            file.sync()?;
        }
        closed.file.sync()?;
        self.contents.publish(&finished)?;
        self.store.publish(closed.id, Area::Index)?;
        let mut journal = self.journal.lock();
        journal.heads.insert(
            self.device,
            Head {
                device: self.device,
                number,
                sha256: closed.sha256,
            },
        );
        let cipher_len = closed.cipher_len;
        journal.uncovered.push(Published {
            id: closed.id,
            device: self.device,
            number,
            cipher_len,
        });
        Ok(())
    }

    /// Makes sure that what a frame names opens, and lets it name copies of what lies in leftovers.
    fn adopt_contents(&self, frame: &mut Frame, left: &Leftovers) -> Result<()> {
        let counter = frame.counter;
        for record in &mut frame.records {
            let (inode, packs, splices) = match record {
                Record::Content(c) => (c.inode, &mut c.packs, &mut c.splices),
                Record::Relocate(r) => (r.inode, &mut r.packs, &mut r.splices),
                _ => continue,
            };
            let path = {
                let tree = self.tree.read();
                tree.find_id(inode)
                    .map(|ix| tree.path(ix))
                    .unwrap_or_default()
            };
            let subject = Subject {
                inode,
                path,
                counter,
            };
            let mut adopted = Splices::default();
            for splice in splices.iter() {
                self.adopt_splice(&subject, packs, splice, left, &mut adopted)?;
            }
            (*packs, *splices) = (adopted.packs, adopted.list);
        }
        self.adopt_pack_lengths(&frame.records)
    }

    fn adopt_splice(
        &self,
        subject: &Subject,
        packs: &[PackId],
        splice: &Splice,
        left: &Leftovers,
        out: &mut Splices,
    ) -> Result<()> {
        let Some(source) = splice.source else {
            out.hole(splice.plain_offset, splice.plain_len);
            return Ok(());
        };
        let id = *packs
            .get(source.pack as usize)
            .ok_or_else(|| Error::damaged("a leftover frame", "unknown pack"))?;
        let run = crate::pack::Run {
            pack: id,
            cipher_offset: source.cipher_offset,
            plain_len: source.run_len,
        };
        if left.condemned.contains(&id) {
            out.data(splice.plain_offset, splice.plain_len, run, source.start);
            return Ok(());
        }
        let is_left = left.packs.contains_key(&id);
        let pack = self.tree.write().intern_pack(id);
        // The largest piece that is sealed is a pack long; what is read at once is less.
        const STEP: u64 = 4 << 20;
        let mut done = 0;
        while done < splice.plain_len {
            let len = (splice.plain_len - done).min(STEP);
            let start = source.start + done as u32;
            let extent = Extent {
                plain_offset: 0,
                plain_len: len as u32,
                pack,
                cipher_offset: source.cipher_offset,
                run_len: source.run_len,
                start,
            };
            let mut plain = vec![0; len as usize];
            self.fill(&[(extent, id)], 0, &mut plain, true)?;
            if is_left {
                self.contents
                    .seal(subject, splice.plain_offset + done, &[&plain], out)?;
            }
            done += len;
        }
        if !is_left {
            out.data(splice.plain_offset, splice.plain_len, run, source.start);
        }
        Ok(())
    }

    /// A pack that a frame calls finished must be there at that length.
    fn adopt_pack_lengths(&self, records: &[Record]) -> Result<()> {
        for record in records {
            let Record::Pack(PackLen { pack, cipher_len }) = record else {
                continue;
            };
            let len = match self.store.open(Area::Data, *pack) {
                Ok(object) => object.cipher_len()?,
                // Collected since: nothing in it is live.
                Err(e) if matches!(e.kind(), Kind::Missing) => continue,
                Err(e) => return Err(e),
            };
            if len != u64::from(*cipher_len) {
                return Err(Error::damaged(
                    format_args!("data/{pack}"),
                    "it is not as long as its writer said",
                ));
            }
        }
        Ok(())
    }
}

/// Whether a crash explains it. A store that cannot be read for now must not cost the file.
fn is_torn(e: &Error) -> bool {
    let torn = matches!(e.kind(), Kind::Damaged(_) | Kind::Unsupported(_));
    if torn {
        log::info!("{e}");
    }
    torn
}

/// What kind of object a file is; `None` where it is too short, or of no kind.
fn magic(file: &dyn Growing) -> Result<Option<Magic>> {
    if file.cipher_len()? < HEADER_LEN as u64 {
        return Ok(None);
    }
    let mut first = [0; 8];
    file.read_at(&mut first, 0)?;
    Ok(Magic::from_bytes(&first))
}
