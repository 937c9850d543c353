//! Opening a library: puts the state file, the device, the store and the vault together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::device::{recall, recall_to_read};
use super::location::Location;
use crate::crypto::{MasterKey, random_id};
use crate::error::{Error, Kind, Result};
use crate::index::check_rollback;
use crate::object::DeviceId;
use crate::state::StateFile;
use crate::store::{Access, DirStore, Store, Watched};
use crate::vault::{self, Vault};

/// How a library is opened.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// Writes nothing.
    pub read_only: bool,
    /// When reading only, hides what a crash left in `new/`.
    pub published_only: bool,
    /// Accepts an index that is older than this machine has seen, and another library in its place.
    pub accept_rollback: bool,
    /// Writes to a copy of a library that this machine uses at another place, as a device of its own.
    pub new_device: bool,
    /// What to do if another device has the library mounted on this machine.
    pub others: Others,
    /// Size of the cache of decrypted blocks, in bytes.
    pub cache_bytes: usize,
    /// Watches the store's calls, and does not wait for the amount of free space if the store is slow to report it.
    /// Needed by callers that have to answer requests.
    pub watched: bool,
    /// Finds where a library is mounted, for messages.
    pub mounted_at: Option<fn(&Path) -> Option<PathBuf>>,
}

/// What to do if another device has the library mounted on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Others {
    /// Opens it silently.
    #[default]
    Ignored,
    /// Opens it with a warning.
    Told,
    /// Does not open it.
    Refused,
}

/// A library that is about to be opened, and the device to open it as.
pub struct Opening {
    location: Location,
    master: Arc<MasterKey>,
    how: How,
    place: Option<StateFile>,
    device: DeviceId,
    copy_of: Option<PathBuf>,
}

/// Opens a library. [`Kind::InUse`] if it is to be written to, but is a copy of one that this machine uses.
pub fn open(location: Location, master: MasterKey, how: How) -> Result<Arc<Vault>> {
    prepare(location, master, how)?.open()
}

/// The first half of [`open`], for callers that fork in between: determines the device, and warns of files that a crash
/// left and that will not be visible. When writing, this machine remembers the library from now on.
pub fn prepare(location: Location, master: MasterKey, how: How) -> Result<Opening> {
    let (dir, accept) = (&location.dir, how.accept_rollback);
    let recalled = match how.read_only {
        true => recall_to_read(dir, &master, accept)?,
        false => recall(dir, &master, accept, how.new_device)?,
    };
    let opening = Opening {
        location,
        master: Arc::new(master),
        how,
        place: recalled.place,
        device: recalled.device,
        copy_of: recalled.copy_of,
    };
    opening.warn_of_leftovers();
    Ok(opening)
}

impl Opening {
    /// If this is a copy of a library that this machine uses at another place, has it opened read-only and returns that
    /// place.
    pub fn read_if_copy(&mut self) -> Option<&Path> {
        let original = self.copy_of.as_deref().filter(|_| !self.how.read_only)?;
        self.how.read_only = true;
        self.how.others = Others::Told;
        Some(original)
    }

    /// Keeps the key out of swap space, in this process.
    pub fn lock_key(&self) {
        self.master.lock();
    }

    /// The second half of [`open`].
    pub fn open(mut self) -> Result<Arc<Vault>> {
        if let (false, Some(original)) = (self.how.read_only, &self.copy_of) {
            let dir = self.location.dir.display();
            return Err(Error::new(Kind::InUse, dir).hint(format_args!(
                "it is a copy of {}; `hushfs mount --new-device` makes it one that is written to",
                original.display()
            )));
        }
        // When reading only, show everything present on the first try: missing segments would not be an error, so there
        // would be no second one.
        let accepts = self.how.accept_rollback;
        let mut accept_rollback = accepts && self.how.read_only;
        let mut is_renewed = false;
        loop {
            let e = match self.try_open(accept_rollback) {
                Err(e) => e,
                opened => return opened,
            };
            match e.kind() {
                // Only once: a random id is not taken a second time.
                Kind::DeviceTaken(_) if !is_renewed => {
                    is_renewed = true;
                    self.renew_device(&e)?;
                }
                kind if accepts && !accept_rollback => {
                    if matches!(kind, Kind::RolledBack(_)) && self.lacks_own()? {
                        // The missing segments may still arrive, so new ones must not have the same numbers.
                        let old = std::mem::replace(&mut self.device, random_id()?);
                        log::warn!(
                            "segments of this machine are missing or replaced, so it writes as device {} from now on: \
                             what lies in new/{old} does not show, and until there is a new library, no room is given \
                             back",
                            self.device
                        );
                    }
                    accept_rollback = true;
                }
                _ => return Err(e),
            }
        }
    }

    fn try_open(&self, accept_rollback: bool) -> Result<Arc<Vault>> {
        let (how, dir) = (&self.how, &self.location.dir);
        let access = match how.read_only {
            true => Access::ReadOwn(self.device),
            false => Access::Write(self.device),
        };
        let mounted_at = || how.mounted_at.and_then(|find| find(dir));
        let store = DirStore::open(dir, access).map_err(|e| match e.kind() {
            Kind::InUse => match mounted_at() {
                Some(point) => e.hint(format_args!(
                    "it is already mounted at {}: unmount it first",
                    point.display()
                )),
                None => e,
            },
            _ => e,
        })?;
        // While this device's lock is held: if two devices open the library concurrently, at least one sees the other.
        self.check_others(&store)?;
        let options = vault::Options {
            read_only: how.read_only,
            cache_bytes: how.cache_bytes,
            accept_rollback,
            published_only: how.published_only,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let store: Arc<dyn Store> = Arc::new(store);
        let store = match how.watched {
            true => Arc::new(Watched::new(store)),
            false => store,
        };
        let (master, place) = (Arc::clone(&self.master), self.place.clone());
        Vault::open(store, master, self.device, place, &options).map_err(|e| match e.kind() {
            Kind::RolledBack(_) => e.about(dir.display()),
            _ => e,
        })
    }

    /// Checks whether another device has the library mounted on this machine.
    fn check_others(&self, store: &DirStore) -> Result<()> {
        if self.how.others == Others::Ignored {
            return Ok(());
        }
        let neighbours = store.neighbours()?;
        let mut mounted = neighbours
            .iter()
            .filter(|n| n.is_mounted && n.device != self.device);
        let Some(other) = mounted.next() else {
            return Ok(());
        };
        let text = format!(
            "device {}, another user or container perhaps, has it mounted on this machine",
            other.device
        );
        let dir = self.location.dir.display();
        if self.how.others == Others::Told {
            let when = match self.how.read_only {
                true => "some seconds after it wrote that to the library",
                false => "after the next mount",
            };
            log::warn!("{dir}: {text}; what it changes shows here {when}");
            return Ok(());
        }
        Err(Error::new(Kind::InUse, dir).hint(format_args!(
            "{text}: unmount it there, or mount it with --read-only; --force mounts it beside, and what both change is \
             merged by the next mount"
        )))
    }

    /// Makes this machine write as another device from now on, and take over what it left as the old one if that is
    /// dead.
    fn renew_device(&mut self, why: &Error) -> Result<()> {
        let old = std::mem::replace(&mut self.device, random_id()?);
        log::warn!(
            "{why}. So this machine writes as device {} from now on: nothing of either is lost, and what is deleted gives \
             no room back from now on",
            self.device
        );
        let Some(place) = &self.place else {
            return Ok(());
        };
        let Some(mut remembered) = place.load()? else {
            return Ok(());
        };
        (remembered.device, remembered.former) = (self.device, Some(old));
        remembered.wrote.clear();
        place.save(&remembered)
    }

    /// Whether the index lacks segments of this device that this machine has seen or made, or has others in their
    /// place.
    fn lacks_own(&self) -> Result<bool> {
        let place = self.place.as_ref();
        let remembered = place.map(StateFile::load).transpose()?.flatten();
        let heads = remembered.map_or_else(Vec::new, |r| r.heads);
        let Some(own) = heads.iter().find(|head| head.device == self.device) else {
            return Ok(false);
        };
        let (_, there) = self.location.index(&self.master)?;
        Ok(check_rollback(&[*own], there.heads.values()).is_err())
    }

    /// Warns of what a crash left in `new/` that will not be visible: files of other devices and, if only published
    /// files are shown, those of this one.
    fn warn_of_leftovers(&self) {
        let left = self.location.growth().unwrap_or_default();
        let state = self.place.as_ref().map_or_else(
            || "the state file".into(),
            |place| place.path().display().to_string(),
        );
        for g in left.iter().filter(|g| g.files > 0 && !g.is_mounted) {
            let adopter = match (g.device == self.device, self.how.published_only) {
                (true, false) => continue,
                (true, true) => "the next mount for writing takes them over".into(),
                (false, _) => format!(
                    "they show when who wrote them mounts the library for writing; where that was this user, and {state} \
                     was lost, put `device {}` into it",
                    g.device
                ),
            };
            log::warn!(
                "{}/new/{}: an unclean shutdown left {g} not visible yet; {adopter}",
                self.location.dir.display(),
                g.device
            );
        }
    }
}
