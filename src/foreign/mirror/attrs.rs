//! Attributes: those of the stored files, and those that were set since.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};

use super::Mirror;
use super::content::Overrides;
use super::tree::Body;
use crate::error::{Error, Kind, Result};
use crate::foreign::stage::Temp;
use crate::volume::{Attr, FileKind, Ino, SetAttr, SetTime, Time};

impl Mirror {
    /// The attributes of an inode.
    pub(super) fn attr(&self, ino: Ino) -> Result<Attr> {
        let (kind, cipher_path, folders) = {
            let tree = self.tree.read();
            match &tree.node(ino)?.body {
                Body::Folder(_, folders) => (FileKind::Directory, Some(tree.path(ino)?), *folders),
                Body::File(entry) => {
                    let cipher_path = entry.as_ref().map(|entry| entry.cipher_path.clone());
                    (FileKind::Regular, cipher_path, 0)
                }
            }
        };
        let mut attr = self.stored_attr(ino, kind, cipher_path.as_deref())?;
        if kind == FileKind::Directory {
            attr.nlink = 2 + folders;
            return Ok(attr);
        }
        attr.nlink = u32::from(self.tree.read().node(ino)?.linked);
        match self.opened(ino) {
            Some(file) => {
                let content = file.lock();
                attr.plain_size = content.plain_size();
                let set = &content.overrides;
                attr.perm = set.perm.unwrap_or(attr.perm);
                attr.uid = set.uid.unwrap_or(attr.uid);
                attr.gid = set.gid.unwrap_or(attr.gid);
                attr.atime = set.atime.unwrap_or(attr.atime);
                attr.mtime = set.mtime.unwrap_or(attr.mtime);
            }
            None => {
                if let Some(entry) = self.entry(ino)? {
                    attr.plain_size = self.plain_size(ino, &entry);
                }
            }
        }
        attr.blocks_512 = attr.plain_size.div_ceil(512);
        Ok(attr)
    }

    /// The attributes of the stored file or folder. If there is none (a folder that exists only in an index, or a missing
    /// object), those of the library's root.
    fn stored_attr(&self, ino: Ino, kind: FileKind, cipher_path: Option<&Path>) -> Result<Attr> {
        let root = self.format.root();
        let own =
            cipher_path.and_then(|cipher_path| fs::symlink_metadata(root.join(cipher_path)).ok());
        let (meta, perm) = match own {
            Some(meta) => {
                let perm = (meta.mode() & 0o7777) as u16;
                (meta, perm)
            }
            None => {
                let meta = fs::metadata(root).map_err(|e| Error::io(e, root))?;
                let mask = if kind == FileKind::Directory {
                    0o777
                } else {
                    0o666
                };
                let perm = (meta.mode() & mask) as u16;
                (meta, perm)
            }
        };
        let time = |sec: i64, nsec: i64| Time {
            sec,
            nsec: nsec as u32,
        };
        let created = meta.created().ok();
        let created = created.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let ctime = time(meta.ctime(), meta.ctime_nsec());
        Ok(Attr {
            ino,
            generation: 0,
            kind,
            perm,
            nlink: 1,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            plain_size: 0,
            blocks_512: 0,
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime,
            btime: created.map_or(ctime, |t| time(t.as_secs() as i64, t.subsec_nanos().into())),
        })
    }

    /// Sets attributes: of the stored file, or, if it has unwritten changes, together with these.
    pub(super) fn set_attr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.writable()?;
        if let Some(plain_size) = change.plain_size {
            self.truncate(ino, plain_size)?;
        }
        let now = Time::now();
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let set = Overrides {
            perm: change.perm,
            uid: change.uid,
            gid: change.gid,
            atime: change.atime.map(at),
            mtime: change.mtime.map(at),
        };
        if set == Overrides::default() {
            return self.attr(ino);
        }
        if let Some(file) = self.opened(ino) {
            let mut content = file.lock();
            if content.changed() {
                let over = &mut content.overrides;
                over.perm = set.perm.or(over.perm);
                over.uid = set.uid.or(over.uid);
                over.gid = set.gid.or(over.gid);
                over.atime = set.atime.or(over.atime);
                over.mtime = set.mtime.or(over.mtime);
                drop(content);
                return self.attr(ino);
            }
        }
        let cipher_path = match &self.tree.read().node(ino)?.body {
            Body::File(Some(entry)) => Some(entry.cipher_path.clone()),
            Body::File(None) => None,
            Body::Folder(..) => None,
        };
        let cipher_path = match cipher_path {
            Some(cipher_path) => cipher_path,
            None => self.path(ino)?,
        };
        set_stored(&self.format.root().join(cipher_path), &set)?;
        self.attr(ino)
    }

    fn truncate(&self, ino: Ino, plain_size: u64) -> Result<()> {
        let file = self.content(ino)?;
        let mut content = file.lock();
        let plain_path = self.path(ino)?;
        self.check_change(ino, &plain_path)?;
        self.account(&mut content, |c| {
            c.truncate(&*self.format, &plain_path, plain_size)
        })?;
        // Without a handle, no close will publish it.
        let result = match content.handles {
            0 => self.publish(ino, &mut content),
            _ => Ok(()),
        };
        drop(content);
        drop(file);
        self.close_content(ino);
        result
    }
}

fn times(set: &Overrides) -> Timestamps {
    let spec = |time: Option<Time>| match time {
        Some(time) => Timespec {
            tv_sec: time.sec,
            tv_nsec: time.nsec.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: spec(set.atime),
        last_modification: spec(set.mtime),
    }
}

/// Sets attributes of a stored file. A folder that exists only in an index has none to set, which is no error.
fn set_stored(path: &Path, set: &Overrides) -> Result<()> {
    let at = |e: rustix::io::Errno| Error::io(e.into(), path);
    let owner = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
    let done = (|| {
        if owner != (None, None) {
            rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some(perm) = set.perm {
            rustix::fs::chmod(path, Mode::from_raw_mode(perm.into()))?;
        }
        rustix::fs::utimensat(CWD, path, &times(set), AtFlags::SYMLINK_NOFOLLOW)
    })();
    match done {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::PERM) => Err(Kind::NotPermitted.into()),
        other => other.map_err(at),
    }
}

/// Sets the attributes of a new file: those of the one that it replaces, and those that were set.
pub(super) fn prepare(temp: &Temp, old: Option<&Path>, set: &Overrides) -> Result<()> {
    let at = |e: rustix::io::Errno| Error::io(e.into(), temp.path());
    let old = old.and_then(|old| fs::symlink_metadata(old).ok());
    let perm = set
        .perm
        .or(old.as_ref().map(|m| (m.mode() & 0o7777) as u16));
    let owner = (
        set.uid.or(old.as_ref().map(MetadataExt::uid)),
        set.gid.or(old.as_ref().map(MetadataExt::gid)),
    );
    let file = temp.file.as_fd();
    let chowned = rustix::fs::fchown(file, owner.0.map(Uid::from_raw), owner.1.map(Gid::from_raw));
    match chowned {
        // A user who is not root cannot change the owner, and owns the file then.
        Err(rustix::io::Errno::PERM) => {}
        other => other.map_err(at)?,
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(perm.unwrap_or(0o644).into())).map_err(at)?;
    rustix::fs::futimens(file, &times(set)).map_err(at)
}
