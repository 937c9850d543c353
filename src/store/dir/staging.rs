//! This device's unfinished files in a directory, and the free space on its disk.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::{DirStore, open_file};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};
use crate::store::descriptors::Descriptors;
use crate::store::file::{io_error, sync_folder};
use crate::store::folder::{FILE_FLAGS, FILE_MODE, rename_new, unlink};
use crate::store::{Growing, Objects, Space, Staging};

impl Staging for DirStore {
    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        Ok(self.own()?.create(id)?)
    }

    fn publish(&self, id: ObjectId, area: Area) -> Result<()> {
        let own = self.own()?;
        own.check()?;
        let target = self.area_to_write(area)?;
        let (file, name) = (id.to_string(), format!("{}/{id}", own.name));
        match trim(&self.root.descriptors, own.folder().as_fd(), id, &name) {
            Ok(()) => own.release(id, area, |folder| {
                rename_new(folder.as_fd(), target.fd.as_fd(), &file, &file)
            })?,
            // An earlier call has moved the file, and then failed to sync a folder: go on with that.
            Err(e) if matches!(e.kind(), Kind::Missing) => {
                self.open(area, id)?;
            }
            Err(e) => return Err(e),
        }
        sync_folder(&target.fd, area.name())?;
        sync_folder(&*own.folder(), &own.name)
    }

    fn discard(&self, id: ObjectId) -> Result<()> {
        self.own()?.discard(id)
    }

    fn leftovers(&self) -> Result<Vec<ObjectId>> {
        let Some(own) = &self.own else {
            return Ok(Vec::new());
        };
        Ok(self
            .objects(own.folder().as_fd(), &own.name)?
            .into_iter()
            .map(|(id, _)| id)
            .collect())
    }

    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        let Some(own) = &self.own else {
            return Err(Error::new(Kind::Missing, id));
        };
        if let Some(file) = own.get(id) {
            return Ok(file);
        }
        let name = format!("{}/{id}", own.name);
        let flags = if own.is_locked() {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let folder = own.folder();
        let file = open_file(&self.root.descriptors, folder.as_fd(), id, flags, name)?;
        Ok(own.adopt(id, file)?)
    }

    fn check_place(&self) -> Result<Vec<Area>> {
        self.own()?.check()?;
        let mut replaced = Vec::new();
        for area in Area::ALL {
            if self.check_area(area)? {
                replaced.push(area);
            }
        }
        Ok(replaced)
    }

    fn take_over(&self, device: DeviceId) -> Result<bool> {
        self.take_over_folder(device)
    }

    fn has_neighbours(&self) -> Result<bool> {
        let neighbours = self.neighbours()?;
        Ok(neighbours.iter().any(|n| n.is_mounted || n.has_files))
    }

    fn space(&self) -> Result<Space> {
        let s = rustix::fs::fstatvfs(&self.root.fd)
            .map_err(|e| Error::io(e.into(), &self.root.path))?;
        Ok(Space {
            total_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            free_bytes: s.f_bfree.saturating_mul(s.f_frsize),
            available_bytes: s.f_bavail.saturating_mul(s.f_frsize),
        }
        .bounded())
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        let own = self.own()?;
        let (folder, name) = (own.folder(), format!("{}/reserve", own.name));
        if bytes == 0 {
            return unlink(folder.as_fd(), "reserve", &name);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | FILE_FLAGS;
        let fd = self
            .root
            .descriptors
            .open(|| rustix::fs::openat(&*folder, "reserve", flags, FILE_MODE))
            .map_err(|e| io_error(e, &name))?;
        match retry_on_intr(|| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes)) {
            Ok(()) => {
                retry_on_intr(|| rustix::fs::ftruncate(&fd, bytes)).map_err(|e| io_error(e, &name))
            }
            // Some filesystems cannot allocate space (NFS 3, ZFS, most of FUSE). There is no reserve on these, and deleting
            // files may fail when they are full.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                unlink(folder.as_fd(), "reserve", &name)
            }
            Err(e) => Err(io_error(e, &name)),
        }
    }
}

/// Frees the disk space that was allocated ahead of appends.
fn trim(descriptors: &Descriptors, folder: BorrowedFd<'_>, id: ObjectId, name: &str) -> Result<()> {
    let file = open_file(descriptors, folder, id, OFlags::WRONLY, name.to_owned())?;
    let stat = rustix::fs::fstat(&file.fd).map_err(|e| io_error(e, name))?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    if u64::try_from(stat.st_blocks).unwrap_or(0) * 512 > len {
        retry_on_intr(|| rustix::fs::ftruncate(&file.fd, len)).map_err(|e| io_error(e, name))?;
    }
    Ok(())
}
