//! A store in memory, for tests: it can crash, fail and be slow.
//!
//! It is as cruel as a disk can be. In a power cut, each unsynced write may be kept, lost, turned into zeros or torn,
//! independently of the others. The name of a file that was never synced may be lost, and a removed file may come back.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

mod faults;
mod file;
mod handle;
#[cfg(test)]
mod tests;

use self::faults::Fate;
pub use self::faults::Faults;
use self::file::MemoryFile;
use self::handle::Handle;
use super::{Growing, Object, Objects, Space, Staging};
use crate::dice::Dice;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};

type File = Arc<Mutex<MemoryFile>>;
type Folder = BTreeMap<ObjectId, File>;

/// The folder of a file: an area, or this device's `new/`.
type Place = Option<Area>;

#[derive(Default)]
struct State {
    areas: [Folder; 3],
    new: Folder,
    /// Removed, but not durably: a power cut may bring them back.
    removed: Vec<(Place, ObjectId, File)>,
    /// The file that was being published during a power cut, and may be in either folder.
    publishing: Option<(ObjectId, Area)>,
    reserved_bytes: u64,
    operations: u64,
    is_cut: bool,
    faults: Faults,
}

/// A store in memory. Clones share the same contents.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

fn power_is_gone() -> io::Error {
    io::Error::other("the power is gone")
}

fn name_of(place: Place, id: ObjectId) -> String {
    format!("{}/{id}", place.map_or("new", Area::name))
}

fn failed(error: io::Error, place: Place, id: ObjectId) -> Error {
    Error::new(Kind::Io(error), name_of(place, id))
}

impl State {
    fn folder(&mut self, place: Place) -> &mut Folder {
        match place {
            Some(area) => &mut self.areas[area as usize],
            None => &mut self.new,
        }
    }

    fn check_power(&self, place: Place, id: ObjectId) -> Result<()> {
        if self.is_cut {
            Err(failed(power_is_gone(), place, id))
        } else {
            Ok(())
        }
    }

    /// Counts an operation, and returns its fate.
    fn begin(&mut self) -> Fate {
        if self.is_cut {
            return Fate::Fails(power_is_gone(), 0);
        }
        let fate = self.faults.fate(self.operations);
        self.operations += 1;
        self.is_cut = matches!(fate, Fate::Cut(_));
        fate
    }

    fn used_bytes(&self) -> u64 {
        self.areas
            .iter()
            .chain([&self.new])
            .flat_map(Folder::values)
            .map(|file| file.lock().bytes.len() as u64)
            .sum()
    }

    /// Bytes that may still be written.
    fn free_bytes(&self) -> u64 {
        match self.faults.space_bytes {
            Some(total) => total
                .saturating_sub(self.used_bytes())
                .saturating_sub(self.reserved_bytes),
            None => u64::MAX,
        }
    }

    fn remove(&mut self, place: Place, id: ObjectId) -> Result<()> {
        let fate = self.begin();
        // In a power cut it may have been carried out, and may or may not be durable.
        let is_carried_out = match fate {
            Fate::Done => true,
            Fate::Cut(chance) => chance & 1 == 0,
            Fate::Fails(..) => false,
        };
        if is_carried_out && let Some(file) = self.folder(place).remove(&id) {
            self.removed.push((place, id, file));
        }
        self.outcome(fate, place, id)
    }

    fn outcome(&self, fate: Fate, place: Place, id: ObjectId) -> Result<()> {
        match fate {
            Fate::Done => Ok(()),
            Fate::Fails(error, _) => Err(failed(error, place, id)),
            Fate::Cut(_) => Err(failed(power_is_gone(), place, id)),
        }
    }

    fn publish(&mut self, id: ObjectId, area: Area) -> Result<()> {
        let (from, to) = (
            self.new.contains_key(&id),
            self.areas[area as usize].contains_key(&id),
        );
        let errno = match (from, to) {
            (true, true) => libc::EEXIST,
            (false, false) => libc::ENOENT,
            // It was published by an earlier call that returned an error: see `DirStore`.
            (false, true) => return Ok(()),
            (true, false) => 0,
        };
        if errno != 0 {
            return Err(failed(io::Error::from_raw_os_error(errno), None, id));
        }
        let file = self.new.remove(&id).expect("was just found");
        self.areas[area as usize].insert(id, file);
        // Publishing syncs both folders.
        self.removed
            .retain(|(place, ..)| place.is_some_and(|place| place != area));
        Ok(())
    }

    /// A copy with files of its own.
    fn deep_clone(&self, mut copy: impl FnMut(&MemoryFile) -> MemoryFile) -> State {
        let mut copied = |file: &File| Arc::new(Mutex::new(copy(&file.lock())));
        let mut folder =
            |from: &Folder| from.iter().map(|(id, file)| (*id, copied(file))).collect();
        let areas = [
            folder(&self.areas[0]),
            folder(&self.areas[1]),
            folder(&self.areas[2]),
        ];
        let new = folder(&self.new);
        let removed = self
            .removed
            .iter()
            .map(|(place, id, file)| (*place, *id, copied(file)))
            .collect();
        State {
            areas,
            new,
            removed,
            reserved_bytes: self.reserved_bytes,
            ..State::default()
        }
    }
}

impl MemoryStore {
    /// An empty store without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store with faults to come.
    pub fn with_faults(faults: Faults) -> Self {
        let store = Self::new();
        store.set_faults(faults);
        store
    }

    /// Replaces the faults to come. The count of operations continues.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// The number of operations so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// The store as the next process finds it after this one was killed: everything written is there, but may still be lost
    /// in a power cut. It has no faults, and its operations are numbered from 0.
    pub fn after_kill(&self) -> MemoryStore {
        let state = self.state.lock();
        let mut after = state.deep_clone(MemoryFile::clone);
        if let Some((id, area)) = state.publishing
            && Dice::new(state.faults.seed ^ state.operations).below(2) == 0
        {
            // The file was there when the power failed, so this cannot fail.
            let _ = after.publish(id, area);
        }
        Self {
            state: Arc::new(Mutex::new(after)),
        }
    }

    /// The store after a power cut. `seed` decides which data that was not durable is kept, lost or torn.
    pub fn after_power_cut(&self, seed: u64) -> MemoryStore {
        let state = self.state.lock();
        let mut dice = Dice::new(seed);
        let mut after = state.deep_clone(|file| file.after_power_cut(&mut dice));
        let unnamed = |id: &ObjectId| state.new.get(id).is_some_and(|file| !file.lock().is_named);
        after.new.retain(|id, _| !unnamed(id) || dice.below(2) == 0);
        if let Some((id, area)) = state.publishing
            && dice.below(2) == 0
        {
            // Its name in `new/` may already be lost; then there is nothing to publish.
            let _ = after.publish(id, area);
        }
        for (place, id, file) in std::mem::take(&mut after.removed) {
            if dice.below(2) == 0 {
                after.folder(place).entry(id).or_insert(file);
            }
        }
        Self {
            state: Arc::new(Mutex::new(after)),
        }
    }

    /// Changes an object as another program would; `None` if it does not exist. Durable, and not counted as an operation.
    pub fn with_object<R>(
        &self,
        area: Area,
        id: impl Into<ObjectId>,
        change: impl FnOnce(&mut Vec<u8>) -> R,
    ) -> Option<R> {
        let id = id.into();
        let file = self.state.lock().folder(Some(area)).get(&id).cloned()?;
        let mut file = file.lock();
        Some(file.tamper(change))
    }

    /// The same for an unfinished file.
    pub fn with_leftover<R>(
        &self,
        id: impl Into<ObjectId>,
        change: impl FnOnce(&mut Vec<u8>) -> R,
    ) -> Option<R> {
        let id = id.into();
        let file = self.state.lock().folder(None).get(&id).cloned()?;
        let mut file = file.lock();
        Some(file.tamper(change))
    }

    /// The ids of an area's objects, in order.
    pub fn objects(&self, area: Area) -> Vec<ObjectId> {
        self.state
            .lock()
            .folder(Some(area))
            .keys()
            .copied()
            .collect()
    }

    /// An object's bytes.
    pub fn object(&self, area: Area, id: impl Into<ObjectId>) -> Option<Vec<u8>> {
        self.with_object(area, id, |bytes| bytes.clone())
    }

    /// Adds or replaces an object, as a sync tool would.
    pub fn insert_object(&self, area: Area, id: impl Into<ObjectId>, bytes: Vec<u8>) {
        let file = Arc::new(Mutex::new(MemoryFile::durable(bytes)));
        self.state.lock().folder(Some(area)).insert(id.into(), file);
    }

    /// Removes an object, as an attacker would, and returns its bytes if it existed.
    pub fn take_object(&self, area: Area, id: impl Into<ObjectId>) -> Option<Vec<u8>> {
        let id = id.into();
        let file = self.state.lock().folder(Some(area)).remove(&id)?;
        let bytes = file.lock().bytes.clone();
        Some(bytes)
    }

    fn handle(&self, place: Place, id: ObjectId) -> Result<Handle> {
        let mut state = self.state.lock();
        state.check_power(place, id)?;
        match state.folder(place).get(&id) {
            Some(file) => Ok(self.open_file(place, id, file)),
            None => Err(Error::new(Kind::Missing, name_of(place, id))),
        }
    }

    fn open_file(&self, place: Place, id: ObjectId, file: &File) -> Handle {
        Handle::new(Arc::clone(&self.state), Arc::clone(file), place, id)
    }
}

impl Objects for MemoryStore {
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>> {
        let mut state = self.state.lock();
        if state.is_cut {
            return Err(Error::new(Kind::Io(power_is_gone()), area.name()));
        }
        Ok(state
            .folder(Some(area))
            .iter()
            .map(|(id, file)| (*id, file.lock().bytes.len() as u64))
            .collect())
    }

    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>> {
        Ok(Arc::new(self.handle(Some(area), id)?))
    }

    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let fate = match state.begin() {
            Fate::Done
                if state.areas[area as usize].contains_key(&id) || state.new.contains_key(&id) =>
            {
                Fate::Fails(io::Error::from_raw_os_error(libc::EEXIST), 0)
            }
            Fate::Done if bytes.len() as u64 > state.free_bytes() => {
                Fate::Fails(io::Error::from_raw_os_error(libc::ENOSPC), 0)
            }
            fate => fate,
        };
        match fate {
            Fate::Done => {
                state.areas[area as usize].insert(
                    id,
                    Arc::new(Mutex::new(MemoryFile::durable(bytes.to_vec()))),
                );
                state
                    .removed
                    .retain(|(place, ..)| place.is_some_and(|place| place != area));
            }
            // Half of the power cuts happen after everything is written, just before it is published.
            Fate::Cut(chance) if chance & 1 == 0 => {
                state.new.insert(
                    id,
                    Arc::new(Mutex::new(MemoryFile::durable(bytes.to_vec()))),
                );
                state.publishing = Some((id, area));
            }
            Fate::Cut(chance) => {
                let mut file = MemoryFile::default();
                file.write(&bytes[..chance as usize / 2 % (bytes.len() + 1)], 0);
                state.new.insert(id, Arc::new(Mutex::new(file)));
            }
            Fate::Fails(..) => {}
        }
        state.outcome(fate, Some(area), id)
    }

    fn remove(&self, area: Area, id: ObjectId) -> Result<()> {
        self.state.lock().remove(Some(area), id)
    }
}

impl Staging for MemoryStore {
    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        let mut state = self.state.lock();
        let fate = match state.begin() {
            Fate::Done if state.new.contains_key(&id) => {
                Fate::Fails(io::Error::from_raw_os_error(libc::EEXIST), 0)
            }
            fate => fate,
        };
        let file = File::default();
        if matches!(fate, Fate::Done | Fate::Cut(_)) {
            state.new.insert(id, Arc::clone(&file));
        }
        state.outcome(fate, None, id)?;
        Ok(Arc::new(self.open_file(None, id, &file)))
    }

    fn publish(&self, id: ObjectId, area: Area) -> Result<()> {
        let mut state = self.state.lock();
        match state.begin() {
            Fate::Done => state.publish(id, area),
            fate => {
                if matches!(fate, Fate::Cut(_)) {
                    state.publishing = Some((id, area));
                }
                state.outcome(fate, None, id)
            }
        }
    }

    fn discard(&self, id: ObjectId) -> Result<()> {
        self.state.lock().remove(None, id)
    }

    fn leftovers(&self) -> Result<Vec<ObjectId>> {
        let mut state = self.state.lock();
        if state.is_cut {
            return Err(Error::new(Kind::Io(power_is_gone()), "new"));
        }
        Ok(state.folder(None).keys().copied().collect())
    }

    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        Ok(Arc::new(self.handle(None, id)?))
    }

    fn check_place(&self) -> Result<Vec<Area>> {
        Ok(Vec::new())
    }

    fn take_over(&self, _device: DeviceId) -> Result<bool> {
        Ok(true) // all devices have one folder here
    }

    fn has_neighbours(&self) -> Result<bool> {
        Ok(false)
    }

    fn space(&self) -> Result<Space> {
        let state = self.state.lock();
        let total_bytes = state.faults.space_bytes.unwrap_or(1 << 50);
        let free = total_bytes
            .saturating_sub(state.used_bytes())
            .saturating_sub(state.reserved_bytes);
        Ok(Space {
            total_bytes,
            free_bytes: free,
            available_bytes: free,
        })
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        let mut state = self.state.lock();
        if state.free_bytes().saturating_add(state.reserved_bytes) < bytes {
            return Err(Error::new(
                Kind::Io(io::Error::from_raw_os_error(libc::ENOSPC)),
                "new/reserve",
            ));
        }
        state.reserved_bytes = bytes;
        Ok(())
    }
}
