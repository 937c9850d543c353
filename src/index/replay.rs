//! From a store to a tree: the newest base, then the segments that it does not cover.

use std::collections::BTreeMap;

use super::apply::Refusal;
use super::merge::{self, Branch};
use super::record::{BaseRef, Opening, SegmentId, StampSegment};
use super::segment::{Extent, SegmentReader};
use super::tree::Tree;
use crate::crypto::{MasterKey, SLOT_LEN, Slot};
use crate::error::{Error, Kind, Result};
use crate::state::Head;
use crate::store::{Area, DeviceId, ObjectId, Store};

/// A published segment that was read, or that a base makes superfluous.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The segment.
    pub id: SegmentId,
    /// Its writer.
    pub device: DeviceId,
    /// Its number; 0 for a base.
    pub number: u64,
    /// All its bytes.
    pub cipher_len: u64,
}

/// What the published index says.
pub struct Replayed {
    /// The tree.
    pub tree: Tree,
    /// The newest segment of each device that is in the tree.
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
    pub slots: Vec<ObjectId>,
    /// Slots that were removed.
    pub removed_slots: Vec<ObjectId>,
    /// What should be there and is not, in words.
    pub gaps: Vec<String>,
    /// Leftovers that were adopted, and the segments that are there in their stead.
    pub adopted: Vec<(SegmentId, SegmentId)>,
    /// A segment with a feature without which nobody may write to the library.
    pub unwritable: Option<SegmentId>,
    /// Segments that the bases in use must not be without.
    needs: Vec<Head>,
}

struct Found {
    published: Published,
    opening: Opening,
    writable: bool,
}

/// Replays the published index on `tree`, which is empty.
pub fn replay(store: &dyn Store, master: &MasterKey, tree: Tree) -> Result<Replayed> {
    let found = openings(store, master)?;
    let mut out = Replayed {
        tree,
        heads: BTreeMap::new(),
        base: None,
        base_bytes: 0,
        bases: Vec::new(),
        uncovered: Vec::new(),
        covered: Vec::new(),
        slots: Vec::new(),
        removed_slots: Vec::new(),
        gaps: Vec::new(),
        adopted: found
            .iter()
            .filter_map(|f| Some((f.opening.adopts?, f.published.id)))
            .collect(),
        unwritable: found.iter().find(|f| !f.writable).map(|f| f.published.id),
        needs: Vec::new(),
    };
    let (bases, segments): (Vec<Found>, Vec<Found>) = found
        .into_iter()
        .partition(|f| f.opening.stamp_segments.is_some());
    apply_bases(store, master, bases, &mut out)?;
    apply_segments(store, master, segments, &mut out)?;
    out.tree.beside_base = false;
    out.tree.drop_unlinked();
    Ok(out)
}

fn openings(store: &dyn Store, master: &MasterKey) -> Result<Vec<Found>> {
    let listed = store.list(Area::Index)?;
    let mut found = Vec::with_capacity(listed.len());
    let mut failed = None;
    for (id, cipher_len) in listed {
        match opening(store, master, id, cipher_len) {
            Ok(one) => found.push(one),
            // Later ones may still open: one is damaged then, and else it is the key.
            Err(e) if matches!(e.kind(), Kind::Damaged(_)) => failed = failed.or(Some(e)),
            Err(e) => return Err(e),
        }
        if failed.is_some() && !found.is_empty() {
            break;
        }
    }
    match failed {
        None => Ok(found),
        Some(e) if !found.is_empty() || has_slot(store, master) => Err(e),
        Some(e) => Err(Error::new(Kind::WrongKey, "index").hint(format_args!(
            "no index segment opens with this key: is it another library's? Of the first it says: {e}"
        ))),
    }
}

/// Whether a slot says that this is the library's key.
fn has_slot(store: &dyn Store, master: &MasterKey) -> bool {
    let slots = store.list(Area::Key).unwrap_or_default();
    slots.into_iter().any(|(id, _)| {
        let mut bytes = [0; SLOT_LEN];
        let read = store
            .open(Area::Key, id)
            .and_then(|object| object.read_at(&mut bytes, 0));
        read.and_then(|()| Slot::parse(id, &bytes)?.verify(master))
            .is_ok()
    })
}

fn open_segment(store: &dyn Store, master: &MasterKey, id: SegmentId) -> Result<SegmentReader> {
    let object = store.open(Area::Index, id).map_err(|e| match e.kind() {
        // It was listed: somebody, a sync perhaps, takes files away right now.
        Kind::Missing => e.hint("wait for the sync to finish, or restore it from a copy"),
        _ => e,
    })?;
    SegmentReader::open(object, id, master, Extent::Published)
}

fn opening(store: &dyn Store, master: &MasterKey, id: SegmentId, cipher_len: u64) -> Result<Found> {
    let reader = open_segment(store, master, id)?;
    let opening = reader.opening().clone();
    let published = Published {
        id,
        device: opening.device,
        number: opening.number,
        cipher_len,
    };
    let writable = reader.writable();
    Ok(Found {
        published,
        opening,
        writable,
    })
}

/// Whether everything that `heads` covers is in `other`.
fn is_covered(heads: &[Head], other: &[Head]) -> bool {
    heads.iter().all(|h| {
        other
            .iter()
            .any(|o| o.device == h.device && o.number >= h.number)
    })
}

fn apply_bases(
    store: &dyn Store,
    master: &MasterKey,
    mut bases: Vec<Found>,
    out: &mut Replayed,
) -> Result<()> {
    // Newest first: what covers more segments comes earlier, so that only bases with something of their own stay.
    bases.sort_by_key(|b| {
        std::cmp::Reverse((
            b.opening.heads.iter().map(|h| h.number).sum::<u64>(),
            b.published.id,
        ))
    });
    let mut used: Vec<Vec<Head>> = Vec::new();
    for base in bases {
        let heads = &base.opening.heads;
        if used.iter().any(|u| is_covered(heads, u)) {
            out.covered.push(base.published);
            continue;
        }
        let sha256 = apply_base(store, master, base.published.id, out)?;
        if out.base.is_none() {
            out.base = Some(BaseRef {
                segment: base.published.id,
                sha256,
            });
            (out.slots, out.removed_slots) = (
                base.opening.slots.clone(),
                base.opening.removed_slots.clone(),
            );
        }
        out.base_bytes += base.published.cipher_len;
        out.bases.push(base.published);
        for head in heads {
            raise(&mut out.heads, *head);
        }
        used.push(heads.clone());
    }
    Ok(())
}

fn raise(heads: &mut BTreeMap<DeviceId, Head>, head: Head) {
    let entry = heads.entry(head.device).or_insert(head);
    if head.number > entry.number {
        *entry = head;
    }
}

fn apply_base(
    store: &dyn Store,
    master: &MasterKey,
    id: SegmentId,
    out: &mut Replayed,
) -> Result<[u8; 32]> {
    let reader = open_segment(store, master, id)?;
    let table = reader.opening().stamp_segments.clone().unwrap_or_default();
    let numbers: Vec<u32> = table.iter().map(|s| out.tree.intern_segment(*s)).collect();
    let name = reader.name().to_owned();
    let ending = reader.frames(|frame| {
        for record in &frame.records {
            out.tree
                .apply_base(record, &numbers)
                .map_err(|why| Error::damaged(&name, why))?;
        }
        Ok(())
    })?;
    out.needs
        .extend(ending.closing.into_iter().flat_map(|c| c.needs));
    Ok(ending.sha256)
}

fn need_text(head: &Head) -> String {
    format!("segment {} of device {}", head.number, head.device)
}

fn apply_segments(
    store: &dyn Store,
    master: &MasterKey,
    segments: Vec<Found>,
    out: &mut Replayed,
) -> Result<()> {
    let mut queues: BTreeMap<DeviceId, Vec<Found>> = BTreeMap::new();
    for segment in segments {
        let device = segment.published.device;
        if out
            .heads
            .get(&device)
            .is_some_and(|h| h.number >= segment.published.number)
        {
            out.covered.push(segment.published);
        } else {
            queues.entry(device).or_default().push(segment);
        }
    }
    for queue in queues.values_mut() {
        queue.sort_by_key(|s| std::cmp::Reverse(s.published.number));
        let forked = queue
            .windows(2)
            .find(|w| w[0].published.number == w[1].published.number);
        if let Some(fork) = forked {
            let what = format_args!(
                "two segments with number {} of one device",
                fork[0].published.number
            );
            return Err(
                Error::damaged(format_args!("index/{}", fork[0].published.id), what)
                    .hint("was the library copied and written in two places?"),
            );
        }
    }
    let heads = out.heads.clone();
    let mut order = Vec::new();
    // What a segment's writer had applied comes before it. Where that is missing, it is said, and the rest goes on.
    while !queues.is_empty() {
        let ready = queues
            .iter()
            .find(|(_, q)| q.last().is_some_and(|s| satisfied(&s.opening, &out.heads)));
        let device = match ready.or_else(|| queues.iter().next()) {
            Some((device, _)) => *device,
            None => break,
        };
        let Some(queue) = queues.get_mut(&device) else {
            break;
        };
        let Some(next) = queue.pop() else { break };
        if queue.is_empty() {
            queues.remove(&device);
        }
        note_gaps(&next, out);
        raise(
            &mut out.heads,
            Head {
                device,
                number: next.published.number,
                sha256: [0; 32],
            },
        );
        order.push(next);
    }
    out.heads = heads;
    apply_in_order(store, master, &order, out)?;
    let missing = |need: &&Head| {
        out.heads
            .get(&need.device)
            .is_none_or(|have| have.number < need.number)
    };
    out.gaps
        .extend(out.needs.iter().filter(missing).map(need_text));
    Ok(())
}

fn satisfied(opening: &Opening, heads: &BTreeMap<DeviceId, Head>) -> bool {
    opening.heads.iter().all(|h| {
        heads
            .get(&h.device)
            .is_some_and(|have| have.number >= h.number)
    })
}

fn note_gaps(segment: &Found, out: &mut Replayed) {
    for head in &segment.opening.heads {
        let have = out.heads.get(&head.device);
        if have.is_none_or(|have| have.number < head.number) {
            out.gaps.push(need_text(head));
        }
        if have.is_some_and(|have| {
            have.number == head.number && have.sha256 != head.sha256 && have.sha256 != [0; 32]
        }) {
            out.gaps.push(format!(
                "{} as it was when segment {} was written",
                need_text(head),
                segment.published.id
            ));
        }
    }
    let own = out
        .heads
        .get(&segment.published.device)
        .map_or(0, |h| h.number);
    for number in (own + 1..segment.published.number).take(16) {
        out.gaps.push(format!(
            "segment {number} of device {}",
            segment.published.device
        ));
    }
    if let Some(base) = segment.opening.newest_base {
        // A newer base may have taken its place; where none has, its segments are gone with it.
        if out.base.is_none() {
            out.gaps.push(format!("base {}", base.segment));
        }
    }
}

/// Applies segments, each after all that its writer had applied: one by one where each knows all before it, and those
/// that were written beside each other together.
fn apply_in_order(
    store: &dyn Store,
    master: &MasterKey,
    segments: &[Found],
    out: &mut Replayed,
) -> Result<()> {
    let known: Vec<_> = segments
        .iter()
        .map(|s| (s.published.device, s.published.number, known(s)))
        .collect();
    for block in merge::blocks(&known) {
        if let [one] = &segments[block.clone()] {
            apply_segment(store, master, one, out)?;
            continue;
        }
        let mut branches = Vec::new();
        for (segment, known) in segments[block.clone()].iter().zip(&known[block]) {
            let mut frames = Vec::new();
            let in_tree = read_segment(store, master, segment, out, |_, frame| {
                frames.push(frame);
                Ok(())
            })?;
            branches.push(Branch {
                segment: in_tree,
                writer: segment.published.device,
                number: segment.published.number,
                known: known.2.clone(),
                frames,
            });
        }
        out.tree.beside_base = false;
        let merged = out.tree.merge(&branches);
        merged.map_err(|why| Error::damaged("index", why))?;
    }
    Ok(())
}

/// What a segment's writer had applied.
fn known(segment: &Found) -> merge::Known {
    let heads = segment.opening.heads.iter();
    heads.map(|h| (h.device, h.number)).collect()
}

fn apply_segment(
    store: &dyn Store,
    master: &MasterKey,
    found: &Found,
    out: &mut Replayed,
) -> Result<()> {
    let Published { device, number, .. } = found.published;
    let needs_it = |need: &Head| need.device == device && need.number >= number;
    out.tree.beside_base = out.needs.iter().any(needs_it);
    read_segment(store, master, found, out, |(tree, in_tree), frame| {
        tree.apply_frame(in_tree, &frame)
    })
    .map(drop)
}

/// Reads the frames of a segment, and notes that it is applied. Answers its number in the tree.
fn read_segment(
    store: &dyn Store,
    master: &MasterKey,
    found: &Found,
    out: &mut Replayed,
    mut each: impl FnMut((&mut Tree, u32), super::record::Frame) -> std::result::Result<(), Refusal>,
) -> Result<u32> {
    let Published {
        id, device, number, ..
    } = found.published;
    let reader = open_segment(store, master, id)?;
    let in_tree = out.tree.intern_segment(StampSegment {
        segment: id,
        device,
        number,
    });
    let name = reader.name().to_owned();
    let ending = reader.frames(|frame| {
        each((&mut out.tree, in_tree), frame).map_err(|why| Error::damaged(&name, why))
    })?;
    raise(
        &mut out.heads,
        Head {
            device,
            number,
            sha256: ending.sha256,
        },
    );
    (out.slots, out.removed_slots) = (
        found.opening.slots.clone(),
        found.opening.removed_slots.clone(),
    );
    out.uncovered.push(found.published);
    Ok(in_tree)
}

/// Compares what is there with what this machine has seen; says what went back.
pub fn check_rollback(remembered: &[Head], heads: &BTreeMap<DeviceId, Head>) -> Result<()> {
    let gone: Vec<String> = remembered
        .iter()
        .filter(|seen| match heads.get(&seen.device) {
            Some(have) => {
                have.number < seen.number
                    || (have.number == seen.number && have.sha256 != seen.sha256)
            }
            None => true,
        })
        .map(need_text)
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the index is older than this machine has seen: {} is gone or was changed",
        gone.join(", ")
    );
    Err(Error::from(Kind::RolledBack(text.into()))
        .hint("wait for the sync to finish, restore the index folder, or accept the older state with --accept-rollback"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Header, KdfParams, Magic, Secret};
    use crate::index::SegmentWriter;
    use crate::store::MemoryStore;
    use crate::volume::Time;

    fn publish(store: &MemoryStore, master: &MasterKey, number: u64) {
        let opening = Opening {
            device: ObjectId([1; 16]),
            number,
            ..Opening::default()
        };
        let mut writer = SegmentWriter::create(store, master, &opening).unwrap();
        let closed = writer.close(Vec::new()).unwrap();
        closed.file.sync().unwrap();
        store.publish(closed.id, Area::Index).unwrap();
    }

    fn kind(store: &MemoryStore, master: &MasterKey) -> crate::error::ExitStatus {
        replay(store, master, Tree::new(0, 0, Time::default()))
            .err()
            .unwrap()
            .exit_status()
    }

    #[test]
    fn a_segment_that_goes_while_it_is_read_says_what_to_do() {
        let (store, master) = (MemoryStore::default(), MasterKey::generate().unwrap());
        publish(&store, &master, 1);
        let id = store.objects(Area::Index)[0];
        assert!(opening(&store, &master, id, 0).is_ok());
        store.take_object(Area::Index, id).unwrap();
        let text = opening(&store, &master, id, 0).err().unwrap().to_string();
        assert!(
            text.starts_with(&format!("index/{id}: is missing")),
            "{text}"
        );
        assert!(text.contains("wait for the sync to finish"), "{text}");
    }

    #[test]
    fn another_library_s_key_is_told_from_damage() {
        use crate::error::ExitStatus::{Damaged, WrongKey};
        let (master, other) = (
            MasterKey::generate().unwrap(),
            MasterKey::generate().unwrap(),
        );
        let store = MemoryStore::default();
        publish(&store, &master, 1);
        assert_eq!(kind(&store, &other), WrongKey);

        // One that opens says that the key is right, and so does a slot.
        let bad = ObjectId([7; 16]);
        let mut bytes = Header::new(Magic::Segment, bad).encode().to_vec();
        bytes.resize(4096, 0);
        store.put(Area::Index, bad, &bytes).unwrap();
        assert_eq!(kind(&store, &master), Damaged);
        assert_eq!(kind(&store, &other), WrongKey);

        let store = MemoryStore::default();
        store.put(Area::Index, bad, &bytes).unwrap();
        assert_eq!(kind(&store, &master), WrongKey);
        let kdf = KdfParams {
            memory_kib: 8,
            passes: 1,
            lanes: 1,
        };
        let secret = Secret::Password(b"p".to_vec().into());
        let id = ObjectId([8; 16]);
        let slot = Slot::seal(id, &master, &secret, kdf, "").unwrap();
        store.put(Area::Key, id, &slot).unwrap();
        assert_eq!(kind(&store, &master), Damaged);
    }
}
