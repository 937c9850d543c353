//! Collection: publishes what is due, and removes packs without live data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Task;
use crate::error::{Error, Kind, Result};
use crate::index::record::Record;
use crate::object::{Area, PackId};
use crate::pack::PackReader;
use crate::vault::log::{Log, RESERVE_BYTES, is_dead};
use crate::vault::outbox::Outbox;

/// Time after the last change at which a segment is published.
const IDLE_PUBLISH: Duration = Duration::from_secs(30);
/// Maximum time between the first change in a segment and its publication.
const LATEST_PUBLISH: Duration = Duration::from_secs(300);

/// Owns the list of packs that may be removed once the segment that condemns them is published. Does not own the
/// decision which packs are dead: the tree does.
pub(in crate::vault) struct Collector {
    log: Arc<Log>,
    outbox: Arc<Outbox>,
    /// Packs that a record of this mount condemns, and that are not removed yet.
    condemned: Mutex<Vec<PackId>>,
    /// Whether this mount has removed the packs that earlier mounts had condemned.
    is_swept: AtomicBool,
}

impl Collector {
    /// A collector with no condemned packs.
    pub fn new(log: Arc<Log>, outbox: Arc<Outbox>) -> Self {
        Self {
            log,
            outbox,
            condemned: Mutex::default(),
            is_swept: AtomicBool::new(false),
        }
    }

    /// Publishes everything, then removes packs without live data. In this order, every pack that the published index
    /// refers to exists at any moment: for a copy of the library, for verify, and for a read-only mount after a crash.
    pub fn collect(&self) -> Result<()> {
        self.log.requests().begin_publication();
        self.give_up_dead();
        if !self.log.may_collect() {
            return self.outbox.publish();
        }
        let condemns = self.condemn()?;
        let is_too_full = |e: &Error| e.is_no_space() && condemns;
        let published = self.outbox.publish().or_else(|e| {
            if !is_too_full(&e) {
                return Err(e);
            }
            // The reserve exists for work that frees space.
            self.log.view().store().reserve(0)?;
            self.outbox.publish()
        });
        match published {
            Err(e) if is_too_full(&e) => {
                log::warn!(
                    "disk full: deleting unreferenced packs before the index could be published: {e}"
                );
                // Sync at least: a crash could otherwise bring back a file whose contents were removed.
                self.log.sync()?;
            }
            published => published?,
        }
        self.remove_condemned()
    }

    /// Treats the unpublished packs of this mount without live data like failed ones: they are discarded, and never
    /// published.
    fn give_up_dead(&self) {
        let _barrier = self.log.block_pack_writers();
        let packs = self.log.new_packs();
        packs.fail_dead(|id| self.log.is_dead_unpublished(id));
    }

    /// Whether collection cannot wait for the next publication, because much data is dead, or little space is left.
    pub fn is_collection_urgent(&self) -> Result<bool> {
        const DEAD_BYTES_MAX: u64 = 256 << 20;
        const SPACE_BYTES_MIN: u64 = 1 << 30;
        if !self.log.has_dead_packs() {
            return Ok(false);
        }
        Ok(self.log.dead_bytes() >= DEAD_BYTES_MAX
            || self.log.view().store().space()?.available_bytes < SPACE_BYTES_MIN)
    }

    /// Records the condemnation of every published pack without live data. Returns whether any packs are to be removed.
    fn condemn(&self) -> Result<bool> {
        let _barrier = self.log.block_pack_writers();
        let unpublished = self.log.new_packs().finished();
        let dead = self.log.commit(|tree, transaction| {
            let dead = tree.packs().iter().filter(|p| is_dead(p)).map(|p| p.id);
            let dead: Vec<PackId> = dead
                .filter(|id| unpublished.iter().all(|u| u.pack != *id))
                .collect();
            if !dead.is_empty() {
                transaction.records.push(Record::Condemn(dead.clone()));
            }
            Ok(dead)
        })?;
        let mut condemned = self.condemned.lock();
        condemned.extend(dead);
        Ok(!condemned.is_empty())
    }

    /// Allocates the reserve again if there is enough free space.
    pub fn restore_reserve(&self) {
        let store = self.log.view().store();
        let free = store.space().map_or(0, |s| s.available_bytes);
        if free > 2 * RESERVE_BYTES
            && let Err(e) = store.reserve(RESERVE_BYTES)
        {
            log::debug!("no reserve: {e}");
        }
    }

    /// Whether the open segment is long or old enough to be published, or a write failed for lack of space.
    fn is_publication_due(&self) -> bool {
        let (is_full, changes) = {
            let journal = self.log.journal();
            (journal.is_full(), journal.changes())
        };
        let env = self.log.env();
        let is_late = changes.is_some_and(|(first, last)| {
            env.since(last) >= IDLE_PUBLISH || env.since(first) >= LATEST_PUBLISH
        });
        is_full
            || is_late
            || self.outbox.is_waiting()
            || self.log.requests().is_space_wanted() && self.log.has_dead_packs()
    }

    /// Removes packs whose condemnation is published, including those that earlier mounts have condemned but not
    /// removed.
    pub fn remove_condemned(&self) -> Result<()> {
        if self.is_swept.load(Ordering::Relaxed) && self.condemned.lock().is_empty()
            || !self.outbox.may_remove()?
        {
            return Ok(());
        }
        let mut condemned = self.condemned.lock();
        while let Some(id) = condemned.last() {
            self.log.view().packs().forget(*id);
            self.log.view().store().remove(Area::Data, id.object())?;
            condemned.pop();
        }
        drop(condemned);
        if self.is_swept.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.sweep()
    }

    /// Removes, once per mount, packs that were condemned and still exist, and packs of this device that no record
    /// refers to: a crash happened after the pack was published, but before the record was.
    fn sweep(&self) -> Result<()> {
        let unpublished = self.log.new_packs().finished();
        for (id, _) in self.log.view().store().list(Area::Data)? {
            let id = PackId(id);
            let info = self.log.view().tree().find_pack(id).copied();
            let garbage = match info {
                Some(info) => info.condemned && info.live_plain_bytes == 0,
                None => unpublished.iter().all(|u| u.pack != id) && self.is_own_pack(id),
            };
            if garbage {
                log::info!("data/{id}: nothing refers to it, removed");
                self.log.view().packs().forget(id);
                self.log.view().store().remove(Area::Data, id.object())?;
            }
        }
        Ok(())
    }

    /// Whether this device wrote a pack that no record refers to. False for files that are not packs of this library.
    pub fn is_own_pack(&self, id: PackId) -> bool {
        let object = match self.log.view().store().open(Area::Data, id.object()) {
            Ok(object) => object,
            Err(e) if matches!(e.kind(), Kind::Missing) => return false,
            Err(e) => {
                log::warn!("{e}; nothing refers to it, so it is ignored");
                return false;
            }
        };
        let trailer = PackReader::open(object.clone(), id, self.log.view().master())
            .and_then(|reader| reader.trailer());
        match (
            trailer,
            PackReader::copy_of(&object, id, self.log.view().master()),
        ) {
            (Ok(trailer), _) => return trailer.device == self.log.device(),
            (Err(_), Some(of)) => {
                log::warn!(
                    "data/{id}: is a copy of data/{of}, so it is ignored (it can be removed)"
                );
            }
            (Err(e), None) => log::warn!(
                "{e}; nothing refers to it, so it is ignored: if it belongs to the library, wait for the sync to finish"
            ),
        }
        false
    }
}

impl Task for Collector {
    fn is_due(&self) -> Result<bool> {
        Ok(self.log.requests().are_packs_due() || self.is_publication_due())
    }

    fn is_waiting(&self) -> bool {
        !self.log.journal().is_idle() || !self.log.new_packs().is_idle() || self.outbox.is_waiting()
    }

    /// Publishes full packs. If the open segment is due, or space is short, publishes it, too, and removes dead packs.
    fn run(&self, _go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        if !self.is_publication_due() {
            self.log.requests().begin_publication();
            self.outbox.publish_packs()?;
            if !self.is_collection_urgent()? {
                return Ok(());
            }
        }
        self.collect()?;
        self.restore_reserve();
        Ok(())
    }
}
