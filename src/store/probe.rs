//! Whether a store can do what a mount needs: tried when it is mounted, with files of our own, not with the user's data.
//!
//! What is missing is said with its remedy. What can be done without is only noted: inode numbers that say nothing,
//! and files that cannot be opened for a while after they were renamed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::file::{Identity, io_error, write_all};
use super::folder::{FILE_FLAGS, FILE_MODE, Root, make_folder, rename_new, unlink};
use super::own::Own;
use crate::error::{Error, Result};

/// The file that is tried with, and the folder that it is moved to.
const FILE: &str = "probe";
const FOLDER: &str = "probing";

/// Tries, in this device's folder, what is done with growing files. On a full store nothing is found out.
pub(super) fn probe(root: &Root, own: &Own) -> Result<()> {
    let folder = own.folder();
    // Left over from a crash.
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

fn try_all(root: &Root, own: &Own, folder: &OwnedFd) -> Result<()> {
    let name = format!("{}/{FILE}", own.name);
    let failed = |e: Errno, what: &str| {
        Error::io(e.into(), root.path.join(&name)).hint(format_args!(
            "the store cannot {what}, and without that nothing can be written: `rclone mount` can with \
             --vfs-cache-mode writes; --read-only mounts what may be read"
        ))
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE_FLAGS;
    let file = retry_on_intr(|| rustix::fs::openat(folder, FILE, flags, FILE_MODE))
        .map_err(|e| failed(e, "make a file for reading and writing"))?;
    // In the order in which packs and segments are written: at the end, and here and there.
    let (mut expected, mut read) = ([0xA5; 8192], [0; 8192]);
    expected[100..200].fill(0x5A);
    write_all(&file, &[0xA5; 4096], 0)
        .and_then(|()| write_all(&file, &[0xA5; 4096], 4096))
        .map_err(|e| failed(e, "write to a file"))?;
    write_all(&file, &[0x5A; 100], 100).map_err(|e| failed(e, "write within a file"))?;
    read_all(&file, &mut read).map_err(|e| failed(e, "read what it is still writing"))?;
    if read != expected {
        return Err(failed(Errno::IO, "give back what was written to it"));
    }
    retry_on_intr(|| rustix::fs::fdatasync(&file)).map_err(|e| failed(e, "make a file durable"))?;
    look_at(root, folder, &file)?;

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
                "{}: where this library lies, a file cannot be read for some seconds after it was renamed (`rclone mount` \
                 1.60 is so): what is new is kept open until then, and unmounting waits for it",
                root.path.display()
            );
            own.keep_published();
            Ok(())
        }
        Err(e) => Err(failed(e, "open a file that was renamed")),
    }
}

/// Whether the name of an open file leads to what looks like it.
fn look_at(root: &Root, folder: &OwnedFd, file: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::statat(folder, FILE, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| root.error(e, FILE))?;
    let is_same = Identity::from(&stat) == Identity::of(file, FILE)? && stat.st_size == 8192;
    root.trusts_identity.store(is_same, Ordering::Relaxed);
    if !is_same {
        log::debug!(
            "{}: inode numbers and lengths say nothing here: a file that is replaced while it grows is not noticed",
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
