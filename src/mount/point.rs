//! Mount points: what may be one, and what is mounted where.
//!
//! The kernel's table is consulted, not the mount: one whose process is dead, or that belongs to another user, does not
//! answer.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::error::{Error, Kind, Result};

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The mount's id, unique while it exists.
    pub id: u64,
    /// `MAJOR:MINOR` of its `st_dev`.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type, with the subtype: `fuse.hushfs`.
    pub fs_type: OsString,
    /// What it was mounted from: the library's folder, or what `-o fsname` says.
    pub source: PathBuf,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        // id parent major:minor root point options [optional...] - type source options
        let mut words = line.split(|&b| b == b' ');
        let mut text = || words.next().and_then(|w| std::str::from_utf8(w).ok());
        let id = text()?.parse().ok()?;
        let device = text().and_then(|_parent| text())?.to_owned();
        let point = words.nth(1).map(unescape)?;
        words.find(|w| *w == b"-")?;
        let fs_type = unescape(words.next()?).into_os_string();
        let source = words.next().map(unescape)?;
        Some(Self {
            id,
            device,
            point,
            fs_type,
            source,
        })
    }

    /// Returns the part of the device number that differs between mounts. In fusectl it is the name of the connection.
    pub(super) fn minor(&self) -> &str {
        self.device.rsplit(':').next().unwrap_or_default()
    }

    /// True for any mount that a process serves.
    fn is_fuse(&self) -> bool {
        let fs_type = self.fs_type.as_bytes();
        matches!(fs_type, b"fuse" | b"fuseblk") || fs_type.starts_with(b"fuse.")
    }

    /// True for mounts of this program, except those with another subtype.
    fn is_hushfs(&self) -> bool {
        self.fs_type == super::attach::FS_TYPE
    }
}

/// Decodes blanks, tabs, newlines and backslashes, which the table escapes as three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => path.push(*byte),
        }
    }
    OsString::from_vec(path).into()
}

/// Returns all mounts, the newest last.
pub(super) fn table() -> Result<Vec<Entry>> {
    const TABLE: &str = "/proc/self/mountinfo";
    let bytes = std::fs::read(TABLE).map_err(|e| Error::io(e, TABLE))?;
    Ok(bytes
        .split(|&b| b == b'\n')
        .filter_map(Entry::parse)
        .collect())
}

/// Returns the mount that a path ending in `point` reaches: the newest one there.
pub(super) fn top(point: &Path) -> Result<Option<Entry>> {
    Ok(table()?.into_iter().rfind(|e| e.point == point))
}

/// The root directory of the mount that a path reaches, and the ids of that mount.
pub(super) struct Held {
    pub root: OwnedFd,
    /// The id in the table, which the kernel reuses. `None` before Linux 5.8.
    pub id: Option<u64>,
    /// The id that is never reused. `None` before Linux 6.8.
    pub unique_id: Option<u64>,
}

/// Opens the mount that a path reaches. The kernel answers this by itself, without the process behind the mount, so a
/// dead or stopped process is no obstacle.
pub(super) fn hold(point: &Path) -> io::Result<Held> {
    /// STATX_MNT_ID_UNIQUE of linux/stat.h.
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(point, flags, Mode::empty())?;
    let id = |wanted: StatxFlags| {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&root, "", flags, wanted).ok()?;
        (stat.stx_mask & wanted.bits() != 0).then_some(stat.stx_mnt_id)
    };
    let (id, unique_id) = (id(StatxFlags::MNT_ID), id(MNT_ID_UNIQUE));
    Ok(Held {
        root,
        id,
        unique_id,
    })
}

/// Returns the absolute path without links. A dead mount at its end, which answers nothing, is no obstacle.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    match path.canonicalize() {
        Ok(found) => Ok(found),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::new(Kind::NotFound, path.display()))
        }
        Err(e) => beside_parent(path).ok_or_else(|| Error::io(e, path)),
    }
}

/// Returns the absolute path, with links followed in all but the last name.
fn beside_parent(path: &Path) -> Option<PathBuf> {
    let parent = match path.parent()? {
        p if p.as_os_str().is_empty() => Path::new("."),
        p => p,
    };
    Some(parent.canonicalize().ok()?.join(path.file_name()?))
}

/// Unmounts a mount of ours whose process has died: it would only be in the way, and nothing can be lost with it. A
/// dead mount of another type is left to its owner.
pub fn clear_dead(mountpoint: &Path) -> Result<()> {
    let point = resolve(mountpoint)?;
    let ours = top(&point)?.is_some_and(|e| e.is_hushfs());
    // Attributes may still be cached; the result of statfs(2) never is.
    if ours && rustix::fs::statfs(&point).err() == Some(rustix::io::Errno::NOTCONN) {
        log::info!(
            "{}: the process of an earlier mount has died",
            point.display()
        );
        super::attach::detach(&point, super::attach::Detach::Lazily)?;
    }
    Ok(())
}

/// Refuses what cannot be a mount point for `library` (a resolved path): anything but a folder, a place where FUSE is
/// already mounted, a folder inside the library or around it, and, unless `nonempty`, a folder that is not empty.
/// Returns its resolved path.
pub fn check(mountpoint: &Path, library: &Path, nonempty: bool) -> Result<PathBuf> {
    let refuse = |why: &str| Error::new(Kind::MountPoint(why.into()), mountpoint.display());
    let point = resolve(mountpoint).map_err(|e| match e.kind() {
        Kind::NotFound => refuse("there is no such folder").hint("--create creates it"),
        _ => e,
    })?;
    if let Some(entry) = top(&point)?.filter(Entry::is_fuse) {
        // Attributes may still be cached; the result of statfs(2) never is.
        if rustix::fs::statfs(&point).err() == Some(rustix::io::Errno::NOTCONN) {
            let why = Kind::Mount("a mount is here whose process has died".into());
            return Err(Error::new(why, mountpoint.display())
                .hint(format_args!("umount {}", mountpoint.display())));
        }
        return Err(Error::new(Kind::InUse, mountpoint.display()).hint(
            match entry.source == library {
                true => "the library is mounted there already".into(),
                false => format!("{} is mounted there already", entry.fs_type.display()),
            },
        ));
    }
    let meta = std::fs::metadata(&point).map_err(|e| Error::io(e, mountpoint))?;
    if !meta.is_dir() {
        return Err(refuse("is not a folder"));
    }
    check_apart(&point, library)?;
    // `lost+found` counts as content, as with other FUSE filesystems.
    let mut inside = std::fs::read_dir(&point).map_err(|e| Error::io(e, mountpoint))?;
    if !nonempty && inside.next().is_some() {
        return Err(Error::new(Kind::NotEmpty, mountpoint.display()).hint(
            "the mount would hide its files: use an empty folder, or mount with -o nonempty",
        ));
    }
    Ok(point)
}

/// Refuses a mount point inside the library, and a library inside the mount point: each would need the other first, and
/// the mount would wait for itself. Both are resolved paths.
pub fn check_apart(point: &Path, library: &Path) -> Result<()> {
    let where_it_is = match (point.starts_with(library), library.starts_with(point)) {
        (true, _) => "the mount point is inside the library",
        (_, true) => "the library is inside the mount point",
        _ => return Ok(()),
    };
    let text = format!("{}: {where_it_is}", point.display());
    Err(Error::usage(text).hint("choose a folder next to the library"))
}

/// Returns the folder of the library that is mounted at `path`, if that is a mount of ours.
pub fn library_at(path: &Path) -> Option<PathBuf> {
    let point = beside_parent(path)?;
    let entry = top(&point).ok()?.filter(Entry::is_hushfs)?;
    Some(entry.source)
}

/// Returns the newest mount point of the library in the folder `library` (a resolved path), if it is mounted.
pub fn mount_of(library: &Path) -> Option<PathBuf> {
    let mut table = table().ok()?.into_iter();
    let found = table.rfind(|e| e.is_fuse() && e.source == library)?;
    Some(found.point)
}

/// Returns our mount at `path` or else the newest one of the library there, as umount(8) resolves its argument.
pub(super) fn mounted(path: &Path) -> Result<Entry> {
    const HINT: &str = "`findmnt -t fuse.hushfs` lists what is mounted";
    let mut table = table()?;
    // Do not ask what is mounted at the path itself: its process may be stopped.
    let point = match beside_parent(path).filter(|point| table.iter().any(|e| e.point == *point)) {
        Some(point) => point,
        None => resolve(path).map_err(|e| match e.kind() {
            Kind::NotFound => {
                let why = Kind::MountPoint("there is no such folder".into());
                Error::new(why, path.display()).hint(HINT)
            }
            _ => e.hint(HINT),
        })?,
    };
    let at = |e: &Entry| e.point == point;
    // Accept any subtype: the mount was identified by its mount point.
    let found = match table.iter().rposition(at) {
        Some(top) if table[top].is_fuse() => Some(top),
        _ => table.iter().rposition(|e| e.is_fuse() && e.source == point),
    };
    let found =
        found.filter(|i| table[*i].is_hushfs() || super::farewell::is_ours(&table[*i].point));
    match found {
        Some(found) => Ok(table.swap_remove(found)),
        None => Err(Error::new(
            Kind::MountPoint("no library is mounted here".into()),
            path.display(),
        )
        .hint(HINT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line = b"36 35 0:52 / /mnt/my\\040music\\134x rw,nosuid shared:1 master:2 - fuse.hushfs /my\\040library rw,user_id=0";
        let entry = Entry::parse(line).unwrap();
        assert_eq!(entry.id, 36);
        assert_eq!(entry.device, "0:52");
        assert_eq!(entry.point, Path::new("/mnt/my music\\x"));
        assert_eq!(entry.fs_type, "fuse.hushfs");
        assert_eq!(entry.source, Path::new("/my library"));
        assert!(entry.is_fuse());
        assert_eq!(Entry::parse(b"36 35 0:52 / /mnt"), None);
        assert_eq!(Entry::parse(b""), None);
    }

    #[test]
    fn fusectl_is_no_fuse_mount() {
        let line = b"40 25 0:35 / /sys/fs/fuse/connections rw - fusectl fusectl rw";
        assert!(!Entry::parse(line).unwrap().is_fuse());
    }

    #[test]
    fn library_and_mount_point_may_not_lie_in_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let inner = base.join("inner");
        let beside = base.join("inner-2");
        std::fs::create_dir(&inner).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(base.join("file"), "").unwrap();
        let refused = |point: &Path, library| {
            let error = check(point, library, false).unwrap_err();
            error.exit_status() as u8
        };
        for (point, library) in [(&inner, &base), (&base, &inner), (&base, &base)] {
            assert_eq!(refused(point, library), 2);
        }
        assert_eq!(refused(&base.join("file"), &inner), 8);
        assert_eq!(refused(&base.join("none"), &inner), 8);
        assert_eq!(check(&beside, &inner, false).unwrap(), beside);
        std::fs::create_dir(beside.join("lost+found")).unwrap();
        let full = check(&beside, &inner, false).unwrap_err();
        assert!(matches!(full.kind(), Kind::NotEmpty), "{full}");
        assert_eq!(check(&beside, &inner, true).unwrap(), beside);
    }
}
