//! Adoption: what a crash left in this device's `new/` folder.
//!
//! Leftover segments are copied, in their order, into new ones that are published at once; contents that lie in
//! packs which were never finished are copied with them, as far as it counts (`judge`). Nothing is added to a
//! leftover. On a full disk what is of no use goes first, and a copy that could not be finished goes again; packs are
//! then given an end where they are (`full_disk`).

use std::collections::HashSet;

use super::Recovery;
use super::judge::Judged;
use super::scan::{LeftSegment, Leftovers, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::SegmentWriter;
use crate::index::extents::Extent;
use crate::index::record::{Frame, Head, PackLen, Record, Splice, Splices, StampSegment};
use crate::object::{Area, ObjectId, PackId, SegmentId};
use crate::pack::PackReader;
use crate::vault::log::{Subject, rename_segment};

impl Recovery<'_> {
    /// Adopts what there is; afterwards the folder is empty.
    ///
    /// After an error nothing lies there that was not there before, and less where something was of no use.
    pub(super) fn adopt_leftovers(&self) -> Result<()> {
        let Some(mut judged) = self.judge_leftovers()? else {
            return Ok(());
        };
        let kept = self.discard_useless(&judged)?;
        for (id, file) in &judged.left.finished {
            if kept.contains(&id.object()) {
                file.sync()?;
                self.view().store().publish(id.object(), Area::Data)?;
            }
        }
        let mut renamed: Vec<(SegmentId, SegmentId)> = Vec::new();
        let mut segments = std::mem::take(&mut judged.segments);
        for at in 0..segments.len() {
            let (segment, later) = segments[at..].split_first_mut().ok_or(Kind::Poisoned)?;
            for (old, new) in &renamed {
                let frames = &mut segment.frames;
                frames
                    .iter_mut()
                    .for_each(|f| rename_segment(&mut f.records, *old, *new));
            }
            renamed.push((segment.id, self.adopt_segment(segment, &judged.left)?));
            // It is published, so what it was copied from makes room for the next one.
            self.discard_leftover(segment.id.object())?;
            let named = judged.named(&*later);
            for id in judged.left.packs.keys().filter(|id| !named.contains(id)) {
                self.discard_leftover(id.object())?;
            }
        }
        self.view().tree_mut().drop_unlinked();
        self.merge_adopted(segments.len())?;
        for id in &judged.found {
            if !judged.left.strange.contains(id) {
                self.discard_leftover(*id)?;
            }
        }
        log::info!(
            "recovered {} files left by an unclean shutdown",
            judged.found.len() - judged.left.strange.len()
        );
        Ok(())
    }

    /// Lets the tree show what was left, in a mount that only reads.
    pub fn show_leftovers(&self) -> Result<()> {
        match self.judge_leftovers()? {
            Some(judged) => self.show(&judged),
            None => Ok(()),
        }
    }

    pub fn show(&self, judged: &Judged) -> Result<()> {
        let mut tree = self.view().tree_mut();
        if self.log.others().are_there() {
            tree.expect_conflicts();
        }
        for segment in &judged.segments {
            let number_in_tree = tree.intern_segment(StampSegment {
                segment: segment.id,
                device: self.log.device(),
                number: segment.opening.number,
            });
            for frame in &segment.frames {
                let applied = tree.apply_frame(number_in_tree, frame);
                applied.map_err(|why| self.refused(segment, why))?;
            }
        }
        tree.drop_unlinked();
        Ok(())
    }

    fn refused(&self, segment: &LeftSegment, why: &str) -> Error {
        Error::damaged(
            format_args!("new/{}/{}", self.log.device(), segment.id),
            why,
        )
    }

    /// What of the folder is needed: segments, and the packs that frames name.
    pub fn needed(&self, judged: &Judged) -> HashSet<ObjectId> {
        let named = judged.named(&judged.segments);
        let mut needed: HashSet<_> = named.into_iter().map(PackId::object).collect();
        needed.extend(judged.segments.iter().map(|s| s.id.object()));
        needed.retain(|id| judged.found.contains(id));
        needed
    }

    /// Removes all that is of no use, before anything is copied: that makes room. Among it is what an adoption that was
    /// cut short has copied, as no frame names it. Answers what is left, and needed.
    fn discard_useless(&self, judged: &Judged) -> Result<HashSet<ObjectId>> {
        // First the copies that were torn: later it cannot be told that they are copies.
        for headless in &judged.left.headless {
            self.discard_leftover(headless.id.object())?;
        }
        let needed = self.needed(judged);
        // What lies behind a torn segment goes last: it tells that something is torn.
        let behind: HashSet<ObjectId> = judged.left.behind.iter().map(|id| id.object()).collect();
        for id in &judged.found {
            let is_kept = needed.contains(id) || behind.contains(id);
            if !is_kept && !judged.left.strange.contains(id) {
                self.discard_leftover(*id)?;
            }
        }
        Ok(needed)
    }

    fn discard_leftover(&self, id: ObjectId) -> Result<()> {
        self.view().packs().forget(PackId(id));
        self.view().store().discard(id)
    }

    /// Copies one segment and publishes the copy, whose id it answers. After an error the copy is gone.
    fn adopt_segment(&self, left: &mut LeftSegment, others: &Leftovers) -> Result<SegmentId> {
        // Its writer knew what it knew then, whatever has come since: of what was written beside it, nothing.
        let heads = std::mem::take(&mut left.opening.heads);
        let mut opening = self.log.journal().opening(left.opening.number, None);
        opening.heads = self.heads_for_copy(heads);
        opening.adopts = Some(left.id);
        let writer = SegmentWriter::create(
            &**self.view().store(),
            self.view().master(),
            SegmentId(self.log.env().id()?),
            &opening,
        )?;
        let id = writer.id();
        let mut packs = Vec::new();
        let copied = self.copy_segment(writer, left, others, &mut packs);
        match copied {
            Ok(()) => Ok(id),
            Err(e) => {
                self.discard_copies(id, &packs);
                Err(e)
            }
        }
    }

    /// Takes away what an adoption that failed has copied; `packs` are its finished ones.
    fn discard_copies(&self, segment: SegmentId, packs: &[PackLen]) {
        // What cannot be removed now, the next mount takes for what it is.
        let _ = self.view().store().discard(segment.object());
        // Where it is published, and only telling so failed, it counts, and so do the packs.
        let published = self.view().store().open(Area::Index, segment.object());
        if published.is_err_and(|e| matches!(e.kind(), Kind::Missing)) {
            self.log.new_packs().discard_all(packs);
        }
    }

    fn copy_segment(
        &self,
        mut writer: SegmentWriter,
        left: &mut LeftSegment,
        others: &Leftovers,
        packs: &mut Vec<PackLen>,
    ) -> Result<()> {
        let stamp = StampSegment {
            segment: writer.id(),
            device: self.log.device(),
            number: writer.number(),
        };
        let number_in_tree = self.view().tree_mut().intern_segment(stamp);
        let mut frames = std::mem::take(&mut left.frames);
        for frame in &mut frames {
            rename_segment(&mut frame.records, left.id, writer.id());
            self.adopt_contents(frame, others)?;
            writer.append(frame)?;
            let applied = self.view().tree_mut().apply_frame(number_in_tree, frame);
            applied.map_err(|why| self.refused(left, why))?;
        }
        self.log.new_packs().finish_open()?;
        *packs = self.log.new_packs().finished();
        self.finish_adopted(writer, packs)
    }

    /// The heads of a leftover, with this device's own as it is published: the segment before may be a copy, too.
    fn heads_for_copy(&self, mut heads: Vec<Head>) -> Vec<Head> {
        heads.retain(|h| h.device != self.log.device());
        heads.extend(self.log.journal().index().head_of(self.log.device()));
        heads
    }

    /// Ends a copy and publishes it, and first the `packs` of which it says where contents lie.
    fn finish_adopted(&self, mut writer: SegmentWriter, packs: &[PackLen]) -> Result<()> {
        let recorded = packs.iter().copied().chain(self.unrecorded_packs()?);
        let records: Vec<Record> = recorded.map(Record::Pack).collect();
        if !records.is_empty() {
            let counter = self.view().tree().next_counter();
            let frame = Frame {
                counter,
                wall: self.log.env().wall(),
                durable_before: false,
                records,
            };
            writer.append(&frame)?;
            let applied = self.view().tree_mut().apply_frame(0, &frame);
            applied.map_err(|why| Error::damaged("adopted packs", why))?;
        }
        let number = writer.number();
        let closed = writer.close(Vec::new())?;
        self.outbox.publish_recovered(&closed, number, packs)
    }

    /// Packs that frames name and whose lengths no record says, but which are published: by this adoption, or by one
    /// that was cut short. Without a record nothing would tell a short one, nor ever condemn one.
    fn unrecorded_packs(&self) -> Result<Vec<PackLen>> {
        let unknown: Vec<PackId> = {
            let tree = self.view().tree();
            let unknown = tree.packs().iter().filter(|p| p.cipher_len.is_none());
            unknown.map(|p| p.id).collect()
        };
        let mut packs = Vec::new();
        for pack in unknown {
            let opened = self
                .view()
                .store()
                .open(Area::Data, pack.object())
                .and_then(|object| {
                    let cipher_len = object.cipher_len()? as u32;
                    // Whole, and not cut short by whoever copied the library.
                    PackReader::open(object, pack, self.view().master())?.trailer()?;
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
                let tree = self.view().tree();
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
                self.log
                    .new_packs()
                    .append(subject, plain_offset, &[plain], out)
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
    pub fn read_splice(
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
        let pack = self.view().tree_mut().intern_pack(id);
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
            self.view()
                .fill_extents(&[(extent, id)], 0, &mut plain, true)?;
            each(splice.plain_offset + done, &plain)?;
            done += len;
        }
        Ok(())
    }
}

pub fn pack_of(packs: &[PackId], number: u32) -> Result<PackId> {
    let id = packs.get(number as usize).copied();
    id.ok_or_else(|| Error::damaged("a leftover frame", "unknown pack"))
}
