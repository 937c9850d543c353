//! Files of a library in a directory: read at offsets, and grown at the end.

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

/// Longest range that one hint asks the kernel for: it cuts longer ones at the device's read-ahead, 128 KiB at least.
const PREFETCH_STEP: u64 = 128 * 1024;
/// Longest range that is prefetched at all; no object is longer by much.
const PREFETCH_MAX: u64 = 64 << 20;
/// How far ahead of small appends room is allocated. Measured on ext4: append 4 KiB + fdatasync 111 µs, not 146.
const ALLOCATE_AHEAD: u64 = 1 << 20;
/// No file grows longer than a pack: behind it, nothing is allocated.
const GROWING_LEN_MAX: u64 = 64 << 20;
/// Appends below this many bytes are small. Large ones are left to delayed allocation.
const SMALL_APPEND: usize = 256 * 1024;
/// What the name of a copy ends in until it is whole.
pub(super) const BEGUN: &str = ".again";
/// A file is copied in pieces so long, in bytes.
const COPY_LEN: usize = 1 << 20;

/// An error of the system about the object `name`.
pub(super) fn io_error(errno: Errno, name: &str) -> Error {
    let error = Error::new(Kind::Io(errno.into()), name);
    match errno {
        Errno::MFILE => error.hint("raise the limit of open files: ulimit -n"),
        _ => error,
    }
}

/// Makes a folder's names durable. Filesystems that do not know how (some network ones) say EINVAL: there is no more to be had.
pub(super) fn sync_folder(folder: impl AsFd, name: &str) -> Result<()> {
    match retry_on_intr(|| rustix::fs::fsync(&folder)) {
        Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(io_error(e, name)),
    }
}

/// Which file or folder it is, whatever it is called.
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

/// Reads until `out` is full or the file ends. That ends where a read does between two pages: a direct read from there
/// on would be refused.
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

/// Writes all of `data`; EIO where the system takes nothing of it.
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

/// An object open for reading.
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
        // Opened anew each time: it costs little beside the read, and there may be many files.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        if let Ok(direct) = rustix::fs::open(path, flags, Mode::empty())
            && let Ok(len) = read_some(&direct, out, cipher_offset)
        {
            return Ok(len);
        }
        // Not every filesystem can. Nor need the system keep what was read through its memory.
        let read = read_some(&self.fd, out, cipher_offset);
        self.uncache(cipher_offset, out.len() as u64);
        read.map_err(|e| io_error(e, &self.name))
    }

    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        let len = NonZeroU64::new(cipher_len);
        // A hint: where it is not taken, nothing is lost.
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
    /// Where it is to be found: `new/<device>/<id>` below the library's path.
    path: PathBuf,
    /// Held while the file is written to, or copied.
    writing: Mutex<()>,
    /// `None` where what the store says of files cannot be relied on.
    identity: Mutex<Option<Identity>>,
    /// It is so long at least.
    len: AtomicU64,
    /// What it must still hold.
    marks: Mutex<Marks>,
    /// The folder that it lies in, whose sync makes its name durable.
    folder: Arc<OwnedFd>,
    /// The name is durable.
    named: AtomicBool,
    /// Room is allocated up to here.
    allocated: AtomicU64,
    /// Durable up to here.
    durable: AtomicU64,
    /// A write failed: what is there is known no more, so nothing may be added.
    write_failed: AtomicBool,
    /// A sync failed. The kernel forgets the pages that it could not write, so a later sync would say yes without them.
    sync_failed: AtomicBool,
    /// Somebody else wrote to it.
    overwritten: AtomicBool,
    /// A sync has looked at its contents since [`GrowingFile::check_unless_synced`] did.
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

    /// Whether `path` from `folder` on leads to this file, with all that was written to it.
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

    /// The store gives one file ever new inode numbers, or says its length late: that something is there under its name
    /// has to be enough.
    pub(super) fn distrust(&self) {
        *self.identity.lock() = None;
    }

    /// Copies the whole file into a new one in `folder`, in place of what has its name there, and goes on in that.
    /// Durable on return. Who reads meanwhile does not notice.
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
        // SAFETY: both descriptors are open, and ours: `self` owns the one whose number stays, and which from now on
        // leads to the copy. A read that another thread has begun ends in the file that it began in, which says the
        // same; writes are locked out.
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

    /// Allocates room behind small appends, past the end of the file, so that its length stays true. Only a help:
    /// a filesystem that cannot, or is full, says so at the write.
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

    /// Makes sure that the file still holds what was written to it, as far as that shows, and answers its length. Where
    /// it does not, no sync succeeds any more.
    fn check_contents(&self) -> Result<u64> {
        if self.overwritten.load(Ordering::Acquire) {
            return Err(self.was_overwritten());
        }
        let found = self.cipher_len()?;
        if self.identity.lock().is_none() {
            return Ok(found);
        }
        let (marks, expected) = (self.marks.lock().clone(), self.len.load(Ordering::Acquire));
        // Appended to since: only where it was cut short is it too short now, too.
        if (found >= expected || self.cipher_len()? >= expected) && marks.are_in(&self.file.fd) {
            self.marks.lock().were_seen(&marks);
            return Ok(found);
        }
        self.overwritten.store(true, Ordering::Release);
        self.sync_failed.store(true, Ordering::Release);
        Err(self.was_overwritten())
    }

    /// Makes sure of its contents where no sync has done so since this was asked last.
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
            "what is still known of it is written again, and what is lost is logged. A sync tool, or a backup that is put \
             back, must leave out the folder new/",
        )
    }

    fn try_sync(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fdatasync(&self.file.fd)).map_err(|e| match e {
            // Some filesystems know by then that the name is gone.
            Errno::NOENT | Errno::STALE => {
                let what = "was removed or replaced while it is mounted";
                Error::new(Kind::Displaced(what.into()), &self.file.name)
                    .hint("what can be read of it is written again: sync once more")
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
        // What was written lately is in memory.
        read_some(&self.file.fd, out, cipher_offset).map_err(|e| io_error(e, &self.file.name))
    }
    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        // Pages that could not be written look clean, and are all there is.
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
            // On a full disk the part that was written, and what was allocated ahead, is wanted for something else.
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
