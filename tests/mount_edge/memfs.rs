//! A small filesystem in memory that counts what it is asked, and misbehaves where a test wants it to.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hushfs::volume::*;
use hushfs::{Error, Kind, Result};

struct Node {
    attr: Attr,
    data: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
    parent: u64,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Lookups not yet forgotten, and open handles.
    held: u64,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    calls: BTreeMap<&'static str, u64>,
    closed: u64,
}

/// What a test asks of it beyond being a filesystem.
#[derive(Default)]
pub struct MemFs {
    state: Mutex<State>,
    /// Gets a line for each call of `close`.
    pub close_marker: Option<PathBuf>,
    /// How long `close` takes.
    pub close_takes: Duration,
    /// What `close` answers: that the disk is full.
    pub close_fails: bool,
}

fn node(kind: FileKind, ino: u64, perm: u16, parent: u64, caller: Caller) -> Node {
    let now = Time::now();
    let attr = Attr {
        ino: Ino(ino),
        generation: 0,
        kind,
        perm,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        uid: caller.uid,
        gid: caller.gid,
        rdev: 0,
        plain_size: 0,
        blocks_512: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    };
    Node {
        attr,
        data: Vec::new(),
        entries: BTreeMap::new(),
        parent,
        xattrs: BTreeMap::new(),
        held: 0,
    }
}

impl State {
    fn get(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino.0).ok_or_else(|| Kind::Stale.into())
    }
    fn get_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or_else(|| Kind::Stale.into())
    }
    fn child(&self, parent: Ino, name: &OsStr) -> Result<u64> {
        self.get(parent)?
            .entries
            .get(name)
            .copied()
            .ok_or_else(|| Kind::NotFound.into())
    }
    fn hold(&mut self, ino: u64) -> Attr {
        let node = self.nodes.get_mut(&ino).expect("held nodes are there");
        node.held += 1;
        let mut attr = node.attr;
        attr.plain_size = attr.plain_size.max(node.data.len() as u64);
        attr
    }
    fn let_go(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino.0) {
            node.held -= count;
            if node.held == 0 && node.attr.nlink == 0 {
                self.nodes.remove(&ino.0);
            }
        }
    }
    fn unlink(&mut self, parent: Ino, name: &OsStr) -> Result<()> {
        let ino = self.child(parent, name)?;
        self.get_mut(parent)?.entries.remove(name);
        let node = self.get_mut(Ino(ino))?;
        node.attr.nlink = if node.attr.kind == FileKind::Directory {
            0
        } else {
            node.attr.nlink - 1
        };
        if node.attr.kind == FileKind::Directory {
            self.get_mut(parent)?.attr.nlink -= 1;
        }
        self.let_go(Ino(ino), 0);
        Ok(())
    }
}

impl MemFs {
    pub fn new(uid: u32, gid: u32) -> Self {
        let fs = Self::default();
        let root = node(
            FileKind::Directory,
            1,
            0o755,
            1,
            Caller { uid, gid, umask: 0 },
        );
        fs.state.lock().unwrap().nodes.insert(1, root);
        fs
    }

    fn count(&self, op: &'static str) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        *state.calls.entry(op).or_default() += 1;
        state
    }

    fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
        perm: u16,
        caller: Caller,
    ) -> Result<Attr> {
        let mut state = self.count("make");
        if state.child(parent, name).is_ok() {
            return Err(Kind::Exists.into());
        }
        let ino = state.nodes.keys().max().unwrap_or(&1) + 1;
        state
            .nodes
            .insert(ino, node(kind, ino, perm & !caller.umask, parent.0, caller));
        let directory = state.get_mut(parent)?;
        directory.entries.insert(name.into(), ino);
        if kind == FileKind::Directory {
            directory.attr.nlink += 1;
        }
        Ok(state.hold(ino))
    }
}

impl Volume for MemFs {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let mut state = self.count("lookup");
        assert_ne!(name, "panic", "asked to");
        // The kernel would let 1024 bytes through.
        if name.len() > NAME_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        let ino = match name.as_bytes() {
            b"." => parent.0,
            b".." => state.get(parent)?.parent,
            b"fault" => {
                return Err(Error::damaged(
                    "data/00ff",
                    "the block at 48 cannot be decrypted",
                ));
            }
            _ => state.child(parent, name)?,
        };
        Ok(state.hold(ino))
    }
    fn forget(&self, ino: Ino, count: u64) {
        self.count("forget").let_go(ino, count);
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let state = self.count("getattr");
        let node = state.get(ino)?;
        let plain_size = node.attr.plain_size.max(node.data.len() as u64);
        Ok(Attr {
            plain_size,
            blocks_512: (node.data.len() as u64).div_ceil(512),
            ..node.attr
        })
    }
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.count("readlink").get(ino)?.data.clone())
    }
    fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        let mut state = self.count("open");
        let node = state.get_mut(ino)?;
        if flags & libc::O_TRUNC != 0 {
            node.data.clear();
        }
        node.held += 1;
        Ok(Handle(ino.0))
    }
    fn release(&self, ino: Ino, _: Handle) {
        self.count("release").let_go(ino, 1);
    }
    fn read(&self, ino: Ino, _: Handle, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let state = self.count("read");
        let data = &state.get(ino)?.data;
        let rest = data.get(plain_offset as usize..).unwrap_or_default();
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn lseek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        let len = self.count("lseek").get(ino)?.data.len() as u64;
        match whence {
            _ if plain_offset >= len => Err(Kind::NoSuchOffset.into()),
            Whence::Data => Ok(plain_offset),
            Whence::Hole => Ok(len),
        }
    }
    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        take: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        let mut state = self.count(if plus { "readdirplus" } else { "readdir" });
        let node = state.get(ino)?;
        let mut entries = vec![(OsString::from("."), ino.0), ("..".into(), node.parent)];
        entries.extend(node.entries.iter().map(|(name, ino)| (name.clone(), *ino)));
        for (i, (name, ino)) in entries.iter().enumerate().skip(cookie as usize) {
            let attr = state.get(Ino(*ino))?.attr;
            let plain_size = state.get(Ino(*ino))?.data.len() as u64;
            let entry = Dirent {
                ino: Ino(*ino),
                kind: attr.kind,
                name,
                cookie: i as u64 + 1,
                attr: plus.then_some(Attr { plain_size, ..attr }),
            };
            if !take(entry) {
                break;
            }
            if plus && i > 1 {
                state.hold(*ino);
            }
        }
        Ok(())
    }
    fn statfs(&self) -> Result<Statfs> {
        drop(self.count("statfs"));
        Ok(Statfs {
            block_bytes: 4096,
            blocks: 1000,
            blocks_free: 500,
            blocks_available: 400,
            files: 100,
            files_free: 50,
        })
    }
    /// `user.count.<op>` of any file says how often an operation was called.
    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let state = self.count("getxattr");
        if let Some(op) = name.to_str().and_then(|n| n.strip_prefix("user.count.")) {
            return Ok(state
                .calls
                .get(op)
                .copied()
                .unwrap_or(0)
                .to_string()
                .into_bytes());
        }
        state
            .get(ino)?
            .xattrs
            .get(name)
            .cloned()
            .ok_or_else(|| Kind::NoAttribute.into())
    }
    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let state = self.count("listxattr");
        let names = state.get(ino)?.xattrs.keys();
        Ok(names
            .flat_map(|name| [name.as_bytes(), &[0]].concat())
            .collect())
    }
    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr> {
        let mut state = self.count("setattr");
        let node = state.get_mut(ino)?;
        let time = |to: SetTime| match to {
            SetTime::Now => Time::now(),
            SetTime::At(time) => time,
        };
        node.attr.perm = change.perm.unwrap_or(node.attr.perm);
        node.attr.uid = change.uid.unwrap_or(node.attr.uid);
        node.attr.gid = change.gid.unwrap_or(node.attr.gid);
        node.attr.atime = change.atime.map_or(node.attr.atime, time);
        node.attr.mtime = change.mtime.map_or(node.attr.mtime, time);
        if let Some(size) = change.plain_size {
            node.data.resize(size as usize, 0);
        }
        Ok(Attr {
            plain_size: node.data.len() as u64,
            ..node.attr
        })
    }
    fn mknod(
        &self,
        parent: Ino,
        name: &OsStr,
        kind: FileKind,
        perm: u16,
        rdev: u32,
        caller: Caller,
    ) -> Result<Attr> {
        let attr = self.make(parent, name, kind, perm, caller)?;
        self.state.lock().unwrap().get_mut(attr.ino)?.attr.rdev = rdev;
        Ok(Attr { rdev, ..attr })
    }
    fn mkdir(&self, parent: Ino, name: &OsStr, perm: u16, caller: Caller) -> Result<Attr> {
        self.make(parent, name, FileKind::Directory, perm, caller)
    }
    fn symlink(&self, parent: Ino, name: &OsStr, target: &[u8], caller: Caller) -> Result<Attr> {
        let attr = self.make(parent, name, FileKind::Symlink, 0o777, caller)?;
        self.state.lock().unwrap().get_mut(attr.ino)?.data = target.to_vec();
        Ok(Attr {
            plain_size: target.len() as u64,
            ..attr
        })
    }
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let mut state = self.count("link");
        state.get_mut(ino)?.attr.nlink += 1;
        state.get_mut(parent)?.entries.insert(name.into(), ino.0);
        Ok(state.hold(ino.0))
    }
    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.count("unlink").unlink(parent, name)
    }
    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut state = self.count("rmdir");
        let ino = state.child(parent, name)?;
        if !state.get(Ino(ino))?.entries.is_empty() {
            return Err(Kind::NotEmpty.into());
        }
        state.unlink(parent, name)
    }
    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        let mut state = self.count("rename");
        let from = state.child(parent, name)?;
        let to = state.child(new_parent, new_name);
        match (mode, to) {
            (RenameMode::NoReplace, Ok(_)) => return Err(Kind::Exists.into()),
            (RenameMode::Whiteout { .. }, _) => return Err(Kind::InvalidArgument.into()),
            (RenameMode::Exchange, Err(e)) => return Err(e),
            (RenameMode::Exchange, Ok(to)) => {
                state.get_mut(parent)?.entries.insert(name.into(), to);
            }
            (_, to) => {
                if to.is_ok() {
                    state.unlink(new_parent, new_name)?;
                }
                state.get_mut(parent)?.entries.remove(name);
            }
        }
        state
            .get_mut(new_parent)?
            .entries
            .insert(new_name.into(), from);
        Ok(())
    }
    fn write(&self, ino: Ino, _: Handle, plain_offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.count("write");
        let node = state.get_mut(ino)?;
        let (start, end) = (plain_offset as usize, plain_offset as usize + data.len());
        node.data.resize(node.data.len().max(end), 0);
        node.data[start..end].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self, _: Ino, _: Handle) -> Result<()> {
        drop(self.count("flush"));
        Ok(())
    }
    /// Answers from another thread, after half a second; a directory's fails.
    fn fsync(&self, ino: Ino, _: Handle, done: Done) {
        let kind = self.count("fsync").get(ino).map(|node| node.attr.kind);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            done(match kind {
                Ok(FileKind::Directory) => Err(Kind::TimedOut.into()),
                _ => Ok(()),
            });
        });
    }
    fn fallocate(
        &self,
        ino: Ino,
        plain_offset: u64,
        plain_len: u64,
        mode: Fallocate,
    ) -> Result<()> {
        let mut state = self.count("fallocate");
        let data = &mut state.get_mut(ino)?.data;
        let (start, end) = (plain_offset as usize, (plain_offset + plain_len) as usize);
        match mode {
            Fallocate::Allocate { keep_size: true } => {}
            Fallocate::Allocate { keep_size: false } => data.resize(data.len().max(end), 0),
            Fallocate::PunchHole | Fallocate::ZeroRange { .. } => {
                let end = end.min(data.len());
                data[start.min(end)..end].fill(0);
            }
        }
        Ok(())
    }
    fn copy_file_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let mut state = self.count("copy_file_range");
        let source = &state.get(from)?.data;
        let start = source.len().min(from_offset as usize);
        let end = source.len().min(start + len as usize);
        let piece = source[start..end].to_vec();
        let target = &mut state.get_mut(to)?.data;
        let until = to_offset as usize + piece.len();
        target.resize(target.len().max(until), 0);
        target[to_offset as usize..until].copy_from_slice(&piece);
        Ok(piece.len() as u64)
    }
    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let mut state = self.count("setxattr");
        let xattrs = &mut state.get_mut(ino)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => Err(Kind::Exists.into()),
            (XattrMode::Replace, false) => Err(Kind::NoAttribute.into()),
            _ => {
                xattrs.insert(name.into(), value.to_vec());
                Ok(())
            }
        }
    }
    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let mut state = self.count("removexattr");
        state
            .get_mut(ino)?
            .xattrs
            .remove(name)
            .map(|_| ())
            .ok_or_else(|| Kind::NoAttribute.into())
    }
    fn close(&self) -> Result<()> {
        thread::sleep(self.close_takes);
        let closed = {
            let mut state = self.count("close");
            state.closed += 1;
            state.closed
        };
        if let Some(marker) = &self.close_marker {
            std::fs::write(marker, closed.to_string()).map_err(|e| Error::io(e, marker))?;
        }
        if self.close_fails {
            Err(Error::new(Kind::NoSpace, "new/00ff"))
        } else {
            Ok(())
        }
    }
}
