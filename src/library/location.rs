//! Where a library is.

use std::io;
use std::path::{Path, PathBuf};

use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::index::{Replayed, SegmentReader, SegmentState, Tree, replay};
use crate::object::{Area, ObjectId, PackId, SegmentId};
use crate::pack::PackReader;
use crate::store::{Access, DirStore, Growth, Objects};
use crate::volume::Time;

/// Maximum number of segments, and of packs, on which a key is tried.
const CHECKED_MAX: usize = 100;

/// Where a library is: an existing folder.
pub struct Location {
    /// Its path, as typed.
    pub dir: PathBuf,
    /// Its objects.
    pub(super) store: DirStore,
}

impl Location {
    /// Returns the location of a folder, whether or not there is a library in it.
    pub fn at(dir: &Path) -> Result<Self> {
        let store = DirStore::open(dir, Access::Objects).map_err(|e| match e.kind() {
            Kind::Io(io) if io.kind() == io::ErrorKind::NotFound => {
                Error::new(Kind::NoFolder, dir.display())
                    .hint("check the path; `hushfs init` creates a library")
            }
            Kind::Io(io) if io.kind() == io::ErrorKind::NotADirectory => {
                Error::new(Kind::NotLibrary, dir.display()).hint("it is not a folder")
            }
            _ => e,
        })?;
        Ok(Self {
            dir: dir.to_path_buf(),
            store,
        })
    }

    /// Returns the objects of an area with their lengths in bytes, in the order of their ids. If something other than a
    /// folder has the area's name, as `key` in a library of Minio Music Server, there are none.
    pub fn objects(&self, area: Area) -> Result<Vec<(ObjectId, u64)>> {
        let mut objects = match self.store.list(area) {
            Err(e) if is_no_folder(&e) => Vec::new(),
            listed => listed?,
        };
        objects.sort_unstable();
        Ok(objects)
    }

    /// Whether it looks like a library that lost its `key/`.
    pub fn has_contents(&self) -> bool {
        self.store.has_area(Area::Index) || self.store.has_area(Area::Data)
    }

    /// Returns an error if objects of a library are there, but nothing that could be a slot.
    pub(super) fn key_has_not_arrived(&self) -> Option<Error> {
        let has_objects = |area| self.objects(area).is_ok_and(|all| !all.is_empty());
        if !has_objects(Area::Index) && !has_objects(Area::Data) {
            return None;
        }
        let what = self.store.why_empty(Area::Key);
        let text = format!("its key has not arrived yet: {what}");
        let error = Error::new(Kind::RolledBack(text.into()), self.dir.display());
        Some(error.hint(
            "wait for the sync to finish, or restore the folder `key` from a copy; --recovery opens the library with the \
             recovery code",
        ))
    }

    /// Returns what is growing in `new/`, for each device.
    pub fn growth(&self) -> Result<Vec<Growth>> {
        self.store.growth()
    }

    /// Replays the published index, even if it has gaps.
    pub fn index(&self, master: &MasterKey) -> Result<(DirStore, Replayed)> {
        let store = DirStore::open(&self.dir, Access::ReadOnly)?;
        let replayed = replay(&store, master, true, || Tree::new(0, 0, Time::default()))?;
        Ok((store, replayed))
    }

    /// Whether a segment or a pack can be decrypted with this key; `None` if there is none. One is enough: others may
    /// be damaged.
    pub(super) fn opens_with(&self, master: &MasterKey) -> Result<Option<bool>> {
        let store = DirStore::open(&self.dir, Access::ReadOnly)?;
        let mut answer = None;
        for area in [Area::Index, Area::Data] {
            for (id, _) in store.list(area)?.into_iter().take(CHECKED_MAX) {
                let opened = store.open(area, id).and_then(|object| match area {
                    Area::Index => {
                        SegmentReader::open(object, SegmentId(id), master, SegmentState::Published)
                            .map(drop)
                    }
                    _ => PackReader::open(object, PackId(id), master)?
                        .trailer()
                        .map(drop),
                });
                match opened {
                    Ok(()) => return Ok(Some(true)),
                    Err(e) if matches!(e.kind(), Kind::Damaged(_)) => answer = Some(false),
                    // A sync tool has just removed it.
                    Err(e) if matches!(e.kind(), Kind::Missing) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(answer)
    }
}

fn is_no_folder(e: &Error) -> bool {
    let errno = match e.kind() {
        Kind::Io(io) => io.raw_os_error(),
        _ => None,
    };
    matches!(errno, Some(libc::ENOTDIR | libc::ELOOP))
}
