//! The folders of a library in a directory: how they are made and opened, and whether they are still what they were.

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
// NONBLOCK: a pipe under an object's name must not hold up the mount.
pub(super) const FILE_FLAGS: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// The library's folder.
pub(super) struct Root {
    /// Where it was opened, an absolute path.
    pub path: PathBuf,
    pub fd: OwnedFd,
    identity: Identity,
    /// Inode numbers say whether two files are one: not where a store makes up new ones.
    pub trusts_identity: AtomicBool,
    /// Who closes files where too many are open.
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

    /// Makes sure that the library is what lies at its path. Moved to a place of its own it may be: answers where.
    /// What lies elsewhere while another folder is in its place, the next mount would not find: [`Kind::Displaced`].
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
                "put back the folder that was there, or unmount",
            ),
            Err(Errno::NOENT | Errno::NOTDIR) if self.is_deleted() => displaced(
                "was deleted while it is mounted".into(),
                "unmount; what is open can be read until then, and nothing that is written now is kept",
            ),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Some(self.whereabouts())),
            // Whoever opened the folder may not look from above any more: nothing is known then.
            Err(Errno::ACCESS | Errno::PERM) => Ok(None),
            Err(e) => Err(Error::io(e.into(), &self.path)),
        }
    }

    fn is_deleted(&self) -> bool {
        // Not every filesystem counts links of folders; in one that is gone, none has an entry.
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
            || rustix::fs::statat(&self.fd, ".", AtFlags::empty()).is_err()
            || self.whereabouts().ends_with(" (deleted)")
    }

    /// The path at which the system knows it now.
    fn whereabouts(&self) -> String {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        std::fs::read_link(link)
            .map_or_else(|_| "elsewhere".into(), |path| path.display().to_string())
    }

    /// An error of the system about something in the library, with what to do where that is known.
    pub fn error(&self, errno: Errno, name: &str) -> Error {
        let error = Error::io(errno.into(), self.path.join(name));
        match errno {
            Errno::ROFS => error.hint("the store can only be read: --read-only mounts it so"),
            Errno::ACCESS | Errno::PERM => error.hint(
                "this user may not write there, or the store cannot: --read-only mounts what may be read",
            ),
            _ => error,
        }
    }
}

/// One of the folders in the library, open.
pub(super) struct Folder {
    pub fd: OwnedFd,
    pub identity: Identity,
}

impl Folder {
    /// Opens a folder in `parent`; `None` where there is none. A link is not followed.
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

/// Makes a folder in `parent` where it is missing, and opens it.
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

/// Why this cannot be opened as a folder, and what to do.
fn no_folder(root: &Root, parent: &OwnedFd, folder: &str, name: &str, errno: Errno) -> Error {
    let error = root.error(errno, name);
    let Ok(there) = rustix::fs::statat(parent, folder, AtFlags::SYMLINK_NOFOLLOW) else {
        return error;
    };
    match FileType::from_raw_mode(there.st_mode) {
        FileType::Directory => error,
        FileType::Symlink if rustix::fs::statat(parent, folder, AtFlags::empty()).is_err() => error
            .hint(
                "it has not arrived yet: it is a symbolic link to something that is not there, and in a library it has \
                 to be a folder",
            ),
        FileType::Symlink => error.hint(
            "it is a symbolic link, and those are not followed in a library: move the folder that it leads to into its \
             place, or mount that there (mount --bind)",
        ),
        _ => error.hint("in a library it has to be a folder: is this what a sync tool left of it?"),
    }
}

pub(super) fn unlink(folder: BorrowedFd<'_>, file: &str, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(folder.as_fd(), file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(io_error(e, name)),
    }
}

/// rename(2) that replaces nothing, also where the filesystem (NFS, most in user space) does not know how: the ids are
/// random, so the look before the rename only has to find the same object published twice.
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
