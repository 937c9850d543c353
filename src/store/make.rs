//! What is written to a library without a mount: the library itself when it is made, and single objects, as slots are.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Objects;
use super::dir::{Access, DirStore};
use super::file::{io_error, sync_folder};
use super::folder::{FILE_FLAGS, FILE_MODE, make_folder, rename_new, unlink};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, ObjectId};

/// The folder for files that still grow.
const NEW: &str = "new";
/// So long a store may take until what was put there can be read.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a library can be made in `dir`: there is nothing, but for what an attempt leaves that was cut short, and what a
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
        let is_ours = name == NEW || Area::ALL.iter().any(|area| name == area.name());
        // Nothing, but for slots on their way into `key/`.
        let begun = |e: &fs::DirEntry| name == NEW && e.path().extension() == Some("key".as_ref());
        let empty = || {
            let inside = fs::read_dir(entry.path());
            inside.is_ok_and(|mut inside| inside.all(|e| e.is_ok_and(|e| begun(&e))))
        };
        if name != "lost+found" && !(is_ours && empty()) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl DirStore {
    /// Makes a library with one object, a slot, in a vacant folder; durable on return. [`Kind::Exists`] if another one
    /// came before this.
    pub fn make(dir: &Path, slot: ObjectId, bytes: &[u8]) -> Result<()> {
        let store = Self::make_empty(dir, slot, bytes).map_err(|e| match e.kind() {
            Kind::Io(_) => {
                e.hint("no library was created: can the folder's file system be written to?")
            }
            _ => e,
        })?;
        sync_folder(&store.root.fd, &store.root.path.display().to_string())?;
        store.wait_until_readable(Area::Key, slot)
    }

    /// The slot last, in a `key/` that is moved to its place in one step: with it, and not before, the folder is a
    /// library. A `key/` that has something in it is never replaced: so of two that make one at once, one fails.
    fn make_empty(dir: &Path, slot: ObjectId, bytes: &[u8]) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::io(e, dir))?;
        let store = Self::open(dir, Access::Objects)?;
        let root = &store.root;
        let new = store.make_folders(&[Area::Index, Area::Data])?;
        let (temporary, key) = (format!("{slot}.key"), Area::Key.name());
        let place = || {
            let folder = make_folder(root, &new, &temporary, &temporary)?;
            write_new(&folder, &slot.to_string(), bytes)?;
            // An empty one, of an attempt that was cut short: not every system replaces it.
            let _ = rustix::fs::unlinkat(&root.fd, key, AtFlags::REMOVEDIR);
            rustix::fs::renameat(&new, &temporary, &root.fd, key).map_err(|e| match e {
                Errno::NOTEMPTY | Errno::EXIST => Error::new(Kind::Exists, dir.display())
                    .hint("another library was created here meanwhile"),
                _ => root.error(e, key),
            })
        };
        place().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&new, format!("{temporary}/{slot}"), AtFlags::empty());
            let _ = rustix::fs::unlinkat(&new, &temporary, AtFlags::REMOVEDIR);
        })?;
        Ok(store)
    }

    /// Makes `new/` and these areas where they are missing; durable on return. Answers the folder `new/`.
    fn make_folders(&self, areas: &[Area]) -> Result<OwnedFd> {
        let root = &self.root;
        for area in areas {
            make_folder(root, &root.fd, area.name(), area.name())?;
        }
        let new = make_folder(root, &root.fd, NEW, NEW)?;
        sync_folder(&root.fd, &root.path.display().to_string())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = retry_on_intr(|| rustix::fs::openat(&root.fd, "..", flags, Mode::empty()))
            .map_err(|e| root.error(e, ".."))?;
        sync_folder(&parent, &root.path.join("..").display().to_string())?;
        Ok(new)
    }

    /// [`Objects::put`] where no device is at work. Of a library that is being recovered, `key/` is made again, and of a
    /// synced copy `new/`.
    pub(super) fn put_without_device(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()> {
        let new = self.make_folders(&Area::ALL)?;
        let target = self.area_to_write(area)?;
        let (temporary, name) = (format!("{id}.slot"), format!("{}/{id}", area.name()));
        let place = || {
            write_new(&new, &temporary, bytes)?;
            rename_new(new.as_fd(), target.fd.as_fd(), &temporary, &id.to_string())
                .map_err(|e| self.root.error(e, &name))
        };
        place().inspect_err(|_| drop(unlink(new.as_fd(), &temporary, NEW)))?;
        sync_folder(&target.fd, area.name())?;
        self.wait_until_readable(area, id)
    }

    /// Waits until an object that was moved to its place can be read there. Under `rclone mount` 1.60 that takes until
    /// it is uploaded, and the next command would fail.
    fn wait_until_readable(&self, area: Area, id: ObjectId) -> Result<()> {
        let started = Instant::now();
        let mut is_said = false;
        loop {
            let read = self.open(area, id);
            let Err(e) = read.and_then(|object| object.read_at(&mut [0], 0)) else {
                return Ok(());
            };
            if started.elapsed() > PATIENCE {
                return Err(e.hint("it was written, and cannot be read back"));
            }
            if !std::mem::replace(&mut is_said, true) {
                let e = e.without_hint();
                log::warn!("waiting until the store gives back what was written: {e}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A new file with these bytes, for this user alone; it and its name are durable on return.
fn write_new(folder: &OwnedFd, file: &str, bytes: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | FILE_FLAGS;
    let fd = retry_on_intr(|| rustix::fs::openat(folder, file, flags, FILE_MODE))
        .map_err(|e| io_error(e, file))?;
    let mut written = File::from(fd);
    written
        .write_all(bytes)
        .and_then(|()| written.sync_all())
        .map_err(|e| Error::io(e, file))?;
    sync_folder(folder, file)
}
