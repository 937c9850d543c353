//! Adoption of the files that a crash left in this device's `new/` folder.
//!
//! Valid frames of leftover segments (`judge`) are copied, in order, to new segments, which are published immediately.
//! Contents in unfinished packs are copied with them. Nothing is appended to a leftover file. Files that are of no use
//! are removed first, to free space, and a copy that could not be finished is removed. On a full disk, packs get a
//! trailer in place instead (`full_disk`).

use std::collections::HashSet;

use super::Recovery;
use super::judge::JudgedRemains;
use super::scan::{CrashRemains, LeftSegment, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::SegmentWriter;
use crate::index::extents::Extent;
use crate::index::record::{Frame, Head, PackLen, Record, Splice, Splices, StampSegment};
use crate::object::{Area, ObjectId, PackId, SegmentId};
use crate::pack::PackReader;
use crate::vault::log::{Subject, rename_segment};

impl Recovery<'_> {
    /// Adopts all leftovers. Afterwards only files of unknown kind are left in the folder.
    ///
    /// # Errors
    /// The folder then holds no new files; files that are of no use may have been removed.
    pub(super) fn adopt_leftovers(&self) -> Result<()> {
        let Some(mut judged) = self.judge_leftovers()? else {
            return Ok(());
        };
        let kept = self.discard_unneeded(&judged)?;
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
            // The copy is published: remove the original, to free space for the next copy.
            self.discard_leftover(segment.id.object())?;
            let referenced = judged.referenced_packs(&*later);
            let unneeded = |id: &&PackId| !referenced.contains(id);
            for id in judged.left.packs.keys().filter(unneeded) {
                self.discard_leftover(id.object())?;
            }
        }
        self.view().tree_mut().drop_unlinked();
        self.merge_adopted(segments.len())?;
        for id in &judged.found {
            if !judged.left.unknown.contains(id) {
                self.discard_leftover(*id)?;
            }
        }
        log::info!(
            "recovered {} files left by an unclean shutdown",
            judged.found.len() - judged.left.unknown.len()
        );
        Ok(())
    }

    /// Applies the leftovers to the tree only, in a read-only mount.
    pub fn show_leftovers(&self) -> Result<()> {
        match self.judge_leftovers()? {
            Some(judged) => self.show(&judged),
            None => Ok(()),
        }
    }

    /// Applies the valid frames to the tree only.
    pub fn show(&self, judged: &JudgedRemains) -> Result<()> {
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

    /// The files of the folder that are needed: segments, and the packs that their frames refer to.
    pub fn needed(&self, judged: &JudgedRemains) -> HashSet<ObjectId> {
        let packs = judged.referenced_packs(&judged.segments);
        let mut needed: HashSet<_> = packs.into_iter().map(PackId::object).collect();
        needed.extend(judged.segments.iter().map(|s| s.id.object()));
        needed.retain(|id| judged.found.contains(id));
        needed
    }

    /// Removes files that are not needed, before anything is copied, to free space. These include copies that an
    /// interrupted adoption made, because no frame refers to them. Returns the needed files.
    fn discard_unneeded(&self, judged: &JudgedRemains) -> Result<HashSet<ObjectId>> {
        // Torn copies first: once their originals are gone, they could not be recognized as copies.
        for undecodable in &judged.left.undecodable {
            self.discard_leftover(undecodable.id.object())?;
        }
        let needed = self.needed(judged);
        // Segments after a torn one are removed last: they show that something is torn.
        let after_torn = judged.left.after_torn.iter().map(|id| id.object());
        let after_torn: HashSet<ObjectId> = after_torn.collect();
        for id in &judged.found {
            let is_kept = needed.contains(id) || after_torn.contains(id);
            if !is_kept && !judged.left.unknown.contains(id) {
                self.discard_leftover(*id)?;
            }
        }
        Ok(needed)
    }

    fn discard_leftover(&self, id: ObjectId) -> Result<()> {
        self.view().packs().forget(PackId(id));
        self.view().store().discard(id)
    }

    /// Copies one segment and publishes the copy. Returns the id of the copy. After an error the copy is removed.
    fn adopt_segment(&self, left: &mut LeftSegment, others: &CrashRemains) -> Result<SegmentId> {
        // The heads say what the writer had applied: nothing of what was written concurrently.
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

    /// Removes the copies of a failed adoption; `packs` are its finished packs.
    fn discard_copies(&self, segment: SegmentId, packs: &[PackLen]) {
        // If this fails, the next mount removes them as copies.
        let _ = self.view().store().discard(segment.object());
        // Publication may have succeeded although an error was returned; then the packs are needed.
        let published = self.view().store().open(Area::Index, segment.object());
        if published.is_err_and(|e| matches!(e.kind(), Kind::Missing)) {
            self.log.new_packs().discard_all(packs);
        }
    }

    fn copy_segment(
        &self,
        mut writer: SegmentWriter,
        left: &mut LeftSegment,
        others: &CrashRemains,
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

    /// The heads of a leftover segment, with this device's own head replaced by the published one: the preceding
    /// segment may be a copy, too.
    fn heads_for_copy(&self, mut heads: Vec<Head>) -> Vec<Head> {
        heads.retain(|h| h.device != self.log.device());
        heads.extend(self.log.journal().index().head_of(self.log.device()));
        heads
    }

    /// Closes a copy and publishes it, after the `packs` that it refers to.
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

    /// SegmentInfo packs that frames refer to, but whose lengths are not recorded: this adoption published them, or an
    /// interrupted one. Without such a record, a truncated pack could not be detected, and the pack would never be
    /// condemned.
    fn unrecorded_packs(&self) -> Result<Vec<PackLen>> {
        let unrecorded: Vec<PackId> = {
            let tree = self.view().tree();
            let unrecorded = tree.packs().iter().filter(|p| p.cipher_len.is_none());
            unrecorded.map(|p| p.id).collect()
        };
        let mut packs = Vec::new();
        for pack in unrecorded {
            let opened = self
                .view()
                .store()
                .open(Area::Data, pack.object())
                .and_then(|object| {
                    let cipher_len = object.cipher_len()? as u32;
                    // The trailer proves that it is complete, and was not truncated when the library was copied.
                    PackReader::open(object, pack, self.view().master())?.trailer()?;
                    Ok(PackLen { pack, cipher_len })
                });
            match opened {
                Ok(known) => packs.push(known),
                // Reads of its contents report the damage.
                Err(e) if is_torn(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(packs)
    }

    /// Copies the contents of a valid frame that are in unfinished packs, and makes the frame refer to the copies.
    fn adopt_contents(&self, frame: &mut Frame, left: &CrashRemains) -> Result<()> {
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
        left: &CrashRemains,
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

    /// Reads the data that a splice refers to in pack `id`, and passes it to `each` in parts, with their offsets in the
    /// file.
    pub fn read_splice(
        &self,
        id: PackId,
        splice: &Splice,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        // A splice can be as long as a pack; this bounds the memory.
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
