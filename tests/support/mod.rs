//! What several tests need: a vault on a store in memory, and a walk of all that it shows.
#![allow(dead_code, reason = "each test takes what it needs")]
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use hushfs::crypto::MasterKey;
use hushfs::error::Result;
use hushfs::object::ObjectId;
use hushfs::store::MemoryStore;
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Attr, Caller, FileKind, Handle, Ino, ROOT, Volume};

pub const CALLER: Caller = Caller {
    uid: 1000,
    gid: 100,
    umask: 0o022,
};
pub const DEVICE: ObjectId = ObjectId([0xde; 16]);

/// A master key that is the same each time: the recovery code of 32 fixed bytes.
pub struct Library {
    code: String,
}

impl Library {
    pub fn new() -> Self {
        let master = MasterKey::generate().unwrap();
        Self {
            code: master.recovery_code().to_string(),
        }
    }

    pub fn master(&self) -> MasterKey {
        MasterKey::from_recovery_code(&self.code).unwrap()
    }

    pub fn open(&self, store: &MemoryStore) -> Result<Arc<Vault>> {
        self.open_with(store, 1 << 20, false)
    }

    pub fn open_with(
        &self,
        store: &MemoryStore,
        cache_bytes: usize,
        read_only: bool,
    ) -> Result<Arc<Vault>> {
        let options = Options {
            read_only,
            cache_bytes,
            accept_rollback: false,
            published_only: false,
            uid: 1000,
            gid: 100,
        };
        Vault::open(
            Arc::new(store.clone()),
            self.master(),
            DEVICE,
            None,
            &options,
        )
    }
}

/// What a volume shows of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub kind: FileKind,
    pub perm: u16,
    pub nlink: u32,
    pub bytes: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything below the root, by path.
pub type Tree = BTreeMap<Vec<u8>, Shown>;

pub fn walk(volume: &dyn Volume) -> Result<Tree> {
    let mut tree = Tree::new();
    walk_into(volume, ROOT, b"", &mut tree)?;
    Ok(tree)
}

pub fn names(volume: &dyn Volume, dir: Ino) -> Result<Vec<(OsString, Ino, u64)>> {
    let mut names = Vec::new();
    volume.readdir(dir, 0, false, &mut |e| {
        if e.name != "." && e.name != ".." {
            names.push((e.name.to_owned(), e.ino, e.cookie));
        }
        true
    })?;
    Ok(names)
}

fn walk_into(volume: &dyn Volume, dir: Ino, path: &[u8], tree: &mut Tree) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for (name, ino, _) in names(volume, dir)? {
        let attr = volume.lookup(dir, &name)?;
        assert_eq!(attr.ino, ino, "readdir and lookup disagree");
        let path = [path, b"/", name.as_bytes()].concat();
        let bytes = match attr.kind {
            FileKind::Regular => contents(volume, &attr)?,
            FileKind::Symlink => volume.readlink(attr.ino)?,
            _ => Vec::new(),
        };
        let mut xattrs = BTreeMap::new();
        for name in volume
            .listxattr(attr.ino)?
            .split(|c| *c == 0)
            .filter(|n| !n.is_empty())
        {
            xattrs.insert(
                name.to_vec(),
                volume.getxattr(attr.ino, OsStr::from_bytes(name))?,
            );
        }
        let shown = Shown {
            kind: attr.kind,
            perm: attr.perm,
            nlink: attr.nlink,
            bytes,
            xattrs,
        };
        tree.insert(path.clone(), shown);
        if attr.kind == FileKind::Directory {
            walk_into(volume, attr.ino, &path, tree)?;
        }
        volume.forget(attr.ino, 1);
    }
    Ok(())
}

pub fn contents(volume: &dyn Volume, attr: &Attr) -> Result<Vec<u8>> {
    let handle = volume.open(attr.ino, libc::O_RDONLY)?;
    let mut bytes = vec![0xaa; attr.plain_size as usize + 10];
    let len = volume.read(attr.ino, handle, 0, &mut bytes);
    volume.release(attr.ino, handle);
    bytes.truncate(len?);
    assert_eq!(
        bytes.len() as u64,
        attr.plain_size,
        "a read ends where the file does"
    );
    Ok(bytes)
}

/// Waits for an fsync.
pub fn fsync(volume: &dyn Volume, ino: Ino) -> Result<()> {
    let (send, receive) = std::sync::mpsc::channel();
    volume.fsync(
        ino,
        Handle(0),
        Box::new(move |done| send.send(done).expect("the test waits")),
    );
    receive
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("an fsync is answered")
}
