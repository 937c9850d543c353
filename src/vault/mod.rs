//! The native filesystem: an encrypted library as a [`Volume`](crate::volume::Volume), cut along its data.
//!
//! ```text
//! view      the read side: the tree, and the bytes that its extents refer to; complete without the others
//! log       the write side: records, the contents that they refer to, the write gate
//! files     open files: dirty buffers, handles, budgets; `ops` has the operations on names and attributes
//! outbox    publishes finished packs and segments
//! syncer    makes data durable, for fsync and by age (a thread)
//! upkeep    publication, collection, snapshots, defragmentation (a thread)
//! recovery  recovers what an unclean shutdown left, before any of the others starts
//! ```
//!
//! Each part knows only those above it.
//!
//! - A change is validated against the tree, written to the journal as a record, then applied to the tree (`log`).
//! - A write goes to the file's dirty buffer, from there to the open pack, and then a record is written (`files`).
//! - A read takes extents from the tree and blocks from the cache or the store; bytes in the dirty buffer override them
//!   (`view`, `files`).
//!
//! Lock order: a file's `flushing`; the log's locks (sync lane, barrier, journal, new packs); the table of open files;
//! a file's state; the tree. The locks of handles, of queues and of waiting requests are leaves: nothing else is locked
//! while one is held. A reader takes only a file's state and the tree, and neither is ever held over I/O.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::cache::CacheStats;
use crate::crypto::MasterKey;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::gate::{Reason, WriteGate};
use crate::index::{Tree, replay};
use crate::object::DeviceId;
use crate::pack::Packs;
use crate::state::StateFile;
use crate::store::Store;

mod conflicts;
mod copy;
mod devices;
mod files;
mod log;
mod opening;
mod ops;
mod outbox;
mod recovery;
mod salvage;
mod syncer;
#[cfg(test)]
mod tests;
mod thread;
mod upkeep;
mod verify;
mod view;
mod volume;

use self::log::{Log, PublishedIndex};
use devices::{Memory, Others};
use files::{Files, Streamer};
pub use ops::acl;
use outbox::Outbox;
use recovery::{Adopted, Recovery};
use salvage::Salvage;
use syncer::Syncer;
use thread::Thread;
use upkeep::Upkeep;
use view::{Follow, Follower, Source, View};

/// Maximum number of published packs that are kept open for reading.
const OPEN_PACKS_MAX: usize = 512;
/// Number of file descriptors that a mount needs for everything else.
const OTHER_FILES: usize = 40;

/// How a library is opened.
pub struct Options {
    /// Write nothing: what a crash left stays in `new/`.
    pub read_only: bool,
    /// Maximum size of the cache of decrypted blocks, in bytes.
    pub cache_bytes: usize,
    /// Accept an index that is older than this machine has seen, or that has gaps.
    pub accept_rollback: bool,
    /// In a read-only mount, do not show what a crash left in `new/`.
    pub published_only: bool,
    /// Owner of the root directory of a new library.
    pub uid: u32,
    /// Group of the root directory of a new library.
    pub gid: u32,
}

/// An open library.
pub struct Vault {
    view: Arc<View>,
    log: Arc<Log>,
    files: Arc<Files>,
    outbox: Arc<Outbox>,
    upkeep: Arc<Upkeep>,
    syncer: Arc<Syncer>,
    /// Only in a mount that writes.
    threads: Option<Threads>,
    /// Only in a read-only mount.
    follower: Mutex<Option<Follower>>,
}

/// The background threads of a mount that writes.
struct Threads {
    streamer: Streamer,
    syncer: Thread,
    upkeep: Thread,
}

impl Vault {
    /// Opens a library: replays the index, recovers what an unclean shutdown left, and starts the threads. A library
    /// without an index is empty. If `read_only`, nothing is recovered; the tree only shows what was left.
    pub fn open(
        store: Arc<dyn Store>,
        master: impl Into<Arc<MasterKey>>,
        device: DeviceId,
        state: Option<StateFile>,
        options: &Options,
    ) -> Result<Arc<Self>> {
        Self::open_in(Env::system(), store, master, device, state, options)
    }

    /// Opens a library as [`Vault::open`] does, with the given clock and source of ids.
    pub fn open_in(
        env: impl Into<Arc<Env>>,
        store: Arc<dyn Store>,
        master: impl Into<Arc<MasterKey>>,
        device: DeviceId,
        state: Option<StateFile>,
        options: &Options,
    ) -> Result<Arc<Self>> {
        let source = Source {
            env: env.into(),
            store,
            master: master.into(),
        };
        let load = || Self::load(&source, device, state.as_ref(), options);
        let (mut vault, adopted) = load()?;
        if options.read_only {
            if !options.published_only
                && let Err(e) = vault.recovery(options, &adopted).show_leftovers()
            {
                ::log::warn!("changes that the last mount left are not shown: {e}");
            }
            vault.view.settle_conflicts()?;
            return Ok(Arc::new(vault));
        }
        match vault.recovery(options, &adopted).run() {
            Ok(()) => {}
            Err(e) if e.is_no_space() => {
                // Load again: the tree already includes part of the adoption that failed.
                drop(vault);
                let (freeing, adopted) = load()?;
                if !freeing.recovery(options, &adopted).free_space()? {
                    return Err(e);
                }
                drop(freeing);
                let (again, adopted) = load()?;
                again.recovery(options, &adopted).run()?;
                vault = again;
            }
            Err(e) => return Err(e),
        }
        vault.start()?;
        Ok(Arc::new(vault))
    }

    fn recovery<'a>(&'a self, options: &Options, adopted: &'a Adopted) -> Recovery<'a> {
        let owners = (&*self.log, &*self.outbox, &*self.upkeep);
        Recovery::new(owners, options.accept_rollback, adopted)
    }

    /// Starts the threads, after recovery.
    fn start(&mut self) -> Result<()> {
        let (syncer, upkeep) = (self.syncer.clone(), self.upkeep.clone());
        self.threads = Some(Threads {
            streamer: Streamer::start(self.files.clone())?,
            syncer: Thread::start("syncer", self.log.clone(), move || syncer.run())?,
            upkeep: Thread::start("upkeep", self.log.clone(), move || upkeep.run())?,
        });
        self.upkeep.collector.restore_reserve();
        self.log.store_numbers();
        Ok(())
    }

    /// Flushes, syncs and publishes everything, and ends the threads. May be called again after an error.
    ///
    /// 1. Wait until running flushes are done, and end the threads.
    /// 2. Release the reserve, because closing takes space.
    /// 3. Flush every file. An error of one must not prevent the others from being published.
    /// 4. Check that the library is still where the next mount will look for it.
    /// 5. Publish everything, and remove dead packs.
    /// 6. Write a snapshot if one is due. Failure is harmless: snapshots only speed up mounting.
    /// 7. Remove an empty open segment.
    /// 8. Report lost contents to the caller.
    fn close_writer(&self, threads: &Threads) -> Result<()> {
        threads.streamer.stop();
        threads.halt(&self.log)?;
        self.log.requests().end();
        self.view.store().reserve(0)?;
        let flushed = self.files.flush_all();
        // If the library is gone completely, publishing reports it.
        let gone = self.log.inspect_place().unwrap_or_default();
        let collected = self.upkeep.collector.collect();
        // Publish even if collection failed.
        self.outbox.publish()?;
        if let Err(e) = self.upkeep.write_snapshot_if_due() {
            ::log::warn!("{e}");
        }
        self.log.journal().discard_empty()?;
        let lost = if self.log.requests().take_loss() {
            let check = "some were lost while it was mounted; the log lists them";
            Err(Error::damaged("contents", check))
        } else {
            Ok(())
        };
        flushed
            .and(collected)
            .and(gone.map_or(Ok(()), Err))
            .and(lost)
    }

    /// Hits, misses and size of the cache of decrypted blocks.
    pub fn cache_stats(&self) -> CacheStats {
        self.view.cache_stats()
    }

    /// Replays the index. Also returns the segments that an earlier recovery adopted.
    fn load(
        source: &Source,
        device: DeviceId,
        state: Option<&StateFile>,
        options: &Options,
    ) -> Result<(Self, Adopted)> {
        let Source { env, store, master } = source;
        let index_seen = devices::list_index(&**store)?;
        let mut replayed = replay(&**store, master, options.accept_rollback, || {
            Tree::new(options.uid, options.gid, env.wall())
        })?;
        let remembered = state.map(StateFile::load).transpose()?.flatten();
        let seen = remembered
            .as_ref()
            .map_or_else(Vec::new, |known| devices::heads_to_find(known, &replayed));
        let found = opening::check_index(&**store, master, options, &seen, &mut replayed)?;
        if !options.read_only
            && let Some(known) = remembered.as_ref().filter(|known| known.device == device)
        {
            devices::check_own(known, &replayed)?;
            devices::announce(known, &replayed);
        }
        let memory = Memory::new(state.cloned(), remembered, device, master.fingerprint());
        let slots = opening::list_slots(&**store, &replayed.slots, &replayed.removed_slots)?;
        let gate = Arc::new(WriteGate::default());
        if options.read_only {
            gate.close(Reason::Asked);
        }
        let packs = open_packs(store, master, &gate);
        let is_shared = replayed.heads.keys().any(|d| *d != device);
        let follow = Follow::new(options.accept_rollback, &replayed);
        let cache_bytes = options.cache_bytes;
        let view = View::new(
            source.clone(),
            replayed.tree,
            packs,
            cache_bytes,
            found,
            follow,
        )?;
        let index = PublishedIndex::new(
            replayed.heads,
            replayed.base,
            (replayed.bases, replayed.base_bytes),
            replayed.uncovered,
            slots,
        );
        let others = Others::new(index_seen, is_shared);
        let log = Log::new(Arc::new(view), device, gate, index, others);
        let vault = Self::of_owners(Arc::new(log), memory, replayed.covered);
        Ok((vault, replayed.adopted))
    }

    /// Creates the parts that work on `log`. Starts no thread.
    fn of_owners(log: Arc<Log>, memory: Memory, covered: Vec<crate::index::SegmentInfo>) -> Self {
        let files = Arc::new(Files::new(log.clone()));
        let salvage = Arc::new(Salvage::new(log.clone(), files.clone()));
        let outbox = Arc::new(Outbox::new(log.clone(), salvage.clone(), memory));
        Self {
            view: log.view().clone(),
            upkeep: Arc::new(Upkeep::new(&log, &outbox, &files, covered)),
            syncer: Arc::new(Syncer::new(log.clone(), files.clone(), salvage)),
            log,
            files,
            outbox,
            threads: None,
            follower: Mutex::default(),
        }
    }
}

impl Threads {
    /// Ends the syncer and upkeep threads, after they have answered all waiting requests.
    fn halt(&self, log: &Log) -> Result<()> {
        log.requests().stop();
        let upkeep = self.upkeep.join();
        self.syncer.join().and(upkeep)
    }
}

/// The packs of a library. Some of them are closed if the process runs out of file descriptors.
fn open_packs(
    store: &Arc<dyn Store>,
    master: &Arc<MasterKey>,
    gate: &Arc<WriteGate>,
) -> Arc<Packs> {
    let packs = Packs::new(
        store.clone(),
        master.clone(),
        open_packs_max(),
        gate.clone(),
    );
    let packs = Arc::new(packs);
    let closer = Arc::downgrade(&packs);
    store.on_too_few_files(Box::new(move || {
        closer.upgrade().is_some_and(|packs| packs.close_some())
    }));
    packs
}

/// Half of the spare file descriptors of this process, at most [`OPEN_PACKS_MAX`].
fn open_packs_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let spare = limit.unwrap_or(usize::MAX).saturating_sub(OTHER_FILES) / 2;
    spare.clamp(1, OPEN_PACKS_MAX)
}
