//! Other devices that use the library, as far as this machine can see: their folders and locks in `new/`.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::device_dir::{is_held, lock};
use super::dir::DirStore;
use super::folder::{FILE_FLAGS, Folder, unlink};
use super::owner::{is_at_work, may_be_at_work};
use crate::error::{Kind, Result};
use crate::object::{DeviceId, ObjectId};
use crate::store::file::sync_folder;

/// Another device's folder in `new/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The device.
    pub device: DeviceId,
    /// A mount on this machine uses the folder.
    pub is_mounted: bool,
    /// The folder has unpublished files, of a mount or from a crash.
    pub has_files: bool,
}

/// What is in the folder of one device in `new/`: files that a mount is writing, or that a crash left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Whose.
    pub device: DeviceId,
    /// How many.
    pub files: u64,
    /// Their length in all.
    pub cipher_bytes: u64,
    /// A mount is at work there: its lock is held, or, over a network, its writer may be alive.
    pub is_mounted: bool,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |number| if number == 1 { "" } else { "s" };
        let (files, bytes) = (self.files, self.cipher_bytes);
        write!(f, "{files} file{} ({bytes} byte{})", end(files), end(bytes))
    }
}

/// Whether another process holds the lock. Takes a shared lock, which is released when the file is closed.
pub(super) fn is_lock_held(lock: impl AsFd) -> bool {
    retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared))
        .is_err_and(is_held)
}

impl DirStore {
    /// The folders of other devices in `new/`.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        self.each_device(|device, folder| {
            // A folder that this user may not read belongs to another user; its contents are unknown.
            let (is_mounted, has_files) = match folder {
                Some(folder) => {
                    let objects = self.objects(folder.as_fd(), &format!("new/{device}"))?;
                    let is_mounted = open_lock(folder).is_some_and(is_lock_held);
                    (is_mounted, !objects.is_empty())
                }
                None => (false, true),
            };
            found.push(Neighbour {
                device,
                is_mounted,
                has_files,
            });
            Ok(())
        })?;
        Ok(found)
    }

    /// What lies in these folders. Of one that cannot be looked into, nothing.
    pub fn growth(&self) -> Result<Vec<Growth>> {
        let mut found = Vec::new();
        self.each_device(|device, folder| {
            let listed = folder.map(|f| self.objects(f.as_fd(), &format!("new/{device}")));
            let objects = listed.and_then(Result::ok).unwrap_or_default();
            let lens = objects.iter().map(|(_, len)| *len);
            found.push(Growth {
                device,
                files: objects.len() as u64,
                cipher_bytes: lens.fold(0, u64::saturating_add),
                is_mounted: folder.is_some_and(is_in_use),
            });
            Ok(())
        })?;
        Ok(found)
    }

    /// Shows the folder of each other device, open where that can be.
    fn each_device(
        &self,
        mut show: impl FnMut(DeviceId, Option<&OwnedFd>) -> Result<()>,
    ) -> Result<()> {
        let Some(new) = Folder::open(&self.root, &self.root.fd, "new", "new")? else {
            return Ok(());
        };
        for entry in Dir::read_from(&new.fd).map_err(|e| self.root.error(e, "new"))? {
            let entry = entry.map_err(|e| self.root.error(e, "new"))?;
            let device = entry.file_name().to_str().ok().and_then(ObjectId::parse);
            let Some(device) = device.filter(|d| self.device() != Some(*d)) else {
                continue;
            };
            match open_folder(&new.fd, &device.to_string()) {
                Ok(folder) => show(device, Some(&folder))?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(_) => show(device, None)?,
            }
        }
        Ok(())
    }

    /// See [`Staging::take_over`](super::Staging::take_over).
    pub(super) fn take_over_folder(&self, device: DeviceId) -> Result<bool> {
        let own = self.own()?;
        let name = format!("new/{device}");
        let Some(new) = Folder::open(&self.root, &self.root.fd, "new", "new")? else {
            return Ok(true);
        };
        let Some(Folder { fd: folder, .. }) =
            Folder::open(&self.root, &new.fd, &device.to_string(), &name)?
        else {
            return Ok(true);
        };
        // Held until all files are moved, so that no mount starts to write as that device meanwhile.
        let _lock = match lock(&self.root, &folder, &name) {
            Ok(lock) => lock,
            Err(e) if matches!(e.kind(), Kind::InUse) => return Ok(false),
            Err(e) => return Err(e),
        };
        if is_at_work(&folder)? {
            return Ok(false);
        }
        for (id, _) in self.objects(folder.as_fd(), &name)? {
            self.move_leftover(&folder, own, id)?;
        }
        for file in ["reserve", "owner"] {
            unlink(folder.as_fd(), file, &format!("{name}/{file}"))?;
        }
        sync_folder(&*own.folder(), &own.name)?;
        sync_folder(&folder, &name)?;
        Ok(true)
    }
}

/// Whether a device's folder is being written to.
fn is_in_use(folder: &OwnedFd) -> bool {
    open_lock(folder).is_some_and(is_lock_held) || may_be_at_work(folder)
}

fn open_folder(parent: &OwnedFd, folder: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| rustix::fs::openat(parent, folder, flags, Mode::empty()))
}

/// Opens the lock file of a device's folder; `None` if there is none.
pub(super) fn open_lock(folder: &OwnedFd) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | FILE_FLAGS;
    retry_on_intr(|| rustix::fs::openat(folder, "lock", flags, Mode::empty())).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_lock_shows_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let folder = OwnedFd::from(File::open(dir.path()).unwrap());
        let is_in_use = || super::is_in_use(&folder);
        assert!(!is_in_use());
        let file = File::create(&path).unwrap();
        assert!(!is_in_use());
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        assert!(is_in_use());
        drop(file);
        assert!(!is_in_use());
    }
}
