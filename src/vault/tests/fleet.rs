//! Several devices, each with its own copy of one library, and a file copier between them.

use std::collections::BTreeMap;

use super::*;
use crate::object::{Area, ObjectId};

/// Its copy of the library, and its mount.
pub struct Device {
    pub id: u8,
    pub code: String,
    pub store: MemoryStore,
    pub vault: Option<Arc<Vault>>,
}

/// What a path shows: a directory, or contents.
pub type Shown = BTreeMap<String, Option<Vec<u8>>>;

impl Device {
    pub fn fleet(count: u8) -> Vec<Self> {
        let code = MasterKey::generate().unwrap().recovery_code().to_string();
        let device = |id| Self {
            id,
            code: code.clone(),
            store: MemoryStore::new(),
            vault: None,
        };
        (1..=count).map(device).collect()
    }

    pub fn open(&self, read_only: bool) -> Result<Arc<Vault>> {
        self.open_with(read_only, false)
    }

    pub fn open_with(&self, read_only: bool, accept_rollback: bool) -> Result<Arc<Vault>> {
        let options = Options {
            read_only,
            accept_rollback,
            ..OPTIONS
        };
        Vault::open(
            Arc::new(self.store.clone()),
            MasterKey::from_recovery_code(&self.code).unwrap(),
            ObjectId([self.id; 16]),
            None,
            &options,
        )
    }

    pub fn mount(&mut self) {
        self.vault = Some(self.open(false).unwrap());
    }

    pub fn unmount(&mut self) {
        self.vault.take().unwrap().close().unwrap();
    }

    /// Mounts, does something, unmounts.
    pub fn session(&mut self, work: impl FnOnce(&Vault)) {
        self.mount();
        work(self.vault.as_ref().unwrap());
        self.unmount();
    }

    /// Copies what the other has and this one has not; of the index, each file with this chance in four.
    pub fn pull(&self, from: &Self, dice: &mut Dice, quarters: u64) {
        for area in [Area::Key, Area::Index, Area::Data] {
            for id in from.store.objects(area) {
                let is_due = area != Area::Index || dice.below(4) < quarters;
                if is_due && self.store.object(area, id).is_none() {
                    let bytes = from.store.object(area, id).unwrap();
                    self.store.insert_object(area, id, bytes);
                }
            }
        }
    }

    pub fn pull_packs(&self, from: &Self) {
        for id in from.store.objects(Area::Data) {
            let bytes = from.store.object(Area::Data, id).unwrap();
            self.store.insert_object(Area::Data, id, bytes);
        }
    }

    pub fn shown(&self) -> Shown {
        let vault = self.open(true).unwrap();
        shown(&vault)
    }
}

pub fn shown(vault: &Vault) -> Shown {
    let mut all = Shown::new();
    walk(vault, ROOT, "", &mut all);
    all
}

fn walk(vault: &Vault, dir: Ino, path: &str, all: &mut Shown) {
    let mut names = Vec::new();
    let list = &mut |e: crate::volume::Dirent<'_>| {
        names.push(e.name.to_str().unwrap().to_owned());
        true
    };
    vault.readdir(dir, 0, false, list).unwrap();
    for name in names.iter().filter(|n| *n != "." && *n != "..") {
        let attr = vault.lookup(dir, OsStr::new(name)).unwrap();
        let path = format!("{path}/{name}");
        assert!(!all.contains_key(&path), "{path} is there twice");
        match attr.kind {
            FileKind::Directory => {
                all.insert(path.clone(), None);
                walk(vault, attr.ino, &path, all);
            }
            _ => {
                let handle = vault.open(attr.ino, libc::O_RDONLY).unwrap();
                let mut bytes = vec![0; attr.plain_size as usize];
                let len = vault.read(attr.ino, handle, 0, &mut bytes).unwrap();
                assert_eq!(len, bytes.len());
                vault.release(attr.ino, handle);
                all.insert(path, Some(bytes));
            }
        }
        vault.forget(attr.ino, 1);
    }
}

/// The inode of a path; the root for an empty one.
pub fn find(vault: &Vault, path: &str) -> Option<Ino> {
    path.split('/')
        .filter(|p| !p.is_empty())
        .try_fold(ROOT, |dir, name| {
            let attr = vault.lookup(dir, OsStr::new(name)).ok()?;
            vault.forget(attr.ino, 1);
            Some(attr.ino)
        })
}

pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

pub fn mkdir(vault: &Vault, path: &str) -> Result<()> {
    let (dir, name) = split(path);
    let dir = find(vault, dir).ok_or(Kind::Stale)?;
    let made = vault.mkdir(dir, OsStr::new(name), 0o755, CALLER)?;
    vault.forget(made.ino, 1);
    Ok(())
}

/// A new file, or new contents of one.
pub fn put(vault: &Vault, path: &str, data: &[u8]) -> Result<()> {
    let ino = match find(vault, path) {
        Some(ino) => ino,
        None => {
            let (dir, name) = split(path);
            let dir = find(vault, dir).ok_or(Kind::Stale)?;
            let made = vault.mknod(dir, OsStr::new(name), FileKind::Regular, 0o644, 0, CALLER)?;
            vault.forget(made.ino, 1);
            made.ino
        }
    };
    let handle = vault.open(ino, libc::O_RDWR)?;
    let shorter = SetAttr {
        plain_size: Some(0),
        ..SetAttr::default()
    };
    let done = vault
        .setattr(ino, &shorter)
        .and_then(|_| vault.write(ino, handle, 0, data))
        .and_then(|()| vault.flush(ino, handle));
    vault.release(ino, handle);
    done
}

pub fn rename(vault: &Vault, from: &str, to: &str) -> Result<()> {
    let ((from, old), (to, new)) = (split(from), split(to));
    let from = find(vault, from).ok_or(Kind::Stale)?;
    let to = find(vault, to).ok_or(Kind::Stale)?;
    vault.rename(
        from,
        OsStr::new(old),
        to,
        OsStr::new(new),
        RenameMode::Replace,
    )
}

pub fn remove(vault: &Vault, path: &str) -> Result<()> {
    let (dir, name) = split(path);
    let dir = find(vault, dir).ok_or(Kind::Stale)?;
    match vault.unlink(dir, OsStr::new(name)) {
        Err(_) => vault.rmdir(dir, OsStr::new(name)),
        done => done,
    }
}

/// Copies everything everywhere, lets everyone mount, and checks that all show one thing, which goes on being so.
pub fn merged(fleet: &mut [Device]) -> Shown {
    let dice = &mut Dice(1);
    let copy_all = |fleet: &[Device], dice: &mut Dice| {
        for to in fleet {
            fleet.iter().for_each(|from| to.pull(from, dice, 4));
        }
    };
    copy_all(fleet, dice);
    let first = fleet[0].shown();
    for device in fleet.iter() {
        assert_same(&device.shown(), &first, "a device alone");
    }
    // Each on its own settles the same conflicts, and what they write for that merges without another one.
    for device in fleet.iter_mut() {
        device.session(|vault| assert_same(&shown(vault), &first, "settling"));
    }
    for _ in 0..3 {
        copy_all(fleet, dice);
        for device in fleet.iter_mut() {
            device.session(|vault| assert_same(&shown(vault), &first, "settled by all"));
        }
    }
    for device in fleet.iter_mut() {
        let stored = |device: &Device| [Area::Index, Area::Data].map(|a| device.store.objects(a));
        let before = stored(device);
        device.session(|_| ());
        assert_eq!(stored(device), before, "nothing is left to settle");
    }
    first
}

pub fn assert_same(now: &Shown, before: &Shown, when: &str) {
    let short = |shown: &Shown| -> Vec<String> {
        let text =
            |bytes: &Vec<u8>| String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        let all = shown.iter();
        all.map(|(path, bytes)| format!("{path}: {:?}", bytes.as_ref().map(text)))
            .collect()
    };
    assert!(
        now == before,
        "{when}: {:#?} and not {:#?}",
        short(now),
        short(before)
    );
}
