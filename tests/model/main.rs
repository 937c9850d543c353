//! The vault against a model: random operations on both, the whole tree compared after each, remounts in between.

mod memory;
#[path = "../support/mod.rs"]
mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use hushfs::store::MemoryStore;
use hushfs::vault::Vault;
use hushfs::volume::*;
use memory::{Model, Node};
use proptest::prelude::*;
use support::{CALLER, Library, fsync, walk};

/// A few names, so that operations meet; one is not UTF-8.
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"\xff\xfe"];
const XATTRS: [&[u8]; 2] = [b"user.one", b"user.two"];

/// Sizes around what matters: blocks are 16 KiB.
const OFFSETS: [u64; 8] = [0, 1, 100, 4096, 16_383, 16_384, 20_000, 70_000];
const LENGTHS: [u64; 6] = [1, 50, 4096, 16_384, 17_000, 40_000];

type Place = (usize, usize);

#[derive(Debug, Clone)]
enum Op {
    Create(Place),
    Mkdir(Place),
    Symlink(Place),
    Fifo(Place),
    Link(usize, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, u8),
    Write(usize, usize, usize, u8),
    Stream(usize, u8),
    Truncate(usize, usize),
    Fallocate(usize, usize, usize, u8),
    Copy(usize, usize, usize, usize, usize),
    Chmod(usize, u16),
    SetXattr(usize, usize, Option<u8>),
    Close(usize),
    Fsync(usize),
    Hold(usize),
    WriteHeld(u8),
    DropHeld,
    Remount,
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let i = 0usize..8;
    let place = || (0usize..4, 0usize..NAMES.len());
    prop_oneof![
        6 => place().prop_map(Op::Create),
        3 => place().prop_map(Op::Mkdir),
        1 => place().prop_map(Op::Symlink),
        1 => place().prop_map(Op::Fifo),
        2 => (i.clone(), place()).prop_map(|(f, p)| Op::Link(f, p)),
        3 => place().prop_map(Op::Unlink),
        1 => place().prop_map(Op::Rmdir),
        5 => (place(), place(), 0u8..4).prop_map(|(a, b, m)| Op::Rename(a, b, m)),
        14 => (i.clone(), i.clone(), i.clone(), any::<u8>()).prop_map(|(f, o, l, b)| Op::Write(f, o, l, b)),
        1 => (i.clone(), any::<u8>()).prop_map(|(f, b)| Op::Stream(f, b)),
        4 => (i.clone(), i.clone()).prop_map(|(f, s)| Op::Truncate(f, s)),
        4 => (i.clone(), i.clone(), i.clone(), 0u8..5).prop_map(|(f, o, l, m)| Op::Fallocate(f, o, l, m)),
        4 => (i.clone(), i.clone(), i.clone(), i.clone(), i.clone()).prop_map(|(a, b, c, d, e)| Op::Copy(a, b, c, d, e)),
        1 => (i.clone(), 0u16..0o7777).prop_map(|(f, m)| Op::Chmod(f, m)),
        2 => (i.clone(), 0usize..2, proptest::option::of(any::<u8>())).prop_map(|(f, n, v)| Op::SetXattr(f, n, v)),
        4 => i.clone().prop_map(Op::Close),
        2 => i.clone().prop_map(Op::Fsync),
        1 => i.clone().prop_map(Op::Hold),
        2 => any::<u8>().prop_map(Op::WriteHeld),
        1 => Just(Op::DropHeld),
        2 => Just(Op::Remount),
        1 => Just(Op::Kill),
    ]
}

struct Pair {
    library: Library,
    store: MemoryStore,
    vault: Arc<Vault>,
    model: Model,
    /// A file that stays open, also when its name is gone.
    held: Option<(usize, Ino, Handle)>,
}

fn find(vault: &Vault, path: &[u8]) -> Attr {
    let mut attr = vault.getattr(ROOT).unwrap();
    for name in path.split(|c| *c == b'/').filter(|n| !n.is_empty()) {
        attr = vault.lookup(attr.ino, OsStr::from_bytes(name)).unwrap();
        vault.forget(attr.ino, 1);
    }
    attr
}

fn errno<T>(result: hushfs::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.errno())
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Pair {
    fn new() -> Self {
        let (library, store) = (Library::new(), MemoryStore::new());
        let vault = library.open(&store).unwrap();
        Self {
            library,
            store,
            vault,
            model: Model::new(),
            held: None,
        }
    }

    fn place(&self, (dir, name): Place) -> (usize, Ino, &'static [u8]) {
        let dirs = self.model.dirs();
        let (node, path) = &dirs[dir % dirs.len()];
        (*node, find(&self.vault, path).ino, NAMES[name])
    }

    fn file(&self, index: usize) -> Option<(usize, Ino)> {
        let files = self.model.files();
        let (node, path) = files.get(index % files.len().max(1))?;
        Some((*node, find(&self.vault, path).ino))
    }

    fn make(&mut self, place: Place, kind: FileKind) {
        let (dir, parent, name) = self.place(place);
        let os_name = OsStr::from_bytes(name);
        let (made, perm) = match kind {
            FileKind::Directory => (self.vault.mkdir(parent, os_name, 0o777, CALLER), 0o755),
            FileKind::Symlink => (
                self.vault.symlink(parent, os_name, b"to/where", CALLER),
                0o777,
            ),
            _ => (
                self.vault.mknod(parent, os_name, kind, 0o666, 0, CALLER),
                0o644,
            ),
        };
        if self.model.nodes[&dir].entries.contains_key(name) {
            assert_eq!(errno(made), libc::EEXIST);
            return;
        }
        self.vault.forget(made.unwrap().ino, 1);
        let target: &[u8] = if kind == FileKind::Symlink {
            b"to/where"
        } else {
            b""
        };
        let node = self.model.add(kind, perm, target);
        self.model
            .nodes
            .get_mut(&dir)
            .unwrap()
            .entries
            .insert(name.to_vec(), node);
    }

    fn remove(&mut self, place: Place, directory: bool) {
        let (dir, parent, name) = self.place(place);
        let os_name = OsStr::from_bytes(name);
        let removed = if directory {
            self.vault.rmdir(parent, os_name)
        } else {
            self.vault.unlink(parent, os_name)
        };
        let expected = match self.model.nodes[&dir]
            .entries
            .get(name)
            .map(|c| &self.model.nodes[c])
        {
            None => libc::ENOENT,
            Some(n) if !directory && n.kind == FileKind::Directory => libc::EISDIR,
            Some(n) if directory && n.kind != FileKind::Directory => libc::ENOTDIR,
            Some(n) if directory && !n.entries.is_empty() => libc::ENOTEMPTY,
            Some(_) => 0,
        };
        assert_eq!(errno(removed), expected);
        if expected == 0 {
            self.model.nodes.get_mut(&dir).unwrap().entries.remove(name);
        }
    }

    fn rename(&mut self, from: Place, to: Place, mode: u8) {
        let mode = [
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ][mode as usize];
        let (from_dir, from_ino, from_name) = self.place(from);
        let (to_dir, to_ino, to_name) = self.place(to);
        let done = self.vault.rename(
            from_ino,
            OsStr::from_bytes(from_name),
            to_ino,
            OsStr::from_bytes(to_name),
            mode,
        );
        let source = self.model.nodes[&from_dir].entries.get(from_name).copied();
        let target = self.model.nodes[&to_dir].entries.get(to_name).copied();
        let is_dir = |n: usize| self.model.nodes[&n].kind == FileKind::Directory;
        let expected = match (source, target, mode) {
            (None, ..) => libc::ENOENT,
            (Some(s), ..) if is_dir(s) && self.model.within(to_dir, s) => libc::EINVAL,
            (_, Some(_), RenameMode::NoReplace) => libc::EEXIST,
            (_, None, RenameMode::Exchange) => libc::ENOENT,
            (_, Some(t), RenameMode::Exchange) if is_dir(t) && self.model.within(from_dir, t) => {
                libc::EINVAL
            }
            (Some(s), Some(t), RenameMode::Replace) if s != t => match (is_dir(s), is_dir(t)) {
                (true, false) => libc::ENOTDIR,
                (false, true) => libc::EISDIR,
                (true, true) if !self.model.nodes[&t].entries.is_empty() => libc::ENOTEMPTY,
                _ => 0,
            },
            _ => 0,
        };
        assert_eq!(errno(done), expected);
        let (Some(source), 0) = (source, expected) else {
            return;
        };
        if target == Some(source) {
            return; // the same place, or two names of one inode
        }
        self.model
            .nodes
            .get_mut(&to_dir)
            .unwrap()
            .entries
            .insert(to_name.to_vec(), source);
        let from_entries = &mut self.model.nodes.get_mut(&from_dir).unwrap().entries;
        match (mode, target) {
            (RenameMode::Exchange, Some(t)) => from_entries.insert(from_name.to_vec(), t),
            _ => from_entries.remove(from_name),
        };
    }

    fn with_file(&mut self, file: usize, run: impl FnOnce(&Vault, Ino, Handle, &mut Node)) {
        let Some((node, ino)) = self.file(file) else {
            return;
        };
        let handle = self.vault.open(ino, libc::O_RDWR).unwrap();
        run(
            &self.vault,
            ino,
            handle,
            self.model.nodes.get_mut(&node).unwrap(),
        );
        self.vault.release(ino, handle);
    }

    fn fallocate(&mut self, file: usize, at: usize, len: usize, mode: u8) {
        let (at, len) = (OFFSETS[at], LENGTHS[len % LENGTHS.len()]);
        let modes = [
            Fallocate::Allocate { keep_size: true },
            Fallocate::Allocate { keep_size: false },
            Fallocate::PunchHole,
            Fallocate::ZeroRange { keep_size: true },
            Fallocate::ZeroRange { keep_size: false },
        ];
        let mode = modes[mode as usize];
        self.with_file(file, |vault, ino, _, node| {
            vault.fallocate(ino, at, len, mode).unwrap();
            let (from, to) = (at as usize, (at + len) as usize);
            let grows = matches!(
                mode,
                Fallocate::Allocate { keep_size: false }
                    | Fallocate::ZeroRange { keep_size: false }
            );
            if grows && node.bytes.len() < to {
                node.bytes.resize(to, 0);
            }
            if !matches!(mode, Fallocate::Allocate { .. }) {
                let size = node.bytes.len();
                node.bytes[from.min(size)..to.min(size)].fill(0);
            }
        });
    }

    fn copy(&mut self, from: usize, to: usize, from_at: usize, to_at: usize, len: usize) {
        let (Some((source, from_ino)), Some((target, to_ino))) = (self.file(from), self.file(to))
        else {
            return;
        };
        let (from_at, to_at, len) = (
            OFFSETS[from_at],
            OFFSETS[to_at],
            LENGTHS[len % LENGTHS.len()],
        );
        if source == target && from_at < to_at + len && to_at < from_at + len {
            return; // the kernel refuses this before we hear of it
        }
        let copied = self
            .vault
            .copy_file_range(from_ino, from_at, to_ino, to_at, len)
            .unwrap();
        let bytes = &self.model.nodes[&source].bytes;
        let end = bytes.len().min((from_at + len) as usize);
        let data = bytes
            .get(from_at as usize..end)
            .unwrap_or_default()
            .to_vec();
        assert_eq!(copied, data.len() as u64);
        if !data.is_empty() {
            put(
                &mut self.model.nodes.get_mut(&target).unwrap().bytes,
                to_at as usize,
                &data,
            );
        }
    }

    fn reopen(&mut self, clean: bool) {
        self.drop_held();
        if clean {
            self.vault.close().unwrap();
        } else {
            self.store = self.store.after_kill();
        }
        self.vault = self.library.open(&self.store).unwrap();
    }

    fn drop_held(&mut self) {
        let Some((_, ino, handle)) = self.held.take() else {
            return;
        };
        self.vault.flush(ino, handle).unwrap();
        self.vault.release(ino, handle);
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Create(place) => self.make(place, FileKind::Regular),
            Op::Mkdir(place) => self.make(place, FileKind::Directory),
            Op::Symlink(place) => self.make(place, FileKind::Symlink),
            Op::Fifo(place) => self.make(place, FileKind::Fifo),
            Op::Link(file, place) => {
                let Some((node, ino)) = self.file(file) else {
                    return;
                };
                let (dir, parent, name) = self.place(place);
                let made = self.vault.link(ino, parent, OsStr::from_bytes(name));
                if self.model.nodes[&dir].entries.contains_key(name) {
                    assert_eq!(errno(made), libc::EEXIST);
                } else {
                    self.vault.forget(made.unwrap().ino, 1);
                    self.model
                        .nodes
                        .get_mut(&dir)
                        .unwrap()
                        .entries
                        .insert(name.to_vec(), node);
                }
            }
            Op::Unlink(place) => self.remove(place, false),
            Op::Rmdir(place) => self.remove(place, true),
            Op::Rename(from, to, mode) => self.rename(from, to, mode),
            Op::Write(file, at, len, byte) => {
                let (at, data) = (
                    OFFSETS[at],
                    vec![byte; LENGTHS[len % LENGTHS.len()] as usize],
                );
                // The handle is let go without a flush: release writes it out.
                self.with_file(file, |vault, ino, handle, node| {
                    vault.write(ino, handle, at, &data).unwrap();
                    put(&mut node.bytes, at as usize, &data);
                    let mut seen = vec![0; data.len() + 5000];
                    let len = vault.read(ino, handle, at, &mut seen).unwrap();
                    assert_eq!(
                        seen[..len],
                        node.bytes[at as usize..node.bytes.len().min(at as usize + seen.len())]
                    );
                });
            }
            // Long, and in odd pieces: it is written out while more comes.
            Op::Stream(file, byte) => self.with_file(file, |vault, ino, handle, node| {
                for i in 0..4u8 {
                    let data = vec![byte.wrapping_add(i); 1_000_001];
                    let at = 100 + usize::from(i) * data.len();
                    vault.write(ino, handle, at as u64, &data).unwrap();
                    put(&mut node.bytes, at, &data);
                }
                let mut seen = vec![0; 3_000_000];
                let len = vault.read(ino, handle, 50, &mut seen).unwrap();
                assert!(seen[..len] == node.bytes[50..3_000_050]);
            }),
            Op::Truncate(file, at) => self.with_file(file, |vault, ino, _, node| {
                let size = SetAttr {
                    plain_size: Some(OFFSETS[at]),
                    ..SetAttr::default()
                };
                assert_eq!(vault.setattr(ino, &size).unwrap().plain_size, OFFSETS[at]);
                node.bytes.resize(OFFSETS[at] as usize, 0);
            }),
            Op::Fallocate(file, at, len, mode) => self.fallocate(file, at, len, mode),
            Op::Copy(from, to, from_at, to_at, len) => self.copy(from, to, from_at, to_at, len),
            Op::Chmod(file, perm) => self.with_file(file, |vault, ino, _, node| {
                vault
                    .setattr(
                        ino,
                        &SetAttr {
                            perm: Some(perm),
                            ..SetAttr::default()
                        },
                    )
                    .unwrap();
                node.perm = perm;
            }),
            Op::SetXattr(file, name, value) => self.with_file(file, |vault, ino, _, node| {
                let (name, os_name) = (XATTRS[name], OsStr::from_bytes(XATTRS[name]));
                match value {
                    Some(byte) => {
                        vault
                            .setxattr(ino, os_name, &[byte; 5], XattrMode::Any)
                            .unwrap();
                        node.xattrs.insert(name.to_vec(), vec![byte; 5]);
                    }
                    None => {
                        let there = node.xattrs.remove(name).is_some();
                        let removed = errno(vault.removexattr(ino, os_name));
                        assert_eq!(removed, if there { 0 } else { libc::ENODATA });
                    }
                }
            }),
            Op::Close(file) => self.with_file(file, |vault, ino, handle, _| {
                vault.flush(ino, handle).unwrap()
            }),
            Op::Fsync(file) => self.with_file(file, |vault, ino, _, _| fsync(vault, ino).unwrap()),
            Op::Hold(file) => {
                self.drop_held();
                if let Some((node, ino)) = self.file(file) {
                    self.held = Some((node, ino, self.vault.open(ino, libc::O_RDWR).unwrap()));
                }
            }
            Op::WriteHeld(byte) => {
                let Some((node, ino, handle)) = self.held else {
                    return;
                };
                self.vault.write(ino, handle, 10, &[byte; 3000]).unwrap();
                let bytes = &mut self.model.nodes.get_mut(&node).unwrap().bytes;
                put(bytes, 10, &[byte; 3000]);
                let mut seen = vec![0; bytes.len() + 1];
                let len = self.vault.read(ino, handle, 0, &mut seen).unwrap();
                assert_eq!(
                    &seen[..len],
                    &bytes[..],
                    "an open file without a name is whole"
                );
            }
            Op::DropHeld => self.drop_held(),
            Op::Remount => self.reopen(true),
            Op::Kill => self.reopen(false),
        }
    }

    /// Readers may look for data and holes: what is called a hole must be zeros.
    fn check_holes(&self) {
        for (node, path) in self.model.files() {
            let ino = find(&self.vault, &path).ino;
            let bytes = &self.model.nodes[&node].bytes;
            let mut at = 0;
            while at < bytes.len() as u64 {
                let data = self
                    .vault
                    .lseek(ino, at, Whence::Data)
                    .unwrap_or(bytes.len() as u64);
                assert!(
                    bytes[at as usize..data as usize].iter().all(|b| *b == 0),
                    "data in a hole at {at}"
                );
                if data >= bytes.len() as u64 {
                    break;
                }
                at = self.vault.lseek(ino, data, Whence::Hole).unwrap();
                assert!(at > data);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 4000, ..ProptestConfig::default() })]
    #[test]
    fn the_vault_does_what_the_model_does(ops in proptest::collection::vec(op(), 1..60)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
            prop_assert_eq!(walk(&*pair.vault).unwrap(), pair.model.tree(), "after {:?}", op);
        }
        pair.check_holes();
        pair.reopen(true);
        prop_assert_eq!(walk(&*pair.vault).unwrap(), pair.model.tree(), "after the last remount");
    }
}
