//! The folder of a library, as far as the commands need it: its slots.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::secret::{Opener, confirm};
use crate::crypto::{KdfParams, MasterKey, SLOT_LEN, Secret, Slot, SlotKind, random_id};
use crate::error::{Error, ExitStatus, Kind, Result};
use crate::index::{SegmentExtent, SegmentReader};
use crate::pack::PackReader;
use crate::state::{self, Found, Place, Remembered, replace_durably, sync_dir};
use crate::store::{Access, Area, DeviceId, DirStore, ObjectId, Store};

/// The folder for files that still grow.
pub const NEW: &str = "new";
/// More slots than these are not looked at: nobody has so many, and a hostile store may.
const SLOTS_MAX: usize = 1000;
/// So many segments, and packs, are tried with a recovery code.
const CHECKED_MAX: usize = 100;
/// What trying passwords on slots may cost in all before somebody is asked, in KiB of Argon2 times passes: 40 slots of
/// ours, some seconds.
const WORK_UNASKED: u64 = 8 << 20;

/// A library's folder.
pub struct Library {
    /// Where it is, as typed.
    pub dir: PathBuf,
}

/// The files in `key/`, in the order of their names.
pub struct Slots {
    /// Those that parse.
    pub good: Vec<Slot>,
    /// Those that do not, and why.
    pub bad: Vec<(ObjectId, Error)>,
    /// Copies of a good one under another name, and what they are copies of.
    pub copies: Vec<(ObjectId, ObjectId)>,
}

/// An opened library.
#[derive(Debug)]
pub struct Unlocked {
    /// Its key.
    pub master: MasterKey,
    /// The slot that opened it, and with what; none for the recovery code.
    pub slot: Option<(ObjectId, SlotKind)>,
    /// Whether this version may write to it.
    pub writable: bool,
}

impl Library {
    /// The library in a folder that is there.
    pub fn at(dir: &Path) -> Result<Self> {
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => Ok(Self {
                dir: dir.to_path_buf(),
            }),
            Ok(_) => Err(Error::new(Kind::NotLibrary, dir.display()).hint("it is not a folder")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(Kind::NotLibrary, dir.display())
                    .hint("there is no such folder: check the path; `hushfs init` makes one"))
            }
            Err(e) => Err(Error::io(e, dir)),
        }
    }

    /// Makes a library with one slot in a vacant folder; durable on return. [`Kind::Exists`] where another one came
    /// before this.
    pub fn make(dir: &Path, master: &MasterKey, secret: &Secret) -> Result<()> {
        let (id, bytes) = seal_slot(master, secret, "")?;
        make_folders(dir, &[Area::Index.name(), Area::Data.name(), NEW])?;
        // The slot last, in a `key/` that is moved to its place in one step: with it, and not before, the folder is a
        // library. A `key/` that has something in it is never replaced: so of two that make one at once, one fails.
        let (temporary, key) = (
            dir.join(NEW).join(format!("{id}.key")),
            dir.join(Area::Key.name()),
        );
        let place = || {
            make_folder(&temporary)?;
            let slot = temporary.join(id.to_string());
            replace_durably(&slot.with_extension("tmp"), &slot, &bytes)?;
            // An empty one, of an `init` that was cut short: not every system replaces it.
            let _ = fs::remove_dir(&key);
            fs::rename(&temporary, &key).map_err(|e| match e.kind() {
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                    Error::new(Kind::Exists, dir.display()).hint(
                        "a library was made here meanwhile; the recovery code shown above opens nothing",
                    )
                }
                _ => Error::io(e, &key),
            })
        };
        place().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?;
        sync_dir(dir)?;
        wait_until_readable(&key.join(id.to_string()))
    }

    /// Reads every slot file. No `key/` is no slot.
    pub fn slots(&self) -> Result<Slots> {
        let mut slots = Slots {
            good: Vec::new(),
            bad: Vec::new(),
            copies: Vec::new(),
        };
        let mut moved = Vec::new();
        for (id, _) in self.objects(Area::Key, SLOTS_MAX)? {
            let bytes = self.read_slot(id);
            let parsed = bytes.as_deref().map(|bytes| Slot::parse(id, bytes));
            match (parsed, bytes.as_deref().map(Slot::named)) {
                (Ok(Ok(slot)), _) => slots.good.push(slot),
                (Ok(Err(e)), Ok(Some(of))) => moved.push((id, of, e)),
                (Ok(Err(e)), _) => slots.bad.push((id, e)),
                (Err(_), _) => slots.bad.extend(bytes.err().map(|e| (id, e))),
            }
        }
        for (id, of, e) in moved {
            match slots.good.iter().any(|slot| slot.id == of) {
                true => slots.copies.push((id, of)),
                false => slots
                    .bad
                    .push((id, e.hint(format_args!("rename it to key/{of}")))),
            }
        }
        Ok(slots)
    }

    /// The objects of an area with their lengths in bytes, in the order of their names; more than `count_max` are an
    /// error.
    pub fn objects(&self, area: Area, count_max: usize) -> Result<Vec<(ObjectId, u64)>> {
        let folder = self.dir.join(area.name());
        let at = |e| Error::io(e, &folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(at(e)),
        };
        let mut objects = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at)?;
            let Some(id) = entry.file_name().to_str().and_then(ObjectId::parse) else {
                continue;
            };
            // A file that a sync tool just took away is not there.
            let Ok(meta) = entry.metadata() else { continue };
            // Opening a pipe would wait for ever.
            if !meta.is_file() {
                continue;
            }
            if objects.len() == count_max {
                return Err(Error::damaged(
                    folder.display(),
                    format_args!("it has more than {count_max} files"),
                ));
            }
            objects.push((id, meta.len()));
        }
        objects.sort_unstable();
        Ok(objects)
    }

    /// The bytes of a slot's file, one more than a slot has where it is longer.
    fn read_slot(&self, id: ObjectId) -> Result<Vec<u8>> {
        let path = self.slot_path(id);
        let at = |e| Error::io(e, &path);
        let mut bytes = Vec::with_capacity(SLOT_LEN + 1);
        // What it is may have changed since it was listed: a pipe would be waited for.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(at)?;
        if !file.metadata().map_err(at)?.is_file() {
            return Err(Error::damaged(path.display(), "is not a regular file"));
        }
        file.take(SLOT_LEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| {
                at(e).hint("was it just made? On some stores that takes some seconds: try again")
            })?;
        Ok(bytes)
    }

    fn slot_path(&self, id: ObjectId) -> PathBuf {
        self.dir.join(Area::Key.name()).join(id.to_string())
    }

    /// Opens the library. Files in `key/` that are no slots are reported, and passed over.
    ///
    /// [`Kind::NotLibrary`] where there is no slot, [`Kind::WrongKey`] where none opens, [`Kind::Damaged`] where none is
    /// as it was written, or the secret fits one that was changed.
    pub fn unlock(&self, opener: Opener) -> Result<Unlocked> {
        let slots = self.slots()?;
        for (_, e) in &slots.bad {
            log::warn!("{}: {e}", self.dir.display());
        }
        for (id, of) in &slots.copies {
            log::warn!("key/{id}: is a copy of key/{of}, and passed over (it can be removed)");
        }
        match opener {
            Opener::Secret {
                secret,
                accept_cost,
            } => self.unlock_with(slots, &secret, accept_cost),
            Opener::Recovery(master) => {
                self.check_recovered(&slots, &master)?;
                let writable = slots.good.iter().all(Slot::writable);
                Ok(Unlocked {
                    master,
                    slot: None,
                    writable,
                })
            }
        }
    }

    fn unlock_with(
        &self,
        mut slots: Slots,
        secret: &Secret,
        accept_cost: bool,
    ) -> Result<Unlocked> {
        self.not_empty(&mut slots)?;
        slots.good.retain(|slot| slot.kind == secret.kind());
        if slots.good.is_empty() {
            let kind = match secret.kind() {
                SlotKind::Password => "no password opens this library: try --key-file",
                SlotKind::KeyFile => "no key file opens this library",
            };
            return Err(Error::new(Kind::WrongKey, self.dir.display()).hint(kind));
        }
        // Cheap ones first, so that dear ones, put there by somebody else, keep nobody waiting.
        let work = |slot: &Slot| slot.kdf.map_or(0, |kdf| kdf.work());
        slots.good.sort_by_key(|slot| (work(slot), slot.id));
        let mut total = 0;
        let mut damage = None;
        let mut untried = None;
        for slot in &slots.good {
            total += work(slot);
            if !accept_cost && !is_worth(slot, &mut total) {
                untried = untried.or(Some(slot));
                continue;
            }
            match slot.open(secret) {
                Ok(master) if !self.is_ours(&slots.good, &master)? => {}
                Ok(master) => {
                    warn_of_foreign(&slots.good, &master);
                    return Ok(Unlocked {
                        master,
                        slot: Some((slot.id, slot.kind)),
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
        let wrong = || Error::new(Kind::WrongKey, self.dir.display());
        Err(match (damage, untried) {
            (Some(damage), _) => damage,
            (None, Some(slot)) => wrong().hint(format_args!(
                "key/{} was not tried, as {}: where it is yours, --accept-cost tries it",
                slot.id,
                asks_for(slot)
            )),
            (None, None) => wrong().hint("--recovery opens it with the recovery code"),
        })
    }

    /// Whether this is the library's key, where its slots have more than one: what is stored tells, else this machine's
    /// memory. One password may be that of several libraries.
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

    /// Refuses what has no slot.
    fn not_empty(&self, slots: &mut Slots) -> Result<()> {
        if !slots.good.is_empty() {
            return Ok(());
        }
        // One of a later version, or one that may not be read, says more than one that is damaged.
        let damaged = |e: &Error| matches!(e.kind(), Kind::Damaged(_));
        slots.bad.sort_by_key(|(_, e)| damaged(e));
        if let Some((_, e)) = slots.bad.drain(..).next() {
            let hint =
                "restore it from a copy; --recovery opens the library with the recovery code";
            return Err(if damaged(&e) { e.hint(hint) } else { e });
        }
        let hint = if self.has_contents() {
            "no file in its key folder is a slot: --recovery opens it with the recovery code"
        } else {
            "`hushfs init` makes one"
        };
        Err(Error::new(Kind::NotLibrary, self.dir.display()).hint(hint))
    }

    /// Whether it looks like a library that lost its `key/`.
    pub fn has_contents(&self) -> bool {
        [Area::Index, Area::Data]
            .iter()
            .any(|area| self.dir.join(area.name()).is_dir())
    }

    /// A recovery code that was typed well may be another library's: a slot tells, else what is stored, else this
    /// machine's memory.
    fn check_recovered(&self, slots: &Slots, master: &MasterKey) -> Result<()> {
        let foreign = || {
            Error::new(Kind::WrongKey, self.dir.display())
                .hint("nothing in it opens with this recovery code: is it another library's?")
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

    /// Whether a segment or a pack opens with this key; `None` where there is none. One that opens is enough: others
    /// may be damaged.
    fn opens_with(&self, master: &MasterKey) -> Result<Option<bool>> {
        let store = DirStore::open(&self.dir, Access::ReadOnly)?;
        let mut answer = None;
        for area in [Area::Index, Area::Data] {
            for (id, _) in store.list(area)?.into_iter().take(CHECKED_MAX) {
                let opened = store.open(area, id).and_then(|object| match area {
                    Area::Index => {
                        SegmentReader::open(object, id, master, SegmentExtent::Published).map(drop)
                    }
                    _ => PackReader::open(object, id, master)?.trailer().map(drop),
                });
                match opened {
                    Ok(()) => return Ok(Some(true)),
                    Err(e) if matches!(e.kind(), Kind::Damaged(_)) => answer = Some(false),
                    // A sync tool just took it away.
                    Err(e) if matches!(e.kind(), Kind::Missing) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(answer)
    }

    /// Adds a slot; durable on return.
    pub fn add_slot(&self, master: &MasterKey, secret: &Secret, label: &str) -> Result<ObjectId> {
        let (id, bytes) = seal_slot(master, secret, label)?;
        // A synced copy has no `new/`, and a library that is being recovered no `key/`.
        make_folders(&self.dir, &folders())?;
        let temporary = self.dir.join(NEW).join(format!("{id}.slot"));
        let path = self.slot_path(id);
        replace_durably(&temporary, &path, &bytes)?;
        wait_until_readable(&path)?;
        Ok(id)
    }

    /// Removes a slot; durable on return.
    pub fn remove_slot(&self, id: ObjectId) -> Result<()> {
        let path = self.slot_path(id);
        fs::remove_file(&path).map_err(|e| Error::io(e, &path))?;
        sync_dir(&self.dir.join(Area::Key.name()))
    }
}

/// Says which slots were not written with this key: they open another library, if any.
fn warn_of_foreign(slots: &[Slot], master: &MasterKey) {
    for slot in slots.iter().filter(|slot| slot.verify(master).is_err()) {
        log::warn!(
            "key/{}: is not written with this library's key, and passed over (it can be removed)",
            slot.id
        );
    }
}

/// Whether a slot is to be tried, now that all tried so far cost `total`. Where that is more than usual, somebody is
/// asked, and on a yes the count begins anew.
fn is_worth(slot: &Slot, total: &mut u64) -> bool {
    let is_costly = slot.kdf.is_some_and(|kdf| kdf.is_costly());
    if !is_costly && *total <= WORK_UNASKED {
        return true;
    }
    let wanted = asks_for(slot);
    let asked = confirm(format_args!("key/{}: {wanted}. Try it?", slot.id));
    if asked == Some(true) {
        *total = 0;
    }
    asked.unwrap_or(false)
}

/// What trying it takes, for people.
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

fn seal_slot(master: &MasterKey, secret: &Secret, label: &str) -> Result<(ObjectId, Vec<u8>)> {
    let id = random_id()?;
    let bytes = Slot::seal(id, master, secret, KdfParams::default(), label)?;
    Ok((id, bytes))
}

/// Waits until a file that was moved to its place can be read there. Under `rclone mount` 1.60 that takes until
/// it is uploaded, and the next command would fail.
fn wait_until_readable(path: &Path) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let started = Instant::now();
    let mut is_said = false;
    loop {
        let Err(e) = fs::read(path) else {
            return Ok(());
        };
        if started.elapsed() > PATIENCE {
            return Err(Error::io(e, path).hint("it was written, and cannot be read back"));
        }
        if !std::mem::replace(&mut is_said, true) {
            log::warn!(
                "{}: waiting until the store gives back what was written: {e}",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// For this user alone, where it is missing.
fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::io(e, path))
}

/// Makes a library's folder and those in it, where they are missing; durable on return.
fn make_folders(dir: &Path, names: &[&str]) -> Result<()> {
    make_folder(dir)?;
    for name in names {
        make_folder(&dir.join(name))?;
    }
    sync_dir(dir)?;
    let parent = fs::canonicalize(dir).map_err(|e| Error::io(e, dir))?;
    sync_dir(parent.parent().unwrap_or(Path::new("/")))
}

/// The folders of a library.
pub fn folders() -> [&'static str; 4] {
    [Area::Key.name(), Area::Index.name(), Area::Data.name(), NEW]
}

/// As what this machine uses a library.
#[derive(Debug)]
pub struct Recalled {
    /// The state file; none where nothing is to be remembered.
    pub place: Option<Place>,
    /// The device's id.
    pub device: DeviceId,
    /// The library that this is a copy of, where it is one without a device of its own: it may only be read.
    pub copy_of: Option<PathBuf>,
}

impl Recalled {
    /// The state file and the device's id, for who writes to the library at `dir`: [`Kind::InUse`] where it is a copy.
    pub fn into_writer(self, dir: &Path) -> Result<(Place, DeviceId)> {
        match (self.place, self.copy_of) {
            (Some(place), None) => Ok((place, self.device)),
            (_, original) => Err(Error::new(Kind::InUse, dir.display()).hint(format_args!(
                "it is a copy of {}; `hushfs mount --new-device` makes it one that is written to",
                original.unwrap_or_default().display()
            ))),
        }
    }
}

/// What this machine remembers of the library at `dir`; where it remembers nothing, it gets a device id. So does a copy
/// of what lies at another place, with `new_device`.
///
/// [`Kind::RolledBack`] where another library was there; not with `accept`.
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
        // Another process may have come before: what it remembers holds.
        if free.create(&remembered)? {
            return Ok(own(free, &remembered));
        }
    }
}

/// The same for who only reads: nothing is made or changed, and a rescue system may have no place to remember anything
/// in.
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

fn own(place: Place, remembered: &Remembered) -> Recalled {
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

/// What is remembered is of the original: a copy may be older.
fn copy(original: PathBuf) -> Result<Recalled> {
    Ok(Recalled {
        copy_of: Some(original),
        ..stranger()?
    })
}

/// Whether the library with this key lies at `dir`.
fn holds(dir: &Path, master: &MasterKey) -> bool {
    let Ok(library) = Library::at(dir) else {
        return false;
    };
    let has_slot = |slots: Slots| slots.good.iter().any(|slot| slot.verify(master).is_ok());
    library.slots().is_ok_and(has_slot) || matches!(library.opens_with(master), Ok(Some(true)))
}

fn new_memory(place: &Place, master: &MasterKey) -> Result<Remembered> {
    Ok(Remembered {
        fingerprint: master.fingerprint(),
        device: random_id()?,
        place: place.library().map(Path::to_path_buf),
        former: None,
        wrote: Vec::new(),
        heads: Vec::new(),
    })
}
