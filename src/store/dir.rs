//! A library in a directory.
//!
//! ```text
//! key/ index/ data/     objects, each a file of 32 hex digits
//! new/<device>/         this device's unfinished files, `lock`, `reserve` and perhaps `owner`
//! ```
//!
//! Everything is accessed relative to directories that are kept open, so that nothing is written elsewhere if a parent
//! folder is renamed. Symbolic links inside the library are not followed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::descriptors::{Closer, Descriptors};
use super::device_dir::DeviceDir;
use super::file::{StoredFile, io_error, sync_folder};
use super::folder::{FILE_FLAGS, Folder, Root, make_folder, rename_new, unlink};
use super::{Absent, Growing, Object, Objects, Staging, probe};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};

mod areas;
mod staging;

/// Most objects that an area may hold, so that a folder full of names cannot use up all memory.
const OBJECTS_MAX: usize = 4 << 20;

/// How a library is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading. Needs no permission to write.
    ReadOnly,
    /// Objects are read, added and removed one by one, without a device, while others may be at work; both are durable
    /// on return. A folder is opened when it is needed: one that cannot be opened does not affect the others.
    Objects,
    /// For reading, including the unpublished files of this device, unless they are in use by a mount.
    ReadOwn(DeviceId),
    /// For reading and writing, as this device.
    Write(DeviceId),
}

/// A library in a directory.
pub struct DirStore {
    pub(super) root: Arc<Root>,
    /// Opened when they are first needed. To a reader, a folder that does not exist (yet) is empty.
    areas: [RwLock<Option<Arc<Folder>>>; 3],
    own: Option<DeviceDir>,
    access: Access,
}

impl DirStore {
    /// Opens the library in an existing directory.
    ///
    /// For writing, this creates missing folders, locks this device's folder ([`Kind::InUse`] if another process writes as
    /// the same device), and tests whether the store can do everything that a mount needs. The lock is inherited by fork(2).
    pub fn open(library: &Path, access: Access) -> Result<Self> {
        let mut store = Self {
            root: Arc::new(Root::open(library)?),
            areas: Default::default(),
            own: None,
            access,
        };
        match access {
            Access::Objects => {}
            Access::Write(device) => {
                store.check_index(device)?;
                store.own = Some(store.prepare(device)?);
            }
            Access::ReadOnly => store.open_areas()?,
            Access::ReadOwn(device) => {
                store.open_areas()?;
                store.own = DeviceDir::find(Arc::clone(&store.root), device)?;
            }
        }
        Ok(store)
    }

    /// The folder of a device in `new/`, and its name; `None` if it cannot be opened.
    fn left_by(&self, device: DeviceId) -> Option<(Arc<OwnedFd>, String)> {
        let open = |parent: &OwnedFd, folder: &str| {
            let opened = Folder::open(&self.root, parent, folder, folder);
            opened.ok().flatten()
        };
        let new = open(&self.root.fd, "new")?;
        let own = open(&new.fd, &device.to_string())?;
        Some((Arc::new(own.fd), format!("new/{device}")))
    }

    /// Creates the folders and takes the lock.
    fn prepare(&self, device: DeviceId) -> Result<DeviceDir> {
        let own = DeviceDir::open(Arc::clone(&self.root), device)?;
        for area in Area::ALL {
            let name = area.name();
            make_folder(&self.root, &self.root.fd, name, name)?;
            let folder = self.area_to_write(area)?;
            self.check_same_filesystem(&own.folder(), &folder.fd, name)?;
        }
        sync_folder(&self.root.fd, &self.root.path.display().to_string())?;
        probe::probe(&self.root, &own)?;
        Ok(own)
    }

    /// Publishing is a rename, which does not work across filesystems. It is better to fail now than with data at stake.
    fn check_same_filesystem(&self, a: &OwnedFd, b: &OwnedFd, name: &str) -> Result<()> {
        let device = |fd: &OwnedFd| {
            rustix::fs::fstat(fd)
                .map(|s| s.st_dev)
                .map_err(|e| self.root.error(e, name))
        };
        if device(a)? == device(b)? {
            return Ok(());
        }
        Err(
            Error::new(Kind::CrossDevice, self.root.path.join(name).display())
                .hint("key, index, data and new must lie on one filesystem"),
        )
    }

    /// This device's folder; [`Kind::ReadOnly`] unless it is open for writing.
    pub(super) fn own(&self) -> Result<&DeviceDir> {
        let own = self.own.as_ref().filter(|own| own.is_locked());
        own.ok_or_else(|| Error::new(Kind::ReadOnly, self.root.path.display()))
    }

    /// The regular files in a folder whose names are ids, and their lengths in bytes.
    pub(super) fn objects(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Vec<(ObjectId, u64)>> {
        let pass_over = |file: &str, why: &str| {
            // A look at the slots is no place to say it.
            if self.access != Access::Objects {
                log::debug!("{name}/{file}: {why}, passed over");
            }
        };
        let mut found = Vec::new();
        let entries = self.root.descriptors.open(|| Dir::read_from(folder));
        for entry in entries.map_err(|e| self.root.error(e, name))? {
            let entry = entry.map_err(|e| self.root.error(e, name))?;
            let Some(id) = entry.file_name().to_str().ok().and_then(ObjectId::parse) else {
                let entry_name = entry.file_name();
                let ours = [b".".as_slice(), b"..", b"lock", b"reserve", b"owner"];
                if !ours.contains(&entry_name.to_bytes()) {
                    pass_over(&entry_name.to_string_lossy(), "not an object");
                }
                continue;
            };
            let stat =
                match rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    // Removed meanwhile.
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(io_error(e, &format!("{name}/{id}"))),
                };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                pass_over(&id.to_string(), "not a regular file");
                continue;
            }
            if found.len() == OBJECTS_MAX {
                let check = format_args!("holds more than {OBJECTS_MAX} objects");
                return Err(Error::damaged(self.root.path.join(name).display(), check));
            }
            found.push((id, u64::try_from(stat.st_size).unwrap_or(0)));
        }
        Ok(found)
    }

    /// The device that the store was opened as.
    pub(super) fn device(&self) -> Option<DeviceId> {
        self.own.as_ref().map(DeviceDir::device)
    }

    /// Moves a file from another device's folder into this device's.
    pub(super) fn move_leftover(
        &self,
        from: &OwnedFd,
        own: &DeviceDir,
        id: ObjectId,
    ) -> Result<()> {
        let file = id.to_string();
        rename_new(from.as_fd(), own.folder().as_fd(), &file, &file)
            .map_err(|e| io_error(e, &format!("{}/{id}", own.name)))
    }
}

/// Opens a regular file; [`Kind::Missing`] if there is none.
fn open_file(
    descriptors: &Descriptors,
    folder: BorrowedFd<'_>,
    id: ObjectId,
    flags: OFlags,
    name: String,
) -> Result<StoredFile> {
    let not_regular = || Error::damaged(&name, "is not a regular file");
    let fd = match descriptors
        .open(|| rustix::fs::openat(folder, id.to_string(), flags | FILE_FLAGS, Mode::empty()))
    {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Err(Error::new(Kind::Missing, name)),
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(not_regular()),
        Err(e) => return Err(io_error(e, &name)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| io_error(e, &name))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(not_regular());
    }
    Ok(StoredFile { fd, name })
}

/// Adds a hint to an error that may mean that the store cannot read a file for some seconds after it was renamed.
fn hint_if_late(e: Error) -> Error {
    match e.kind() {
        Kind::Io(io) if io.raw_os_error() == Some(libc::EIO) => e.hint(
            "the store could not read it; if it has just been written, try again in a few seconds",
        ),
        _ => e,
    }
}

impl Drop for DirStore {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            own.wait_for_published(|area, id| {
                let folder = self.area(area).ok().flatten();
                let opened = folder.map(|folder| {
                    open_file(
                        &self.root.descriptors,
                        folder.fd.as_fd(),
                        id,
                        OFlags::RDONLY,
                        String::new(),
                    )
                });
                // A missing file has been removed since.
                opened.is_none_or(|opened| match opened {
                    Ok(file) => file.read_at(&mut [0], 0).is_ok(),
                    Err(e) => matches!(e.kind(), Kind::Missing),
                })
            });
        }
    }
}

impl Objects for DirStore {
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>> {
        match self.area(area)? {
            Some(folder) => self.objects(folder.fd.as_fd(), area.name()),
            None => Ok(Vec::new()),
        }
    }

    fn absent(&self, area: Area) -> Result<Vec<Absent>> {
        self.find_absent(area)
    }

    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>> {
        let name = format!("{}/{id}", area.name());
        let Some(folder) = self.area(area)? else {
            return Err(Error::new(Kind::Missing, name));
        };
        match open_file(
            &self.root.descriptors,
            folder.fd.as_fd(),
            id,
            OFlags::RDONLY,
            name,
        ) {
            Ok(file) => Ok(Arc::new(file)),
            Err(e) => match self.own.as_ref().and_then(|own| own.published(area, id)) {
                Some(file) => Ok(file),
                None => Err(hint_if_late(e)),
            },
        }
    }

    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()> {
        if self.access == Access::Objects {
            return self.put_without_device(area, id, bytes);
        }
        let file = self.own()?.create(id)?;
        let done = file
            .write_at(bytes, 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.publish(id, area));
        if done.is_err() {
            // Otherwise the next mount would try to recover it as an unfinished file.
            let _ = self.discard(id);
        }
        done
    }

    fn remove(&self, area: Area, id: ObjectId) -> Result<()> {
        let has_device = self.access != Access::Objects;
        if has_device {
            self.own()?.forget(area, id);
        }
        let folder = self.area_to_write(area)?;
        let (file, name) = (id.to_string(), format!("{}/{id}", area.name()));
        unlink(folder.fd.as_fd(), &file, &name)?;
        match has_device {
            true => Ok(()),
            false => sync_folder(&folder.fd, area.name()),
        }
    }

    fn on_too_few_files(&self, closer: Closer) {
        self.root.descriptors.set(closer);
    }
}
