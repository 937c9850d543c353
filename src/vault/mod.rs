//! The native filesystem: an encrypted library as a [`Volume`](crate::volume::Volume), cut along its data.
//!
//! ```text
//! view      what is read: the tree, and the bytes that its extents name; complete without the others
//! log       what is written: records, contents that they name, the write gate
//! files     what is open: dirty buffers, handles, budgets; ops are the operations on names and attributes
//! outbox    what is finished and not published yet
//! syncer    makes things durable, for those who wait in fsync and by age (a thread)
//! upkeep    publication, collection, snapshots, defragmentation (a thread)
//! recovery  what an unclean shutdown left, before any of these begins
//! ```
//!
//! Each knows those above it only. A change goes: validate against the tree, write a record to the journal, change the
//! tree (`log`). A write goes: into the file's dirty buffer, later into the open pack, then into a record (`files`). A
//! read goes: extents from the tree, blocks from the cache or the store, the dirty buffer over them (`view`, `files`).
//!
//! The lock order follows: a file's `flushing`; the log's (sync lane, barrier, journal, new packs); the table of open
//! files; a file's state; the tree. The handles, the queues and what waits for a thread come last, alone. A reader takes
//! a file's state and the tree only, and nothing holds those over I/O.

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
use crate::state::Place;
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

/// Published packs that are kept open for reading, at most.
const OPEN_PACKS_MAX: usize = 512;
/// File descriptors that a mount needs for all else.
const OTHER_FILES: usize = 40;

/// How a library is opened.
pub struct Options {
    /// Nothing is written: leftovers stay where they are.
    pub read_only: bool,
    /// Bytes of decrypted blocks to keep.
    pub cache_bytes: usize,
    /// An index older than this machine has seen is accepted, and so is one with gaps.
    pub accept_rollback: bool,
    /// Who only reads is not shown what a crash left in `new/`.
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
    /// In a mount that writes.
    threads: Option<Threads>,
    /// In a mount that only reads.
    follower: Mutex<Option<Follower>>,
}

/// What works beside the requests in a mount that writes.
struct Threads {
    streamer: Streamer,
    syncer: Thread,
    upkeep: Thread,
}

impl Vault {
    /// Opens a library: replays the index, recovers what an unclean shutdown left, starts the threads. A library without
    /// an index is an empty one. Read-only, it shows what was left where it is.
    pub fn open(
        store: Arc<dyn Store>,
        master: impl Into<Arc<MasterKey>>,
        device: DeviceId,
        place: Option<Place>,
        options: &Options,
    ) -> Result<Arc<Self>> {
        Self::open_in(Env::system(), store, master, device, place, options)
    }

    /// The same with another clock and source of ids.
    pub fn open_in(
        env: impl Into<Arc<Env>>,
        store: Arc<dyn Store>,
        master: impl Into<Arc<MasterKey>>,
        device: DeviceId,
        place: Option<Place>,
        options: &Options,
    ) -> Result<Arc<Self>> {
        let source = Source {
            env: env.into(),
            store,
            master: master.into(),
        };
        let load = || Self::load(&source, device, place.as_ref(), options);
        let (mut vault, adopted) = load()?;
        if options.read_only {
            if !options.published_only
                && let Err(e) = vault.recovery(options, &adopted).show_leftovers()
            {
                ::log::warn!("what the last mount left does not show: {e}");
            }
            vault.view.settle_conflicts()?;
            return Ok(Arc::new(vault));
        }
        match vault.recovery(options, &adopted).run() {
            Ok(()) => {}
            Err(e) if e.is_no_space() => {
                // The tree has a part of what could not be adopted.
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

    /// Writes out, makes durable and publishes everything, and ends the threads. After an error it may be called again.
    ///
    /// 1. Whatever is being written out is finished, and the threads end.
    /// 2. The reserve is released: the end takes space, too.
    /// 3. Every file is written out. One that cannot be must not keep the others from being published.
    /// 4. The library is still where the next mount will look for it.
    /// 5. Everything is published, and dead packs are removed.
    /// 6. A snapshot is written where one is due. Its failure is harmless: snapshots only speed up mounting.
    /// 7. An open segment with nothing in it is removed.
    /// 8. Whoever unmounts is told of contents that were lost.
    fn close_writer(&self, threads: &Threads) -> Result<()> {
        threads.streamer.stop();
        threads.halt(&self.log)?;
        self.log.requests().end();
        self.view.store().reserve(0)?;
        let flushed = self.files.flush_all();
        // Where the library is not at its place at all, publishing says so.
        let gone = self.log.inspect_place().unwrap_or_default();
        let collected = self.upkeep.collector.collect();
        // Where nothing could be removed, what there is can still be published.
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

    /// How the cache of decrypted blocks does.
    pub fn cache_stats(&self) -> CacheStats {
        self.view.cache_stats()
    }

    /// Replays the index; answers what of the leftovers was adopted before, too, and as which segments.
    fn load(
        source: &Source,
        device: DeviceId,
        place: Option<&Place>,
        options: &Options,
    ) -> Result<(Self, Adopted)> {
        let Source { env, store, master } = source;
        let index_seen = devices::list_index(&**store)?;
        let mut replayed = replay(&**store, master, options.accept_rollback, || {
            Tree::new(options.uid, options.gid, env.wall())
        })?;
        let remembered = place.map(Place::load).transpose()?.flatten();
        let seen = remembered
            .as_ref()
            .map_or_else(Vec::new, |known| devices::heads_to_find(known, &replayed));
        let found = opening::judge(&**store, master, options, &seen, &mut replayed)?;
        if !options.read_only
            && let Some(known) = remembered.as_ref().filter(|known| known.device == device)
        {
            devices::check_own(known, &replayed)?;
            devices::announce(known, &replayed);
        }
        let memory = Memory::new(place.cloned(), remembered, device, master.fingerprint());
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

    /// Everything that works on `log`. No thread runs yet.
    fn of_owners(log: Arc<Log>, memory: Memory, covered: Vec<crate::index::Published>) -> Self {
        let files = Arc::new(Files::new(log.clone()));
        let salvage = Salvage::new(log.clone(), files.clone());
        let outbox = Arc::new(Outbox::new(log.clone(), salvage, memory));
        Self {
            view: log.view().clone(),
            upkeep: Arc::new(Upkeep::new(&log, &outbox, &files, covered)),
            syncer: Arc::new(Syncer::new(log.clone(), files.clone())),
            log,
            files,
            outbox,
            threads: None,
            follower: Mutex::default(),
        }
    }
}

impl Threads {
    /// Ends both threads, with everything that waits answered.
    fn halt(&self, log: &Log) -> Result<()> {
        log.requests().stop();
        let upkeep = self.upkeep.join();
        self.syncer.join().and(upkeep)
    }
}

/// The packs of a library, of which some are closed where the process has too many files open.
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

/// A part of what the system allows this process to have open, if that is little.
fn open_packs_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let spare = limit.unwrap_or(usize::MAX).saturating_sub(OTHER_FILES) / 2;
    spare.clamp(1, OPEN_PACKS_MAX)
}
