//! Reads a tree from a store: the newest snapshot, then the segments that it does not cover.

use std::collections::{BTreeMap, HashMap};

use super::apply::Refusal;
use super::history::{self, History, Ignored, Opened, SegmentInfo, Survey, WAIT, name_of};
use super::merge::{self, Branch, Known};
use super::record::{BaseRef, Frame, Head, StampSegment};
use super::tree::Tree;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, SegmentId, SlotId};
use crate::store::Store;

/// Maximum number of files that are discarded, one by one, because a frame is damaged.
const DAMAGED_MAX: usize = 100;

/// The state of the published index.
pub struct Replayed {
    /// The tree.
    pub tree: Tree,
    /// The newest segment of each device in the tree; if a device wrote two histories, of each of them, the second
    /// under the id of its [`Writer`](history::Writer).
    pub heads: BTreeMap<DeviceId, Head>,
    /// The newest snapshot.
    pub base: Option<BaseRef>,
    /// Total length of the snapshots in use, in bytes.
    pub base_bytes: u64,
    /// The snapshots in use.
    pub bases: Vec<SegmentInfo>,
    /// Segments in use that no snapshot covers.
    pub uncovered: Vec<SegmentInfo>,
    /// Superseded segments and snapshots.
    pub covered: Vec<SegmentInfo>,
    /// Existing slots, as the newest segment lists them.
    pub slots: Vec<SlotId>,
    /// Slots that were removed.
    pub removed_slots: Vec<SlotId>,
    /// Every segment and snapshot that can be opened, with its writer's numbering.
    pub found: Vec<SegmentInfo>,
    /// Descriptions of what is missing.
    pub gaps: Vec<String>,
    /// Segments that are not applied, because something that their writers had applied is missing.
    pub waiting: Vec<Head>,
    /// The files of `index/` with their lengths, sorted.
    pub files: Vec<(SegmentId, u64)>,
    /// Those that are ignored.
    pub ignored: Vec<Ignored>,
    /// Devices that wrote two histories.
    pub forked: Vec<DeviceId>,
    /// Adopted leftovers, and the segments that replace them.
    pub adopted: Vec<(SegmentId, SegmentId)>,
    /// A segment with a feature that a writer must know and this version does not.
    pub unwritable: Option<SegmentId>,
    /// Segments that were concurrent with the snapshots in use and must be applied with them.
    needs: Vec<Head>,
}

/// Replays the published index on a tree that `empty` makes. With `unfounded`, segments that are based on something
/// missing are applied, too.
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
            // A new snapshot arrived, and a sync program removes the segments that it supersedes.
            Err((_, e)) if matches!(e.kind(), Kind::Missing) => {
                survey = Survey::new(store, master)?;
            }
            Err((id, e)) if matches!(e.kind(), Kind::Damaged(_)) => survey.discard(id, e),
            Err((_, e)) => return Err(e),
        }
    }
    let check = format_args!("more than {DAMAGED_MAX} files are damaged");
    Err(Error::damaged(Area::Index.name(), check).hint(WAIT))
}

/// Applies a history. The error has the file that caused it.
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
        apply_base(store, master, base, &mut out).map_err(|e| (base.info.id, e))?;
    }
    let all: Vec<&Opened> = history.segments.iter().collect();
    let known = known_by(&history.segments);
    let concurrent = last_concurrent(&all, &known, &out);
    let mut is_due = history.bases_agree;
    for block in merge::blocks(&known) {
        if is_due && concurrent.is_none_or(|last| last < block.start) {
            out.tree.remove_superseded();
            is_due = false;
        }
        let segments = &all[block.clone()];
        // A snapshot contains some effects of segments concurrent with it.
        let is_needed = |s: &&Opened| out.needs.iter().any(|need| needs(need, &s.info));
        out.tree.during_snapshot = segments.iter().any(is_needed);
        match segments {
            [one] if knows_all(&known[block.start], &out.heads) => {
                apply_segment(store, master, one, &mut out).map_err(|e| (one.info.id, e))?;
            }
            several => merge_segments(store, master, several, &known[block], &mut out)?,
        }
    }
    out.tree.during_snapshot = false;
    let missing = |need: &&Head| {
        out.heads
            .get(&need.device)
            .is_none_or(|have| have.number < need.number)
    };
    // Several snapshots may need the same one.
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

/// The index of the last segment that was concurrent with one of the snapshots. The writers of later ones knew all
/// snapshots, and had seen what one of them removed from another. To be called when only the snapshots are applied.
fn last_concurrent(
    all: &[&Opened],
    known: &[(DeviceId, u64, Known)],
    out: &Replayed,
) -> Option<usize> {
    let is_concurrent = |at: &usize| {
        let mut needs_it = out.needs.iter().map(|n| needs(n, &all[*at].info));
        needs_it.any(|is_needed| is_needed) || !knows_all(&known[*at], &out.heads)
    };
    (0..all.len()).rev().find(is_concurrent)
}

fn needs(need: &Head, segment: &SegmentInfo) -> bool {
    need.device == segment.device && need.number >= segment.number
}

/// Whether a segment's writer knew all that is applied. A snapshot of another device may cover more.
fn knows_all(
    (writer, _, known): &(DeviceId, u64, Known),
    heads: &BTreeMap<DeviceId, Head>,
) -> bool {
    let mut others = heads.iter().filter(|(device, _)| *device != writer);
    others.all(|(device, head)| known.get(device) >= Some(&head.number))
}

/// Writer, number and known segments of each segment. Heads refer to others by digest.
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
    all.map(|s| (s.writer.0, s.info.number, knows(&s.header.heads)))
        .collect()
}

/// Applies concurrent segments.
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
            segment: read.map_err(|e| (segment.info.id, e))?,
            writer: *writer,
            number: *number,
            known: known.clone(),
            is_in_base: out.needs.iter().any(|need| needs(need, &segment.info)),
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
    let table = base.header.stamp_segments.iter().flatten();
    let numbers: Vec<u32> = table.map(|s| out.tree.intern_segment(*s)).collect();
    let covers: Known = base
        .header
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
            segment: base.info.id,
            sha256: ending.sha256,
        });
        (out.slots, out.removed_slots) =
            (base.header.slots.clone(), base.header.removed_slots.clone());
    }
    out.base_bytes += base.info.cipher_len;
    out.bases.push(base.info);
    history::cover(&mut out.heads, base);
    out.tree.mark_covered(&covers);
    Ok(())
}

fn apply_segment(
    store: &dyn Store,
    master: &MasterKey,
    segment: &Opened,
    out: &mut Replayed,
) -> Result<()> {
    let apply = |(tree, in_tree): (&mut Tree, u32), frame: Frame| tree.apply_frame(in_tree, &frame);
    read_segment(store, master, segment, out, apply)?;
    Ok(())
}

/// Calls `each` with the frames of a segment and records that it is applied. Returns its number in the tree.
fn read_segment(
    store: &dyn Store,
    master: &MasterKey,
    segment: &Opened,
    out: &mut Replayed,
    mut each: impl FnMut((&mut Tree, u32), Frame) -> Result<(), Refusal>,
) -> Result<u32> {
    let SegmentInfo {
        id, device, number, ..
    } = segment.info;
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
        segment.header.slots.clone(),
        segment.header.removed_slots.clone(),
    );
    out.uncovered.push(segment.info);
    Ok(in_tree)
}
