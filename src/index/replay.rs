//! From a store to a tree: the newest base, then the segments that it does not cover.

use std::collections::{BTreeMap, HashMap};

use super::apply::Refusal;
use super::history::{self, History, Ignored, Opened, Published, Survey, WAIT, name_of};
use super::merge::{self, Branch, Known};
use super::record::{BaseRef, Frame, Head, StampSegment};
use super::tree::Tree;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, SegmentId, SlotId};
use crate::store::Store;

/// So many files of which the ends open and something between does not are taken out, one by one.
const DAMAGED_MAX: usize = 100;

/// What the published index says.
pub struct Replayed {
    /// The tree.
    pub tree: Tree,
    /// The newest segment of each device that is in the tree; of one that wrote two histories, of each of these, the
    /// second under the id of its [`Writer`](history::Writer).
    pub heads: BTreeMap<DeviceId, Head>,
    /// The newest base.
    pub base: Option<BaseRef>,
    /// Bytes of the bases in use.
    pub base_bytes: u64,
    /// The bases in use.
    pub bases: Vec<Published>,
    /// Segments in use that no base covers.
    pub uncovered: Vec<Published>,
    /// Segments and bases that the newest base makes superfluous.
    pub covered: Vec<Published>,
    /// Slots as the newest segment lists them, and those that were removed.
    pub slots: Vec<SlotId>,
    /// Slots that were removed.
    pub removed_slots: Vec<SlotId>,
    /// Every segment and base that opens, as its writer numbered it.
    pub found: Vec<Published>,
    /// What should be there and is not, in words.
    pub gaps: Vec<String>,
    /// Segments that are there and not in the tree, as something that their writers had applied is missing.
    pub waiting: Vec<Head>,
    /// The files of `index/` and their lengths, in order.
    pub files: Vec<(SegmentId, u64)>,
    /// Those that do not count.
    pub ignored: Vec<Ignored>,
    /// Devices that wrote two histories.
    pub forked: Vec<DeviceId>,
    /// Leftovers that were adopted, and the segments that are there in their stead.
    pub adopted: Vec<(SegmentId, SegmentId)>,
    /// A segment with a feature without which nobody may write to the library.
    pub unwritable: Option<SegmentId>,
    /// Segments that the bases in use must not be without.
    needs: Vec<Head>,
}

/// Replays the published index on a tree that `empty` makes. With `unfounded`, segments are applied, too, that were made
/// on top of what is missing.
pub fn replay(
    store: &dyn Store,
    master: &MasterKey,
    unfounded: bool,
    empty: impl Fn() -> Tree,
) -> Result<Replayed> {
    let mut survey = Survey::new(store, master)?;
    for _ in 0..DAMAGED_MAX {
        let history = survey.history(unfounded);
        match apply(store, master, empty(), history) {
            Ok(replayed) => {
                let found = survey.found();
                let (files, ignored) = survey.into_files();
                return Ok(Replayed {
                    found,
                    files,
                    ignored,
                    ..replayed
                });
            }
            // A base came, and a sync takes away what it makes superfluous.
            Err((_, e)) if matches!(e.kind(), Kind::Missing) => {
                survey = Survey::new(store, master)?;
            }
            Err((id, e)) if matches!(e.kind(), Kind::Damaged(_)) => survey.discard(id, e),
            Err((_, e)) => return Err(e),
        }
    }
    let check = format_args!("more than {DAMAGED_MAX} files do not open");
    Err(Error::damaged(Area::Index.name(), check).hint(WAIT))
}

/// Applies a history; the error says of which file it is.
fn apply(
    store: &dyn Store,
    master: &MasterKey,
    tree: Tree,
    history: History,
) -> Result<Replayed, (SegmentId, Error)> {
    let mut out = Replayed {
        tree,
        heads: BTreeMap::new(),
        base: None,
        base_bytes: 0,
        bases: Vec::new(),
        uncovered: Vec::new(),
        covered: history.covered,
        slots: Vec::new(),
        removed_slots: Vec::new(),
        found: Vec::new(),
        gaps: history.gaps,
        waiting: history.waiting,
        files: Vec::new(),
        ignored: Vec::new(),
        forked: history.forked,
        adopted: history.adopted,
        unwritable: history.unwritable,
        needs: Vec::new(),
    };
    if history.bases.len() > 1 {
        out.tree.expect_conflicts();
    }
    for base in &history.bases {
        apply_base(store, master, base, &mut out).map_err(|e| (base.published.id, e))?;
    }
    let all: Vec<&Opened> = history.segments.iter().collect();
    let known = known_by(&history.segments);
    let beside = last_beside_bases(&all, &known, &out);
    let mut is_due = history.bases_agree;
    for block in merge::blocks(&known) {
        if is_due && beside.is_none_or(|last| last < block.start) {
            out.tree.remove_superseded();
            is_due = false;
        }
        let segments = &all[block.clone()];
        // What a base was written beside, it knows in part.
        let is_needed = |s: &&Opened| out.needs.iter().any(|need| needs(need, &s.published));
        out.tree.beside_base = segments.iter().any(is_needed);
        match segments {
            [one] if knows_all(&known[block.start], &out.heads) => {
                apply_segment(store, master, one, &mut out).map_err(|e| (one.published.id, e))?;
            }
            several => merge_segments(store, master, several, &known[block], &mut out)?,
        }
    }
    out.tree.beside_base = false;
    let missing = |need: &&Head| {
        out.heads
            .get(&need.device)
            .is_none_or(|have| have.number < need.number)
    };
    // Several may need the same one.
    for gap in out.needs.iter().filter(missing).map(name_of) {
        if !out.gaps.contains(&gap) {
            out.gaps.push(gap);
        }
    }
    if is_due {
        out.tree.remove_superseded();
    }
    out.tree.drop_unlinked();
    Ok(out)
}

/// The last segment that was written beside one of the bases. Who wrote what comes behind it knew what the bases have, and
/// saw what one of them removed from another go. When the bases are applied, and nothing else.
fn last_beside_bases(
    all: &[&Opened],
    known: &[(DeviceId, u64, Known)],
    out: &Replayed,
) -> Option<usize> {
    let is_beside = |at: &usize| {
        let mut needs_it = out.needs.iter().map(|n| needs(n, &all[*at].published));
        needs_it.any(|is_needed| is_needed) || !knows_all(&known[*at], &out.heads)
    };
    (0..all.len()).rev().find(is_beside)
}

fn needs(need: &Head, segment: &Published) -> bool {
    need.device == segment.device && need.number >= segment.number
}

/// Whether a segment's writer knew all that is applied: a base of another device may be ahead of it.
fn knows_all(
    (writer, _, known): &(DeviceId, u64, Known),
    heads: &BTreeMap<DeviceId, Head>,
) -> bool {
    let mut others = heads.iter().filter(|(device, _)| *device != writer);
    others.all(|(device, head)| known.get(device) >= Some(&head.number))
}

/// Writer, number and knowledge of each segment; heads name others by their digests.
fn known_by(all: &[Opened]) -> Vec<(DeviceId, u64, Known)> {
    let by_digest: HashMap<[u8; 32], &Opened> =
        all.iter().filter_map(|s| Some((s.sha256?, s))).collect();
    let knows = |heads: &[Head]| {
        let mut known = Known::new();
        for head in heads {
            let named = by_digest.get(&head.sha256);
            let writer = named.map_or(head.device, |s| s.writer.0);
            let newest = known.entry(writer).or_default();
            *newest = head.number.max(*newest);
        }
        known
    };
    let all = all.iter();
    all.map(|s| (s.writer.0, s.published.number, knows(&s.opening.heads)))
        .collect()
}

/// Applies segments that were written beside each other.
fn merge_segments(
    store: &dyn Store,
    master: &MasterKey,
    segments: &[&Opened],
    known: &[(DeviceId, u64, Known)],
    out: &mut Replayed,
) -> Result<(), (SegmentId, Error)> {
    let mut branches = Vec::with_capacity(segments.len());
    for (segment, (writer, number, known)) in segments.iter().zip(known) {
        let mut frames = Vec::new();
        let read = read_segment(store, master, segment, out, |_, frame| {
            frames.push(frame);
            Ok(())
        });
        branches.push(Branch {
            segment: read.map_err(|e| (segment.published.id, e))?,
            writer: *writer,
            number: *number,
            known: known.clone(),
            is_in_base: out.needs.iter().any(|need| needs(need, &segment.published)),
            frames,
        });
    }
    out.tree.merge(&branches).map_err(|(segment, why)| {
        let id = out.tree.segment_id(segment);
        (id, Error::damaged(format_args!("index/{id}"), why))
    })
}

fn apply_base(
    store: &dyn Store,
    master: &MasterKey,
    base: &Opened,
    out: &mut Replayed,
) -> Result<()> {
    let reader = base.reader(store, master)?;
    let table = base.opening.stamp_segments.iter().flatten();
    let numbers: Vec<u32> = table.map(|s| out.tree.intern_segment(*s)).collect();
    let covers: Known = base
        .opening
        .heads
        .iter()
        .map(|h| (h.device, h.number))
        .collect();
    out.tree.begin_base(covers.clone());
    let name = reader.name().to_owned();
    let ending = reader.frames(|frame| {
        for record in &frame.records {
            out.tree
                .apply_base(record, &numbers, &covers)
                .map_err(|why| Error::damaged(&name, why))?;
        }
        Ok(())
    })?;
    out.needs
        .extend(ending.closing.into_iter().flat_map(|c| c.needs));
    if out.base.is_none() {
        out.base = Some(BaseRef {
            segment: base.published.id,
            sha256: ending.sha256,
        });
        (out.slots, out.removed_slots) = (
            base.opening.slots.clone(),
            base.opening.removed_slots.clone(),
        );
    }
    out.base_bytes += base.published.cipher_len;
    out.bases.push(base.published);
    history::cover(&mut out.heads, base);
    out.tree.note_covered(&covers);
    Ok(())
}

fn apply_segment(
    store: &dyn Store,
    master: &MasterKey,
    segment: &Opened,
    out: &mut Replayed,
) -> Result<()> {
    let apply = |(tree, in_tree): (&mut Tree, u32), frame: Frame| tree.apply_frame(in_tree, &frame);
    read_segment(store, master, segment, out, apply).map(drop)
}

/// Hands the frames of a segment to `each`, and notes that it is applied. Answers its number in the tree.
fn read_segment(
    store: &dyn Store,
    master: &MasterKey,
    segment: &Opened,
    out: &mut Replayed,
    mut each: impl FnMut((&mut Tree, u32), Frame) -> Result<(), Refusal>,
) -> Result<u32> {
    let Published {
        id, device, number, ..
    } = segment.published;
    let reader = segment.reader(store, master)?;
    let in_tree = out.tree.intern_segment(StampSegment {
        segment: id,
        device,
        number,
    });
    let name = reader.name().to_owned();
    let ending = reader.frames(|frame| {
        each((&mut out.tree, in_tree), frame).map_err(|why| Error::damaged(&name, why))
    })?;
    history::advance(&mut out.heads, segment, ending.sha256);
    (out.slots, out.removed_slots) = (
        segment.opening.slots.clone(),
        segment.opening.removed_slots.clone(),
    );
    out.uncovered.push(segment.published);
    Ok(in_tree)
}
