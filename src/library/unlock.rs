//! Which slot of a library a secret unlocks, and whether the key in it is this library's.

use super::location::Location;
use super::slots::Slots;
use crate::crypto::{KdfParams, MasterKey, Secret, Slot, SlotKind};
use crate::error::{Error, ExitStatus, Kind, Result};
use crate::object::SlotId;
use crate::state::{self, Found};

/// Maximum total cost of trying passwords on slots before the user is asked, in KiB of Argon2 times passes: 40 slots of
/// ours, some seconds.
const WORK_UNASKED: u64 = 8 << 20;

/// What unlocks a library.
pub enum Opener {
    /// A slot's secret.
    Secret {
        /// The secret as it was given.
        secret: Secret,
        /// The same without the marks of a text file from Windows, if it has any.
        bare: Option<Secret>,
    },
    /// The master key itself, from the recovery code.
    Recovery(MasterKey),
}

/// An unlocked library.
pub struct Unlocked {
    /// Its key.
    pub master: MasterKey,
    /// The slot that was unlocked, and its secret; `None` for the recovery code.
    pub slot: Option<(SlotId, Secret)>,
    /// Whether this version may write to it.
    pub writable: bool,
}

/// Decides whether to try a slot that costs more than usual, from its id and a description of the cost.
pub type MayCost<'a> = &'a dyn Fn(SlotId, &str) -> bool;

impl Slots {
    /// Warns of the files in the `key/` of `location` that are not slots.
    pub fn warn(&self, location: &Location) {
        for (_, e) in &self.bad {
            log::warn!("{}: {e}", location.dir.display());
        }
        for (id, of) in &self.copies {
            log::warn!("key/{id}: is a copy of key/{of}, and passed over (it can be removed)");
        }
    }
}

impl Location {
    /// Keeps the slots of one kind, the cheapest first, so that expensive ones, planted by an attacker, delay nobody.
    pub fn keep_kind(&self, slots: &mut Slots, kind: SlotKind) -> Result<()> {
        slots.good.retain(|slot| slot.kind == kind);
        slots.good.sort_by_key(|slot| (work(slot), slot.id));
        if !slots.good.is_empty() {
            return Ok(());
        }
        Err(match kind {
            SlotKind::Password => Error::secret(
                self.dir.display(),
                "no password opens this library, only key files",
            )
            .hint("try --key-file"),
            SlotKind::KeyFile => {
                Error::secret(self.dir.display(), "no key file opens this library")
            }
        })
    }

    /// Returns the library's key, from one of the slots.
    ///
    /// [`Kind::Secret`] if the secret unlocks no slot; [`Kind::Damaged`] if no slot is intact, or if the secret fits
    /// one that was changed.
    pub fn unlock(&self, slots: &Slots, opener: Opener, may_cost: MayCost<'_>) -> Result<Unlocked> {
        match opener {
            Opener::Secret { secret, bare } => {
                let tried = self.try_secret(slots, secret, may_cost);
                let (Err(e), Some(bare)) = (&tried, bare) else {
                    return tried;
                };
                if e.exit_status() != ExitStatus::WrongKey {
                    return tried;
                }
                self.try_secret(slots, bare, may_cost)
                    .map_err(|e| match e.exit_status() {
                        ExitStatus::WrongKey => e.hint(
                            "the first line ends with a carriage return, or begins with a byte order mark; it was tried \
                             with and without these",
                        ),
                        _ => e,
                    })
            }
            Opener::Recovery(master) => {
                self.check_recovered(slots, &master)?;
                let writable = slots.good.iter().all(Slot::writable);
                Ok(Unlocked {
                    master,
                    slot: None,
                    writable,
                })
            }
        }
    }

    fn try_secret(&self, slots: &Slots, secret: Secret, may_cost: MayCost<'_>) -> Result<Unlocked> {
        let mut total = 0;
        let mut damage = None;
        let mut untried = None;
        for slot in &slots.good {
            total += work(slot);
            if !is_worth(slot, &mut total, may_cost) {
                untried = untried.or(Some(slot));
                continue;
            }
            match slot.open(&secret) {
                Ok(master) if !self.is_ours(&slots.good, &master)? => {}
                Ok(master) => {
                    warn_of_foreign(&slots.good, &master);
                    return Ok(Unlocked {
                        master,
                        slot: Some((slot.id, secret)),
                        writable: slot.writable(),
                    });
                }
                Err(e) if matches!(e.kind(), Kind::WrongKey) => {}
                Err(e) if e.exit_status() == ExitStatus::Damaged => {
                    log::warn!("{}: {e}", self.dir.display());
                    damage = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        let wrong = || {
            let what = match secret.kind() {
                SlotKind::Password => "wrong password, or not this library's",
                SlotKind::KeyFile => "wrong key file, or not this library's",
            };
            Error::secret(self.dir.display(), what)
        };
        Err(match (damage, untried) {
            (Some(damage), _) => damage,
            (None, Some(slot)) => wrong().hint(format_args!(
                "key/{} was not tried, as {}: if it is yours, --accept-cost tries it",
                slot.id,
                asks_for(slot)
            )),
            (None, None) => wrong().hint("try again; the recovery code opens it with --recovery"),
        })
    }

    /// Whether this is the library's key. If its slots hold more than one, the stored objects decide, else this
    /// machine's memory. Several libraries may have the same password.
    fn is_ours(&self, slots: &[Slot], master: &MasterKey) -> Result<bool> {
        if slots.iter().all(|slot| slot.verify(master).is_ok()) {
            return Ok(true);
        }
        if let Some(opens) = self.opens_with(master)? {
            return Ok(opens);
        }
        let found = state::find(&self.dir, master.fingerprint(), false, &|_| false);
        Ok(!matches!(found, Err(e) if matches!(e.kind(), Kind::RolledBack(_))))
    }

    /// Refuses a library without slots.
    pub fn not_empty(&self, slots: &mut Slots) -> Result<()> {
        if !slots.good.is_empty() {
            return Ok(());
        }
        // A slot of a later version, or one that may not be read, says more than a damaged one.
        let damaged = |e: &Error| matches!(e.kind(), Kind::Damaged(_));
        slots.bad.sort_by_key(|(_, e)| damaged(e));
        if let Some((_, e)) = slots.bad.drain(..).next() {
            let hint =
                "restore it from a copy; --recovery opens the library with the recovery code";
            return Err(if damaged(&e) { e.hint(hint) } else { e });
        }
        if let Some(lacking) = self.key_has_not_arrived() {
            return Err(lacking);
        }
        let hint = if self.has_contents() {
            "no file in its key folder is a slot: --recovery opens it with the recovery code"
        } else {
            "`hushfs init` creates one"
        };
        Err(Error::new(Kind::NotLibrary, self.dir.display()).hint(hint))
    }

    /// Checks that a recovery code, which may be well-formed but another library's, is this library's. A slot decides,
    /// else the stored objects, else this machine's memory.
    fn check_recovered(&self, slots: &Slots, master: &MasterKey) -> Result<()> {
        let foreign = || {
            Error::secret(
                self.dir.display(),
                "wrong recovery code, or not this library's",
            )
        };
        if slots.good.iter().any(|slot| slot.verify(master).is_ok()) {
            return Ok(());
        }
        if !slots.good.is_empty() {
            return Err(foreign());
        }
        if !self.has_contents() {
            return Err(Error::new(Kind::NotLibrary, self.dir.display()));
        }
        match self.opens_with(master)? {
            Some(true) => return Ok(()),
            Some(false) => return Err(foreign()),
            None => {}
        }
        match state::find(&self.dir, master.fingerprint(), false, &|_| false) {
            Err(e) if matches!(e.kind(), Kind::RolledBack(_)) => Err(foreign()),
            Ok(Found::Own(..)) => Ok(()),
            Ok(_) | Err(_) => {
                log::warn!(
                    "{}: it has no slot and nothing is stored, so the recovery code is taken as this library's unchecked",
                    self.dir.display()
                );
                Ok(())
            }
        }
    }
}

/// Returns the slots of the library with this key that a secret unlocks. Those that cost more than usual are not tried.
pub fn opened_by<'a>(slots: &'a Slots, master: &MasterKey, secret: &Secret) -> Vec<&'a Slot> {
    let mut total = 0;
    let is_tried = |slot: &&Slot| {
        total += work(slot);
        slot.kdf.is_none_or(|kdf| !kdf.is_costly()) && total <= WORK_UNASKED
    };
    let own = slots.good.iter();
    own.filter(|slot| slot.kind == secret.kind() && slot.verify(master).is_ok())
        .filter(is_tried)
        .filter(|slot| slot.open(secret).is_ok())
        .collect()
}

/// Returns the cost of trying a slot, in KiB of Argon2 times passes.
fn work(slot: &Slot) -> u64 {
    slot.kdf.map_or(0, |kdf| kdf.work())
}

/// Warns of slots that were not written with this key: they belong to another library, if to any.
fn warn_of_foreign(slots: &[Slot], master: &MasterKey) {
    for slot in slots.iter().filter(|slot| slot.verify(master).is_err()) {
        log::warn!(
            "key/{}: is not written with this library's key, and passed over (it can be removed)",
            slot.id
        );
    }
}

/// Whether to try a slot, if the cost of those tried so far and of this one is `total`. If that is more than usual,
/// asks the user, and on a yes starts counting again from zero.
fn is_worth(slot: &Slot, total: &mut u64, may_cost: MayCost<'_>) -> bool {
    let is_costly = slot.kdf.is_some_and(|kdf| kdf.is_costly());
    if !is_costly && *total <= WORK_UNASKED {
        return true;
    }
    let may = may_cost(slot.id, &asks_for(slot));
    if may {
        *total = 0;
    }
    may
}

/// Describes the cost of trying a slot, for messages.
fn asks_for(slot: &Slot) -> String {
    let ours = KdfParams::default();
    let kdf = slot.kdf.unwrap_or(ours);
    let times = kdf.work().div_ceil(ours.work());
    match kdf.is_costly() {
        true => format!(
            "it asks for {} MiB of memory and {times} times the work that hushfs itself asks for",
            kdf.memory_kib / 1024
        ),
        false => "there are more slots than a library should have".into(),
    }
}
