//! What follows from the openings and digests of the files that are there. Nothing is read here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{History, LostBase, Opened, Published, Writer, name_of};
use crate::index::record::{Head, StampSegment};
use crate::object::{DeviceId, SegmentId};

/// More missing segments than these are not named.
const NAMED_MAX: usize = 16;

type Digest = [u8; 32];

/// What the bases in use cover.
struct Cover<'a> {
    bases: Vec<&'a Opened>,
}

impl<'a> Cover<'a> {
    /// The bases to begin with, newest first, and those that these make superfluous.
    ///
    /// A base says nothing of what is gone. So it is the beginning only where whoever wrote a segment beside it knew all
    /// that is in it; where one did not, what comes before is applied again, from as few and old bases as what is there
    /// allows. Where something is missing, all bases count that have something of their own.
    fn choose(opened: &'a [Opened]) -> (Self, Vec<&'a Opened>) {
        let mut bases: Vec<&Opened> = opened.iter().filter(|o| o.is_base()).collect();
        // What covers more segments comes earlier.
        bases.sort_by_key(|b| {
            let covers: u64 = b.opening.heads.iter().map(|h| h.number).sum();
            Reverse((covers, b.published.id))
        });
        let segments = Segments::new(opened);
        let fits = |base: &&&Opened| {
            segments.missing(&bases, &[*base]).is_none() && segments.all_know(base)
        };
        let chosen = match bases.iter().find(fits) {
            Some(one) => Some(vec![*one]),
            None => segments.fewest_bases(&bases),
        };
        // Of a device that wrote two histories each may have a base: then all are needed.
        let is_one_history = |one: &&Opened| !bases.iter().any(|other| contradict(one, other));
        if let Some(used) = chosen.filter(|used| used.iter().all(is_one_history)) {
            let is_used = |base: &Opened| used.iter().any(|u| u.published.id == base.published.id);
            bases.retain(|base| !is_used(base) && used.iter().any(|by| is_superfluous(base, by)));
            return (Self { bases: used }, bases);
        }
        let (mut used, mut superfluous) = (Vec::new(), Vec::new());
        for base in bases {
            match used.iter().any(|by: &&Opened| is_superfluous(base, by)) {
                true => superfluous.push(base),
                false => used.push(base),
            }
        }
        (Self { bases: used }, superfluous)
    }

    /// Whether the bases are all of one history of each device.
    fn agrees(&self) -> bool {
        let mut bases = self.bases.iter();
        bases.all(|one| !self.bases.iter().any(|other| contradict(one, other)))
    }

    fn heads(&self) -> impl Iterator<Item = &'a Head> {
        self.bases.iter().flat_map(|b| &b.opening.heads)
    }

    /// The newest number of a device that is covered.
    fn number(&self, device: DeviceId) -> u64 {
        let own = self.heads().filter(|h| h.device == device);
        own.map(|h| h.number).max().unwrap_or(0)
    }

    /// Whether a base has this very segment as a head of its own.
    fn is_head(&self, head: &Head) -> bool {
        self.heads().any(|h| h == head)
    }

    /// The segment that a base was made of, where its stamps name it.
    fn stamped(&self, device: DeviceId, number: u64) -> Option<SegmentId> {
        // The segment that was open beside a base is in its list, too: a crash may have taken it.
        let covering = self.bases.iter().filter(|b| number_in(b, device) >= number);
        let mut stamps = covering.flat_map(|b| stamps(b));
        let found = stamps.find(|s| s.device == device && s.number == number)?;
        Some(found.segment)
    }

    /// Whether what a head names is in a base, as far as can be told.
    fn includes(&self, head: &Head) -> bool {
        head.number < self.number(head.device) || self.is_head(head)
    }
}

/// The segments that are there, by device.
struct Segments<'a>(BTreeMap<DeviceId, Vec<&'a Opened>>);

impl<'a> Segments<'a> {
    fn new(opened: &'a [Opened]) -> Self {
        let mut devices: BTreeMap<DeviceId, Vec<&Opened>> = BTreeMap::new();
        for segment in opened.iter().filter(|o| !o.is_base()) {
            let device = segment.published.device;
            devices.entry(device).or_default().push(segment);
        }
        for segments in devices.values_mut() {
            segments.sort_by_key(|s| s.published.number);
        }
        Self(devices)
    }

    /// The first segment that is neither there nor in one of the bases `used`, while a later one of its device is there,
    /// or another one of `bases` covers it.
    fn missing(&self, bases: &[&Opened], used: &[&Opened]) -> Option<(DeviceId, u64)> {
        let covered = bases.iter().flat_map(|base| &base.opening.heads);
        let covered = covered.map(|head| (head.device, head.number));
        let there = self
            .0
            .iter()
            .flat_map(|(device, segments)| segments.last().map(|s| (*device, s.published.number)));
        covered.chain(there).find_map(|(device, newest)| {
            let covered = used.iter().map(|base| number_in(base, device)).max();
            let mut number = covered.unwrap_or(0);
            for segment in self.0.get(&device).into_iter().flatten() {
                if segment.published.number == number + 1 {
                    number += 1;
                }
            }
            (number < newest).then_some((device, number + 1))
        })
    }

    /// Bases, each as old as may be, with which nothing is missing; `bases` come newest first.
    fn fewest_bases(&self, bases: &[&'a Opened]) -> Option<Vec<&'a Opened>> {
        let mut used = Vec::new();
        while let Some((device, number)) = self.missing(bases, &used) {
            let covers = |base: &&&Opened| number_in(base, device) >= number;
            used.push(*bases.iter().rev().find(covers)?);
        }
        Some(used)
    }

    /// Whether who wrote what `base` does not cover knew all that it covers.
    fn all_know(&self, base: &Opened) -> bool {
        let uncovered = self.0.iter().flat_map(|(device, segments)| {
            let covered = number_in(base, *device);
            segments
                .iter()
                .filter(move |s| s.published.number > covered)
        });
        let mut heads = uncovered.map(|s| (s.published.device, &s.opening.heads));
        heads.all(|(device, known)| {
            let is_known = |h: &Head| {
                let mut same = known.iter().filter(|k| k.device == h.device);
                h.device == device || same.any(|k| k.number >= h.number)
            };
            base.opening.heads.iter().all(is_known)
        })
    }
}

/// The newest number of a device that a base covers.
fn number_in(base: &Opened, device: DeviceId) -> u64 {
    let own = base.opening.heads.iter().filter(|h| h.device == device);
    own.map(|h| h.number).max().unwrap_or(0)
}

fn stamps(base: &Opened) -> impl Iterator<Item = &StampSegment> {
    base.opening.stamp_segments.iter().flatten()
}

/// Whether all that a base covers is in another one. One that was made of another history of the same device is not.
fn is_superfluous(base: &Opened, by: &Opened) -> bool {
    let is_in = |h: &Head| {
        let mut same = by.opening.heads.iter().filter(|o| o.device == h.device);
        same.any(|o| o.number > h.number || o == h)
    };
    base.opening.heads.iter().all(is_in) && !contradict(base, by)
}

/// Whether two bases were made of two histories of one device. A segment that a base was written beside, and that it
/// does not cover, says nothing: a crash may have taken it, and another one has its number.
fn contradict(base: &Opened, other: &Opened) -> bool {
    let covered =
        |base| stamps(base).filter(move |s: &&StampSegment| s.number <= number_in(base, s.device));
    let key = |s: &StampSegment| (s.device, s.number);
    let known: HashMap<_, _> = covered(other).map(|s| (key(s), s.segment)).collect();
    let differs = |s: &StampSegment| known.get(&key(s)).is_some_and(|known| *known != s.segment);
    let is_other = |h: &Head| {
        let mut same = other.opening.heads.iter().filter(|o| o.device == h.device);
        same.any(|o| o.number == h.number && o.sha256 != h.sha256)
    };
    base.opening.heads.iter().any(is_other) || covered(base).any(differs)
}

/// The segments whose digests have to be known: those that are to be applied, and all of a device that may have written
/// two histories.
pub fn digests_wanted(opened: &[Opened]) -> HashSet<SegmentId> {
    let (cover, _) = Cover::choose(opened);
    let segments = || opened.iter().filter(|o| !o.is_base());
    let mut seen: HashSet<(DeviceId, u64)> = HashSet::new();
    let mut doubtful: BTreeSet<DeviceId> = BTreeSet::new();
    for segment in segments() {
        let Published {
            id, device, number, ..
        } = segment.published;
        let is_other = |stamped: SegmentId| stamped != id;
        // What was made right behind a base was made on top of it.
        let is_behind = number == cover.number(device) + 1 && number > 1;
        let is_on_top = segment.parent().is_some_and(|sha256| {
            cover.is_head(&Head {
                device,
                number: number - 1,
                sha256,
            })
        });
        if !seen.insert((device, number))
            || cover.stamped(device, number).is_some_and(is_other)
            || number == cover.number(device)
            || (is_behind && !is_on_top)
        {
            doubtful.insert(device);
        }
    }
    segments()
        .filter(|s| {
            let Published { device, number, .. } = s.published;
            number > cover.number(device) || doubtful.contains(&device)
        })
        .map(|s| s.published.id)
        .collect()
}

/// See [`Survey::history`](super::Survey::history).
pub fn history(opened: &[Opened], lost_bases: &[LostBase], unfounded: bool) -> History {
    let (cover, superfluous) = Cover::choose(opened);
    let mut out = History {
        adopted: opened
            .iter()
            .filter_map(|o| Some((o.opening.adopts?, o.published.id)))
            .collect(),
        unwritable: opened.iter().find(|o| !o.writable).map(|o| o.published.id),
        covered: superfluous.iter().map(|o| o.published).collect(),
        bases: cover.bases.iter().map(|b| (*b).clone()).collect(),
        bases_agree: cover.agrees(),
        ..History::default()
    };
    let mut devices: BTreeMap<DeviceId, Vec<&Opened>> = BTreeMap::new();
    for segment in opened.iter().filter(|o| !o.is_base()) {
        let device = segment.published.device;
        devices.entry(device).or_default().push(segment);
    }
    let mut queues: BTreeMap<Writer, Vec<Opened>> = BTreeMap::new();
    for (device, segments) in devices {
        let (covered, left): (Vec<_>, Vec<_>) = split_covered(&cover, segments);
        out.covered.extend(covered.iter().map(|s| s.published));
        let written = assign_writers(device, cover.number(device), left);
        if written.iter().any(|s| s.writer != Writer(device)) {
            out.forked.push(device);
        }
        for segment in written {
            queues.entry(segment.writer).or_default().push(segment);
        }
    }
    let there: HashSet<Digest> = queues.values().flatten().filter_map(|s| s.sha256).collect();
    put_in_order(&cover, queues, &there, unfounded, &mut out);
    for lost in lost_bases {
        let is_there = |h: &Head| there.contains(&h.sha256) || cover.includes(h);
        let text = format!("base {}", lost.id);
        if !lost.heads.iter().all(is_there) && !out.gaps.contains(&text) {
            out.gaps.push(text);
        }
    }
    out
}

/// Those that a base makes superfluous, and those that it does not: later ones, and those of another history.
fn split_covered<'a>(
    cover: &Cover<'_>,
    segments: Vec<&'a Opened>,
) -> (Vec<&'a Opened>, Vec<&'a Opened>) {
    // The newest first: whether one is covered, those on top of it tell best.
    let mut segments = segments;
    segments.sort_by_key(|s| Reverse((s.published.number, s.published.id)));
    let mut below: HashMap<Digest, bool> = HashMap::new();
    let (mut covered, mut left) = (Vec::new(), Vec::new());
    for segment in segments {
        let is_covered = is_covered(cover, segment, &below);
        if let Some(parent) = segment.parent() {
            *below.entry(parent).or_default() |= is_covered;
        }
        match is_covered {
            true => covered.push(segment),
            false => left.push(segment),
        }
    }
    (covered, left)
}

/// `below` says of digests whether a covered segment was made on top of them, where any was.
fn is_covered(cover: &Cover<'_>, segment: &Opened, below: &HashMap<Digest, bool>) -> bool {
    let Published {
        id, device, number, ..
    } = segment.published;
    let newest = cover.number(device);
    let Some(sha256) = segment.sha256 else {
        return number <= newest;
    };
    let head = Head {
        device,
        number,
        sha256,
    };
    if number > newest || cover.is_head(&head) {
        return number <= newest;
    }
    if number == newest {
        return false;
    }
    match (below.get(&sha256), cover.stamped(device, number)) {
        (Some(true), _) => true,
        (_, Some(stamped)) => stamped == id,
        // Rather what was removed comes back than that anything is lost.
        (Some(false), None) => false,
        // What was made on top of it is in the base, and removed.
        (None, None) => true,
    }
}

/// Tells the histories of a device apart: each segment names the one before it by its digest. The first of several that
/// were made on top of one goes on with its writer.
fn assign_writers(device: DeviceId, covered: u64, segments: Vec<&Opened>) -> Vec<Opened> {
    let mut segments: Vec<Opened> = segments.into_iter().cloned().collect();
    segments.sort_by_key(|s| (s.published.number, s.sha256));
    // The newest number of each writer so far, and whose it was.
    let mut ends: BTreeMap<Writer, u64> = BTreeMap::from([(Writer(device), covered)]);
    let mut tips: HashMap<Digest, Writer> = HashMap::new();
    for segment in &mut segments {
        let number = segment.published.number;
        let goes_on = segment.parent().and_then(|parent| tips.remove(&parent));
        let fits = |writer: &Writer| ends.get(writer).is_none_or(|end| *end < number);
        let writer = goes_on.or_else(|| Some(Writer(device)).filter(fits));
        let sha256 = segment.sha256.unwrap_or_default();
        segment.writer = writer.unwrap_or_else(|| Writer::of_branch(device, &sha256));
        ends.insert(segment.writer, number);
        tips.insert(sha256, segment.writer);
    }
    segments
}

/// What a segment's writer had applied comes before it.
fn put_in_order(
    cover: &Cover<'_>,
    mut queues: BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    unfounded: bool,
    out: &mut History,
) {
    // The next of each writer is the last.
    for queue in queues.values_mut() {
        queue.sort_by_key(|s| Reverse(s.published.number));
    }
    let mut applied: HashSet<Digest> = HashSet::new();
    while let Some((writer, is_founded)) = next_writer(cover, &queues, there, &applied) {
        if !is_founded && out.gaps.is_empty() {
            out.gaps = gaps(cover, &queues, there, &out.segments);
            if !unfounded {
                break;
            }
        }
        let Some(next) = queues.get_mut(&writer).and_then(Vec::pop) else {
            break;
        };
        queues.retain(|_, queue| !queue.is_empty());
        out.unfounded += usize::from(!out.gaps.is_empty());
        applied.extend(next.sha256);
        out.segments.push(next);
    }
    let waiting = queues.into_values().flatten();
    out.waiting = waiting.map(head).collect();
}

fn head(segment: Opened) -> Head {
    Head {
        device: segment.published.device,
        number: segment.published.number,
        sha256: segment.sha256.unwrap_or_default(),
    }
}

/// Whose segment comes next, and whether all is there that it was made on top of; none where none is left.
fn next_writer(
    cover: &Cover<'_>,
    queues: &BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    applied: &HashSet<Digest>,
) -> Option<(Writer, bool)> {
    let is_known = |h: &Head| match there.contains(&h.sha256) {
        true => applied.contains(&h.sha256),
        false => cover.includes(h),
    };
    let is_founded = |s: &Opened| {
        let is_first = s.published.number == 1 || s.parent().is_some();
        is_first && s.opening.heads.iter().all(is_known)
    };
    let ready = queues
        .iter()
        .find(|(_, q)| q.last().is_some_and(is_founded));
    let (writer, _) = ready.or_else(|| queues.iter().next())?;
    Some((*writer, ready.is_some()))
}

/// What those that are left name, and is not there.
fn gaps(
    cover: &Cover<'_>,
    queues: &BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    applied: &[Opened],
) -> Vec<String> {
    let left = || queues.values().flatten();
    let mut missing: BTreeMap<(DeviceId, u64), String> = BTreeMap::new();
    for segment in left() {
        for head in &segment.opening.heads {
            if there.contains(&head.sha256) || cover.includes(head) {
                continue;
            }
            let Head { device, number, .. } = *head;
            let is_other =
                |o: &Opened| (o.published.device, o.published.number) == (device, number);
            let text = match left().chain(applied).any(is_other) || number == cover.number(device) {
                true => format!(
                    "{} as it was when segment {} was written",
                    name_of(head),
                    segment.published.id
                ),
                false => name_of(head),
            };
            missing.entry((device, number)).or_insert(text);
        }
        let Published { device, number, .. } = segment.published;
        if number > 1 && segment.parent().is_none() {
            let text = format!("segment {} of device {device}", number - 1);
            missing.entry((device, number - 1)).or_insert(text);
        }
    }
    let mut gaps: Vec<String> = missing.into_values().collect();
    let surplus = gaps.len().saturating_sub(NAMED_MAX);
    gaps.truncate(NAMED_MAX);
    if surplus > 0 {
        gaps.push(format!("{surplus} more"));
    }
    // A newer base may have taken its place; where none has, its segments are gone with it.
    let bases: BTreeSet<SegmentId> = left()
        .filter_map(|s| s.opening.newest_base)
        .map(|base| base.segment)
        .collect();
    if cover.bases.is_empty() {
        gaps.extend(bases.iter().map(|id| format!("base {id}")));
    }
    gaps
}
