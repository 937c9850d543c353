//! Files of a library in a directory: objects, and unfinished files that are appended to.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Advice, AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::folder::{FILE_FLAGS, FILE_MODE};
use super::marks::Marks;
use super::{Growing, Object, STREAM_ALIGNMENT};
use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;

/// Longest range of one hint to the kernel, which truncates longer ones to the read-ahead of the disk, at least 128 KiB.
const PREFETCH_STEP: u64 = 128 * 1024;
/// Longest range that is prefetched. Hardly any object is longer.
const PREFETCH_MAX: u64 = 64 << 20;
/// How much space is allocated ahead of small appends. Measured on ext4: appending 4 KiB with fdatasync takes 111 µs
/// instead of 146.
const ALLOCATE_AHEAD: u64 = 1 << 20;
/// The length of a pack, which no file exceeds; nothing is allocated past it.
const GROWING_LEN_MAX: u64 = 64 << 20;
/// Appends of fewer bytes are small. Larger ones are left to the filesystem's delayed allocation.
const SMALL_APPEND: usize = 256 * 1024;
/// The suffix of the name of a copy until it is complete.
pub(super) const BEGUN: &str = ".again";
/// Buffer size for copying a file, in bytes.
const COPY_LEN: usize = 1 << 20;

/// An error of a system call about the object `name`.
pub(super) fn io_error(errno: Errno, name: &str) -> Error {
    let error = Error::new(Kind::Io(errno.into()), name);
    match errno {
        Errno::MFILE => error.hint("raise the limit of open files: ulimit -n"),
        _ => error,
    }
}

/// Makes the names in a folder durable. Filesystems that cannot do that (some network ones) return EINVAL, which is ignored.
pub(super) fn sync_folder(folder: impl AsFd, name: &str) -> Result<()> {
    match retry_on_intr(|| rustix::fs::fsync(&folder)) {
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(io_error(e, name)),
    }
}

/// Identifies a file or folder independently of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(fd: impl AsFd, name: &str) -> Result<Self> {
        let stat = rustix::fs::fstat(fd).map_err(|e| io_error(e, name))?;
        Ok(Self::from(&stat))
    }
}

impl From<&rustix::fs::Stat> for Identity {
    fn from(stat: &rustix::fs::Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// Reads until `out` is full or the file ends. A read that ends within a page also ends this: a direct read cannot continue
/// from there.
fn read_some(fd: &OwnedFd, out: &mut [u8], cipher_offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < out.len() {
        let at = cipher_offset + done as u64;
        match retry_on_intr(|| rustix::io::pread(fd, &mut out[done..], at))? {
            0 => break,
            n => done += n,
        }
        if done % STREAM_ALIGNMENT as usize != 0 {
            break;
        }
    }
    Ok(done)
}

/// Writes all of `data`; EIO if a system call writes nothing.
pub(super) fn write_all(fd: &OwnedFd, data: &[u8], cipher_offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        let at = cipher_offset + done as u64;
        match retry_on_intr(|| rustix::io::pwrite(fd, &data[done..], at))? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(())
}

/// An object that is open for reading.
pub(super) struct StoredFile {
    pub fd: OwnedFd,
    pub name: String,
}

impl Object for StoredFile {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn cipher_len(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| io_error(e, &self.name))?;
        Ok(u64::try_from(stat.st_size).expect("a file's size is not negative"))
    }

    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = cipher_offset + done as u64;
            let rest = &mut out[done..];
            match retry_on_intr(|| rustix::io::pread(&self.fd, &mut *rest, at)) {
                Ok(0) => {
                    let end = self.cipher_len()?;
                    return Err(Error::damaged(
                        &self.name,
                        format_args!("ends after {end} bytes"),
                    ));
                }
                Ok(n) => done += n,
                Err(e) => return Err(io_error(e, &self.name)),
            }
        }
        Ok(())
    }

    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        // Opened for each read: this costs little compared to the read, and a second descriptor per file could be too many.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        if let Ok(direct) = rustix::fs::open(path, flags, Mode::empty())
            && let Ok(len) = read_some(&direct, out, cipher_offset)
        {
            return Ok(len);
        }
        // Not every filesystem supports direct reads. The data need not stay in the page cache then.
        let read = read_some(&self.fd, out, cipher_offset);
        self.uncache(cipher_offset, out.len() as u64);
        read.map_err(|e| io_error(e, &self.name))
    }

    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        let len = NonZeroU64::new(cipher_len);
        // Only a hint, which may fail.
        let _ = rustix::fs::fadvise(&self.fd, cipher_offset, len, Advice::DontNeed);
    }

    fn prefetch(&self, cipher_offset: u64, cipher_len: u64) {
        let end = cipher_offset.saturating_add(cipher_len.min(PREFETCH_MAX));
        let mut at = cipher_offset;
        while let Some(step) = NonZeroU64::new((end - at).min(PREFETCH_STEP)) {
            if rustix::fs::fadvise(&self.fd, at, Some(step), Advice::WillNeed).is_err() {
                return;
            }
            at += step.get();
        }
    }
}

/// A file in `new/<device>/`.
pub(super) struct GrowingFile {
    file: StoredFile,
    id: ObjectId,
    /// Its path: `new/<device>/<id>` below that of the library.
    path: PathBuf,
    /// Held while the file is written to or copied.
    writing: Mutex<()>,
    /// `None` if the store's inode numbers and lengths are not reliable.
    identity: Mutex<Option<Identity>>,
    /// The file must be at least this long, in bytes.
    len: AtomicU64,
    /// Samples of what was written, to notice if another program changes the file.
    marks: Mutex<Marks>,
    /// The folder that holds it. Syncing the folder makes the file's name durable.
    folder: Arc<OwnedFd>,
    /// The name is durable.
    named: AtomicBool,
    /// Disk space is allocated up to this offset.
    allocated: AtomicU64,
    /// The contents are durable up to this offset.
    durable: AtomicU64,
    /// A write failed. It is unknown what it has left, so nothing may be added.
    write_failed: AtomicBool,
    /// A sync failed. The kernel has dropped the pages that it could not write, and a later sync would succeed without them.
    sync_failed: AtomicBool,
    /// Another program wrote to it.
    overwritten: AtomicBool,
    /// A sync has checked the contents since the last [`GrowingFile::check_unless_synced`].
    checked: AtomicBool,
    /// See [`Growing::give_up`].
    given_up: AtomicBool,
}

impl GrowingFile {
    pub(super) fn new(
        file: StoredFile,
        id: ObjectId,
        path: PathBuf,
        folder: Arc<OwnedFd>,
    ) -> Result<Self> {
        let identity = Identity::of(&file.fd, &file.name)?;
        Ok(Self {
            file,
            id,
            path,
            writing: Mutex::default(),
            identity: Mutex::new(Some(identity)),
            len: AtomicU64::new(0),
            marks: Mutex::default(),
            folder,
            named: AtomicBool::new(false),
            allocated: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            write_failed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            overwritten: AtomicBool::new(false),
            checked: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        })
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `path`, relative to `folder`, is this file, with everything that was written to it.
    pub(super) fn is_at(&self, folder: impl AsFd, path: &Path) -> Result<bool> {
        let stat = match rustix::fs::statat(folder, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => return Ok(false),
            Err(e) => return Err(io_error(e, &self.file.name)),
        };
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let identity = *self.identity.lock();
        let is_whole = len >= self.len.load(Ordering::Acquire);
        Ok(identity.is_none_or(|ours| ours == Identity::from(&stat) && is_whole))
    }

    /// Called if the store changes the inode number of a file, or reports its length late. From now on it is only checked
    /// that a file with its name exists.
    pub(super) fn distrust(&self) {
        *self.identity.lock() = None;
    }

    /// Copies the file to `folder`, replacing any file of its name there, and continues with the copy. Durable on return.
    /// Concurrent reads are not disturbed.
    pub(super) fn write_again(&self, folder: &OwnedFd) -> Result<()> {
        let _writing = self.writing.lock();
        let (name, temporary) = (self.id.to_string(), format!("{}{BEGUN}", self.id));
        let at = |e| io_error(e, &self.file.name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | FILE_FLAGS;
        let copy = retry_on_intr(|| rustix::fs::openat(folder, &temporary, flags, FILE_MODE));
        let copy = copy.map_err(at)?;
        let identity = Identity::of(&copy, &self.file.name)?;
        let copied = self.copy_to(&copy).and_then(|()| {
            retry_on_intr(|| rustix::fs::fdatasync(&copy)).map_err(at)?;
            rustix::fs::renameat(folder, &temporary, folder, &name).map_err(at)?;
            sync_folder(folder, &self.file.name)
        });
        if let Err(e) = copied {
            let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::empty());
            return Err(e);
        }
        let (new, old) = (copy.as_raw_fd(), self.file.fd.as_raw_fd());
        // SAFETY: both descriptors are open and owned here. The number of the one in `self` stays, and refers to the copy
        // from now on. A read in another thread that has already begun reads from the old file, which has the same
        // contents; `writing` excludes writes.
        let swapped = retry_on_intr(|| match unsafe { libc::dup3(new, old, libc::O_CLOEXEC) } {
            -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
            _ => Ok(()),
        });
        swapped.map_err(at)?;
        *self.identity.lock() = Some(identity);
        self.named.store(true, Ordering::Release);
        self.allocated.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn copy_to(&self, copy: &OwnedFd) -> Result<()> {
        let at = |e| io_error(e, &self.file.name);
        let expected = self.len.load(Ordering::Acquire);
        let (mut piece, mut done) = (vec![0; COPY_LEN], 0u64);
        loop {
            let len = retry_on_intr(|| rustix::io::pread(&self.file.fd, &mut piece[..], done));
            let len = len.map_err(at)?;
            if len == 0 && done < expected {
                let check = format_args!("{done} bytes are left of {expected}");
                return Err(Error::damaged(&self.file.name, check));
            }
            if len == 0 {
                return Ok(());
            }
            write_all(copy, &piece[..len], done).map_err(at)?;
            done += len as u64;
        }
    }

    /// Allocates space past the end of the file for small appends, without changing its length. Errors are ignored: if the
    /// disk is full, the write fails.
    fn allocate_ahead(&self, len: usize, end: u64) {
        let allocated = self.allocated.load(Ordering::Relaxed);
        if len >= SMALL_APPEND || end <= allocated {
            return;
        }
        let start = allocated.max(end - len as u64);
        let target = end.max(GROWING_LEN_MAX.min(end + ALLOCATE_AHEAD));
        let _ = rustix::fs::fallocate(
            &self.file.fd,
            FallocateFlags::KEEP_SIZE,
            start,
            target - start,
        );
        self.allocated.store(target, Ordering::Relaxed);
    }

    fn try_write(&self, data: &[u8], cipher_offset: u64) -> Result<()> {
        let end = cipher_offset + data.len() as u64;
        let _writing = self.writing.lock();
        self.allocate_ahead(data.len(), end);
        write_all(&self.file.fd, data, cipher_offset).map_err(|e| io_error(e, &self.file.name))?;
        self.len.fetch_max(end, Ordering::AcqRel);
        self.marks.lock().note(data, cipher_offset);
        Ok(())
    }

    /// Checks, as far as that is noticeable, that the file still holds what was written to it, and returns its length. If it
    /// does not, all further syncs fail.
    fn check_contents(&self) -> Result<u64> {
        if self.overwritten.load(Ordering::Acquire) {
            return Err(self.was_overwritten());
        }
        let found = self.cipher_len()?;
        if self.identity.lock().is_none() {
            return Ok(found);
        }
        let (marks, expected) = (self.marks.lock().clone(), self.len.load(Ordering::Acquire));
        // Another thread may have appended since `found` was read. The file was truncated only if it is still too short.
        if (found >= expected || self.cipher_len()? >= expected) && marks.are_in(&self.file.fd) {
            self.marks.lock().were_seen(&marks);
            return Ok(found);
        }
        self.overwritten.store(true, Ordering::Release);
        self.sync_failed.store(true, Ordering::Release);
        Err(self.was_overwritten())
    }

    /// Checks the contents, unless a sync has done so since the last call.
    pub(super) fn check_unless_synced(&self) -> Result<()> {
        if self.checked.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.check_contents()?;
        Ok(())
    }

    fn was_overwritten(&self) -> Error {
        let what = "was overwritten or cut short while it is mounted";
        Error::new(Kind::Displaced(what.into()), self.path.display()).hint(
            "its changes are written again as far as possible, and losses are logged; exclude the folder new/ when syncing \
             or restoring a backup",
        )
    }

    fn try_sync(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fdatasync(&self.file.fd)).map_err(|e| match e {
            // Some filesystems know by then that the name is gone.
            Errno::NOENT | Errno::STALE => {
                let what = "was removed or replaced while it is mounted";
                Error::new(Kind::Displaced(what.into()), &self.file.name)
                    .hint("it is written again as far as it can be read: sync once more")
            }
            e => io_error(e, &self.file.name),
        })?;
        if !self.named.load(Ordering::Acquire) {
            sync_folder(&*self.folder, &self.file.name)?;
            self.named.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn poisoned(&self) -> Error {
        Error::new(Kind::Poisoned, &self.file.name)
    }
}

impl Object for GrowingFile {
    fn name(&self) -> String {
        self.file.name()
    }
    fn cipher_len(&self) -> Result<u64> {
        self.file.cipher_len()
    }
    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        self.file.read_at(out, cipher_offset)
    }
    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        // Recent writes are in the page cache.
        read_some(&self.file.fd, out, cipher_offset).map_err(|e| io_error(e, &self.file.name))
    }
    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        // After a failed sync, pages that were never written look clean. They are the only copy of the data.
        let durable = self.durable.load(Ordering::Acquire);
        let end = durable.min(cipher_offset.saturating_add(cipher_len));
        if cipher_offset < end && !self.sync_failed.load(Ordering::Acquire) {
            self.file.uncache(cipher_offset, end - cipher_offset);
        }
    }
    fn prefetch(&self, cipher_offset: u64, cipher_len: u64) {
        self.file.prefetch(cipher_offset, cipher_len);
    }
}

impl Growing for GrowingFile {
    fn id(&self) -> ObjectId {
        self.id
    }

    fn write_at(&self, data: &[u8], cipher_offset: u64) -> Result<()> {
        if self.write_failed.load(Ordering::Acquire) || self.sync_failed.load(Ordering::Acquire) {
            return Err(self.poisoned());
        }
        self.try_write(data, cipher_offset).inspect_err(|_| {
            self.write_failed.store(true, Ordering::Release);
            // If the disk is full, this frees the part that was written, and the space that was allocated ahead.
            let _ = retry_on_intr(|| rustix::fs::ftruncate(&self.file.fd, cipher_offset));
        })
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    fn write_back(&self, cipher_offset: u64, cipher_len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(cipher_offset), i64::try_from(cipher_len))
        else {
            return;
        };
        // SAFETY: the call takes no pointers, and the descriptor is open as long as `self` is.
        unsafe {
            libc::sync_file_range(
                self.file.fd.as_raw_fd(),
                offset,
                len,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }

    fn sync(&self) -> Result<()> {
        let written = self.check_contents()?;
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(self.poisoned());
        }
        self.try_sync()
            .inspect_err(|_| self.sync_failed.store(true, Ordering::Release))?;
        self.checked.store(true, Ordering::Release);
        self.durable.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }
}
