//! `hushfs umount`: ends a mount, and waits until its process has written everything.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::mount::UnmountFlags;

use super::info::is_locked;
use super::library::NEW;
use crate::error::{Error, Kind, Result};

/// How long the process may take to write what is left.
const WAIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(20);
/// The type that the kernel shows of our mounts.
const FS_TYPE: &str = "fuse.hushfs";

/// What was typed.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where the library is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    point: PathBuf,
    read_only: bool,
    fs_type: String,
    source: PathBuf,
}

/// Unmounts, and returns when the mount is gone and its process has let go of the library: a process that may write
/// holds the lock `new/<device>/lock` until everything is published, and the mount's source is the library's folder.
pub fn run(args: &UmountArgs) -> Result<()> {
    let point = resolve(&args.mountpoint)?;
    let mount = find(&point)?;
    let locks = if mount.read_only {
        Vec::new()
    } else {
        held_locks(&mount.source)
    };
    detach(&point)?;
    wait(&mount, &locks)
}

/// The mount point without symbolic links. What a mount shows to its owner alone, or one whose process died, cannot be
/// looked at itself; its folder can.
fn resolve(path: &Path) -> Result<PathBuf> {
    if let Ok(point) = fs::canonicalize(path) {
        return Ok(point);
    }
    let path = std::path::absolute(path).map_err(|e| Error::io(e, path))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::usage(format_args!(
            "{}: not a mount point",
            path.display()
        )));
    };
    let parent = fs::canonicalize(parent).map_err(|e| Error::io(e, parent))?;
    Ok(parent.join(name))
}

fn find(point: &Path) -> Result<Mount> {
    let refused = |text: String| {
        Error::new(Kind::Mount(text.into()), point.display())
            .hint("`findmnt -t fuse.hushfs` lists what is mounted")
    };
    // The last is the one on top.
    let mount = mounts()?.into_iter().rfind(|mount| mount.point == point);
    let mount = mount.ok_or_else(|| refused("nothing is mounted here".into()))?;
    if mount.fs_type != FS_TYPE {
        return Err(refused(format!(
            "what is mounted here is {}, not hushfs",
            mount.fs_type
        )));
    }
    Ok(mount)
}

fn mounts() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let table = fs::read(path).map_err(|e| Error::io(e, path))?;
    Ok(table.split(|b| *b == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let point = PathBuf::from(unescape(words.nth(3)?));
    let read_only = words
        .next()?
        .split(|b| *b == b',')
        .any(|option| option == b"ro");
    // Optional fields end with a dash.
    words.find(|word| *word == b"-")?;
    let fs_type = String::from_utf8_lossy(words.next()?).into_owned();
    let source = PathBuf::from(unescape(words.next()?));
    Some(Mount {
        id,
        point,
        read_only,
        fs_type,
        source,
    })
}

/// Blank, tab, line feed and backslash are written as three octal digits.
fn unescape(word: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => out.push(*first),
        }
    }
    OsString::from_vec(out)
}

/// The locks of a library's devices that somebody holds now. Usually one: ours. Where another device is mounted beside
/// it, that one stays; so the wait is for any one of them.
fn held_locks(library: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir(library.join(NEW))
        .into_iter()
        .flatten()
        .flatten();
    let locks = devices.map(|device| device.path().join("lock"));
    locks.filter(|lock| is_locked(lock)).collect()
}

fn detach(point: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return match rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::BUSY) => Err(busy(point)),
            Err(e) => {
                let text = io::Error::from(e).to_string();
                Err(Error::new(Kind::Mount(text.into()), point.display()))
            }
        };
    }
    let output = Command::new("fusermount3")
        .arg("-u")
        .arg("--")
        .arg(point)
        .env("LC_ALL", "C")
        .output();
    let output = output.map_err(|e| {
        let text = format!("fusermount3 does not run: {e}");
        Error::new(Kind::Mount(text.into()), point.display())
            .hint("install the package fuse3, or unmount as root")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if text.contains("busy") {
        return Err(busy(point));
    }
    Err(Error::new(Kind::Mount(text.into()), point.display()))
}

fn busy(point: &Path) -> Error {
    Error::new(Kind::InUse, point.display()).hint(format_args!(
        "a program has a file open there, or is in the folder: `fuser -vm {}` shows which",
        point.display()
    ))
}

fn wait(mount: &Mount, locks: &[PathBuf]) -> Result<()> {
    let end = Instant::now() + WAIT;
    loop {
        let gone = !mounts()?.iter().any(|other| other.id == mount.id);
        if gone && (locks.is_empty() || locks.iter().any(|lock| !is_locked(lock))) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(
                Error::new(Kind::InUse, mount.source.display()).hint(format_args!(
                    "it is unmounted, but its process still writes after {} s: let it finish",
                    WAIT.as_secs()
                )),
            );
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = b"36 35 0:52 / /mnt/my\\040music\\134 ro,nosuid shared:1 master:2 - fuse.hushfs /srv/a\\012b rw,user_id=0";
        let mount = parse(line).unwrap();
        let expected = Mount {
            id: 36,
            point: "/mnt/my music\\".into(),
            read_only: true,
            fs_type: "fuse.hushfs".into(),
            source: "/srv/a\nb".into(),
        };
        assert_eq!(mount, expected);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 0:52 / /mnt rw - "), None);
        assert_eq!(unescape(b"a\\9\\04"), "a\\9\\04");
    }

    #[test]
    fn what_is_not_ours_stays() {
        let root = find(Path::new("/")).unwrap_err().to_string();
        assert!(root.contains("not hushfs"), "{root}");
        let dir = tempfile::tempdir().unwrap();
        let none = find(dir.path()).unwrap_err().to_string();
        assert!(none.contains("nothing is mounted"), "{none}");
    }
}
