//! Adoption: what a crash left in this device's `new/` folder.
//!
//! Leftover segments are copied, in their order, into new ones that are published at once; contents that lie in
//! packs which were never finished are copied with them. Nothing is ever added to a leftover. First it is judged which
//! frames count: those after the last one that says "durable before here" only while everything that they name
//! opens, for after a power cut their contents may be missing. The first that does not open ends the journal; where
//! one that says "durable before here" lies behind it, no crash explains that, and nothing is given up unasked.

use std::collections::{HashMap, HashSet};

use super::Core;
use super::contents::Subject;
use super::journal::rename_segment;
use super::leftovers::{LeftSegment, Leftovers, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::extents::Extent;
use crate::index::record::{Frame, PackLen, Record, Splice, Splices, StampSegment};
use crate::index::{Published, SegmentWriter};
use crate::pack::{PackId, PackReader};
use crate::state::Head;
use crate::store::{Area, DeviceId, ObjectId};

impl Core {
    /// Adopts what there is; afterwards the folder is empty. With `accept`, what something damaged is given up.
    ///
    /// `renamed` is what was adopted before, when this was cut short: the leftovers that follow name the old ones. What
    /// was written under the id `former` is adopted as if it were written under this device's.
    pub(super) fn adopt_leftovers(
        &self,
        accept: bool,
        mut renamed: Vec<(ObjectId, ObjectId)>,
        former: Option<DeviceId>,
    ) -> Result<()> {
        let found = self.store.leftovers()?;
        if found.is_empty() {
            return Ok(());
        }
        let mut left = self.sort_leftovers(&found, former, &renamed)?;
        for (id, file) in left.packs.iter().chain(&left.finished) {
            self.packs.pin(*id, file.clone())?;
        }
        let mut segments;
        (segments, left.unreached) = self.put_in_order(std::mem::take(&mut left.segments));
        super::accept(accept, self.check_reach(&left, &segments))?;
        let count = segments.len();
        let mut frames_left;
        (frames_left, left.condemned) = self.judge(&segments, accept)?;
        // Nothing is refused any more. First the copies that were torn: later it cannot be told that they are copies.
        for headless in &left.headless {
            self.store.discard(headless.id)?;
        }
        for (id, file) in &left.finished {
            file.sync()?;
            self.store.publish(*id, Area::Data)?;
        }
        for segment in &mut segments {
            let is_whole = segment.is_closed && segment.frames.len() <= frames_left;
            segment.frames.truncate(frames_left);
            frames_left -= segment.frames.len();
            for (old, new) in &renamed {
                segment
                    .frames
                    .iter_mut()
                    .for_each(|f| rename_segment(&mut f.records, *old, *new));
            }
            self.adopt_segment(segment, &left, &mut renamed)?;
            if !is_whole {
                break; // what comes after a torn frame was made on top of it
            }
        }
        self.tree.write().drop_unlinked();
        self.merge_adopted(count, accept)?;
        for id in found {
            self.packs.forget(id);
            if !left.strange.contains(&id) {
                self.store.discard(id)?;
            }
        }
        log::info!(
            "{} files that were left over are adopted",
            count + left.packs.len() + left.finished.len() + left.garbage.len()
        );
        Ok(())
    }

    /// How many frames count, of all segments together, and which packs they condemn.
    ///
    /// A pack that a write or a sync failed in need not open: what was live in it was copied before a frame condemned
    /// it. That frame must count itself, though; where it does not, the copies may be missing, too.
    fn judge(&self, segments: &[LeftSegment], accept: bool) -> Result<(usize, HashSet<PackId>)> {
        let frames: Vec<&Frame> = segments.iter().flat_map(|s| &s.frames).collect();
        let mut condemned_at = HashMap::new();
        for (i, frame) in frames.iter().enumerate() {
            for record in &frame.records {
                let Record::Condemn(packs) = record else {
                    continue;
                };
                condemned_at.extend(packs.iter().map(|p| (*p, i)));
            }
        }
        let mut end = frames.len();
        // Frames that count only if another one does.
        let mut depends: Vec<(usize, usize)> = Vec::new();
        'frames: for (i, frame) in frames.iter().enumerate() {
            for (pack, _) in self.unopened(frame)? {
                let Some(at) = condemned_at.get(&pack) else {
                    end = i;
                    break 'frames;
                };
                depends.push((i, *at));
            }
        }
        while let Some(first) = depends.iter().position(|(_, at)| *at >= end) {
            end = depends[first].0;
            depends.truncate(first);
        }
        let durable = frames.iter().rposition(|f| f.durable_before).unwrap_or(0);
        if end < durable {
            let what = format_args!("frame {end} does not open, and {durable} were durable");
            let e = Error::damaged(format_args!("new/{}", self.device), what)
                .hint("the library was not closed cleanly, and what was durable is damaged; --accept-rollback gives it up");
            super::accept(accept, Err(e))?;
        }
        if end < frames.len() {
            let lost = frames.len() - end;
            log::warn!(
                "the crash took the contents of the last {lost} changes or of some: these do not count"
            );
        }
        condemned_at.retain(|_, at| *at < end);
        Ok((end, condemned_at.into_keys().collect()))
    }

    /// The packs in which something that a frame names is missing or does not open. A store that cannot be read is
    /// an error: what it holds must not be given up.
    fn unopened(&self, frame: &Frame) -> Result<Vec<(PackId, Error)>> {
        let mut unopened: Vec<(PackId, Error)> = Vec::new();
        for record in &frame.records {
            let (packs, splices) = match record {
                Record::Content(c) => (&c.packs, &c.splices),
                Record::Relocate(r) => (&r.packs, &r.splices),
                Record::Pack(pack) => {
                    if let Err(e) = self.check_pack_len(pack) {
                        unopened.push((pack.pack, e));
                    }
                    continue;
                }
                _ => continue,
            };
            for splice in splices {
                let Some(source) = splice.source else {
                    continue;
                };
                let id = pack_of(packs, source.pack)?;
                if unopened.iter().all(|(other, _)| *other != id)
                    && let Err(e) = self.read_splice(id, splice, |_, _| Ok(()))
                {
                    unopened.push((id, e));
                }
            }
        }
        match unopened.iter().position(|(_, e)| !is_torn(e)) {
            Some(i) => Err(unopened.swap_remove(i).1),
            None => Ok(unopened),
        }
    }

    /// Copies one segment and publishes the copy.
    fn adopt_segment(
        &self,
        left: &mut LeftSegment,
        others: &Leftovers,
        renamed: &mut Vec<(ObjectId, ObjectId)>,
    ) -> Result<()> {
        // Its writer knew what it knew then, whatever has come since: of what was written beside it, nothing.
        let heads = std::mem::take(&mut left.opening.heads);
        let mut opening = self.journal.lock().opening(left.opening.number, None);
        opening.heads = self.heads_for_copy(heads);
        opening.adopts = Some(left.id);
        let mut writer = SegmentWriter::create(&*self.store, &self.master, &opening)?;
        renamed.push((left.id, writer.id()));
        let stamp = StampSegment {
            segment: writer.id(),
            device: self.device,
            number: opening.number,
        };
        let number_in_tree = self.tree.write().intern_segment(stamp);
        for frame in &mut left.frames {
            rename_segment(&mut frame.records, left.id, writer.id());
            self.adopt_contents(frame, others)?;
            writer.append(frame)?;
            let applied = self.tree.write().apply_frame(number_in_tree, frame);
            applied.map_err(|why| {
                Error::damaged(format_args!("new/{}/{}", self.device, left.id), why)
            })?;
        }
        self.finish_adopted(writer)
    }

    /// The heads of a leftover, with this device's own as it is published: the segment before may be a copy, too.
    fn heads_for_copy(&self, mut heads: Vec<Head>) -> Vec<Head> {
        heads.retain(|h| h.device != self.device);
        heads.extend(self.journal.lock().heads.get(&self.device));
        heads
    }

    fn finish_adopted(&self, mut writer: SegmentWriter) -> Result<()> {
        self.contents.finish_open()?;
        let finished = self.contents.finished();
        let packs = finished.iter().copied().chain(self.unrecorded_packs()?);
        let records: Vec<Record> = packs.map(Record::Pack).collect();
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
        for file in self.contents.take_unsynced().files {
            file.sync()?;
        }
        closed.file.sync()?;
        self.contents.publish(&finished)?;
        self.publish_segment(closed.id, false)?;
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

    /// Packs that frames name and whose lengths no record says, but which are published: by this adoption, or by one
    /// that was cut short. Without a record nothing would tell a short one, nor ever condemn one.
    fn unrecorded_packs(&self) -> Result<Vec<PackLen>> {
        let unknown: Vec<PackId> = {
            let tree = self.tree.read();
            let unknown = tree.packs().iter().filter(|p| p.cipher_len.is_none());
            unknown.map(|p| p.id).collect()
        };
        let mut packs = Vec::new();
        for pack in unknown {
            let opened = self.store.open(Area::Data, pack).and_then(|object| {
                let cipher_len = object.cipher_len()? as u32;
                // Whole, and not cut short by whoever copied the library.
                PackReader::open(object, pack, &self.master)?.trailer()?;
                Ok(PackLen { pack, cipher_len })
            });
            match opened {
                Ok(known) => packs.push(known),
                // Who reads what is in it is told.
                Err(e) if is_torn(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(packs)
    }

    /// Lets a frame that counts name copies of what lies in leftovers.
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
        Ok(())
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
        let id = pack_of(packs, source.pack)?;
        if left.packs.contains_key(&id) && !left.condemned.contains(&id) {
            return self.read_splice(id, splice, |plain_offset, plain| {
                self.contents.seal(subject, plain_offset, &[plain], out)
            });
        }
        let run = crate::pack::Run {
            pack: id,
            cipher_offset: source.cipher_offset,
            plain_len: source.run_len,
        };
        out.data(splice.plain_offset, splice.plain_len, run, source.start);
        Ok(())
    }

    /// Calls `each` with the offset in the file and the bytes of all that a splice names in pack `id`, in pieces.
    fn read_splice(
        &self,
        id: PackId,
        splice: &Splice,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        // The largest piece that is sealed is a pack long; what is read at once is less.
        const STEP: u64 = 4 << 20;
        let Some(source) = splice.source else {
            return Ok(());
        };
        let pack = self.tree.write().intern_pack(id);
        let mut done = 0;
        while done < splice.plain_len {
            let len = (splice.plain_len - done).min(STEP);
            let extent = Extent {
                plain_offset: 0,
                plain_len: len as u32,
                pack,
                cipher_offset: source.cipher_offset,
                run_len: source.run_len,
                start: source.start + done as u32,
            };
            let mut plain = vec![0; len as usize];
            self.fill(&[(extent, id)], 0, &mut plain, true)?;
            each(splice.plain_offset + done, &plain)?;
            done += len;
        }
        Ok(())
    }

    /// A pack that a frame calls finished must be there at that length; or it is collected since.
    fn check_pack_len(&self, finished: &PackLen) -> Result<()> {
        let len = match self.store.open(Area::Data, finished.pack) {
            Ok(object) => object.cipher_len()?,
            Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(()),
            Err(e) => return Err(e),
        };
        if len != u64::from(finished.cipher_len) {
            return Err(Error::damaged(
                format_args!("data/{}", finished.pack),
                "it is not as long as its writer said",
            ));
        }
        Ok(())
    }
}

fn pack_of(packs: &[PackId], number: u32) -> Result<PackId> {
    let id = packs.get(number as usize).copied();
    id.ok_or_else(|| Error::damaged("a leftover frame", "unknown pack"))
}
