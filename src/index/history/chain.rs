//! Derives a history from headers and digests. Nothing is read here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{History, LostBase, Opened, SegmentInfo, Writer, name_of};
use crate::index::record::{Head, StampSegment};
use crate::object::{DeviceId, SegmentId};

/// Maximum number of missing segments that are listed.
const NAMED_MAX: usize = 16;

type Digest = [u8; 32];

/// What the snapshots in use cover.
struct Cover<'a> {
    bases: Vec<&'a Opened>,
}

impl<'a> Cover<'a> {
    /// The snapshots to start from, newest first, and those that these supersede.
    ///
    /// A snapshot does not record removals. So a single one is enough only if the writer of every concurrent segment
    /// knew all that it covers. Otherwise earlier segments are applied again, from the fewest and oldest snapshots
    /// possible. If something is missing, all snapshots are used that cover something of their own.
    fn choose(opened: &'a [Opened]) -> (Self, Vec<&'a Opened>) {
        let mut bases: Vec<&Opened> = opened.iter().filter(|o| o.is_base()).collect();
        // Those that cover more segments first.
        bases.sort_by_key(|b| {
            let covers: u64 = b.header.heads.iter().map(|h| h.number).sum();
            Reverse((covers, b.info.id))
        });
        let segments = Segments::new(opened);
        let fits = |base: &&&Opened| {
            segments.missing(&bases, &[*base]).is_none() && segments.all_know(base)
        };
        let chosen = match bases.iter().find(fits) {
            Some(one) => Some(vec![*one]),
            None => segments.fewest_bases(&bases),
        };
        // If a device wrote two histories, each may have a snapshot: then all are needed.
        let is_one_history = |one: &&Opened| !bases.iter().any(|other| contradict(one, other));
        if let Some(used) = chosen.filter(|used| used.iter().all(is_one_history)) {
            let is_used = |base: &Opened| used.iter().any(|u| u.info.id == base.info.id);
            bases.retain(|base| !is_used(base) && used.iter().any(|by| is_superseded(base, by)));
            return (Self { bases: used }, bases);
        }
        let (mut used, mut superseded) = (Vec::new(), Vec::new());
        for base in bases {
            if used.iter().any(|by: &&Opened| is_superseded(base, by)) {
                superseded.push(base);
            } else {
                used.push(base);
            }
        }
        (Self { bases: used }, superseded)
    }

    /// Whether no two snapshots are of different histories of one device.
    fn agrees(&self) -> bool {
        let mut bases = self.bases.iter();
        bases.all(|one| !self.bases.iter().any(|other| contradict(one, other)))
    }

    fn heads(&self) -> impl Iterator<Item = &'a Head> {
        self.bases.iter().flat_map(|b| &b.header.heads)
    }

    /// The newest covered number of a device.
    fn number(&self, device: DeviceId) -> u64 {
        let own = self.heads().filter(|h| h.device == device);
        own.map(|h| h.number).max().unwrap_or(0)
    }

    /// Whether a snapshot has this exact segment as a head.
    fn is_head(&self, head: &Head) -> bool {
        self.heads().any(|h| h == head)
    }

    /// The covered segment with this number, if stamps of a snapshot refer to it.
    fn stamped(&self, device: DeviceId, number: u64) -> Option<SegmentId> {
        // The list also has the segment that was open during the snapshot, which a crash may have removed.
        let covering = self.bases.iter().filter(|b| number_in(b, device) >= number);
        let mut stamps = covering.flat_map(|b| stamps(b));
        let found = stamps.find(|s| s.device == device && s.number == number)?;
        Some(found.segment)
    }

    /// Whether a snapshot covers this head, as far as is known.
    fn includes(&self, head: &Head) -> bool {
        head.number < self.number(head.device) || self.is_head(head)
    }
}

/// The existing segments by device, sorted by number.
struct Segments<'a>(BTreeMap<DeviceId, Vec<&'a Opened>>);

impl<'a> Segments<'a> {
    fn new(opened: &'a [Opened]) -> Self {
        let mut devices: BTreeMap<DeviceId, Vec<&Opened>> = BTreeMap::new();
        for segment in opened.iter().filter(|o| !o.is_base()) {
            let device = segment.info.device;
            devices.entry(device).or_default().push(segment);
        }
        for segments in devices.values_mut() {
            segments.sort_by_key(|s| s.info.number);
        }
        Self(devices)
    }

    /// The first segment that is missing and not covered by `used`, although a later one of its device exists or
    /// another of `bases` covers it.
    fn missing(&self, bases: &[&Opened], used: &[&Opened]) -> Option<(DeviceId, u64)> {
        let covered = bases.iter().flat_map(|base| &base.header.heads);
        let covered = covered.map(|head| (head.device, head.number));
        let there = self
            .0
            .iter()
            .flat_map(|(device, segments)| segments.last().map(|s| (*device, s.info.number)));
        covered.chain(there).find_map(|(device, newest)| {
            let covered = used.iter().map(|base| number_in(base, device)).max();
            let mut number = covered.unwrap_or(0);
            for segment in self.0.get(&device).into_iter().flatten() {
                if segment.info.number == number + 1 {
                    number += 1;
                }
            }
            (number < newest).then_some((device, number + 1))
        })
    }

    /// The oldest snapshots with which nothing is missing; `bases` are sorted newest first.
    fn fewest_bases(&self, bases: &[&'a Opened]) -> Option<Vec<&'a Opened>> {
        let mut used = Vec::new();
        while let Some((device, number)) = self.missing(bases, &used) {
            let covers = |base: &&&Opened| number_in(base, device) >= number;
            used.push(*bases.iter().rev().find(covers)?);
        }
        Some(used)
    }

    /// Whether the writers of all segments that `base` does not cover knew all that it covers.
    fn all_know(&self, base: &Opened) -> bool {
        let uncovered = self.0.iter().flat_map(|(device, segments)| {
            let covered = number_in(base, *device);
            segments.iter().filter(move |s| s.info.number > covered)
        });
        let mut heads = uncovered.map(|s| (s.info.device, &s.header.heads));
        heads.all(|(device, known)| {
            let is_known = |h: &Head| {
                let mut same = known.iter().filter(|k| k.device == h.device);
                h.device == device || same.any(|k| k.number >= h.number)
            };
            base.header.heads.iter().all(is_known)
        })
    }
}

/// The newest number of a device that a snapshot covers.
fn number_in(base: &Opened, device: DeviceId) -> u64 {
    let own = base.header.heads.iter().filter(|h| h.device == device);
    own.map(|h| h.number).max().unwrap_or(0)
}

fn stamps(base: &Opened) -> impl Iterator<Item = &StampSegment> {
    base.header.stamp_segments.iter().flatten()
}

/// Whether another snapshot covers all that this one does, and both are of the same histories.
fn is_superseded(base: &Opened, by: &Opened) -> bool {
    let is_in = |h: &Head| {
        let mut same = by.header.heads.iter().filter(|o| o.device == h.device);
        same.any(|o| o.number > h.number || o == h)
    };
    base.header.heads.iter().all(is_in) && !contradict(base, by)
}

/// Whether two snapshots are of different histories of one device. Uncovered segments that were concurrent with a
/// snapshot do not count: a crash may have removed one, and another has its number now.
fn contradict(base: &Opened, other: &Opened) -> bool {
    let covered =
        |base| stamps(base).filter(move |s: &&StampSegment| s.number <= number_in(base, s.device));
    let key = |s: &StampSegment| (s.device, s.number);
    let known: HashMap<_, _> = covered(other).map(|s| (key(s), s.segment)).collect();
    let differs = |s: &StampSegment| known.get(&key(s)).is_some_and(|known| *known != s.segment);
    let is_other = |h: &Head| {
        let mut same = other.header.heads.iter().filter(|o| o.device == h.device);
        same.any(|o| o.number == h.number && o.sha256 != h.sha256)
    };
    base.header.heads.iter().any(is_other) || covered(base).any(differs)
}

/// The segments whose digests are needed: those to be applied, and all of a device that may have written two histories.
pub fn digests_wanted(opened: &[Opened]) -> HashSet<SegmentId> {
    let (cover, _) = Cover::choose(opened);
    let segments = || opened.iter().filter(|o| !o.is_base());
    let mut seen: HashSet<(DeviceId, u64)> = HashSet::new();
    let mut doubtful: BTreeSet<DeviceId> = BTreeSet::new();
    for segment in segments() {
        let SegmentInfo {
            id, device, number, ..
        } = segment.info;
        let is_other = |stamped: SegmentId| stamped != id;
        // The segment after a snapshot's head must be based on that head.
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
            let SegmentInfo { device, number, .. } = s.info;
            number > cover.number(device) || doubtful.contains(&device)
        })
        .map(|s| s.info.id)
        .collect()
}

/// See [`Survey::history`](super::Survey::history).
pub fn history(opened: &[Opened], lost_bases: &[LostBase], unfounded: bool) -> History {
    let (cover, superseded) = Cover::choose(opened);
    let mut out = History {
        adopted: opened
            .iter()
            .filter_map(|o| Some((o.header.adopts?, o.info.id)))
            .collect(),
        unwritable: opened.iter().find(|o| !o.writable).map(|o| o.info.id),
        covered: superseded.iter().map(|o| o.info).collect(),
        bases: cover.bases.iter().map(|b| (*b).clone()).collect(),
        bases_agree: cover.agrees(),
        ..History::default()
    };
    let mut queues: BTreeMap<Writer, Vec<Opened>> = BTreeMap::new();
    for (device, segments) in Segments::new(opened).0 {
        let (covered, left): (Vec<_>, Vec<_>) = split_covered(&cover, segments);
        out.covered.extend(covered.iter().map(|s| s.info));
        let written = assign_writers(device, cover.number(device), left);
        if written.iter().any(|s| s.writer != Writer(device)) {
            out.forked.push(device);
        }
        for segment in written {
            queues.entry(segment.writer).or_default().push(segment);
        }
    }
    let there: HashSet<Digest> = queues.values().flatten().filter_map(|s| s.sha256).collect();
    sort_causally(&cover, queues, &there, unfounded, &mut out);
    for lost in lost_bases {
        let is_there = |h: &Head| there.contains(&h.sha256) || cover.includes(h);
        let text = format!("base {}", lost.id);
        if !lost.heads.iter().all(is_there) && !out.gaps.contains(&text) {
            out.gaps.push(text);
        }
    }
    out
}

/// Segments that a snapshot supersedes, and the others: later ones, and those of another history.
fn split_covered<'a>(
    cover: &Cover<'_>,
    segments: Vec<&'a Opened>,
) -> (Vec<&'a Opened>, Vec<&'a Opened>) {
    // Newest first: whether a segment is covered is best known from those based on it.
    let mut segments = segments;
    segments.sort_by_key(|s| Reverse((s.info.number, s.info.id)));
    let mut below: HashMap<Digest, bool> = HashMap::new();
    let (mut covered, mut left) = (Vec::new(), Vec::new());
    for segment in segments {
        let is_covered = is_covered(cover, segment, &below);
        if let Some(parent) = segment.parent() {
            *below.entry(parent).or_default() |= is_covered;
        }
        if is_covered {
            covered.push(segment);
        } else {
            left.push(segment);
        }
    }
    (covered, left)
}

/// `below` has, by the digest of a parent, whether any segment based on it is covered.
fn is_covered(cover: &Cover<'_>, segment: &Opened, below: &HashMap<Digest, bool>) -> bool {
    let SegmentInfo {
        id, device, number, ..
    } = segment.info;
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
        // If in doubt, removed files reappear rather than that data is lost.
        (Some(false), None) => false,
        // What was based on it is covered and was removed.
        (None, None) => true,
    }
}

/// Separates the histories of a device: each segment refers to its predecessor by digest. Of several segments based on
/// one, the first continues its writer.
fn assign_writers(device: DeviceId, covered: u64, segments: Vec<&Opened>) -> Vec<Opened> {
    let mut segments: Vec<Opened> = segments.into_iter().cloned().collect();
    segments.sort_by_key(|s| (s.info.number, s.sha256));
    // The newest number of each writer so far.
    let mut ends: BTreeMap<Writer, u64> = BTreeMap::from([(Writer(device), covered)]);
    let mut tips: HashMap<Digest, Writer> = HashMap::new();
    for segment in &mut segments {
        let number = segment.info.number;
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

/// Sorts segments so that each follows what its writer had applied.
fn sort_causally(
    cover: &Cover<'_>,
    mut queues: BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    unfounded: bool,
    out: &mut History,
) {
    // Reversed, so that the next one of each writer is popped from the end.
    for queue in queues.values_mut() {
        queue.sort_by_key(|s| Reverse(s.info.number));
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
        device: segment.info.device,
        number: segment.info.number,
        sha256: segment.sha256.unwrap_or_default(),
    }
}

/// The writer of the next segment, and whether all that it is based on is present; `None` if no segment is left.
fn next_writer(
    cover: &Cover<'_>,
    queues: &BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    applied: &HashSet<Digest>,
) -> Option<(Writer, bool)> {
    let is_known = |h: &Head| {
        if there.contains(&h.sha256) {
            applied.contains(&h.sha256)
        } else {
            cover.includes(h)
        }
    };
    let is_founded = |s: &Opened| {
        let is_first = s.info.number == 1 || s.parent().is_some();
        is_first && s.header.heads.iter().all(is_known)
    };
    let ready = queues
        .iter()
        .find(|(_, q)| q.last().is_some_and(is_founded));
    let (writer, _) = ready.or_else(|| queues.iter().next())?;
    Some((*writer, ready.is_some()))
}

/// What the remaining segments refer to and is missing.
fn gaps(
    cover: &Cover<'_>,
    queues: &BTreeMap<Writer, Vec<Opened>>,
    there: &HashSet<Digest>,
    applied: &[Opened],
) -> Vec<String> {
    let left = || queues.values().flatten();
    let mut missing: BTreeMap<(DeviceId, u64), String> = BTreeMap::new();
    for segment in left() {
        for head in &segment.header.heads {
            if there.contains(&head.sha256) || cover.includes(head) {
                continue;
            }
            let Head { device, number, .. } = *head;
            let is_other = |o: &Opened| (o.info.device, o.info.number) == (device, number);
            let mut text = name_of(head);
            if left().chain(applied).any(is_other) || number == cover.number(device) {
                text += &format!(" as it was when segment {} was written", segment.info.id);
            }
            missing.entry((device, number)).or_insert(text);
        }
        let SegmentInfo { device, number, .. } = segment.info;
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
    // A newer snapshot may have replaced it; if there is none, the segments that it covered are lost with it.
    let bases: BTreeSet<SegmentId> = left()
        .filter_map(|s| s.header.newest_base)
        .map(|base| base.segment)
        .collect();
    if cover.bases.is_empty() {
        gaps.extend(bases.iter().map(|id| format!("base {id}")));
    }
    gaps
}
