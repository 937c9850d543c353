//! What of a crash's leftovers counts. Nothing is changed by looking.
//!
//! Those frames count that come after the last one that says "durable before here" only while everything that they
//! name opens, for after a power cut their contents may be missing. The first that does not open ends the journal; where
//! one that says "durable before here" lies behind it, no crash explains that, and nothing is given up unasked.

use std::collections::{HashMap, HashSet};

use super::Core;
use super::adopt::pack_of;
use super::journal::rename_segment;
use super::leftovers::{LeftSegment, Leftovers, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, PackLen, Record};
use crate::object::{Area, ObjectId, PackId, SegmentId};

/// What a crash left, of which it is known what counts. Nothing is changed yet.
pub(super) struct Judged {
    pub left: Leftovers,
    /// In their order, with the frames that count.
    pub segments: Vec<LeftSegment>,
    /// The file names in the folder.
    pub found: Vec<ObjectId>,
}

impl Judged {
    /// The packs that the frames of these segments name, but for those that a frame condemns.
    pub fn named<'a>(
        &self,
        segments: impl IntoIterator<Item = &'a LeftSegment>,
    ) -> HashSet<PackId> {
        let mut named = HashSet::new();
        let frames = segments.into_iter().flat_map(|s| &s.frames);
        for record in frames.flat_map(|frame| &frame.records) {
            match record {
                Record::Content(c) => named.extend(&c.packs),
                Record::Relocate(r) => named.extend(&r.packs),
                Record::Pack(pack) => drop(named.insert(pack.pack)),
                _ => {}
            }
        }
        named.retain(|id| !self.left.condemned.contains(id));
        named
    }
}

impl Core {
    /// Looks at what there is; `None` where that is nothing. What lies in it can be read from now on.
    pub(super) fn judge_leftovers(
        &self,
        accept: bool,
        renamed: &[(SegmentId, SegmentId)],
    ) -> Result<Option<Judged>> {
        let found = self.view.store().leftovers()?;
        if found.is_empty() {
            return Ok(None);
        }
        // What was written under another id of this device is adopted as if it were written under this one.
        let mut left = self.sort_leftovers(&found, self.memory.former(), renamed)?;
        for (id, file) in left.packs.iter().chain(&left.finished) {
            self.view.packs().pin(*id, file.clone())?;
        }
        let mut segments;
        (segments, left.unreached) = self.put_in_order(std::mem::take(&mut left.segments));
        super::accept(accept, self.check_reach(&left, &segments))?;
        let mut frames_left;
        (frames_left, left.condemned) = self.judge(&segments, accept)?;
        let mut whole = 0;
        for segment in &mut segments {
            whole += 1;
            let is_whole = segment.is_closed && segment.frames.len() <= frames_left;
            segment.frames.truncate(frames_left);
            frames_left -= segment.frames.len();
            for (old, new) in renamed {
                let frames = &mut segment.frames;
                frames
                    .iter_mut()
                    .for_each(|f| rename_segment(&mut f.records, *old, *new));
            }
            if !is_whole {
                break; // what comes after a torn frame was made on top of it
            }
        }
        left.behind = segments.drain(whole..).map(|s| s.id).collect();
        Ok(Some(Judged {
            left,
            segments,
            found,
        }))
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

    /// A pack that a frame calls finished must be there at that length; or it is collected since.
    fn check_pack_len(&self, finished: &PackLen) -> Result<()> {
        let len = match self.view.store().open(Area::Data, finished.pack.object()) {
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
