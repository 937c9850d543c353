//! Creating and opening the folders of a library in a directory, and noticing when they are moved or replaced.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

use super::descriptors::Descriptors;
use super::file::{Identity, io_error};
use crate::error::{Error, Kind, Result};

const FOLDER_MODE: Mode = Mode::RWXU;
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const FOLDER_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
// NONBLOCK: opening a pipe that has an object's name must not block the mount.
pub(super) const FILE_FLAGS: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// The library's folder.
pub(super) struct Root {
    /// The absolute path at which it was opened.
    pub path: PathBuf,
    pub fd: OwnedFd,
    identity: Identity,
    /// Inode numbers identify files. Some stores make up new ones.
    pub trusts_identity: AtomicBool,
    /// Closes other files if too many are open.
    pub descriptors: Descriptors,
}

impl Root {
    pub fn open(library: &Path) -> Result<Self> {
        let path = std::path::absolute(library).map_err(|e| Error::io(e, library))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| rustix::fs::open(&path, flags, Mode::empty()))
            .map_err(|e| Error::io(e.into(), library))?;
        let identity = Identity::of(&fd, &path.display().to_string())?;
        Ok(Self {
            path,
            fd,
            identity,
            trusts_identity: AtomicBool::new(true),
            descriptors: Descriptors::default(),
        })
    }

    /// Checks that the library is still at its path. It may have been moved: then its new path is returned. If another
    /// folder is at its path, the next mount would not find what is written now ([`Kind::Displaced`]).
    pub fn check(&self) -> Result<Option<String>> {
        let displaced = |what: String, hint: &str| {
            Err(Error::new(Kind::Displaced(what.into()), self.path.display()).hint(hint))
        };
        match rustix::fs::stat(&self.path) {
            Ok(stat) if Identity::from(&stat) == self.identity => Ok(None),
            Ok(_) if !self.trusts_identity.load(Ordering::Relaxed) => Ok(None),
            Ok(_) => displaced(
                format!(
                    "another folder was put in its place while it is mounted; {}",
                    self.whereabouts()
                ),
                "put the original folder back, or unmount",
            ),
            Err(Errno::NOENT | Errno::NOTDIR) if self.is_deleted() => displaced(
                "was deleted while it is mounted".into(),
                "unmount; open files can be read until then, but nothing written from now on is kept",
            ),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Some(self.whereabouts())),
            // The process may have lost the permission to look up the path. Nothing is known then.
            Err(Errno::ACCESS | Errno::PERM) => Ok(None),
            Err(e) => Err(Error::io(e.into(), &self.path)),
        }
    }

    fn is_deleted(&self) -> bool {
        // Not every filesystem counts the links of folders, but a deleted folder has no entries.
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
            || rustix::fs::statat(&self.fd, ".", AtFlags::empty()).is_err()
            || self.whereabouts().ends_with(" (deleted)")
    }

    /// The current path of the folder, according to the kernel.
    fn whereabouts(&self) -> String {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        std::fs::read_link(link)
            .map_or_else(|_| "elsewhere".into(), |path| path.display().to_string())
    }

    /// An error of a system call about something in the library, with a hint if there is one.
    pub fn error(&self, errno: Errno, name: &str) -> Error {
        let error = Error::io(errno.into(), self.path.join(name));
        match errno {
            Errno::ROFS => error.hint("the store is read-only: mount with --read-only"),
            Errno::ACCESS | Errno::PERM => error.hint(
                "no permission to write, or the store does not support it: mount with --read-only",
            ),
            _ => error,
        }
    }
}

/// An open folder of the library.
pub(super) struct Folder {
    pub fd: OwnedFd,
    pub identity: Identity,
}

impl Folder {
    /// Opens a folder in `parent`; `None` if it does not exist. Symbolic links are not followed.
    pub fn open(root: &Root, parent: &OwnedFd, folder: &str, name: &str) -> Result<Option<Self>> {
        let open = || rustix::fs::openat(parent, folder, FOLDER_FLAGS, Mode::empty());
        match root.descriptors.open(open) {
            Ok(fd) => {
                let identity = Identity::of(&fd, name)?;
                Ok(Some(Self { fd, identity }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(no_folder(root, parent, folder, name, e)),
        }
    }
}

/// Opens a folder in `parent`, which is created if it does not exist.
pub(super) fn make_folder(
    root: &Root,
    parent: &OwnedFd,
    folder: &str,
    name: &str,
) -> Result<OwnedFd> {
    if let Some(there) = Folder::open(root, parent, folder, name)? {
        return Ok(there.fd);
    }
    match rustix::fs::mkdirat(parent, folder, FOLDER_MODE) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(root.error(e, name)),
    }
    let made = Folder::open(root, parent, folder, name)?;
    made.map(|made| made.fd)
        .ok_or_else(|| root.error(Errno::NOENT, name))
}

/// The error for something that cannot be opened as a folder, with a hint.
fn no_folder(root: &Root, parent: &OwnedFd, folder: &str, name: &str, errno: Errno) -> Error {
    let error = root.error(errno, name);
    let Ok(there) = rustix::fs::statat(parent, folder, AtFlags::SYMLINK_NOFOLLOW) else {
        return error;
    };
    match FileType::from_raw_mode(there.st_mode) {
        FileType::Directory => error,
        FileType::Symlink if rustix::fs::statat(parent, folder, AtFlags::empty()).is_err() => error
            .hint(
                "it has not arrived yet: it is a symbolic link to something that does not exist, and must be a folder",
            ),
        FileType::Symlink => error.hint(
            "it is a symbolic link, which is not followed inside a library: replace it with the folder that it leads to, or \
             mount that folder there (mount --bind)",
        ),
        _ => error.hint("it must be a folder: has a sync tool replaced it?"),
    }
}

pub(super) fn unlink(folder: BorrowedFd<'_>, file: &str, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(folder.as_fd(), file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(io_error(e, name)),
    }
}

/// Renames a file without replacing another. Some filesystems (NFS, most FUSE ones) do not support this in one step. On
/// these, a check before the rename is enough: ids are random, so it only has to notice that an object is published twice.
pub(super) fn rename_new(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    old: &str,
    new: &str,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, old, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        done => return done,
    }
    match rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from, old, to, new),
        Ok(_) => Err(Errno::EXIST),
        Err(e) => Err(e),
    }
}
