//! Detects other writers in a device's folder on filesystems where the lock is not enough: over a network, or through FUSE,
//! each machine may have its own locks.
//!
//! The writer keeps a file `owner` in the folder, and changes it every few seconds. Another mount that finds this file
//! decides whether the writer is gone. It is gone if it was a process of this machine that no longer runs or, after a
//! restart of this machine, if the file no longer changes. Clocks are not compared. A writer on another machine may be
//! asleep or disconnected, and is never considered gone. Limitation: a writer is not noticed if the store shows changes of
//! other machines only after minutes, because it caches folders.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use sha2::{Digest, Sha256};

use super::file::io_error;
use super::folder::{FILE_FLAGS, FILE_MODE, unlink};
use crate::crypto::random_id;
use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;

/// The file's name.
const OWNER: &str = "owner";
const FIRST_LINE: &str = "hushfs-owner 1\n";
/// Bytes to read. The file is shorter.
const READ_LEN_MAX: usize = 512;
/// How often the writer changes the file.
const BEAT: Duration = Duration::from_secs(5);
/// If the file does not change for this long, its writer is gone.
const WATCH: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(1);

/// Filesystems (types of statfs(2)) that only one machine can mount: their locks are seen by all who can see the files.
const LOCAL: &[u32] = &[
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x794c_7630, // overlayfs
    0x4d44,      // vfat
    0x2011_bab0, // exfat
    0x7366_746e, // ntfs3
    0x482b,      // hfsplus
    0x3153_464a, // jfs
    0x3434,      // nilfs2
    0x1501_3346, // udf
    0xf15f,      // ecryptfs
];

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    /// A random id of the mount.
    token: ObjectId,
    /// A hash of the machine's id; zeros if it has none.
    machine: ObjectId,
    /// A hash of the kernel's boot id, and of the process's PID namespace.
    boot: ObjectId,
    /// The writer's process id, and below, the time at which the process was started, in the kernel's units.
    pid: u64,
    started: u64,
    /// Incremented with each change.
    beat: u64,
}

/// Marks this process as the writer in a folder, until it is dropped.
pub(super) struct Owner {
    folder: Arc<OwnedFd>,
    token: ObjectId,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    is_set: Mutex<bool>,
    wake: Condvar,
}

impl Owner {
    /// Marks this process as the writer in a folder whose lock it holds; `None` if the lock is enough.
    ///
    /// [`Kind::DeviceTaken`] if another process, perhaps on another machine, may be writing there.
    pub fn claim(folder: &Arc<OwnedFd>, name: &str) -> Result<Option<Self>> {
        if has_local_locks(folder) {
            return Ok(None);
        }
        Self::claim_beside(folder, name).map(Some)
    }

    fn claim_beside(folder: &Arc<OwnedFd>, name: &str) -> Result<Self> {
        if judge(folder, WATCH)? {
            let text = "another mount, perhaps on another machine, writes as this device";
            return Err(Error::new(Kind::DeviceTaken(text.into()), name));
        }
        let mut note = Note::own()?;
        write(folder, &note).map_err(|e| io_error(e, &format!("{name}/{OWNER}")))?;
        let (token, stop) = (note.token, Arc::new(Stop::default()));
        let (of_thread, place) = (Arc::clone(&stop), Arc::clone(folder));
        let name = name.to_owned();
        let beat = move || {
            while !of_thread.wait(BEAT) {
                note.beat += 1;
                if !beat(&place, &note, &name) {
                    break;
                }
            }
        };
        // The thread is never joined: if the store hangs, it may never end.
        std::thread::Builder::new()
            .name("owner".into())
            .spawn(beat)
            .map_err(|e| Error::new(Kind::Io(e), "the thread that updates the file `owner`"))?;
        Ok(Self {
            folder: Arc::clone(folder),
            token,
            stop,
        })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        *self.stop.is_set.lock() = true;
        self.stop.wake.notify_one();
        if read(&self.folder).is_some_and(|note| note.token == self.token) {
            let _ = unlink(self.folder.as_fd(), OWNER, OWNER);
        }
    }
}

impl Stop {
    /// Waits for `time`, or until the thread must end; returns true in that case.
    fn wait(&self, time: Duration) -> bool {
        let mut is_set = self.is_set.lock();
        if !*is_set {
            self.wake.wait_for(&mut is_set, time);
        }
        *is_set
    }
}

/// Changes the file. Returns false if another mount has replaced it.
fn beat(folder: &OwnedFd, note: &Note, name: &str) -> bool {
    match read(folder) {
        Some(other) if other.token != note.token => {
            log::error!(
                "{name}: another mount has taken over this folder, and recent changes may be lost (unmount one of the two)"
            );
            false
        }
        _ => {
            if let Err(e) = write(folder, note) {
                log::debug!("{name}/{OWNER}: {e}");
            }
            true
        }
    }
}

/// Whether the folder may have another writer than this process. Takes [`WATCH`] if that can be decided only by waiting.
pub(super) fn is_at_work(folder: &OwnedFd) -> Result<bool> {
    // If the lock is enough, a file in the folder was left on another filesystem.
    Ok(!has_local_locks(folder) && judge(folder, WATCH)?)
}

/// The same, but without waiting: false if that could be decided only by waiting.
pub(super) fn may_be_at_work(folder: &OwnedFd) -> bool {
    !has_local_locks(folder) && judge(folder, Duration::ZERO).is_ok_and(|is_at_work| is_at_work)
}

fn judge(folder: &OwnedFd, watch: Duration) -> Result<bool> {
    let Some(note) = read(folder) else {
        return Ok(false);
    };
    let own = Note::own()?;
    let no_machine = ObjectId::default();
    if note.machine != own.machine && note.machine != no_machine && own.machine != no_machine {
        return Ok(true);
    }
    if (note.machine, note.boot) == (own.machine, own.boot) {
        return Ok(started(note.pid) == Some(note.started));
    }
    if !watch.is_zero() {
        log::warn!(
            "recovering from an unclean shutdown: waiting {} s in case another machine still writes",
            watch.as_secs()
        );
    }
    let start = Instant::now();
    while start.elapsed() < watch {
        std::thread::sleep(LOOK);
        match read(folder) {
            None => return Ok(false),
            Some(now) if now != note => return Ok(true),
            Some(_) => {}
        }
    }
    Ok(false)
}

fn has_local_locks(folder: &OwnedFd) -> bool {
    // The kernel's numbers have 32 bits, but the type depends on the architecture.
    let of = |s: rustix::fs::StatFs| LOCAL.contains(&(s.f_type as u32));
    rustix::fs::fstatfs(folder).is_ok_and(of)
}

fn read(folder: &OwnedFd) -> Option<Note> {
    let flags = OFlags::RDONLY | FILE_FLAGS;
    let fd = retry_on_intr(|| rustix::fs::openat(folder, OWNER, flags, Mode::empty())).ok()?;
    let mut bytes = [0; READ_LEN_MAX];
    let len = retry_on_intr(|| rustix::io::read(&fd, &mut bytes)).ok()?;
    Some(Note::parse(bytes.get(..len)?))
}

/// Overwrites the file. Its length never changes.
fn write(folder: &OwnedFd, note: &Note) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | FILE_FLAGS;
    let fd = retry_on_intr(|| rustix::fs::openat(folder, OWNER, flags, FILE_MODE))?;
    let text = note.text();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = retry_on_intr(|| rustix::io::write(&fd, rest))?;
        rest = &rest[written..];
    }
    Ok(())
}

impl Note {
    fn own() -> Result<Self> {
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let mut boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let numbering = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        boot.extend_from_slice(numbering.as_os_str().as_encoded_bytes());
        let pid = u64::from(std::process::id());
        Ok(Self {
            token: random_id()?,
            machine: if machine.is_empty() {
                ObjectId::default()
            } else {
                hash("machine", &machine)
            },
            boot: hash("boot", &boot),
            pid,
            started: started(pid).unwrap_or(0),
            beat: 0,
        })
    }

    fn text(&self) -> String {
        let Self {
            token,
            machine,
            boot,
            pid,
            started,
            beat,
        } = self;
        format!(
            "{FIRST_LINE}token {token}\nmachine {machine}\nboot {boot}\nprocess {pid:016x} {started:016x}\nbeat {beat:016x}\n"
        )
    }

    /// Contents that do not parse, perhaps because they are being written, count as those of an unknown machine. Their `beat`
    /// is a hash, so that changes are noticed.
    fn parse(bytes: &[u8]) -> Self {
        Self::parse_text(bytes).unwrap_or_else(|| Self {
            token: hash("note", bytes),
            machine: ObjectId::default(),
            boot: ObjectId::default(),
            pid: 0,
            started: 0,
            beat: 0,
        })
    }

    fn parse_text(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_prefix(FIRST_LINE)?;
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let number = |digits: &str| {
            let is_whole = digits.len() == 16;
            is_whole.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        let token = ObjectId::parse(field("token")?)?;
        let machine = ObjectId::parse(field("machine")?)?;
        let boot = ObjectId::parse(field("boot")?)?;
        let (pid, started) = field("process")?.split_once(' ')?;
        let (pid, started) = (number(pid)?, number(started)?);
        let beat = number(field("beat")?)?;
        Some(Self {
            token,
            machine,
            boot,
            pid,
            started,
            beat,
        })
    }
}

/// A hash of something about this machine, which reveals nothing about the machine to others.
fn hash(what: &str, bytes: &[u8]) -> ObjectId {
    let hash = Sha256::new()
        .chain_update(b"hushfs owner ")
        .chain_update(what)
        .chain_update(bytes)
        .finalize();
    let mut id = ObjectId::default();
    id.0.copy_from_slice(&hash[..16]);
    id
}

/// When a process was started, in ticks since the system was (proc_pid_stat(5)); `None` if it does not run.
fn started(pid: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Arc<OwnedFd>) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        (dir, Arc::new(fd.into()))
    }

    #[test]
    fn notes_are_read_as_they_were_written() {
        let (_dir, folder) = folder();
        assert_eq!(read(&folder), None);
        let mut note = Note::own().unwrap();
        for beat in [0, 7, u64::MAX] {
            note.beat = beat;
            write(&folder, &note).unwrap();
            assert_eq!(read(&folder), Some(note.clone()));
        }
        let text = note.text();
        let cut = |len| Note::parse(&text.as_bytes()[..len]);
        for len in 0..text.len() - 1 {
            assert_ne!(cut(len).token, note.token);
            assert_ne!(cut(len), cut(len + 1));
        }
        assert!(text.len() < READ_LEN_MAX);
    }

    #[test]
    fn one_process_at_a_time_is_the_writer() {
        let (dir, folder) = folder();
        let owner = Owner::claim_beside(&folder, "new").unwrap();
        let judge = || judge(&folder, Duration::ZERO).unwrap();
        assert!(judge(), "it runs");
        let e = Owner::claim_beside(&folder, "new").err().unwrap();
        assert!(matches!(e.kind(), Kind::DeviceTaken(_)), "{e}");
        drop(owner);
        assert!(!dir.path().join(OWNER).exists());

        let own = Note::own().unwrap();
        let is_at_work = |change: &dyn Fn(&mut Note)| {
            let mut note = own.clone();
            change(&mut note);
            write(&folder, &note).unwrap();
            judge()
        };
        assert!(is_at_work(&|_| {}));
        assert!(
            !is_at_work(&|n| n.started += 1),
            "the number is another process's"
        );
        assert!(!is_at_work(&|n| n.pid = u64::MAX));
        assert!(
            is_at_work(&|n| n.machine.0[0] ^= 1),
            "another machine's may sleep"
        );
        assert!(!is_at_work(&|n| n.boot.0[0] ^= 1), "it does not move");
        std::fs::write(dir.path().join(OWNER), "cut").unwrap();
        assert!(!judge());
    }

    #[test]
    fn an_owner_file_that_changes_is_alive() {
        let (_dir, folder) = folder();
        let mut note = Note::own().unwrap();
        note.boot.0[0] ^= 1;
        write(&folder, &note).unwrap();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let done = &is_done;
            let place = &folder;
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    note.beat += 1;
                    assert!(beat(place, &note, "new"));
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let judged = judge(&folder, WATCH);
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(judged.unwrap());
        });
        let other = Note::own().unwrap();
        assert!(
            !beat(&folder, &other, "new"),
            "another's is not written over"
        );
    }
}
