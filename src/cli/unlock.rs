//! Unlocks a library with a secret that was typed, or is asked for.

use super::secret::{OpenArgs, confirm, is_terminal};
use crate::crypto::SlotKind;
use crate::error::Result;
use crate::library::{Location, Opener, Slots, Unlocked};

impl OpenArgs {
    /// Unlocks a library, and asks for the secret if none is given. Files in `key/` that are not slots are reported and
    /// skipped.
    ///
    /// [`Kind::NotLibrary`](crate::Kind::NotLibrary) if there is no slot, otherwise as [`Location::unlock`].
    pub fn unlock(&self, location: &Location) -> Result<Unlocked> {
        let mut slots = location.slots()?;
        slots.warn(location);
        if !self.recovery {
            location.not_empty(&mut slots)?;
            let kind = match self.is_password() {
                true => SlotKind::Password,
                false => SlotKind::KeyFile,
            };
            location.keep_kind(&mut slots, kind)?;
        }
        self.each(|opener| self.try_opener(location, &slots, opener))
    }

    /// The same for commands that also do something without a secret. `None` if no secret is given and there is no
    /// terminal to ask at, or if no password opens the library. With `or_none`, also for an empty line.
    pub fn unlock_if_asked(&self, location: &Location, or_none: bool) -> Result<Option<Unlocked>> {
        if self.given() {
            return self.unlock(location).map(Some);
        }
        let mut slots = location.slots()?;
        if !is_terminal() || location.keep_kind(&mut slots, SlotKind::Password).is_err() {
            return Ok(None);
        }
        if !or_none {
            return self.unlock(location).map(Some);
        }
        slots.warn(location);
        self.each_or_none(|opener| self.try_opener(location, &slots, opener))
    }

    fn try_opener(&self, location: &Location, slots: &Slots, opener: Opener) -> Result<Unlocked> {
        location.unlock(slots, opener, &|slot, wanted| {
            let ask = || confirm(format_args!("key/{slot}: {wanted}. Try it?"));
            self.accept_cost || ask() == Some(true)
        })
    }
}
