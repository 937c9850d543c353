//! Which devices write: what this one remembers of its own segments, outside of the library, and whether another one is
//! at work, seen before anything is published or removed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::crypto::Fingerprint;
use crate::error::{Error, Kind, Result};
use crate::index::record::Head;
use crate::index::{Published, Replayed, SegmentReader};
use crate::object::{Area, DeviceId, SegmentId};
use crate::state::{Place, Remembered};
use crate::store::Store;

/// So many of this device's newest segments are remembered by their ids when they are published.
const WROTE_MAX: usize = 2;

/// What is remembered of the library, as it was saved last.
pub(super) struct Memory {
    place: Option<Place>,
    known: Mutex<Remembered>,
}

impl Memory {
    /// Of a mount as `device`, which may be another device than the one that is remembered.
    pub fn new(
        place: Option<Place>,
        known: Option<Remembered>,
        device: DeviceId,
        fingerprint: Fingerprint,
    ) -> Self {
        let mut known = known.unwrap_or_else(|| Remembered {
            fingerprint,
            device,
            place: None,
            former: None,
            wrote: Vec::new(),
            heads: Vec::new(),
        });
        if known.device != device {
            (known.device, known.former) = (device, None);
            known.wrote.clear();
        }
        if let Some(library) = place.as_ref().and_then(|place| place.library()) {
            known.place = Some(library.to_path_buf());
        }
        Self {
            place,
            known: Mutex::new(known),
        }
    }

    /// The id under which this device wrote before, and left something that is not taken over yet.
    pub fn former(&self) -> Option<DeviceId> {
        self.known.lock().former
    }

    /// Nothing is left of that.
    pub fn forget_former(&self) {
        self.known.lock().former = None;
    }

    /// Remembers what is published now.
    pub fn remember(&self, heads: Vec<Head>) -> Result<()> {
        let mut known = self.known.lock();
        let surplus = known.wrote.len().saturating_sub(WROTE_MAX);
        known.wrote.drain(..surplus);
        known.heads = heads;
        self.save(&known)
    }

    /// Remembers a segment that will be published next. Should there be no time to remember that it is, it is known for
    /// this device's.
    pub fn expect(&self, id: SegmentId) -> Result<()> {
        let mut known = self.known.lock();
        if known.wrote.last() == Some(&id) {
            return Ok(());
        }
        known.wrote.push(id);
        self.save(&known)
    }

    fn save(&self, known: &Remembered) -> Result<()> {
        match &self.place {
            Some(place) => place.save(known),
            None => Ok(()),
        }
    }
}

/// What of the remembered heads is to be looked for in the index: all, but for this device's own where that segment is
/// known to be there by its id. With a second writer under this device's id, the head may be the other's.
pub(super) fn heads_to_find(known: &Remembered, replayed: &Replayed) -> Vec<Head> {
    let is_there = |head: &&Head| {
        head.device == known.device
            && replayed
                .found
                .iter()
                .any(|p| p.number == head.number && known.wrote.contains(&p.id))
    };
    let heads = known.heads.iter();
    heads.filter(|head| !is_there(head)).copied().collect()
}

/// Refuses to write as this device where somebody else does: a segment under its id is there that it did not write.
pub(super) fn check_own(known: &Remembered, replayed: &Replayed) -> Result<()> {
    let own = known.heads.iter().find(|head| head.device == known.device);
    let own = own.map_or(0, |head| head.number);
    // An older version did not remember what it wrote.
    let is_old = own > 0 && known.wrote.is_empty();
    let mut written = own;
    let mut numbers = HashSet::new();
    for segment in &replayed.found {
        if segment.device != known.device || segment.number == 0 {
            continue;
        }
        let is_new = segment.number >= own.max(1);
        let is_own = known.wrote.contains(&segment.id);
        if !numbers.insert(segment.number) || is_new && !is_own && !is_old {
            return Err(taken(segment));
        }
        written = written.max(segment.number);
    }
    // Where a base covers the other's segments, they may be gone.
    let mut heads = replayed.heads.values();
    if !is_old && heads.any(|head| head.device == known.device && head.number > written) {
        let subject = format_args!("device {}", known.device);
        return Err(Error::new(Kind::DeviceTaken(TAKEN.into()), subject));
    }
    Ok(())
}

const TAKEN: &str = "this machine did not write it, though it bears this machine's device id: was this user's home \
                     directory, or the whole machine, copied?";

fn taken(segment: &Published) -> Error {
    Error::new(
        Kind::DeviceTaken(TAKEN.into()),
        format_args!("index/{}", segment.id),
    )
}

/// Says once what it means that this device is new to a library to which others have written.
pub(super) fn announce(known: &Remembered, replayed: &Replayed) {
    let others = replayed
        .heads
        .keys()
        .filter(|d| **d != known.device)
        .count();
    let is_new = known.heads.is_empty() && !replayed.heads.contains_key(&known.device);
    if is_new && others > 0 {
        log::warn!(
            "{others} other device(s) have written to this library, and this machine (or user) is a new one, {}. From now \
             on, what is deleted gives no room back, on any of them: what the others still need is not known",
            known.device
        );
    }
}

/// The segments that there are.
pub(super) fn list_index(store: &dyn Store) -> Result<HashSet<SegmentId>> {
    let listed = store.list(Area::Index)?;
    Ok(listed.into_iter().map(|(id, _)| SegmentId(id)).collect())
}

/// Whether other devices write to the library. Does not own what this device remembers of itself ([`Memory`]).
pub(super) struct Others {
    /// Segments that are known to be in the index, those that could not be read included.
    seen: Mutex<HashSet<SegmentId>>,
    /// Several devices write, or once did.
    are_there: AtomicBool,
}

impl Others {
    /// As the library was opened.
    pub fn new(seen: HashSet<SegmentId>, are_there: bool) -> Self {
        Self {
            seen: Mutex::new(seen),
            are_there: AtomicBool::new(are_there),
        }
    }

    /// Several devices write, or once did. Stays so.
    pub fn are_there(&self) -> bool {
        self.are_there.load(Ordering::Relaxed)
    }

    /// Another device is at work.
    pub fn note(&self) {
        self.are_there.store(true, Ordering::Relaxed);
    }

    /// A segment of this device is about to be published.
    pub fn expect(&self, id: SegmentId) {
        self.seen.lock().insert(id);
    }

    /// Those that were not known before.
    pub fn take_new(&self, listed: impl IntoIterator<Item = SegmentId>) -> Vec<SegmentId> {
        let mut seen = self.seen.lock();
        listed.into_iter().filter(|id| seen.insert(*id)).collect()
    }
}

/// Says what it means that a segment has come that this mount did not write.
pub(super) fn log_foreign_segment(id: SegmentId, own: DeviceId, opened: Result<SegmentReader>) {
    match opened {
        Ok(segment) if segment.opening().device == own => log::warn!(
            "index/{id}: {TAKEN} This mount goes on, what both write is kept, and the next one writes as a device of its own"
        ),
        Ok(segment) => log::info!(
            "index/{id}: came from device {}, so nothing is removed from data/ and index/ in this mount",
            segment.opening().device
        ),
        // It may still be on its way.
        Err(e) => log::info!("{e}"),
    }
}
