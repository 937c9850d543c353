//! Temporary files.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Gid, Mode, Uid};

use crate::error::{Error, Result};

/// A temporary file. It is removed when dropped, unless it was committed to the library.
pub struct Temp {
    /// The file, open for reading and writing.
    pub file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) placed: bool,
}

impl Temp {
    /// Its current path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the owner and permissions of another file.
    pub(super) fn take_owner(&self, of: &fs::Metadata) -> Result<()> {
        let at = |e: rustix::io::Errno| Error::io(e.into(), &self.path);
        let (owner, group) = (Uid::from_raw(of.uid()), Gid::from_raw(of.gid()));
        match rustix::fs::fchown(&self.file, Some(owner), Some(group)) {
            // A user who is not root can at most set the group.
            Err(rustix::io::Errno::PERM) => {
                let _ = rustix::fs::fchown(&self.file, None, Some(group));
            }
            other => other.map_err(at)?,
        }
        let mode = Mode::from_raw_mode(of.mode() & 0o7777);
        rustix::fs::fchmod(&self.file, mode).map_err(at)
    }

    /// Copies owner, permissions and times of the file at `path`.
    pub fn take_attributes(&self, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path).map_err(|e| Error::io(e, path))?;
        self.take_owner(&meta)?;
        let times = fs::FileTimes::new();
        let times = meta
            .accessed()
            .map_or(times, |time| times.set_accessed(time));
        let times = meta
            .modified()
            .map_or(times, |time| times.set_modified(time));
        self.file
            .set_times(times)
            .map_err(|e| Error::io(e, &self.path))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(e, &self.path))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}
