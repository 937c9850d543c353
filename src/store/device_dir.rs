//! This device's folder in `new/`, and the unfinished files in it.
//!
//! An open folder or file stays usable after another program has removed or replaced it, but what is written to it is then
//! lost. Therefore every sync checks that each file is still at the path at which the next mount will look for it
//! ([`DeviceDir::check`]). If it is not, it is written again as a whole, from the open file.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FlockOperation, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::Growing;
use super::file::{BEGUN, GrowingFile, Identity, StoredFile, io_error, sync_folder};
use super::folder::{FILE_FLAGS, FILE_MODE, Folder, Root, make_folder, rename_new, unlink};
use super::neighbours::{is_lock_held, open_lock};
use super::owner::Owner;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};

/// How often to retry a lock, and how long to wait before each retry. A program that checks whether a library is mounted
/// holds the lock for a moment.
const LOCK_TRIES: u32 = 10;
const LOCK_WAIT: Duration = Duration::from_millis(20);
/// For how long, and how many, published files are kept open if the store needs that.
const KEPT_FOR: Duration = Duration::from_secs(15);
const KEPT_MAX: usize = 64;

/// This device's folder.
pub(super) struct DeviceDir {
    root: Arc<Root>,
    device: DeviceId,
    /// Its name in messages: `new/<device>`.
    pub name: String,
    held: Mutex<OpenDir>,
    /// The unfinished files. Locked while a name in the folder changes.
    growing: Mutex<HashMap<ObjectId, Arc<GrowingFile>>>,
    /// It was logged that the library was moved.
    is_move_logged: AtomicBool,
    /// Recently published files, if the store cannot open them again immediately; otherwise not set.
    published: OnceLock<Mutex<VecDeque<RecentFile>>>,
}

/// A file that was published.
struct RecentFile {
    at: Instant,
    area: Area,
    file: Arc<GrowingFile>,
}

/// The open folder and its lock.
struct OpenDir {
    folder: Arc<OwnedFd>,
    /// Held if the folder is open for writing. The kernel releases it when the process ends.
    lock: Option<OwnedFd>,
    /// Identifies the writer on filesystems where the lock is not enough.
    owner: Option<Owner>,
}

impl DeviceDir {
    /// The device that the folder belongs to.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Opens the folder for reading; `None` if it does not exist, or is in use by a mount.
    pub fn find(root: Arc<Root>, device: DeviceId) -> Result<Option<Self>> {
        let name = format!("new/{device}");
        let Some(new) = Folder::open(&root, &root.fd, "new", "new")? else {
            return Ok(None);
        };
        let Some(folder) = Folder::open(&root, &new.fd, &device.to_string(), &name)? else {
            return Ok(None);
        };
        let folder = Arc::new(folder.fd);
        // This holds the lock for a moment. A mount for writing retries.
        if open_lock(&folder).is_some_and(is_lock_held) {
            return Ok(None);
        }
        let held = OpenDir {
            folder,
            lock: None,
            owner: None,
        };
        Ok(Some(Self::new(root, device, name, held)))
    }

    /// Opens and locks the folder, which is created if it is missing. [`Kind::InUse`] if another process writes as the same
    /// device.
    pub fn open(root: Arc<Root>, device: DeviceId) -> Result<Self> {
        let name = format!("new/{device}");
        let folder = open_own(&root, device, &name)?;
        let lock = lock(&root, &folder, &name)?;
        let folder = Arc::new(folder);
        let owner = Owner::claim(&folder, &name)?;
        finish_copies(&folder, &name)?;
        let held = OpenDir {
            folder,
            lock: Some(lock),
            owner,
        };
        Ok(Self::new(root, device, name, held))
    }

    fn new(root: Arc<Root>, device: DeviceId, name: String, held: OpenDir) -> Self {
        Self {
            root,
            device,
            name,
            held: Mutex::new(held),
            growing: Mutex::default(),
            is_move_logged: AtomicBool::new(false),
            published: OnceLock::new(),
        }
    }

    /// Whether it is open for writing.
    pub fn is_locked(&self) -> bool {
        self.held.lock().lock.is_some()
    }

    /// The open folder.
    pub fn folder(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.held.lock().folder)
    }

    /// Creates an unfinished file.
    pub fn create(&self, id: ObjectId) -> Result<Arc<GrowingFile>> {
        let mut growing = self.growing.lock();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | FILE_FLAGS;
        let open = |folder: &OwnedFd| {
            let open = || rustix::fs::openat(folder, id.to_string(), flags, FILE_MODE);
            self.root.descriptors.open(open)
        };
        let name = format!("{}/{id}", self.name);
        let fd = match open(&self.folder()) {
            // The folder was removed.
            Err(Errno::NOENT | Errno::STALE) => {
                open(&*self.hold_again()?).map_err(|e| io_error(e, &name))?
            }
            opened => opened.map_err(|e| io_error(e, &name))?,
        };
        let file = self.growing_file(fd, name, id)?;
        growing.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// Takes over a file that a crash left, opened as `file`. Returns the existing one if this mount already has it open.
    pub fn adopt(&self, id: ObjectId, file: StoredFile) -> Result<Arc<GrowingFile>> {
        let mut growing = self.growing.lock();
        if let Some(file) = growing.get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = self.growing_file(file.fd, file.name, id)?;
        growing.insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// The unfinished file with this id, if this mount has it open.
    pub fn get(&self, id: ObjectId) -> Option<Arc<GrowingFile>> {
        self.growing.lock().get(&id).cloned()
    }

    fn growing_file(&self, fd: OwnedFd, name: String, id: ObjectId) -> Result<Arc<GrowingFile>> {
        let path = self.root.path.join(&name);
        let file = StoredFile { fd, name };
        let file = GrowingFile::new(file, id, path, self.folder())?;
        if !self.root.trusts_identity.load(Ordering::Relaxed) {
            file.distrust();
        }
        Ok(Arc::new(file))
    }

    /// Removes a file. It is no error if it does not exist.
    pub fn discard(&self, id: ObjectId) -> Result<()> {
        let mut growing = self.growing.lock();
        let name = format!("{}/{id}", self.name);
        unlink(self.folder().as_fd(), &id.to_string(), &name)?;
        growing.remove(&id);
        Ok(())
    }

    /// Publishes a file: calls `rename`, with the folder, to move it to an area.
    pub fn release(
        &self,
        id: ObjectId,
        area: Area,
        rename: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<()> {
        let mut growing = self.growing.lock();
        rename(&self.folder()).map_err(|e| io_error(e, &format!("{}/{id}", self.name)))?;
        let file = growing.remove(&id);
        drop(growing);
        if let (Some(file), Some(published)) = (file, self.published.get()) {
            let at = Instant::now();
            let mut published = published.lock();
            published.push_back(RecentFile { at, area, file });
            let is_old = |r: &RecentFile| r.at.elapsed() > KEPT_FOR;
            while published.front().is_some_and(is_old) || published.len() > KEPT_MAX {
                published.pop_front();
            }
        }
        Ok(())
    }

    /// From now on, recently published files are kept open. For stores that cannot open a file for some seconds after it was
    /// renamed.
    pub fn keep_published(&self) {
        self.published.get_or_init(Mutex::default);
    }

    /// A recently published file that is kept open.
    pub fn published(&self, area: Area, id: ObjectId) -> Option<Arc<GrowingFile>> {
        let published = self.published.get()?.lock();
        let is_it = |r: &&RecentFile| r.area == area && r.file.id() == id;
        published.iter().find(is_it).map(|r| Arc::clone(&r.file))
    }

    /// Closes an object that is removed, so that its disk space is freed.
    pub fn forget(&self, area: Area, id: ObjectId) {
        if let Some(published) = self.published.get() {
            let is_it = |r: &RecentFile| r.area == area && r.file.id() == id;
            published.lock().retain(|r| !is_it(r));
        }
    }

    /// Waits until the next mount can open the recently published files, but not longer than stores usually take.
    pub fn wait_for_published(&self, can_open: impl Fn(Area, ObjectId) -> bool) {
        let Some(published) = self.published.get() else {
            return;
        };
        let started = Instant::now();
        let published = std::mem::take(&mut *published.lock());
        for recent in published {
            while !can_open(recent.area, recent.file.id()) && started.elapsed() < KEPT_FOR {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }

    /// Checks that all unfinished files are still at their paths, and that their contents are what was written. Files that
    /// are not at their paths are written again. Costs one system call per file, and a few for its contents.
    pub fn check(&self) -> Result<()> {
        let is_lost = |file: &Arc<GrowingFile>| {
            let is_there = file.is_at(rustix::fs::CWD, file.path());
            !is_there.unwrap_or(false)
        };
        // Checked without the lock, so that creating a file does not wait for the store.
        let growing: Vec<Arc<GrowingFile>> = {
            let growing = self.growing.lock();
            growing
                .values()
                .filter(|f| !f.is_given_up())
                .cloned()
                .collect()
        };
        growing
            .iter()
            .try_for_each(|file| file.check_unless_synced())?;
        if growing.iter().any(is_lost) {
            self.write_again()?;
        } else if growing.is_empty() {
            self.root.check()?;
        }
        Ok(())
    }

    fn write_again(&self) -> Result<()> {
        let growing = self.growing.lock();
        if let Some(to) = self.root.check()?
            && !self.is_move_logged.swap(true, Ordering::Relaxed)
        {
            let from = self.root.path.display();
            log::warn!("{from}: moved to {to} while it is mounted; writing continues there");
        }
        let relative = |id: ObjectId| Path::new(&self.name).join(id.to_string());
        let mut lost = Vec::new();
        for (id, file) in &*growing {
            if !file.is_given_up() && !file.is_at(&self.root.fd, &relative(*id))? {
                lost.push((id, file));
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let folder = self.hold_again()?;
        for (id, file) in &lost {
            file.write_again(&folder)
                .map_err(|e| displaced(&file.path().display(), &e))?;
            if !file.is_at(&self.root.fd, &relative(**id))? {
                file.distrust();
            }
        }
        log::warn!(
            "{}: {} unfinished files were removed or replaced by another program, and were written again (exclude the \
             folder new/ from syncing)",
            self.root.path.join(&self.name).display(),
            lost.len()
        );
        Ok(())
    }

    /// Opens the folder and its lock again if they were replaced.
    fn hold_again(&self) -> Result<Arc<OwnedFd>> {
        let mut held = self.held.lock();
        self.root.check()?;
        let now = open_own(&self.root, self.device, &self.name)
            .map_err(|e| displaced(&self.root.path.join(&self.name).display(), &e))?;
        if Identity::of(&now, &self.name)? != Identity::of(&held.folder, &self.name)? {
            held.folder = Arc::new(now);
        }
        let there = rustix::fs::statat(&held.folder, "lock", AtFlags::SYMLINK_NOFOLLOW);
        let ours = held.lock.as_ref();
        let ours = ours
            .map(|lock| Identity::of(lock, &self.name))
            .transpose()?;
        if !there.is_ok_and(|stat| Some(Identity::from(&stat)) == ours) {
            held.lock = Some(lock(&self.root, &held.folder, &self.name)?);
            held.owner = None;
            held.owner = Owner::claim(&held.folder, &self.name)?;
        }
        Ok(Arc::clone(&held.folder))
    }
}

/// The error for a file or folder that was removed during a mount, and cannot be restored.
fn displaced(subject: &impl std::fmt::Display, why: &Error) -> Error {
    let what =
        format!("was removed or replaced while it is mounted, and cannot be written again: {why}");
    Error::new(Kind::Displaced(what.into()), subject).hint(
        "put it back, or unmount; changes since the last sync may be lost (exclude the folder new/ from syncing)",
    )
}

/// Opens the folder, which is created if it is missing.
fn open_own(root: &Root, device: DeviceId, name: &str) -> Result<OwnedFd> {
    let new = make_folder(root, &root.fd, "new", "new")?;
    let folder = make_folder(root, &new, &device.to_string(), name)?;
    sync_folder(&new, "new")?;
    sync_folder(&root.fd, &root.path.display().to_string())?;
    Ok(folder)
}

/// Cleans up copies that a crash interrupted. Such a copy is removed if the file itself exists. Otherwise it is all that is
/// left of the file, and gets its name.
fn finish_copies(folder: &OwnedFd, name: &str) -> Result<()> {
    for entry in Dir::read_from(folder).map_err(|e| io_error(e, name))? {
        let entry = entry.map_err(|e| io_error(e, name))?;
        let begun = entry.file_name().to_str().unwrap_or_default();
        let Some(id) = begun.strip_suffix(BEGUN).and_then(ObjectId::parse) else {
            continue;
        };
        match rename_new(folder.as_fd(), folder.as_fd(), begun, &id.to_string()) {
            Err(Errno::EXIST) => unlink(folder.as_fd(), begun, name)?,
            done => done.map_err(|e| io_error(e, &format!("{name}/{begun}")))?,
        }
    }
    Ok(())
}

pub(super) fn lock(root: &Root, folder: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let name = format!("{name}/lock");
    let flags = OFlags::RDWR | OFlags::CREATE | FILE_FLAGS;
    let fd = retry_on_intr(|| rustix::fs::openat(folder, "lock", flags, FILE_MODE))
        .map_err(|e| root.error(e, &name))?;
    let lock =
        || retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive));
    let mut locked = lock();
    for _ in 0..LOCK_TRIES {
        if !locked.is_err_and(is_held) {
            break;
        }
        std::thread::sleep(LOCK_WAIT);
        locked = lock();
    }
    match locked {
        Ok(()) => Ok(fd),
        Err(e) if is_held(e) => Err(Error::new(Kind::InUse, root.path.display())
            .hint("already mounted by this device; unmount it first")),
        Err(e) => Err(root.error(e, &name).hint(
            "the filesystem of the library cannot lock files: `rclone mount` needs --vfs-cache-mode writes, NFS a lock \
             service or the option nolock",
        )),
    }
}

/// Whether an error of flock(2) means that another process holds the lock. The kernel's cifs uses a lock of the server, and
/// reports EACCES.
pub(super) fn is_held(errno: Errno) -> bool {
    errno == Errno::WOULDBLOCK || errno == Errno::ACCESS
}
