//! Tests at the start of a mount, with a file of its own, whether the store can do everything that a mount needs.
//!
//! If an ability is missing, the error says how to get it. Two abilities are optional: stable inode numbers, and opening a
//! file right after it was renamed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::device_dir::DeviceDir;
use super::file::{Identity, io_error, write_all};
use super::folder::{FILE_FLAGS, FILE_MODE, Root, make_folder, rename_new, unlink};
use crate::error::{Error, Result};

/// The test file, and the folder that it is moved to.
const FILE: &str = "probe";
const FOLDER: &str = "probing";

/// Tests, in this device's folder, the operations on unfinished files. If the store is full, nothing can be tested.
pub(super) fn probe(root: &Root, own: &DeviceDir) -> Result<()> {
    let folder = own.folder();
    // Removes what a crash may have left.
    clear(&folder, &own.name)?;
    let tried = try_all(root, own, &folder);
    let cleared = clear(&folder, &own.name);
    match tried {
        Err(e) if e.is_no_space() => Ok(()),
        tried => tried.and(cleared),
    }
}

fn clear(folder: &OwnedFd, name: &str) -> Result<()> {
    unlink(folder.as_fd(), FILE, &format!("{name}/{FILE}"))?;
    unlink(
        folder.as_fd(),
        &format!("{FOLDER}/{FILE}"),
        &format!("{name}/{FOLDER}/{FILE}"),
    )?;
    match rustix::fs::unlinkat(folder, FOLDER, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(io_error(e, &format!("{name}/{FOLDER}"))),
    }
}

fn try_all(root: &Root, own: &DeviceDir, folder: &OwnedFd) -> Result<()> {
    let name = format!("{}/{FILE}", own.name);
    let failed = |e: Errno, what: &str| {
        Error::io(e.into(), root.path.join(&name)).hint(format_args!(
            "the store cannot {what}, which writing requires: `rclone mount` can with --vfs-cache-mode writes; or mount \
             with --read-only"
        ))
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE_FLAGS;
    let file = retry_on_intr(|| rustix::fs::openat(folder, FILE, flags, FILE_MODE))
        .map_err(|e| failed(e, "create a file for reading and writing"))?;
    // Appends, and then overwrites, as packs and segments are written.
    let (mut expected, mut read) = ([0xA5; 8192], [0; 8192]);
    expected[100..200].fill(0x5A);
    write_all(&file, &[0xA5; 4096], 0)
        .and_then(|()| write_all(&file, &[0xA5; 4096], 4096))
        .map_err(|e| failed(e, "write to a file"))?;
    write_all(&file, &[0x5A; 100], 100).map_err(|e| failed(e, "write within a file"))?;
    read_all(&file, &mut read).map_err(|e| failed(e, "read a file that is being written"))?;
    if read != expected {
        return Err(failed(Errno::IO, "return what was written to it"));
    }
    retry_on_intr(|| rustix::fs::fdatasync(&file)).map_err(|e| failed(e, "make a file durable"))?;
    test_identity(root, folder, &file)?;

    let target = make_folder(root, folder, FOLDER, &format!("{}/{FOLDER}", own.name))?;
    rename_new(folder.as_fd(), target.as_fd(), FILE, FILE)
        .map_err(|e| failed(e, "rename a file"))?;
    read.fill(0);
    read_all(&file, &mut read).map_err(|e| failed(e, "read an open file that was renamed"))?;
    if read != expected {
        return Err(failed(Errno::IO, "read an open file that was renamed"));
    }
    let open = || rustix::fs::openat(&target, FILE, OFlags::RDONLY | FILE_FLAGS, Mode::empty());
    read.fill(0);
    match retry_on_intr(open).and_then(|again| read_all(&again, &mut read)) {
        Ok(()) if read == expected => Ok(()),
        Ok(()) | Err(Errno::IO | Errno::NOENT) => {
            log::warn!(
                "{}: this store cannot open a file for some seconds after it was renamed (as `rclone mount` 1.60): new \
                 files are kept open until then, and unmounting waits",
                root.path.display()
            );
            own.keep_published();
            Ok(())
        }
        Err(e) => Err(failed(e, "open a file that was renamed")),
    }
}

/// Tests whether the name and the descriptor of a file lead to the same inode number.
fn test_identity(root: &Root, folder: &OwnedFd, file: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::statat(folder, FILE, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| root.error(e, FILE))?;
    let is_same = Identity::from(&stat) == Identity::of(file, FILE)? && stat.st_size == 8192;
    root.trusts_identity.store(is_same, Ordering::Relaxed);
    if !is_same {
        log::debug!(
            "{}: inode numbers and lengths are not reliable here, so that replaced files cannot be noticed",
            root.path.display()
        );
    }
    Ok(())
}

fn read_all(file: &OwnedFd, out: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < out.len() {
        match retry_on_intr(|| rustix::io::pread(file, &mut out[done..], done as u64))? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(())
}
