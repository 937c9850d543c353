//! What of a crash's leftovers counts. Nothing is changed by looking.
//!
//! Those frames count that come after the last one that says "durable before here" only while everything that they
//! name opens, for after a power cut their contents may be missing. The first that does not open ends the journal; where
//! one that says "durable before here" lies behind it, no crash explains that, and nothing is given up unasked.

use std::collections::{HashMap, HashSet};

use super::Recovery;
use super::adopt::pack_of;
use super::scan::{LeftSegment, Leftovers, is_torn};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, PackLen, Record};
use crate::object::{Area, ObjectId, PackId};
use crate::vault::log::rename_segment;
use crate::vault::opening::accept;

/// What a crash left, of which it is known what counts. Nothing is changed yet.
pub struct Judged {
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
                Record::Pack(pack) => {
                    named.insert(pack.pack);
                }
                _ => {}
            }
        }
        named.retain(|id| !self.left.condemned.contains(id));
        named
    }
}

/// How much counts of the frames that were found.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// How many frames count: the first so many.
    end: usize,
    /// How many frames were durable, by what later ones say.
    durable: usize,
    /// Packs that a frame that counts condemns.
    condemned: HashSet<PackId>,
}

/// Judges frames, in their order, by what they say and by which packs each of them names in vain (`unreadable`).
///
/// A pack that a write or a sync failed in may be unreadable: its live data was copied before a frame condemned it. That
/// frame must count itself, though; where it does not, the copies may be missing, too.
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
    // Frames that count only if another one does.
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
    /// Looks at what there is; `None` where that is nothing. It can be read through the view from now on.
    pub fn judge_leftovers(&self) -> Result<Option<Judged>> {
        let found = self.view().store().leftovers()?;
        if found.is_empty() {
            return Ok(None);
        }
        // What was written under another id of this device is adopted as if it were written under this one.
        let mut left = self.sort_leftovers(&found, self.outbox.memory().former())?;
        for (id, file) in left.packs.iter().chain(&left.finished) {
            self.view().packs().pin(*id, file.clone())?;
        }
        let mut segments;
        (segments, left.unreached) = self.put_in_order(std::mem::take(&mut left.segments));
        accept(self.accept, self.check_reach(&left, &segments))?;
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

    /// How many frames count, of all segments together, and which packs they condemn. Nothing that was durable is given up
    /// unasked.
    fn check_durable(&self, segments: &[LeftSegment]) -> Result<(usize, HashSet<PackId>)> {
        let frames: Vec<&Frame> = segments.iter().flat_map(|s| &s.frames).collect();
        let verdict = judge(&frames, |frame| self.unreadable(frame))?;
        if verdict.end < verdict.durable {
            let (end, durable) = (verdict.end, verdict.durable);
            let what = format_args!(
                "frame {end} cannot be decrypted, although frames up to {durable} had been synced"
            );
            let e = Error::damaged(format_args!("new/{}", self.log.device()), what)
                .hint("the library was not closed cleanly, and what was durable is damaged; --accept-rollback gives it up");
            accept(self.accept, Err(e))?;
        }
        if verdict.end < frames.len() {
            let lost = frames.len() - verdict.end;
            log::warn!(
                "recovered after an unclean shutdown: the last {lost} changes were not durable yet and are discarded"
            );
        }
        Ok((verdict.end, verdict.condemned))
    }

    /// The packs in which something that a frame names is missing or cannot be decrypted. A store that cannot be read is
    /// an error: what it holds must not be given up.
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

    /// A pack that a frame calls finished must be there at that length; or it is collected since.
    fn check_pack_len(&self, finished: &PackLen) -> Result<()> {
        let len = match self.view().store().open(Area::Data, finished.pack.object()) {
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

    /// Judges frames of which those with these counters name the lost pack.
    fn verdict(frames: &[Frame], names_lost: &[u64]) -> Verdict {
        let frames: Vec<&Frame> = frames.iter().collect();
        let unreadable = |frame: &Frame| {
            let is_lost = names_lost.contains(&frame.counter);
            Ok(is_lost.then_some(LOST).into_iter().collect())
        };
        judge(&frames, unreadable).unwrap()
    }

    #[test]
    fn frames_count_up_to_the_first_that_names_lost_data() {
        let frames: Vec<Frame> = (0..5).map(|i| frame(i, i == 2, Vec::new())).collect();
        assert_eq!(verdict(&frames, &[]).end, 5);
        let cut = verdict(&frames, &[3]);
        assert_eq!((cut.end, cut.durable), (3, 2));
        let damaged = verdict(&frames, &[1]);
        assert!(damaged.end < damaged.durable);
    }

    #[test]
    fn a_lost_pack_that_a_counting_frame_condemns_is_no_loss() {
        let condemn = || vec![Record::Condemn(vec![LOST])];
        let mut frames: Vec<Frame> = (0..5).map(|i| frame(i, false, Vec::new())).collect();
        frames[3].records = condemn();
        let whole = verdict(&frames, &[1, 2]);
        assert_eq!((whole.end, whole.condemned.len()), (5, 1));
        // What comes after the condemnation names it in vain all the same.
        assert_eq!(verdict(&frames, &[1]).end, 5);
        // The condemnation itself does not count: neither do the frames that need it.
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
