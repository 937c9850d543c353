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
use crate::store::{Store, index_has_not_arrived};

impl DirStore {
    /// All that are there.
    pub(super) fn open_areas(&self) -> Result<()> {
        for area in Area::ALL {
            self.area(area).map_err(|e| match area {
                // A link to nothing, for one.
                Area::Index if self.lacks_index() && self.has_contents() => {
                    index_has_not_arrived(self.root.path.display())
                }
                _ => e,
            })?;
        }
        Ok(())
    }

    /// An area's folder; none where it is not there.
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

    pub(super) fn area_to_write(&self, area: Area) -> Result<Arc<Folder>> {
        self.area(area)?
            .ok_or_else(|| self.root.error(Errno::NOENT, area.name()))
    }

    /// Makes sure that an area's folder is what lies under its name; true where another one was put there, which is
    /// used from now on. A look at it, where nothing has changed.
    pub(super) fn check_area(&self, area: Area) -> Result<bool> {
        let Some(known) = self.areas[area as usize].read().clone() else {
            // One that was gone may be back.
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
            // The index is known, and is written again; for packs, whoever took them away has to bring them back.
            // A new one would hide that no slot is there, and be in the way of the old one.
            Err(Errno::NOENT) if area == Area::Key => {
                *self.areas[area as usize].write() = None;
                return Ok(true);
            }
            Err(Errno::NOENT) if area == Area::Data => {
                let what = "was removed or renamed while it is mounted";
                let path = self.root.path.join(name);
                return Err(Error::new(Kind::Displaced(what.into()), path.display()).hint(
                    "put it back; what was written since then lies in new/, and the next mount takes it over",
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

    /// Refuses to make an `index/` beside contents: it is under way, or has another name. Where this device has files
    /// of its own in `new/`, these may be what is missing.
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
