//! Tests of what lies inside the vault: moments and failures that requests alone do not reach.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::upkeep::{Backoff, Backoffs, Task};
use super::*;
use crate::error::Kind;
use crate::index::record::{Id, Record};
use crate::object::PackId;
use crate::store::{Faults, MemoryStore, Staging};
use crate::volume::{Attr, Caller, FileKind, Handle, Ino, ROOT, RenameMode, SetAttr, Time, Volume};

mod adoption;
mod bases;
mod beside;
mod crashes;
mod devices;
mod failures;
mod features;
mod files;
mod fleet;
mod follow;
mod hard_links;
mod ledger;
mod numbers;
mod outbox;
mod promises;
mod races;
mod room;
mod storms;
mod streams;
mod unasked;
mod versions;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// The same numbers for the same seed, which is not 0.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// How syncer and upkeep have done so far.
type Duties = (Backoff, Backoffs);

/// A library in memory, and one mount of it after the other.
struct Bench {
    env: Arc<Env>,
    code: String,
    store: MemoryStore,
    vault: Arc<Vault>,
}

impl Bench {
    fn new() -> Self {
        Self::seeded(1)
    }

    /// Ids, keys and times follow from the seed, and whatever the store does from its own.
    fn seeded(seed: u64) -> Self {
        crate::crypto::seed_random(seed);
        let env = Arc::new(Env::seeded(seed));
        let code = MasterKey::generate().unwrap().recovery_code().to_string();
        let store = MemoryStore::new();
        let vault = open_in(&env, &code, &store, &OPTIONS).unwrap();
        Self {
            env,
            code,
            store,
            vault,
        }
    }

    /// Killed, and mounted again.
    fn kill(&mut self) -> Result<()> {
        let after = self.store.after_kill();
        self.vault = open_in(&self.env, &self.code, &after, &OPTIONS)?;
        self.store = after;
        Ok(())
    }

    /// What is found when the power is back, beside this.
    fn after_power_cut(&self, seed: u64) -> Result<Self> {
        let (code, store) = (self.code.clone(), self.store.after_power_cut(seed));
        let vault = open_in(&self.env, &code, &store, &OPTIONS)?;
        Ok(Self {
            env: self.env.clone(),
            code,
            store,
            vault,
        })
    }

    fn power_cut(&mut self, seed: u64) -> Result<()> {
        *self = self.after_power_cut(seed)?;
        Ok(())
    }

    /// Unmounted, and mounted again.
    fn remount(&mut self) -> Result<()> {
        self.vault.close()?;
        self.vault = open_in(&self.env, &self.code, &self.store, &OPTIONS)?;
        Ok(())
    }

    /// From now on syncer and upkeep do nothing: the test does what they would.
    fn halt_threads(&self) {
        let threads = self.vault.threads.as_ref().unwrap();
        threads.halt(&self.vault.log).unwrap();
    }

    /// What syncer and upkeep would do now without being asked. True where nothing will be due until something changes.
    fn do_what_is_due(&self, duties: &mut Duties) -> bool {
        let is_synced = self.vault.syncer.sync_if_due(&mut duties.0);
        self.vault.upkeep.run_due_tasks(&mut duties.1) && is_synced
    }

    fn make(&self, name: &str) -> Ino {
        self.make_in(ROOT, name)
    }

    fn make_in(&self, dir: Ino, name: &str) -> Ino {
        let made = self
            .vault
            .mknod(dir, OsStr::new(name), FileKind::Regular, 0o644, 0, CALLER)
            .unwrap();
        self.vault.forget(made.ino, 1);
        made.ino
    }

    fn mkdir(&self, name: &str) -> Ino {
        let made = self
            .vault
            .mkdir(ROOT, OsStr::new(name), 0o755, CALLER)
            .unwrap();
        self.vault.forget(made.ino, 1);
        made.ino
    }

    /// Opens, writes, closes.
    fn write(&self, ino: Ino, at: u64, data: &[u8]) {
        self.try_write(ino, at, data).unwrap();
    }

    fn try_write(&self, ino: Ino, at: u64, data: &[u8]) -> Result<()> {
        let handle = self.vault.open(ino, libc::O_RDWR)?;
        let done = self.vault.write(ino, handle, at, data);
        let done = done.and_then(|()| self.vault.flush(ino, handle));
        self.vault.release(ino, handle);
        done
    }

    /// A new file with contents.
    fn put(&self, name: &str, data: &[u8]) -> Ino {
        let ino = self.make(name);
        self.write(ino, 0, data);
        ino
    }

    fn unlink(&self, name: &str) {
        self.vault.unlink(ROOT, OsStr::new(name)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        self.vault
            .rename(
                ROOT,
                OsStr::new(from),
                ROOT,
                OsStr::new(to),
                RenameMode::Replace,
            )
            .unwrap();
    }

    fn stat(&self, name: &str) -> Option<Attr> {
        let attr = self.vault.lookup(ROOT, OsStr::new(name)).ok()?;
        self.vault.forget(attr.ino, 1);
        Some(attr)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let attr = self.vault.lookup(ROOT, OsStr::new(name))?;
        self.vault.forget(attr.ino, 1);
        let handle = self.vault.open(attr.ino, libc::O_RDONLY)?;
        let mut bytes = vec![0xaa; attr.plain_size as usize + 10];
        let len = self.vault.read(attr.ino, handle, 0, &mut bytes);
        self.vault.release(attr.ino, handle);
        bytes.truncate(len?);
        Ok(bytes)
    }

    fn fsync(&self, ino: Ino) -> Result<()> {
        let (send, receive) = std::sync::mpsc::channel();
        self.vault.fsync(
            ino,
            Handle(0),
            Box::new(move |done| send.send(done).unwrap()),
        );
        receive
            .recv_timeout(std::time::Duration::from_secs(60))
            .expect("an fsync is answered")
    }

    /// Lets operation number `ahead` from now fail.
    fn fail(&self, ahead: u64, errno: i32) {
        let at = self.store.operations() + ahead;
        self.store
            .set_faults(Faults::default().fail_once(at, errno));
    }

    fn extents(&self, ino: Ino) -> usize {
        let tree = self.vault.view.tree();
        let ix = tree.find(ino).unwrap();
        tree.inode(ix).extents().as_slice().len()
    }
}

const OPTIONS: Options = Options {
    read_only: false,
    cache_bytes: 1 << 20,
    accept_rollback: false,
    published_only: false,
    uid: 0,
    gid: 0,
};

fn open(code: &str, store: &MemoryStore) -> Result<Arc<Vault>> {
    open_with(code, store, &OPTIONS)
}

fn open_with(code: &str, store: &MemoryStore, options: &Options) -> Result<Arc<Vault>> {
    open_in(&Arc::new(Env::system()), code, store, options)
}

fn open_in(
    env: &Arc<Env>,
    code: &str,
    store: &MemoryStore,
    options: &Options,
) -> Result<Arc<Vault>> {
    Vault::open_in(
        env.clone(),
        Arc::new(store.clone()),
        MasterKey::from_recovery_code(code).unwrap(),
        crate::object::ObjectId([0xde; 16]),
        None,
        options,
    )
}
