//! Where a library lies: a folder, and the slots in it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::crypto::{KdfParams, MasterKey, SLOT_LEN, Secret, Slot, random_id};
use crate::error::{Error, Kind, Result, io_text};
use crate::index::{Replayed, Tree, replay};
use crate::object::{Area, DeviceId, ObjectId, SlotId};
use crate::state::{replace_durably, sync_dir};
use crate::store::{Access, DirStore, is_in_use};
use crate::volume::Time;

/// The folder for files that still grow.
const NEW: &str = "new";
/// More slots than these are not looked at: nobody has so many, and a hostile store may.
const SLOTS_MAX: usize = 1000;

/// Where a library lies.
pub struct Location {
    /// Where it is, as typed.
    pub dir: PathBuf,
}

/// What lies in the folder of one device in `new/`: files that a mount is writing, or that a crash left.
pub struct Growing {
    /// Whose.
    pub device: DeviceId,
    /// How many.
    pub files: u64,
    /// Their length in all.
    pub bytes: u64,
    /// A mount is at work there, as far as this machine can see.
    pub is_mounted: bool,
}

impl fmt::Display for Growing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |number| if number == 1 { "" } else { "s" };
        let Self { files, bytes, .. } = self;
        write!(
            f,
            "{files} file{} ({bytes} byte{})",
            end(*files),
            end(*bytes)
        )
    }
}

/// The files in `key/`, in the order of their names.
pub struct Slots {
    /// Those that parse.
    pub good: Vec<Slot>,
    /// Those that do not, and why.
    pub bad: Vec<(SlotId, Error)>,
    /// Copies of a good one under another name, and what they are copies of.
    pub copies: Vec<(SlotId, SlotId)>,
}

impl Location {
    /// The library in a folder that is there.
    pub fn at(dir: &Path) -> Result<Self> {
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => Ok(Self {
                dir: dir.to_path_buf(),
            }),
            Ok(_) => Err(Error::new(Kind::NotLibrary, dir.display()).hint("it is not a folder")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::new(Kind::NoFolder, dir.display())
                    .hint("check the path; `hushfs init` creates a library"))
            }
            Err(e) => Err(Error::io(e, dir)),
        }
    }

    /// Makes a library with one slot in a vacant folder; durable on return. [`Kind::Exists`] if another one came
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
                    Error::new(Kind::Exists, dir.display())
                        .hint("another library was created here meanwhile")
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
            let id = SlotId(id);
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

    /// Whether it looks like a library that lost its `key/`.
    pub fn has_contents(&self) -> bool {
        [Area::Index, Area::Data]
            .iter()
            .any(|area| self.dir.join(area.name()).is_dir())
    }

    /// What to say where objects of a library are there, and nothing that could be a slot.
    pub fn key_has_not_arrived(&self) -> Option<Error> {
        let has_objects = |area| {
            self.objects(area, usize::MAX)
                .is_ok_and(|all| !all.is_empty())
        };
        if !has_objects(Area::Index) && !has_objects(Area::Data) {
            return None;
        }
        let key = self.dir.join(Area::Key.name());
        let what = match fs::symlink_metadata(&key) {
            Err(_) => "the folder `key` is missing".into(),
            Ok(meta) if meta.is_file() => {
                "`key` is a file, and in a library it has to be a folder".into()
            }
            Ok(meta) if meta.is_symlink() && fs::metadata(&key).is_err() => {
                "`key` is a symbolic link to something that is not there".into()
            }
            Ok(_) => self.key_without_slots(&key),
        };
        let text = format!("its key has not arrived yet: {what}");
        let error = Error::new(Kind::RolledBack(text.into()), self.dir.display());
        Some(error.hint(
            "wait for the sync to finish, or restore the folder `key` from a copy; --recovery opens the library with the \
             recovery code",
        ))
    }

    /// What is in `key/` in the place of slots.
    fn key_without_slots(&self, key: &Path) -> String {
        let entries = fs::read_dir(key).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|e| (e.file_name(), e.file_type())).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let is_slot = |name: &OsString| name.to_str().and_then(ObjectId::parse).is_some();
        // One that would be a slot, first.
        let in_place = names
            .iter()
            .find(|(name, _)| is_slot(name))
            .or(names.first());
        let Some((name, kind)) = in_place else {
            return "the folder `key` is empty".into();
        };
        let name = name.to_string_lossy();
        let name = name.escape_debug();
        match kind {
            Ok(kind) if kind.is_symlink() => {
                format!("key/{name} is a symbolic link, and links are not followed in a library")
            }
            Ok(kind) if !kind.is_file() => format!("key/{name} is not a regular file"),
            _ => format!("no file in `key` has the name of a slot; there is key/{name}"),
        }
    }

    /// The objects of an area with their lengths in bytes, in the order of their names; more than `count_max` are an
    /// error.
    pub fn objects(&self, area: Area, count_max: usize) -> Result<Vec<(ObjectId, u64)>> {
        let folder = self.dir.join(area.name());
        let at = |e| Error::io(e, &folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // In a library of Minio Music Server, `key` is a file.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Vec::new());
            }
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

    /// What grows, for each device.
    pub fn growing(&self) -> Result<Vec<Growing>> {
        let folder = self.dir.join(NEW);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(e, folder)),
        };
        let is_object = |file: &fs::DirEntry| file.file_name().to_str().and_then(ObjectId::parse);
        let mut devices = Vec::new();
        for entry in entries.flatten() {
            let Some(device) = is_object(&entry) else {
                continue;
            };
            let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let lens: Vec<u64> = files
                .filter(|file| is_object(file).is_some())
                .map(|file| file.metadata().map_or(0, |meta| meta.len()))
                .collect();
            devices.push(Growing {
                device,
                files: lens.len() as u64,
                bytes: lens.iter().sum(),
                is_mounted: is_in_use(&entry.path()),
            });
        }
        Ok(devices)
    }

    /// What the published index says, gaps included.
    pub fn index(&self, master: &MasterKey) -> Result<(DirStore, Replayed)> {
        let store = DirStore::open(&self.dir, Access::ReadOnly)?;
        let replayed = replay(&store, master, true, || Tree::new(0, 0, Time::default()))?;
        Ok((store, replayed))
    }

    /// The bytes of a slot's file, one more than a slot has where it is longer.
    fn read_slot(&self, id: SlotId) -> Result<Vec<u8>> {
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

    fn slot_path(&self, id: SlotId) -> PathBuf {
        self.dir.join(Area::Key.name()).join(id.to_string())
    }

    /// Adds a slot; durable on return.
    pub fn add_slot(&self, master: &MasterKey, secret: &Secret, label: &str) -> Result<SlotId> {
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
    pub fn remove_slot(&self, id: SlotId) -> Result<()> {
        let path = self.slot_path(id);
        fs::remove_file(&path).map_err(|e| Error::io(e, &path))?;
        sync_dir(&self.dir.join(Area::Key.name()))
    }
}

fn seal_slot(master: &MasterKey, secret: &Secret, label: &str) -> Result<(SlotId, Vec<u8>)> {
    let id = SlotId(random_id()?);
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
                "{}: waiting until the store gives back what was written: {}",
                path.display(),
                io_text(&e)
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
fn folders() -> [&'static str; 4] {
    [Area::Key.name(), Area::Index.name(), Area::Data.name(), NEW]
}

/// Whether a library can be made here: there is nothing, but for what an `init` leaves that was cut short, and what a
/// new ext4 has.
pub fn is_vacant(dir: &Path) -> Result<bool> {
    let at = |e| Error::io(e, dir);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::new(Kind::NotDirectory, dir.display()));
        }
        Err(e) => return Err(at(e)),
    };
    for entry in entries {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let ours = folders().iter().any(|folder| name == **folder);
        // Nothing, but for slots on their way into `key/`.
        let begun = |e: &fs::DirEntry| name == NEW && e.path().extension() == Some("key".as_ref());
        let empty = || {
            let inside = fs::read_dir(entry.path());
            inside.is_ok_and(|mut inside| inside.all(|e| e.is_ok_and(|e| begun(&e))))
        };
        if name != "lost+found" && !(ours && empty()) {
            return Ok(false);
        }
    }
    Ok(true)
}
