//! A filesystem in memory that lacks what some real ones lack.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use fuser::*;
use rustix::mount::{MountFlags, UnmountFlags};

use super::PATIENCE;

/// What it lacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// What statfs(2) says: blocks, free ones, and their length in bytes.
    pub space: Option<(u64, u64, u32)>,
    /// renameat2(2) takes no flags: EINVAL, as with sshfs, NFS and most others in user space.
    pub no_rename_flags: bool,
    /// fallocate(2) is EOPNOTSUPP.
    pub no_fallocate: bool,
    /// chmod(2) and chown(2) are EPERM.
    pub no_chmod: bool,
    /// A lock that is held is EACCES, as with Linux' cifs.
    pub locks_by_eacces: bool,
    /// A file that was there, and one that is written to, cannot be read and written by one descriptor: as with
    /// `rclone mount` without a cache.
    pub streams_only: bool,
    /// A file that was renamed, or lies in a folder that was, cannot be opened for so long: EIO.
    pub reopens_after: Option<Duration>,
    /// A file that was removed cannot be read any more: ENOENT, as with `rclone mount`.
    pub forgets_removed: bool,
    /// A file that was removed cannot be synced any more: ENOENT, as with gocryptfs.
    pub syncs_by_name: bool,
}

struct Node {
    kind: FileType,
    data: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
    links: u32,
    locked_by: Option<LockOwner>,
    renamed: Option<Instant>,
}

impl Node {
    fn new(kind: FileType) -> Self {
        Self {
            kind,
            data: Vec::new(),
            entries: BTreeMap::new(),
            links: 1,
            locked_by: None,
            renamed: None,
        }
    }
}

struct Crooked {
    faults: Faults,
    nodes: Mutex<Vec<Node>>,
}

type Answer<T> = Result<T, Errno>;

impl Crooked {
    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn make(&self, parent: INodeNo, name: &OsStr, kind: FileType) -> Answer<FileAttr> {
        let mut nodes = self.nodes();
        if child(&nodes, parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        nodes.push(Node::new(kind));
        let ino = nodes.len() as u64;
        node(&mut nodes, parent).entries.insert(name.into(), ino);
        Ok(attr(&nodes, ino))
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Answer<()> {
        let mut nodes = self.nodes();
        let ino = child(&nodes, parent, name)?;
        if !nodes[ino as usize - 1].entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        node(&mut nodes, parent).entries.remove(name);
        nodes[ino as usize - 1].links = 0;
        Ok(())
    }

    fn move_name(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Answer<()> {
        if self.faults.no_rename_flags && !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let mut nodes = self.nodes();
        let ino = child(&nodes, from.0, from.1)?;
        if let Ok(old) = child(&nodes, to.0, to.1) {
            if !nodes[old as usize - 1].entries.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            nodes[old as usize - 1].links = 0;
        }
        node(&mut nodes, from.0).entries.remove(from.1);
        node(&mut nodes, to.0).entries.insert(to.1.into(), ino);
        let mut moved = vec![ino];
        while let Some(ino) = moved.pop() {
            let node = &mut nodes[ino as usize - 1];
            node.renamed = Some(Instant::now());
            moved.extend(node.entries.values());
        }
        Ok(())
    }

    fn may_open(&self, ino: INodeNo, flags: OpenFlags) -> Answer<()> {
        let mut nodes = self.nodes();
        let node = node(&mut nodes, ino);
        let is_late = |after| node.renamed.is_some_and(|at| at.elapsed() < after);
        if self.faults.reopens_after.is_some_and(is_late) {
            return Err(Errno::EIO);
        }
        if self.faults.streams_only && flags.acc_mode() == OpenAccMode::O_RDWR {
            Err(Errno::EPERM)
        } else {
            Ok(())
        }
    }

    fn may_use(&self, nodes: &MutexGuard<'_, Vec<Node>>, ino: INodeNo) -> Answer<()> {
        if self.faults.forgets_removed && nodes[ino.0 as usize - 1].links == 0 {
            Err(Errno::ENOENT)
        } else {
            Ok(())
        }
    }
}

fn node<'a>(nodes: &'a mut MutexGuard<'_, Vec<Node>>, ino: INodeNo) -> &'a mut Node {
    &mut nodes[ino.0 as usize - 1]
}

fn child(nodes: &MutexGuard<'_, Vec<Node>>, parent: INodeNo, name: &OsStr) -> Answer<u64> {
    let entries = &nodes[parent.0 as usize - 1].entries;
    entries.get(name).copied().ok_or(Errno::ENOENT)
}

fn attr(nodes: &MutexGuard<'_, Vec<Node>>, ino: u64) -> FileAttr {
    let node = &nodes[ino as usize - 1];
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: node.data.len() as u64,
        blocks: node.data.len().div_ceil(512) as u64,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: node.kind,
        perm: 0o755,
        nlink: node.links,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const TTL: Duration = Duration::ZERO;

fn entry(reply: ReplyEntry, found: Answer<FileAttr>) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

impl Filesystem for Crooked {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.faults.locks_by_eacces {
            let _ = config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS);
        }
        Ok(())
    }
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let nodes = self.nodes();
        entry(
            reply,
            child(&nodes, parent, name).map(|ino| attr(&nodes, ino)),
        );
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(&self.nodes(), ino.0));
    }
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if self.faults.no_chmod && mode.or(uid).or(gid).is_some() {
            return reply.error(Errno::EPERM);
        }
        let mut nodes = self.nodes();
        if let Some(size) = size {
            node(&mut nodes, ino).data.resize(size as usize, 0);
        }
        reply.attr(&TTL, &attr(&nodes, ino.0));
    }
    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entry(reply, self.make(parent, name, FileType::Directory));
    }
    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name));
    }
    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name));
    }
    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(
            reply,
            self.move_name((parent, name), (new_parent, new_name), flags),
        );
    }
    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.may_open(ino, flags) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(e) => reply.error(e),
        }
    }
    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, FileType::RegularFile) {
            Ok(attr) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&TTL, &attr, Generation(0), FileHandle(0), direct);
            }
            Err(e) => reply.error(e),
        }
    }
    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let nodes = self.nodes();
        if let Err(e) = self.may_use(&nodes, ino) {
            return reply.error(e);
        }
        let data = &nodes[ino.0 as usize - 1].data;
        let rest = data.get(offset as usize..).unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
    }
    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut nodes = self.nodes();
        let node = node(&mut nodes, ino);
        let (start, end) = (offset as usize, offset as usize + data.len());
        if self.faults.streams_only && start != node.data.len() {
            return reply.error(Errno::EPERM);
        }
        node.data.resize(node.data.len().max(end), 0);
        node.data[start..end].copy_from_slice(data);
        reply.written(data.len() as u32);
    }
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let is_gone = node(&mut self.nodes(), ino).links == 0;
        if is_gone && self.faults.syncs_by_name {
            reply.error(Errno::ENOENT)
        } else {
            reply.ok()
        }
    }
    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let nodes = self.nodes();
        let entries = &nodes[ino.0 as usize - 1].entries;
        for (i, (name, ino)) in entries.iter().enumerate().skip(offset as usize) {
            let kind = nodes[*ino as usize - 1].kind;
            if reply.add(INodeNo(*ino), i as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (blocks, free, length) = self.faults.space.unwrap_or((1 << 20, 1 << 20, 4096));
        reply.statfs(blocks, free, free, 0, 0, length, 255, length);
    }
    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if self.faults.no_fallocate {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut nodes = self.nodes();
        let data = &mut node(&mut nodes, ino).data;
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            data.resize(data.len().max((offset + length) as usize), 0);
        }
        reply.ok();
    }
    fn setlk(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        owner: LockOwner,
        _: u64,
        _: u64,
        typ: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.nodes();
        let holder = &mut node(&mut nodes, ino).locked_by;
        let is_other = holder.is_some_and(|holder| holder != owner);
        empty(
            reply,
            match (typ == i32::from(libc::F_UNLCK as i16), is_other) {
                (false, true) => Err(Errno::EACCES),
                (true, true) => Ok(()),
                (unlocks, false) => {
                    *holder = (!unlocks).then_some(owner);
                    Ok(())
                }
            },
        );
    }
    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        owner: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.nodes();
        let holder = &mut node(&mut nodes, ino).locked_by;
        if owner.is_some() && *holder == owner {
            *holder = None;
        }
        reply.ok();
    }
}

/// It is mounted until this is dropped.
pub struct Mounted {
    pub point: PathBuf,
    /// Until it is ended.
    session: Option<BackgroundSession>,
}

impl Mounted {
    pub fn new(point: PathBuf, faults: Faults) -> Self {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let fd = device.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions\0");
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).unwrap();
        rustix::mount::mount("crooked", &point, "fuse.crooked", MountFlags::empty(), data).unwrap();
        let filesystem = Crooked {
            faults,
            nodes: Mutex::new(vec![Node::new(FileType::Directory)]),
        };
        let session = Session::from_fd(
            filesystem,
            device.into(),
            SessionACL::All,
            Config::default(),
        );
        Self {
            point,
            session: Some(session.and_then(Session::spawn).unwrap()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        let Some(session) = self.session.take() else {
            return;
        };
        // The kernel hangs up when nothing of it is open any more.
        let started = Instant::now();
        while !session.guard.is_finished() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        let has_ended = session.guard.is_finished();
        assert!(
            has_ended || std::thread::panicking(),
            "somebody still has a file of it open"
        );
        if has_ended {
            let _ = session.join();
        }
    }
}
