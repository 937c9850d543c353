//! A plain folder as a volume, to be read: names, attributes, hard and symbolic links, and special files.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::volume::*;

/// A plain folder. Links in it are not followed, and nothing is changed.
pub struct PlainFolder {
    known: Mutex<Known>,
}

/// What has been seen of the folder.
struct Known {
    /// The path of each inode number; that of the root is 1.
    paths: Vec<PathBuf>,
    /// Inode numbers by device and inode, for files with several names.
    inodes: HashMap<(u64, u64), Ino>,
    open: HashMap<u64, Arc<File>>,
    handles: u64,
}

impl PlainFolder {
    /// Returns the volume of the folder at `root`.
    pub fn new(root: &Path) -> Self {
        let known = Known {
            paths: vec![root.to_path_buf()],
            inodes: HashMap::new(),
            open: HashMap::new(),
            handles: 0,
        };
        Self {
            known: Mutex::new(known),
        }
    }

    fn path(&self, ino: Ino) -> Result<PathBuf> {
        let at = usize::try_from(ino.0 - 1).ok();
        let path = at.and_then(|at| self.known.lock().paths.get(at).cloned());
        path.ok_or_else(|| Kind::Stale.into())
    }

    /// Returns the inode number of the file at `path`.
    fn number(&self, path: PathBuf, meta: &fs::Metadata) -> Ino {
        let mut known = self.known.lock();
        let next = Ino(known.paths.len() as u64 + 1);
        if meta.nlink() > 1 && !meta.is_dir() {
            let ino = *known.inodes.entry((meta.dev(), meta.ino())).or_insert(next);
            if ino != next {
                return ino;
            }
        }
        known.paths.push(path);
        next
    }
}

impl Volume for PlainFolder {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let path = self.path(parent)?.join(name);
        let meta = fs::symlink_metadata(&path).map_err(|e| Error::io(e, &path))?;
        Ok(attr(self.number(path, &meta), &meta))
    }

    fn forget(&self, _ino: Ino, _count: u64) {}

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let path = self.path(ino)?;
        let meta = fs::symlink_metadata(&path).map_err(|e| Error::io(e, &path))?;
        Ok(attr(ino, &meta))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let path = self.path(ino)?;
        let target = fs::read_link(&path).map_err(|e| Error::io(e, &path))?;
        Ok(target.into_os_string().into_vec())
    }

    fn open(&self, ino: Ino, _flags: i32) -> Result<Handle> {
        let (file, _) = crate::foreign::open_file(&self.path(ino)?)?;
        let mut known = self.known.lock();
        known.handles += 1;
        let handle = known.handles;
        known.open.insert(handle, Arc::new(file));
        Ok(Handle(handle))
    }

    fn release(&self, _ino: Ino, handle: Handle) {
        self.known.lock().open.remove(&handle.0);
    }

    fn read(&self, ino: Ino, handle: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let file = self.known.lock().open.get(&handle.0).cloned();
        let file = file.ok_or(Kind::Stale)?;
        let path = self.path(ino)?;
        let at = |e| Error::io(e, &path);
        let mut done = 0;
        while done < out.len() {
            match file.read_at(&mut out[done..], plain_offset + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(at(e)),
            }
        }
        Ok(done)
    }

    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        let path = self.path(ino)?;
        let (file, _) = crate::foreign::open_file(&path)?;
        let to = match whence {
            Whence::Data => SeekFrom::Data(plain_offset),
            Whence::Hole => SeekFrom::Hole(plain_offset),
        };
        rustix::fs::seek(&file, to).map_err(|e| match e {
            Errno::NXIO => Kind::NoSuchOffset.into(),
            e => Error::io(e.into(), &path),
        })
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        _plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        let path = self.path(ino)?;
        let at = |e| Error::io(e, &path);
        let entries: std::io::Result<Vec<(OsString, fs::FileType)>> = fs::read_dir(&path)
            .map_err(at)?
            .map(|entry| entry.and_then(|e| Ok((e.file_name(), e.file_type()?))))
            .collect();
        let mut entries = entries.map_err(at)?;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for ((name, kind), number) in entries.iter().zip(1..).skip(cookie as usize) {
            let entry = Dirent {
                ino: Ino(0),
                kind: kind_of(*kind),
                name,
                cookie: number,
                attr: None,
            };
            if !take(entry) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> Result<Statfs> {
        Err(Kind::NotSupported.into())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let path = self.path(ino)?;
        let mut value = vec![0; XATTR_LEN_MAX];
        let len = rustix::fs::lgetxattr(&path, name, &mut value[..])
            .map_err(|e| Error::io(e.into(), &path))?;
        value.truncate(len);
        Ok(value)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let path = self.path(ino)?;
        let mut names = vec![0; XATTR_LEN_MAX];
        let len = rustix::fs::llistxattr(&path, &mut names[..])
            .map_err(|e| Error::io(e.into(), &path))?;
        names.truncate(len);
        Ok(names)
    }
}

fn kind_of(kind: fs::FileType) -> FileKind {
    match kind {
        _ if kind.is_dir() => FileKind::Directory,
        _ if kind.is_symlink() => FileKind::Symlink,
        _ if kind.is_fifo() => FileKind::Fifo,
        _ if kind.is_socket() => FileKind::Socket,
        _ if kind.is_char_device() => FileKind::CharDevice,
        _ if kind.is_block_device() => FileKind::BlockDevice,
        _ => FileKind::Regular,
    }
}

fn attr(ino: Ino, meta: &fs::Metadata) -> Attr {
    let time = |sec: i64, nsec: i64| Time {
        sec,
        nsec: nsec as u32,
    };
    let ctime = time(meta.ctime(), meta.ctime_nsec());
    let kind = kind_of(meta.file_type());
    let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Attr {
        ino,
        generation: 0,
        kind,
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: if is_device { device(meta.rdev()) } else { 0 },
        plain_size: match kind {
            FileKind::Directory => 0,
            _ => meta.len(),
        },
        blocks_512: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime,
        btime: ctime,
    }
}

/// Encodes a device number as FUSE does.
fn device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}
