//! The native filesystem: an encrypted library as a [`Volume`](crate::volume::Volume).
//!
//! A change goes: validate against the tree, write a frame (`journal`), change the tree (`transaction`). A write goes: into the
//! file's dirty buffer (`file`), later sealed into the open pack (`contents`) and framed. A read goes: extents
//! from the tree, blocks from the cache or the store, the dirty buffer over them.
//!
//! Lock order, each only while needed: a file's `flushing`; `sealing`; the journal; the open pack; the table of open
//! files; a file's state; the tree. The tables of handles and of what waits for a thread come last, alone.
//! A reader takes the last two only, and nothing holds those over I/O.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::cache::CacheStats;
use crate::crypto::MasterKey;
use crate::error::{Kind, Result};
use crate::index::record::Record;
use crate::index::{Tree, replay};
use crate::object::DeviceId;
use crate::pack::Packs;
use crate::state::Place;
use crate::store::Store;
use crate::volume::Time;

pub mod acl;
mod adopt;
mod allocate;
mod attrs;
mod base;
mod budget;
mod collect;
mod commit;
mod conflicts;
mod contents;
mod defragment;
mod devices;
mod duty;
mod file;
mod files;
mod flush;
mod full_disk;
mod handles;
mod ids;
mod index;
mod journal;
mod judge;
mod leftovers;
mod names;
mod place;
mod read;
mod salvage;
mod side_sync;
mod stream;
#[cfg(test)]
mod tests;
mod threads;
mod transaction;
mod verify;
mod view;
mod volume;
mod write;

use base::Bases;
use budget::Budget;
use collect::Garbage;
use contents::Contents;
use defragment::Fragmented;
use devices::{Memory, Others};
use files::Files;
use handles::Handles;
use ids::Ids;
use journal::{Journal, Start};
use side_sync::SideSync;
use stream::Streams;
use threads::{Adopted, Threads};
use transaction::Draft;
use view::{Follow, Follower, View};

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
    core: Arc<Core>,
    threads: Option<Threads>,
    /// In a mount that only reads.
    follower: Mutex<Option<Follower>>,
}

/// What the requests, the committer and the maintenance share.
pub(crate) struct Core {
    view: Arc<View>,
    device: DeviceId,
    memory: Memory,
    others: Others,
    read_only: bool,
    journal: Mutex<Journal>,
    contents: Contents,
    files: Files,
    handles: Handles,
    ids: Ids,
    budget: Budget,
    commit: commit::Shared,
    side_sync: SideSync,
    streams: Streams,
    garbage: Garbage,
    bases: Bases,
    fragmented: Fragmented,
    /// Held, shared, from sealing into a pack to framing what was sealed: in between, the pack looks unused.
    sealing: RwLock<()>,
}

impl Vault {
    /// Opens a library: replays the index, adopts what a crash left, starts the committer. A library without an
    /// index is an empty one. Read-only, it shows what a crash left where it lies.
    pub fn open(
        store: Arc<dyn Store>,
        master: impl Into<Arc<MasterKey>>,
        device: DeviceId,
        place: Option<Place>,
        options: &Options,
    ) -> Result<Arc<Self>> {
        let master = master.into();
        let load = || Core::load(&store, &master, device, place.as_ref(), options);
        let (core, adopted) = load()?;
        if options.read_only {
            if !options.published_only
                && let Err(e) = core.show_leftovers(options.accept_rollback, &adopted)
            {
                log::warn!("what the last mount left does not show: {e}");
            }
            core.view.settle_shown()?;
            return Ok(Arc::new(Self {
                core,
                threads: None,
                follower: Mutex::default(),
            }));
        }
        let (core, threads) = match Threads::start(&core, options, &adopted) {
            Ok(threads) => (core, threads),
            Err(e) if e.is_no_space() => {
                // The tree has a part of what could not be adopted.
                drop(core);
                let (core, adopted) = load()?;
                if !core.free_for_adoption(options.accept_rollback, &adopted)? {
                    return Err(e);
                }
                let (core, adopted) = load()?;
                let threads = Threads::start(&core, options, &adopted)?;
                (core, threads)
            }
            Err(e) => return Err(e),
        };
        Ok(Arc::new(Self {
            core,
            threads: Some(threads),
            follower: Mutex::default(),
        }))
    }

    /// How the cache of decrypted blocks does.
    pub fn cache_stats(&self) -> CacheStats {
        self.core.view.cache_stats()
    }
}

/// A part of what the system allows this process to have open, if that is little.
fn open_packs_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let spare = limit.unwrap_or(usize::MAX).saturating_sub(OTHER_FILES) / 2;
    spare.clamp(1, OPEN_PACKS_MAX)
}

fn accept(accept: bool, checked: Result<()>) -> Result<()> {
    match checked {
        Err(e) if accept => {
            // What could have been done instead is not to be read now.
            log::warn!("continuing anyway: {}", e.without_hint());
            Ok(())
        }
        checked => checked,
    }
}

impl Core {
    /// Replays the index; answers what of the leftovers was adopted before, too, and as which segments.
    fn load(
        store: &Arc<dyn Store>,
        master: &Arc<MasterKey>,
        device: DeviceId,
        place: Option<&Place>,
        options: &Options,
    ) -> Result<(Arc<Self>, Adopted)> {
        let index_seen = devices::list_index(&**store)?;
        let mut replayed = replay(&**store, master, options.accept_rollback, || {
            Tree::new(options.uid, options.gid, Time::now())
        })?;
        let remembered = place.map(Place::load).transpose()?.flatten();
        let seen = remembered
            .as_ref()
            .map_or_else(Vec::new, |known| devices::heads_to_find(known, &replayed));
        let found = index::judge(&**store, master, options, &seen, &mut replayed)?;
        if !options.read_only
            && let Some(known) = remembered.as_ref().filter(|known| known.device == device)
        {
            devices::check_own(known, &replayed)?;
            devices::announce(known, &replayed);
        }
        let memory = Memory::new(place.cloned(), remembered, device, master.fingerprint());
        let slots = index::list_slots(&**store, &replayed.slots, &replayed.removed_slots)?;
        let packs = Arc::new(Packs::new(store.clone(), master.clone(), open_packs_max()));
        let closer = Arc::downgrade(&packs);
        store.on_too_few_files(Box::new(move || {
            closer.upgrade().is_some_and(|packs| packs.close_some())
        }));
        let shared = replayed.heads.keys().any(|d| *d != device);
        let follow = Follow::new(options.accept_rollback, &replayed);
        let view = Arc::new(View::new(
            store,
            master,
            replayed.tree,
            packs.clone(),
            options.cache_bytes,
            found,
            follow,
        )?);
        let start = Start {
            heads: replayed.heads,
            base: replayed.base,
            slots,
            uncovered: replayed.uncovered,
        };
        let core = Arc::new(Self {
            journal: Mutex::new(Journal::new(store.clone(), master.clone(), device, start)),
            contents: Contents::new(store.clone(), master.clone(), device, packs),
            view,
            read_only: options.read_only,
            files: Files::default(),
            handles: Handles::new(),
            ids: Ids::default(),
            budget: Budget::default(),
            commit: commit::Shared::default(),
            side_sync: SideSync::default(),
            streams: Streams::default(),
            garbage: Garbage::new(replayed.covered),
            bases: Bases::new(replayed.bases, replayed.base_bytes),
            fragmented: Fragmented::default(),
            sealing: RwLock::default(),
            device,
            memory,
            others: Others::new(index_seen, shared),
        });
        Ok((core, replayed.adopted))
    }

    /// Has the numbers stored that inodes were given in place of their own. Where that fails, the next mount tries again,
    /// and gives the same, unless others came or went meanwhile.
    fn store_numbers(&self) {
        /// A frame has room for many more.
        const PER_FRAME: usize = 10_000;
        let numbers = self.view.tree().unstored_numbers();
        for some in numbers.chunks(PER_FRAME) {
            let stored = self.transact(|_, draft| {
                draft.records.extend(some.iter().cloned().map(Record::Attr));
                Ok(())
            });
            if let Err(e) = stored {
                return log::warn!("{} inode numbers are not stored yet: {e}", numbers.len());
            }
        }
    }

    fn writable(&self) -> Result<()> {
        if self.read_only || self.view.packs().forbid_writing() {
            Err(Kind::ReadOnly.into())
        } else {
            Ok(())
        }
    }

    /// Remembers the heads outside of the library, so that an index that goes back is noticed.
    fn remember(&self) -> Result<()> {
        let heads = self.journal.lock().heads.values().copied().collect();
        self.memory.remember(heads)
    }
}
