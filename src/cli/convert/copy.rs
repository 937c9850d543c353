//! Copies everything in one volume into another: contents and all attributes, hard and symbolic links, and special
//! files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use indicatif::ProgressBar;

use crate::cli::output::print_line;
use crate::cli::printable;
use crate::cli::verify::{Found, find_all};
use crate::error::{Error, Kind, Result};
use crate::volume::{
    Attr, Caller, FileKind, Handle, Ino, ROOT, RenameMode, SetAttr, SetTime, Volume, Whence,
    XattrMode,
};

/// Number of bytes copied in one step.
const COPY_LEN: usize = 1 << 20;
/// Prefix of the temporary names of incomplete files.
const PARTIAL: &str = ".hushfs-convert-";

/// A copy in progress.
pub struct Copy<'a> {
    source: &'a dyn Volume,
    target: &'a dyn Volume,
    bar: &'a ProgressBar,
    /// Inodes of the source with several names, and their copies, which are in the target under at least one of these.
    linked: HashMap<Ino, Ino>,
}

impl<'a> Copy<'a> {
    /// Prepares to copy everything in `source`; the bar counts bytes.
    pub fn new(source: &'a dyn Volume, target: &'a dyn Volume, bar: &'a ProgressBar) -> Self {
        Self {
            source,
            target,
            bar,
            linked: HashMap::new(),
        }
    }

    /// Copies everything. Returns how many files are in the target, and how many could not be copied.
    pub fn all(mut self) -> Result<(u64, u64)> {
        self.sweep()?;
        let all = find_all(self.source)?;
        self.bar
            .set_length(all.iter().map(|found| found.plain_size).sum());
        let mut folders = HashMap::from([(PathBuf::new(), ROOT)]);
        let (mut files, mut failed) = (0, 0);
        for found in &all {
            let parent = found.path.parent().unwrap_or(Path::new(""));
            let parent = *folders.get(parent).ok_or(Kind::NotFound)?;
            if found.kind == FileKind::Directory {
                folders.insert(found.path.clone(), self.folder(parent, found)?);
                continue;
            }
            match self.file(parent, found) {
                Ok(()) => files += 1,
                // A full target would fail for every file; a bad file of the source concerns only itself.
                Err(e) if e.is_no_space() => return Err(e),
                Err(e) => {
                    let path = printable(&found.path.to_string_lossy());
                    let line = format!("{path}: {}", printable(&e.to_string()));
                    self.bar.suspend(|| print_line(line))?;
                    failed += 1;
                }
            }
        }
        // Attributes of folders come last: adding entries changes the times of a folder, and entries inherit its
        // default ACL.
        for found in all.iter().rev() {
            if let Some(ino) = folders.get(&found.path) {
                self.attributes(found.ino, *ino)?;
            }
        }
        self.attributes(ROOT, ROOT)?;
        Ok((files, failed))
    }

    /// Removes files that an interruption left incomplete.
    fn sweep(&self) -> Result<()> {
        for found in find_all(self.target)? {
            let name = found.path.file_name().unwrap_or_default();
            if is_partial(name) && found.kind != FileKind::Directory {
                let parent = self.target_parent(&found.path)?;
                self.target.unlink(parent, name)?;
            }
            self.target.forget(found.ino, 1);
        }
        Ok(())
    }

    fn target_parent(&self, path: &Path) -> Result<Ino> {
        let mut at = ROOT;
        for name in path.parent().into_iter().flatten() {
            let attr = self.target.lookup(at, name)?;
            self.target.forget(attr.ino, 1);
            at = attr.ino;
        }
        Ok(at)
    }

    fn folder(&self, parent: Ino, found: &Found) -> Result<Ino> {
        let name = found.path.file_name().unwrap_or_default();
        match self.target.lookup(parent, name) {
            Ok(attr) if attr.kind != FileKind::Directory => {
                Err(Error::new(Kind::NotDirectory, found.path.display()))
            }
            Ok(attr) => Ok(attr.ino),
            Err(e) if matches!(e.kind(), Kind::NotFound) => {
                let attr = self.source.getattr(found.ino)?;
                let made = self
                    .target
                    .mkdir(parent, name, attr.perm | 0o700, caller(&attr))?;
                Ok(made.ino)
            }
            Err(e) => Err(e),
        }
    }

    /// Copies anything but a folder, under a temporary name until it is complete.
    fn file(&mut self, parent: Ino, found: &Found) -> Result<()> {
        let name = found.path.file_name().unwrap_or_default();
        if is_partial(name) {
            return Err(Error::new(Kind::NotPermitted, found.path.display())
                .hint("a name of this kind is that of a file that is being copied"));
        }
        let attr = self.source.getattr(found.ino)?;
        let there = self.target.lookup(parent, name).ok();
        if let Some(there) = &there {
            self.target.forget(there.ino, 1);
        }
        if let Some(first) = self.linked.get(&found.ino) {
            self.bar.inc(found.plain_size);
            return self.link(*first, there, parent, name);
        }
        let copy = match there.filter(|there| self.is_same(found, &attr, there)) {
            Some(there) => {
                self.bar.inc(found.plain_size);
                there.ino
            }
            None => self.new_file(parent, name, found, &attr)?,
        };
        if attr.nlink > 1 {
            self.linked.insert(found.ino, copy);
        }
        Ok(())
    }

    /// Whether `there` is a copy by an earlier run.
    fn is_same(&self, found: &Found, attr: &Attr, there: &Attr) -> bool {
        let target = |volume: &dyn Volume, ino| volume.readlink(ino).ok();
        there.kind == attr.kind
            && there.mtime == attr.mtime
            && there.plain_size == attr.plain_size
            && there.rdev == attr.rdev
            && (attr.kind != FileKind::Symlink
                || target(self.source, found.ino) == target(self.target, there.ino))
    }

    /// Adds another name for an inode that is in the target already.
    fn link(&self, first: Ino, there: Option<Attr>, parent: Ino, name: &OsStr) -> Result<()> {
        if there.is_some_and(|there| there.ino == first) {
            return Ok(());
        }
        let partial = self.partial(parent, first)?;
        self.target.link(first, parent, OsStr::new(&partial))?;
        self.target.forget(first, 1);
        let partial = OsStr::new(&partial);
        self.target
            .rename(parent, partial, parent, name, RenameMode::Replace)
    }

    /// Returns a temporary name that is free. It has a fixed length: the file's own name may be as long as a name can
    /// be.
    fn partial(&self, parent: Ino, ino: Ino) -> Result<String> {
        let partial = format!("{PARTIAL}{}", ino.0);
        match self.target.unlink(parent, OsStr::new(&partial)) {
            Err(e) if !matches!(e.kind(), Kind::NotFound) => Err(e),
            _ => Ok(partial),
        }
    }

    fn new_file(&self, parent: Ino, name: &OsStr, found: &Found, attr: &Attr) -> Result<Ino> {
        let partial = self.partial(parent, found.ino)?;
        let partial = OsStr::new(&partial);
        let made = match attr.kind {
            FileKind::Regular => self.regular(parent, partial, found, attr)?,
            FileKind::Symlink => {
                let target = self.source.readlink(found.ino)?;
                let made = self
                    .target
                    .symlink(parent, partial, &target, caller(attr))?;
                made.ino
            }
            kind => {
                let made =
                    self.target
                        .mknod(parent, partial, kind, attr.perm, attr.rdev, caller(attr))?;
                made.ino
            }
        };
        let done = self.attributes(found.ino, made).and_then(|()| {
            self.target
                .rename(parent, partial, parent, name, RenameMode::Replace)
        });
        if done.is_err() {
            let _ = self.target.unlink(parent, partial);
        }
        self.target.forget(made, 1);
        done.map(|()| made)
    }

    /// Copies contents, makes them durable, and compares them.
    fn regular(&self, parent: Ino, partial: &OsStr, found: &Found, attr: &Attr) -> Result<Ino> {
        let (made, handle) =
            self.target
                .create(parent, partial, attr.perm, libc::O_RDWR, caller(attr))?;
        let copied = self
            .contents(found, made.ino, handle)
            .and_then(|()| sync(self.target, made.ino, handle));
        self.target.release(made.ino, handle);
        let done = copied.and_then(|()| self.compare(found, made.ino));
        if let Err(e) = done {
            let _ = self.target.unlink(parent, partial);
            self.target.forget(made.ino, 1);
            return Err(e);
        }
        Ok(made.ino)
    }

    fn contents(&self, found: &Found, to: Ino, to_handle: Handle) -> Result<()> {
        let from_handle = self.source.open(found.ino, libc::O_RDONLY)?;
        let copied = self.data(found, from_handle, to, to_handle);
        self.source.release(found.ino, from_handle);
        let plain_size = self.source.getattr(found.ino)?.plain_size;
        if copied? < plain_size {
            // The file ends in a hole.
            let end = SetAttr {
                plain_size: Some(plain_size),
                ..SetAttr::default()
            };
            self.target.setattr(to, &end)?;
        }
        Ok(())
    }

    /// Copies everything except holes; returns where the last data ends.
    fn data(&self, found: &Found, from: Handle, to: Ino, to_handle: Handle) -> Result<u64> {
        let mut buffer = vec![0; COPY_LEN];
        let (mut at, mut hole) = (0, 0);
        loop {
            if at >= hole {
                let Some(data) = self.source.next_data(found.ino, at)? else {
                    return Ok(at);
                };
                self.bar.inc(data - at);
                at = data;
                hole = self.source.lseek(found.ino, at, Whence::Hole)?;
            }
            let len = (hole - at).min(COPY_LEN as u64) as usize;
            let len = self.source.read(found.ino, from, at, &mut buffer[..len])?;
            if len == 0 {
                return Ok(at);
            }
            self.target.write(to, to_handle, at, &buffer[..len])?;
            at += len as u64;
            self.bar.inc(len as u64);
        }
    }

    /// Reads source and copy again, and compares what is in the packs with the source.
    fn compare(&self, found: &Found, copy: Ino) -> Result<()> {
        let sizes = (
            self.source.getattr(found.ino)?.plain_size,
            self.target.getattr(copy)?.plain_size,
        );
        let handles = (
            self.source.open(found.ino, libc::O_RDONLY)?,
            self.target.open(copy, libc::O_RDONLY)?,
        );
        let mut buffers = (vec![0; COPY_LEN], vec![0; COPY_LEN]);
        let differs = || {
            let check = "the copy differs: the source changed meanwhile, or memory or disk is bad";
            Error::damaged(found.path.display(), check)
        };
        let mut at = 0;
        let result = loop {
            // Skip what is a hole on both sides.
            let data = (
                self.source.next_data(found.ino, at),
                self.target.next_data(copy, at),
            );
            at = match data {
                (Err(e), _) | (_, Err(e)) => break Err(e),
                (Ok(None), Ok(None)) if sizes.0 == sizes.1 => break Ok(()),
                (Ok(None), Ok(None)) => break Err(differs()),
                (Ok(a), Ok(b)) => a.unwrap_or(u64::MAX).min(b.unwrap_or(u64::MAX)),
            };
            let lens = (
                self.source.read(found.ino, handles.0, at, &mut buffers.0),
                self.target.read(copy, handles.1, at, &mut buffers.1),
            );
            let (a, b) = match lens {
                (Ok(a), Ok(b)) => (a, b),
                (Err(e), _) | (_, Err(e)) => break Err(e),
            };
            if a == 0 || buffers.0[..a] != buffers.1[..b] {
                break Err(differs());
            }
            at += a as u64;
        };
        self.source.release(found.ino, handles.0);
        self.target.release(copy, handles.1);
        result
    }

    /// Copies owner, extended attributes, permissions and times, in this order because an ACL changes permissions.
    fn attributes(&self, from: Ino, to: Ino) -> Result<()> {
        let attr = self.source.getattr(from)?;
        let now = self.target.getattr(to)?;
        if (now.uid, now.gid) != (attr.uid, attr.gid) {
            let owner = SetAttr {
                uid: Some(attr.uid),
                gid: Some(attr.gid),
                ..SetAttr::default()
            };
            self.target.setattr(to, &owner)?;
        }
        self.xattrs(from, to);
        let rest = SetAttr {
            perm: (attr.kind != FileKind::Symlink).then_some(attr.perm),
            atime: Some(SetTime::At(attr.atime)),
            mtime: Some(SetTime::At(attr.mtime)),
            ..SetAttr::default()
        };
        self.target.setattr(to, &rest).map(drop)
    }

    /// Copies extended attributes. One that the target refuses is only a warning.
    fn xattrs(&self, from: Ino, to: Ino) {
        let wanted = self.source.listxattr(from).unwrap_or_default();
        // Remove those that the source lacks: new entries inherit the default ACL of their folder.
        for name in list(&self.target.listxattr(to).unwrap_or_default()) {
            if !list(&wanted).any(|other| other == name)
                && let Err(e) = self.target.removexattr(to, name)
            {
                log::warn!("{}: {e}", name.display());
            }
        }
        for name in list(&wanted) {
            let value = self.source.getxattr(from, name);
            let set = value.and_then(|v| self.target.setxattr(to, name, &v, XattrMode::Any));
            if let Err(e) = set {
                log::warn!("the attribute {} is not copied: {e}", name.display());
            }
        }
    }
}

/// Returns the names in the result of listxattr.
fn list(names: &[u8]) -> impl Iterator<Item = &OsStr> {
    names
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
}

fn is_partial(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PARTIAL.as_bytes())
}

fn caller(attr: &Attr) -> Caller {
    Caller {
        uid: attr.uid,
        gid: attr.gid,
        umask: 0,
    }
}

fn sync(volume: &dyn Volume, ino: Ino, handle: Handle) -> Result<()> {
    let (done, synced) = mpsc::channel();
    volume.fsync(ino, handle, Box::new(move |result| drop(done.send(result))));
    synced.recv().unwrap_or_else(|_| Err(Kind::TimedOut.into()))
}
