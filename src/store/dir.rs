//! A library in a directory.
//!
//! ```text
//! key/ index/ data/     objects, each a file of 32 hex digits
//! new/<device>/         this device's growing files, `lock` and `reserve`
//! ```
//!
//! Everything is reached from directories that were opened once, so that nothing is written elsewhere when a
//! folder above is renamed. Symbolic links are not followed below the library.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags,
};
use rustix::io::{Errno, retry_on_intr};

use super::file::{GrowingFile, StoredFile, io_error, sync_folder};
use super::{Area, DeviceId, Growing, Object, ObjectId, Space, Store};
use crate::error::{Error, Kind, Result};

/// Most objects that an area may hold: a folder that somebody filled with names must not eat all memory.
const OBJECTS_MAX: usize = 4 << 20;
/// A lock is tried so often again, and after so long: who looks whether a library is mounted holds it for a moment.
const LOCK_TRIES: u32 = 10;
const LOCK_WAIT: Duration = Duration::from_millis(20);
const FOLDER_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
// NONBLOCK: a pipe under an object's name must not hold up the mount.
const FILE_FLAGS: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// What may be done to a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, and no permission to is needed.
    ReadOnly,
    /// Everything, as this device.
    Write(DeviceId),
}

/// A library in a directory.
pub struct DirStore {
    path: PathBuf,
    root: OwnedFd,
    /// Opened when first asked for: a folder that is not there (yet) is empty to a reader.
    areas: [OnceLock<OwnedFd>; 3],
    own: Option<Own>,
}

/// This device's folder.
struct Own {
    folder: Arc<OwnedFd>,
    /// `new/<device>`, for errors.
    name: String,
    /// Holds the lock; the system lets go of it with the process.
    _lock: OwnedFd,
}

impl DirStore {
    /// Opens the library in an existing directory.
    ///
    /// For writing, the folders that are missing are made, and this device's folder is locked: a second
    /// writer of the same device is [`Kind::InUse`]. The lock is the process's and of those that it forks.
    pub fn open(library: &Path, access: Access) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = retry_on_intr(|| rustix::fs::open(library, flags, Mode::empty()))
            .map_err(|e| Error::io(e.into(), library))?;
        let mut store = Self {
            path: library.into(),
            root,
            areas: Default::default(),
            own: None,
        };
        if let Access::Write(device) = access {
            store.own = Some(store.prepare(device)?);
        }
        Ok(store)
    }

    /// Makes the folders and takes the lock.
    fn prepare(&self, device: DeviceId) -> Result<Own> {
        let new = self.make_folder(&self.root, "new", "new")?;
        let name = format!("new/{device}");
        let folder = self.make_folder(&new, &device.to_string(), &name)?;
        sync_folder(&new, "new")?;
        let lock = self.lock(&folder, &name)?;
        for area in Area::ALL {
            let fd = self.make_folder(&self.root, area.name(), area.name())?;
            self.check_same_filesystem(&folder, &fd, area.name())?;
            self.areas[area as usize].get_or_init(|| fd);
        }
        sync_folder(&self.root, &self.path.display().to_string())?;
        Ok(Own {
            folder: Arc::new(folder),
            name,
            _lock: lock,
        })
    }

    fn make_folder(&self, parent: &OwnedFd, folder: &str, name: &str) -> Result<OwnedFd> {
        match rustix::fs::mkdirat(parent, folder, FOLDER_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(self.path_error(e, name)),
        }
        open_folder(parent, folder).map_err(|e| self.path_error(e, name))
    }

    fn lock(&self, folder: &OwnedFd, name: &str) -> Result<OwnedFd> {
        let name = format!("{name}/lock");
        let fd = retry_on_intr(|| {
            rustix::fs::openat(
                folder,
                "lock",
                OFlags::RDWR | OFlags::CREATE | FILE_FLAGS,
                FILE_MODE,
            )
        })
        .map_err(|e| self.path_error(e, &name))?;
        let lock =
            || retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive));
        let mut locked = lock();
        for _ in 0..LOCK_TRIES {
            if locked != Err(Errno::WOULDBLOCK) {
                break;
            }
            std::thread::sleep(LOCK_WAIT);
            locked = lock();
        }
        match locked {
            Ok(()) => Ok(fd),
            Err(Errno::WOULDBLOCK) => Err(Error::new(Kind::InUse, self.path.display())
                .hint("this library is already mounted by this device; unmount it first")),
            Err(e) => Err(self.path_error(e, &name)),
        }
    }

    /// Publishing is a rename, which does not work across filesystems: better said now than when data are at stake.
    fn check_same_filesystem(&self, a: &OwnedFd, b: &OwnedFd, name: &str) -> Result<()> {
        let device = |fd: &OwnedFd| {
            rustix::fs::fstat(fd)
                .map(|s| s.st_dev)
                .map_err(|e| self.path_error(e, name))
        };
        if device(a)? == device(b)? {
            return Ok(());
        }
        Err(
            Error::new(Kind::CrossDevice, self.path.join(name).display())
                .hint("key, index, data and new must lie on one filesystem"),
        )
    }

    fn path_error(&self, errno: Errno, name: &str) -> Error {
        Error::io(errno.into(), self.path.join(name))
    }

    /// An area's folder; none where it is not there.
    fn area(&self, area: Area) -> Result<Option<BorrowedFd<'_>>> {
        let cell = &self.areas[area as usize];
        if cell.get().is_none() {
            match open_folder(&self.root, area.name()) {
                Ok(fd) => drop(cell.set(fd)),
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(self.path_error(e, area.name())),
            }
        }
        Ok(cell.get().map(|fd| fd.as_fd()))
    }

    /// This device's folder and an area's, for writing.
    fn own(&self) -> Result<&Own> {
        self.own
            .as_ref()
            .ok_or_else(|| Error::new(Kind::ReadOnly, self.path.display()))
    }

    fn area_to_write(&self, area: Area) -> Result<BorrowedFd<'_>> {
        self.own()?;
        let folder = self.area(area)?;
        Ok(folder.expect("a store open for writing holds all its folders open"))
    }

    /// Regular files with an object's name in a folder, and their lengths.
    fn objects(&self, folder: BorrowedFd<'_>, name: &str) -> Result<Vec<(ObjectId, u64)>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(folder).map_err(|e| self.path_error(e, name))? {
            let entry = entry.map_err(|e| self.path_error(e, name))?;
            let Some(id) = entry.file_name().to_str().ok().and_then(ObjectId::parse) else {
                if !matches!(
                    entry.file_name().to_bytes(),
                    b"." | b".." | b"lock" | b"reserve"
                ) {
                    log::debug!(
                        "{name}/{}: not an object, passed over",
                        entry.file_name().to_string_lossy()
                    );
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
                log::debug!("{name}/{id}: not a regular file, passed over");
                continue;
            }
            if found.len() == OBJECTS_MAX {
                let check = format_args!("holds more than {OBJECTS_MAX} objects");
                return Err(Error::damaged(self.path.join(name).display(), check));
            }
            found.push((id, u64::try_from(stat.st_size).unwrap_or(0)));
        }
        Ok(found)
    }

    fn create_file(&self, id: ObjectId) -> Result<GrowingFile> {
        let own = self.own()?;
        let name = format!("{}/{id}", own.name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE_FLAGS;
        let fd =
            retry_on_intr(|| rustix::fs::openat(&*own.folder, id.to_string(), flags, FILE_MODE))
                .map_err(|e| io_error(e, &name))?;
        Ok(GrowingFile::new(
            StoredFile { fd, name },
            id,
            Arc::clone(&own.folder),
        ))
    }
}

fn open_folder(parent: &OwnedFd, folder: &str) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::openat(parent, folder, FOLDER_FLAGS, Mode::empty()))
}

/// Opens a regular file; [`Kind::Missing`] where there is none.
fn open_file(
    folder: BorrowedFd<'_>,
    id: ObjectId,
    flags: OFlags,
    name: String,
) -> Result<StoredFile> {
    let not_regular = || Error::damaged(&name, "is not a regular file");
    let fd = match retry_on_intr(|| {
        rustix::fs::openat(folder, id.to_string(), flags | FILE_FLAGS, Mode::empty())
    }) {
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

fn unlink(folder: BorrowedFd<'_>, file: &str, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(folder, file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(io_error(e, name)),
    }
}

/// Gives back the room that was allocated ahead of appends.
fn trim(folder: BorrowedFd<'_>, id: ObjectId, name: &str) -> Result<()> {
    let file = open_file(folder, id, OFlags::WRONLY, name.to_owned())?;
    let stat = rustix::fs::fstat(&file.fd).map_err(|e| io_error(e, name))?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    if u64::try_from(stat.st_blocks).unwrap_or(0) * 512 > len {
        retry_on_intr(|| rustix::fs::ftruncate(&file.fd, len)).map_err(|e| io_error(e, name))?;
    }
    Ok(())
}

/// rename(2) that replaces nothing, also where the filesystem (NFS) does not know how: the ids are random, so
/// the look before the rename only has to find the same object published twice.
fn rename_new(from: BorrowedFd<'_>, to: BorrowedFd<'_>, file: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, file, to, file, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        done => return done,
    }
    match rustix::fs::statat(to, file, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from, file, to, file),
        Ok(_) => Err(Errno::EXIST),
        Err(e) => Err(e),
    }
}

impl Store for DirStore {
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>> {
        match self.area(area)? {
            Some(folder) => self.objects(folder, area.name()),
            None => Ok(Vec::new()),
        }
    }

    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>> {
        let name = format!("{}/{id}", area.name());
        match self.area(area)? {
            Some(folder) => Ok(Arc::new(open_file(folder, id, OFlags::RDONLY, name)?)),
            None => Err(Error::new(Kind::Missing, name)),
        }
    }

    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()> {
        let file = self.create_file(id)?;
        let done = file
            .write_at(bytes, 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.publish(id, area));
        if done.is_err() {
            // What is left of it would be adopted for a growing file at the next mount.
            let _ = self.discard(id);
        }
        done
    }

    fn remove(&self, area: Area, id: ObjectId) -> Result<()> {
        unlink(
            self.area_to_write(area)?,
            &id.to_string(),
            &format!("{}/{id}", area.name()),
        )
    }

    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        Ok(Arc::new(self.create_file(id)?))
    }

    fn publish(&self, id: ObjectId, area: Area) -> Result<()> {
        let target = self.area_to_write(area)?;
        let own = self.own()?;
        let (file, name) = (id.to_string(), format!("{}/{id}", own.name));
        match trim(own.folder.as_fd(), id, &name) {
            Ok(()) => {
                rename_new(own.folder.as_fd(), target, &file).map_err(|e| io_error(e, &name))?
            }
            // Tried before, and only the syncs below failed: so this call may be repeated.
            Err(e) if matches!(e.kind(), Kind::Missing) => drop(self.open(area, id)?),
            Err(e) => return Err(e),
        }
        sync_folder(target, area.name())?;
        sync_folder(&*own.folder, &own.name)
    }

    fn discard(&self, id: ObjectId) -> Result<()> {
        let own = self.own()?;
        unlink(
            own.folder.as_fd(),
            &id.to_string(),
            &format!("{}/{id}", own.name),
        )
    }

    fn leftovers(&self) -> Result<Vec<ObjectId>> {
        let own = self.own()?;
        Ok(self
            .objects(own.folder.as_fd(), &own.name)?
            .into_iter()
            .map(|(id, _)| id)
            .collect())
    }

    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        let own = self.own()?;
        let file = open_file(
            own.folder.as_fd(),
            id,
            OFlags::RDWR,
            format!("{}/{id}", own.name),
        )?;
        Ok(Arc::new(GrowingFile::new(
            file,
            id,
            Arc::clone(&own.folder),
        )))
    }

    fn space(&self) -> Result<Space> {
        let s = rustix::fs::fstatvfs(&self.root).map_err(|e| Error::io(e.into(), &self.path))?;
        Ok(Space {
            total_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            free_bytes: s.f_bfree.saturating_mul(s.f_frsize),
            available_bytes: s.f_bavail.saturating_mul(s.f_frsize),
            files: s.f_files,
            files_free: s.f_ffree,
        })
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        let own = self.own()?;
        let name = format!("{}/reserve", own.name);
        if bytes == 0 {
            return unlink(own.folder.as_fd(), "reserve", &name);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | FILE_FLAGS;
        let fd = retry_on_intr(|| rustix::fs::openat(&*own.folder, "reserve", flags, FILE_MODE))
            .map_err(|e| io_error(e, &name))?;
        match retry_on_intr(|| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes)) {
            // A filesystem that cannot allocate (NFS 3, ZFS) has no reserve: deleting may fail there when it is full.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(io_error(e, &name)),
        }?;
        retry_on_intr(|| rustix::fs::ftruncate(&fd, bytes)).map_err(|e| io_error(e, &name))
    }
}
