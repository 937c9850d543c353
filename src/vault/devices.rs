//! The devices that write to a library: what this one remembers about its own segments, outside of the library, and
//! whether others write, which is checked before anything is published or removed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::crypto::Fingerprint;
use crate::error::{Error, Kind, Result};
use crate::index::record::Head;
use crate::index::{Replayed, SegmentInfo, SegmentReader};
use crate::object::{Area, DeviceId, SegmentId};
use crate::state::{Remembered, StateFile};
use crate::store::Store;

/// Number of this device's newest segments whose ids are remembered.
const WROTE_MAX: usize = 2;

/// What this machine remembers about the library, as last saved to its state file, if it has one.
pub(super) struct Memory {
    file: Option<StateFile>,
    known: Mutex<Remembered>,
}

impl Memory {
    /// For a mount as `device`, which may differ from the remembered device.
    pub fn new(
        file: Option<StateFile>,
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
        if let Some(library) = file.as_ref().and_then(|file| file.library()) {
            known.place = Some(library.to_path_buf());
        }
        Self {
            file,
            known: Mutex::new(known),
        }
    }

    /// The former id of this device, if files that it left under it are not taken over yet.
    pub fn former(&self) -> Option<DeviceId> {
        self.known.lock().former
    }

    /// Called once the files that were left under the former id are recovered.
    pub fn forget_former(&self) {
        self.known.lock().former = None;
    }

    /// Saves the published heads.
    pub fn remember(&self, heads: Vec<Head>) -> Result<()> {
        let mut known = self.known.lock();
        let surplus = known.wrote.len().saturating_sub(WROTE_MAX);
        known.wrote.drain(..surplus);
        known.heads = heads;
        self.save(&known)
    }

    /// Saves the id of a segment before it is published, so that it is recognized as this device's even if a crash
    /// prevents [`Memory::remember`].
    pub fn expect(&self, id: SegmentId) -> Result<()> {
        let mut known = self.known.lock();
        if known.wrote.last() == Some(&id) {
            return Ok(());
        }
        known.wrote.push(id);
        self.save(&known)
    }

    fn save(&self, known: &Remembered) -> Result<()> {
        match &self.file {
            Some(file) => file.save(known),
            None => Ok(()),
        }
    }
}

/// The remembered heads that must be found in the index: all, except this device's own if that segment is found by its
/// id. If a second writer uses this device's id, the head in the index may be the other's.
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

/// Checks that no one else writes as this device.
///
/// # Errors
/// [`Kind::DeviceTaken`] if the index has a segment with this device's id that this device did not write.
pub(super) fn check_own(known: &Remembered, replayed: &Replayed) -> Result<()> {
    let own = known.heads.iter().find(|head| head.device == known.device);
    let own = own.map_or(0, |head| head.number);
    // Older versions did not remember the ids of their segments.
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
    // The other writer's segments may be gone already, because a snapshot supersedes them.
    let mut heads = replayed.heads.values();
    if !is_old && heads.any(|head| head.device == known.device && head.number > written) {
        let subject = format_args!("device {}", known.device);
        return Err(Error::new(Kind::DeviceTaken(TAKEN.into()), subject));
    }
    Ok(())
}

const TAKEN: &str = "this machine did not write it, although it has this machine's device id: was this user's home \
                     directory, or the whole machine, copied?";

fn taken(segment: &SegmentInfo) -> Error {
    Error::new(
        Kind::DeviceTaken(TAKEN.into()),
        format_args!("index/{}", segment.id),
    )
}

/// Warns once if this device is new to a library that others have written to.
pub(super) fn announce(known: &Remembered, replayed: &Replayed) {
    let others = replayed
        .heads
        .keys()
        .filter(|d| **d != known.device)
        .count();
    let is_new = known.heads.is_empty() && !replayed.heads.contains_key(&known.device);
    if is_new && others > 0 {
        log::warn!(
            "{others} other device(s) have written to this library, and this machine (or user) is a new one, {}. From \
             now on, deleting files frees no space, on any of them: it is not known what the others still need",
            known.device
        );
    }
}

/// The ids of all segments in `index/`.
pub(super) fn list_index(store: &dyn Store) -> Result<HashSet<SegmentId>> {
    let listed = store.list(Area::Index)?;
    Ok(listed.into_iter().map(|(id, _)| SegmentId(id)).collect())
}

/// Whether other devices write to the library. Does not own what this device remembers about itself ([`Memory`]).
pub(super) struct Others {
    /// Segments that are known to be in the index, including unreadable ones.
    seen: Mutex<HashSet<SegmentId>>,
    /// Whether several devices write, or have written.
    are_there: AtomicBool,
}

impl Others {
    /// The state when the library is opened: the segments in the index, and whether other devices wrote any.
    pub fn new(seen: HashSet<SegmentId>, are_there: bool) -> Self {
        Self {
            seen: Mutex::new(seen),
            are_there: AtomicBool::new(are_there),
        }
    }

    /// Whether several devices write, or have written. Never becomes false again.
    pub fn are_there(&self) -> bool {
        self.are_there.load(Ordering::Relaxed)
    }

    /// Records that another device writes.
    pub fn set_present(&self) {
        self.are_there.store(true, Ordering::Relaxed);
    }

    /// Records a segment that this device is about to publish.
    pub fn expect(&self, id: SegmentId) {
        self.seen.lock().insert(id);
    }

    /// Records the listed segments. Returns those that were not known before.
    pub fn take_new(&self, listed: impl IntoIterator<Item = SegmentId>) -> Vec<SegmentId> {
        let mut seen = self.seen.lock();
        listed.into_iter().filter(|id| seen.insert(*id)).collect()
    }
}

/// Logs that a segment has appeared that this mount did not write.
pub(super) fn log_foreign_segment(id: SegmentId, own: DeviceId, opened: Result<SegmentReader>) {
    match opened {
        Ok(segment) if segment.opening().device == own => log::warn!(
            "index/{id}: {TAKEN} This mount goes on, the data of both is kept, and the next one writes as a new device"
        ),
        Ok(segment) => log::info!(
            "index/{id}: written by device {}, so this mount removes nothing from data/ and index/",
            segment.opening().device
        ),
        // The file may not have been copied completely yet.
        Err(e) => log::info!("{e}"),
    }
}
