//! The device as which this machine uses a library, and what it remembers of the library by way of [`crate::state`].

use std::path::{Path, PathBuf};

use super::location::Location;
use super::slots::Slots;
use crate::crypto::{MasterKey, random_id};
use crate::error::{Kind, Result};
use crate::object::DeviceId;
use crate::state::{self, Found, Remembered, StateFile};

/// The device as which this machine uses a library.
#[derive(Debug)]
pub struct Recalled {
    /// The state file; `None` if nothing is to be remembered.
    pub place: Option<StateFile>,
    /// The device's id.
    pub device: DeviceId,
    /// The library that this is a copy of, if it is a copy without a device of its own: then it may only be read.
    pub copy_of: Option<PathBuf>,
}

/// Returns what this machine remembers of the library at `dir`. If it remembers nothing, creates a device id and
/// remembers it; with `new_device`, also for a copy of a library at another place.
///
/// [`Kind::RolledBack`] if another library was at `dir` before, unless `accept`.
pub fn recall(dir: &Path, master: &MasterKey, accept: bool, new_device: bool) -> Result<Recalled> {
    let found = || state::find(dir, master.fingerprint(), accept, &|dir| holds(dir, master));
    loop {
        let free = match found()? {
            Found::Own(place, mut remembered) => {
                let place = match remembered.place {
                    Some(_) => place,
                    None => state::take_over(&place, &mut remembered, dir)?,
                };
                return Ok(own(place, &remembered));
            }
            Found::Copy { original, .. } if !new_device => return copy(original),
            Found::Copy { free, .. } | Found::Unknown(free) => free,
        };
        let remembered = new_memory(&free, master)?;
        // If another process was faster, use what it has remembered.
        if free.create(&remembered)? {
            return Ok(own(free, &remembered));
        }
    }
}

/// The same for reading only: creates and changes nothing, as a rescue system may have no place for a state file.
pub fn recall_to_read(dir: &Path, master: &MasterKey, accept: bool) -> Result<Recalled> {
    let found = state::find(dir, master.fingerprint(), accept, &|dir| holds(dir, master));
    match found {
        Ok(Found::Own(place, remembered)) => Ok(own(place, &remembered)),
        Ok(Found::Copy { original, .. }) => copy(original),
        Ok(Found::Unknown(_)) => stranger(),
        Err(e) if matches!(e.kind(), Kind::Io(_) | Kind::Usage(_)) => {
            log::warn!("{e}");
            stranger()
        }
        Err(e) => Err(e),
    }
}

fn own(place: StateFile, remembered: &Remembered) -> Recalled {
    Recalled {
        place: Some(place),
        device: remembered.device,
        copy_of: None,
    }
}

fn stranger() -> Result<Recalled> {
    Ok(Recalled {
        place: None,
        device: random_id()?,
        copy_of: None,
    })
}

/// Nothing is remembered of a copy: the state file describes the original, and a copy may be older.
fn copy(original: PathBuf) -> Result<Recalled> {
    Ok(Recalled {
        copy_of: Some(original),
        ..stranger()?
    })
}

/// Whether the library with this key is at `dir`.
fn holds(dir: &Path, master: &MasterKey) -> bool {
    let Ok(library) = Location::at(dir) else {
        return false;
    };
    let has_slot = |slots: Slots| slots.good.iter().any(|slot| slot.verify(master).is_ok());
    library.slots().is_ok_and(has_slot) || matches!(library.opens_with(master), Ok(Some(true)))
}

fn new_memory(place: &StateFile, master: &MasterKey) -> Result<Remembered> {
    Ok(Remembered {
        fingerprint: master.fingerprint(),
        device: random_id()?,
        place: place.library().map(Path::to_path_buf),
        former: None,
        wrote: Vec::new(),
        heads: Vec::new(),
    })
}
