//! The folders `key/`, `index/` and `data/` of a library in a directory.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::DirStore;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId};
use crate::store::file::Identity;
use crate::store::folder::{Folder, make_folder};
use crate::store::{Objects, index_has_not_arrived};

impl DirStore {
    /// Opens all folders that exist.
    pub(super) fn open_areas(&self) -> Result<()> {
        for area in Area::ALL {
            self.area(area).map_err(|e| match area {
                // For example, a symbolic link to nothing.
                Area::Index if self.lacks_index() && self.has_contents() => {
                    index_has_not_arrived(self.root.path.display())
                }
                _ => e,
            })?;
        }
        Ok(())
    }

    /// The folder of an area; `None` if it does not exist.
    pub(in crate::store) fn area(&self, area: Area) -> Result<Option<Arc<Folder>>> {
        let slot = &self.areas[area as usize];
        if let Some(folder) = &*slot.read() {
            return Ok(Some(Arc::clone(folder)));
        }
        let opened = Folder::open(&self.root, &self.root.fd, area.name(), area.name())?;
        let opened = opened.map(Arc::new);
        slot.write().clone_from(&opened);
        Ok(opened)
    }

    /// The folder of an area, which must exist.
    pub(in crate::store) fn area_to_write(&self, area: Area) -> Result<Arc<Folder>> {
        self.area(area)?
            .ok_or_else(|| self.root.error(Errno::NOENT, area.name()))
    }

    /// Checks that the open folder of an area still is the one at its path. If it was replaced, the new one is used from
    /// now on, and true is returned. Costs one system call if nothing has changed.
    pub(super) fn check_area(&self, area: Area) -> Result<bool> {
        let Some(known) = self.areas[area as usize].read().clone() else {
            // It was missing, and may have been put back.
            drop(self.area(area));
            return Ok(false);
        };
        let name = area.name();
        let there = rustix::fs::statat(&self.root.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let trusts = self.root.trusts_identity.load(Ordering::Relaxed);
        match there {
            Ok(stat) if Identity::from(&stat) == known.identity => return Ok(false),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() && !trusts => {
                return Ok(false);
            }
            // A missing `index/` is created below, and written again from memory. A new `key/` would hide that the slots are
            // missing, and be in the way when the old folder is put back. Packs cannot be written again.
            Err(Errno::NOENT) if area == Area::Key => {
                *self.areas[area as usize].write() = None;
                return Ok(true);
            }
            Err(Errno::NOENT) if area == Area::Data => {
                let what = "was removed or renamed while it is mounted";
                let path = self.root.path.join(name);
                return Err(Error::new(Kind::Displaced(what.into()), path.display()).hint(
                    "put it back; everything written since then is in new/, and is recovered by the next mount",
                ));
            }
            _ => {}
        }
        let fd = make_folder(&self.root, &self.root.fd, name, name)?;
        let identity = Identity::of(&fd, name)?;
        *self.areas[area as usize].write() = Some(Arc::new(Folder { fd, identity }));
        Ok(true)
    }

    fn lacks_index(&self) -> bool {
        let index = rustix::fs::statat(&self.root.fd, Area::Index.name(), AtFlags::empty());
        index.err() == Some(Errno::NOENT)
    }

    fn has_contents(&self) -> bool {
        self.list(Area::Data).is_ok_and(|packs| !packs.is_empty())
    }

    /// Refuses to create a missing `index/` if there are packs: it may not have been synced yet, or have another name. If
    /// this device has unpublished files, the index may be among them.
    pub(super) fn check_index(&self, device: DeviceId) -> Result<()> {
        let own_files = || {
            let (own, name) = self.left_by(device)?;
            self.objects(own.as_fd(), &name).ok()
        };
        if self.lacks_index()
            && self.has_contents()
            && own_files().is_none_or(|files| files.is_empty())
        {
            return Err(index_has_not_arrived(self.root.path.display()));
        }
        Ok(())
    }
}
