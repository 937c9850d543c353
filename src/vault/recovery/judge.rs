//! Decides which frames that a crash left are valid. Changes nothing.
//!
//! Frames after the last one that says "durable before here" are valid only if everything that they refer to can be
//! decrypted, because after a power cut their contents may be missing. The first frame for which that fails ends the
//! journal. If a frame after it says "durable before here", a crash cannot be the cause, and nothing is discarded
//! unless the user asks for it.

use std::collections::{HashMap, HashSet};

use super::Recovery;
use super::adopt::pack_of;
use super::scan::{CrashRemains, LeftSegment, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, PackLen, Record};
use crate::object::{Area, ObjectId, PackId};
use crate::vault::log::rename_segment;
use crate::vault::opening::accept;

/// The files that a crash left, and which frames in them are valid. Nothing is changed yet.
pub struct JudgedRemains {
    pub left: CrashRemains,
    /// In order, with their valid frames only.
    pub segments: Vec<LeftSegment>,
    /// All files in the folder.
    pub found: Vec<ObjectId>,
}

impl JudgedRemains {
    /// The packs that the frames of these segments refer to, except those that a frame condemns.
    pub fn referenced_packs<'a>(
        &self,
        segments: impl IntoIterator<Item = &'a LeftSegment>,
    ) -> HashSet<PackId> {
        let mut packs = HashSet::new();
        let frames = segments.into_iter().flat_map(|s| &s.frames);
        for record in frames.flat_map(|frame| &frame.records) {
            match record {
                Record::Content(c) => packs.extend(&c.packs),
                Record::Relocate(r) => packs.extend(&r.packs),
                Record::Pack(pack) => {
                    packs.insert(pack.pack);
                }
                _ => {}
            }
        }
        packs.retain(|id| !self.left.condemned.contains(id));
        packs
    }
}

/// Which of the frames that were found are valid.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// Number of valid frames, from the first one on.
    end: usize,
    /// Number of frames that were durable according to later ones.
    durable: usize,
    /// Packs that a valid frame condemns.
    condemned: HashSet<PackId>,
}

/// Decides which frames, given in order, are valid. `unreadable` returns the packs that a frame refers to but that
/// cannot be read.
///
/// A pack in which a write or a sync failed may be unreadable: its live data was copied before a frame condemned it.
/// That frame must be valid itself; otherwise the copies may be missing, too.
fn judge(
    frames: &[&Frame],
    mut unreadable: impl FnMut(&Frame) -> Result<Vec<PackId>>,
) -> Result<Verdict> {
    let mut condemned_at = HashMap::new();
    for (i, frame) in frames.iter().enumerate() {
        for record in &frame.records {
            if let Record::Condemn(packs) = record {
                condemned_at.extend(packs.iter().map(|p| (*p, i)));
            }
        }
    }
    let mut end = frames.len();
    // Pairs of a frame and the later frame that must be valid for the first to be valid.
    let mut depends: Vec<(usize, usize)> = Vec::new();
    'frames: for (i, frame) in frames.iter().enumerate() {
        for pack in unreadable(frame)? {
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
    condemned_at.retain(|_, at| *at < end);
    Ok(Verdict {
        end,
        durable: frames.iter().rposition(|f| f.durable_before).unwrap_or(0),
        condemned: condemned_at.into_keys().collect(),
    })
}

impl Recovery<'_> {
    /// Reads the files in `new/` and decides which frames are valid; `None` if there are no files. Afterwards the packs
    /// among them can be read through the view.
    pub fn judge_leftovers(&self) -> Result<Option<JudgedRemains>> {
        let found = self.view().store().leftovers()?;
        if found.is_empty() {
            return Ok(None);
        }
        // Files that were written under a former id of this device are adopted as if written under the present one.
        let mut left = self.classify(&found, self.outbox.memory().former())?;
        for (id, file) in left.packs.iter().chain(&left.finished) {
            self.view().packs().pin(*id, file.clone())?;
        }
        let mut segments;
        (segments, left.orphaned) = self.contiguous_segments(std::mem::take(&mut left.segments));
        accept(self.accept, self.check_reachable(&left, &segments))?;
        let mut frames_left;
        (frames_left, left.condemned) = self.check_durable(&segments)?;
        let mut whole = 0;
        for segment in &mut segments {
            whole += 1;
            let is_whole = segment.is_closed && segment.frames.len() <= frames_left;
            segment.frames.truncate(frames_left);
            frames_left -= segment.frames.len();
            for (old, new) in self.adopted {
                let frames = &mut segment.frames;
                frames
                    .iter_mut()
                    .for_each(|f| rename_segment(&mut f.records, *old, *new));
            }
            if !is_whole {
                break; // everything after a torn frame depends on it
            }
        }
        left.after_torn = segments.drain(whole..).map(|s| s.id).collect();
        Ok(Some(JudgedRemains {
            left,
            segments,
            found,
        }))
    }

    /// The number of valid frames of all segments together, and the packs that they condemn.
    ///
    /// # Errors
    /// A durable frame is not valid, and the user has not accepted that it is discarded.
    fn check_durable(&self, segments: &[LeftSegment]) -> Result<(usize, HashSet<PackId>)> {
        let frames: Vec<&Frame> = segments.iter().flat_map(|s| &s.frames).collect();
        let verdict = judge(&frames, |frame| self.unreadable(frame))?;
        if verdict.end < verdict.durable {
            let (end, durable) = (verdict.end, verdict.durable);
            let what = format_args!(
                "frame {end} cannot be decrypted, although frames up to {durable} had been synced"
            );
            let e = Error::damaged(format_args!("new/{}", self.log.device()), what)
                .hint("the library was not closed cleanly, and synced data is damaged; --accept-rollback discards it");
            accept(self.accept, Err(e))?;
        }
        if verdict.end < frames.len() {
            let lost = frames.len() - verdict.end;
            log::warn!(
                "recovered after an unclean shutdown: the last {lost} changes had not been synced and are discarded"
            );
        }
        Ok((verdict.end, verdict.condemned))
    }

    /// The packs in which data that a frame refers to is missing or cannot be decrypted.
    ///
    /// # Errors
    /// The store cannot be read: its contents must not be discarded for that.
    fn unreadable(&self, frame: &Frame) -> Result<Vec<PackId>> {
        let mut unreadable: Vec<(PackId, Error)> = Vec::new();
        for record in &frame.records {
            let (packs, splices) = match record {
                Record::Content(c) => (&c.packs, &c.splices),
                Record::Relocate(r) => (&r.packs, &r.splices),
                Record::Pack(pack) => {
                    if let Err(e) = self.check_pack_len(pack) {
                        unreadable.push((pack.pack, e));
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
                if unreadable.iter().all(|(other, _)| *other != id)
                    && let Err(e) = self.read_splice(id, splice, |_, _| Ok(()))
                {
                    unreadable.push((id, e));
                }
            }
        }
        match unreadable.iter().position(|(_, e)| !is_torn(e)) {
            Some(i) => Err(unreadable.swap_remove(i).1),
            None => Ok(unreadable.into_iter().map(|(id, _)| id).collect()),
        }
    }

    /// Checks that a pack which a frame calls finished has the recorded length, unless it has been collected since.
    fn check_pack_len(&self, finished: &PackLen) -> Result<()> {
        let len = match self.view().store().open(Area::Data, finished.pack.object()) {
            Ok(object) => object.cipher_len()?,
            Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(()),
            Err(e) => return Err(e),
        };
        if len != u64::from(finished.cipher_len) {
            return Err(Error::damaged(
                format_args!("data/{}", finished.pack),
                "its length differs from the recorded one",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Time;

    const LOST: PackId = PackId(ObjectId([1; 16]));

    fn frame(counter: u64, durable_before: bool, records: Vec<Record>) -> Frame {
        Frame {
            counter,
            wall: Time::default(),
            durable_before,
            records,
        }
    }

    /// Judges frames of which those with these counters refer to the lost pack.
    fn verdict(frames: &[Frame], needs_lost: &[u64]) -> Verdict {
        let frames: Vec<&Frame> = frames.iter().collect();
        let unreadable = |frame: &Frame| {
            let is_lost = needs_lost.contains(&frame.counter);
            Ok(is_lost.then_some(LOST).into_iter().collect())
        };
        judge(&frames, unreadable).unwrap()
    }

    #[test]
    fn frames_are_valid_up_to_the_first_that_refers_to_lost_data() {
        let frames: Vec<Frame> = (0..5).map(|i| frame(i, i == 2, Vec::new())).collect();
        assert_eq!(verdict(&frames, &[]).end, 5);
        let cut = verdict(&frames, &[3]);
        assert_eq!((cut.end, cut.durable), (3, 2));
        let damaged = verdict(&frames, &[1]);
        assert!(damaged.end < damaged.durable);
    }

    #[test]
    fn a_lost_pack_that_a_valid_frame_condemns_is_no_loss() {
        let condemn = || vec![Record::Condemn(vec![LOST])];
        let mut frames: Vec<Frame> = (0..5).map(|i| frame(i, false, Vec::new())).collect();
        frames[3].records = condemn();
        let whole = verdict(&frames, &[1, 2]);
        assert_eq!((whole.end, whole.condemned.len()), (5, 1));
        // An earlier frame may refer to the pack without losing the later ones.
        assert_eq!(verdict(&frames, &[1]).end, 5);
        // If the condemning frame is not valid, frames that depend on it are not valid, either.
        let other = PackId(ObjectId([2; 16]));
        let refs: Vec<&Frame> = frames.iter().collect();
        let judged = judge(&refs, |frame| {
            Ok(match frame.counter {
                1 => vec![LOST],
                2 => vec![other],
                _ => Vec::new(),
            })
        });
        let judged = judged.unwrap();
        assert_eq!((judged.end, judged.condemned.len()), (1, 0));
    }
}
