//! Collection: publishing what is due, and removing packs in which nothing is live.

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

/// A segment is published so long after its last change.
const IDLE_PUBLISH: Duration = Duration::from_secs(30);
/// A segment is published so long after its first change.
const LATEST_PUBLISH: Duration = Duration::from_secs(300);

/// Owns which packs may be removed once the index that says so is published. Does not own the decision what is dead: the
/// tree has it.
pub(in crate::vault) struct Collector {
    log: Arc<Log>,
    outbox: Arc<Outbox>,
    /// Packs whose condemnation is recorded.
    condemned: Mutex<Vec<PackId>>,
    /// This mount has removed the packs that earlier mounts had condemned.
    is_swept: AtomicBool,
}

impl Collector {
    /// Nothing is condemned.
    pub fn new(log: Arc<Log>, outbox: Arc<Outbox>) -> Self {
        Self {
            log,
            outbox,
            condemned: Mutex::default(),
            is_swept: AtomicBool::new(false),
        }
    }

    /// Publishes everything, and removes packs without a live byte. In this order: a pack that the published
    /// index names is there, for who copies the library, verifies it, or mounts it read-only after a crash.
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
            // The reserve is for what makes room.
            self.log.view().store().reserve(0)?;
            self.outbox.publish()
        });
        match published {
            Err(e) if is_too_full(&e) => {
                log::warn!(
                    "disk full: deleting unreferenced packs before the index could be published: {e}"
                );
                // Durable at least: else a crash would bring back a name without contents.
                self.log.sync()?;
            }
            published => published?,
        }
        self.remove_condemned()
    }

    /// Has the packs of this mount without a live byte that are not published treated like those that failed: they are
    /// discarded, and never published.
    fn give_up_dead(&self) {
        let _barrier = self.log.block_pack_writers();
        let packs = self.log.new_packs();
        packs.fail_dead(|id| self.log.is_dead_unpublished(id));
    }

    /// Whether so much is dead, or so little space is left, that it cannot wait for the next publication.
    pub fn is_collection_urgent(&self) -> Result<bool> {
        const DEAD_BYTES_MAX: u64 = 256 << 20;
        const SPACE_BYTES_MIN: u64 = 1 << 30;
        if !self.log.has_dead_packs() {
            return Ok(false);
        }
        Ok(self.log.dead_bytes() >= DEAD_BYTES_MAX
            || self.log.view().store().space()?.available_bytes < SPACE_BYTES_MIN)
    }

    /// Records the condemnation of every published pack without a live byte; whether packs wait to be removed.
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

    /// Holds the reserve again, once there is room for it.
    pub fn restore_reserve(&self) {
        let store = self.log.view().store();
        let free = store.space().map_or(0, |s| s.available_bytes);
        if free > 2 * RESERVE_BYTES
            && let Err(e) = store.reserve(RESERVE_BYTES)
        {
            log::debug!("no reserve: {e}");
        }
    }

    /// Whether the open segment is long or old enough to be published, or somebody could not write for want of space.
    fn is_publication_due(&self) -> bool {
        let (is_full, changes) = {
            let journal = self.log.journal();
            (journal.is_full(), journal.changes())
        };
        let env = self.log.env();
        let is_late = changes.is_some_and(|(first, last)| {
            env.since(last) >= IDLE_PUBLISH || env.since(first) >= LATEST_PUBLISH
        });
        is_full || is_late || self.log.requests().is_space_wanted() && self.log.has_dead_packs()
    }

    /// Removes packs whose condemnation is published, and what earlier mounts left of such.
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

    /// Once a mount: packs that were condemned and are still there, and packs of this device that no record names
    /// (a crash came between their publication and the record's).
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

    /// Whether this device wrote a pack that no record names. What is no pack of this library is passed over.
    pub fn is_own_pack(&self, id: PackId) -> bool {
        let object = match self.log.view().store().open(Area::Data, id.object()) {
            Ok(object) => object,
            Err(e) if matches!(e.kind(), Kind::Missing) => return false,
            Err(e) => {
                log::warn!("{e}; nothing refers to it, and it is passed over");
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
                    "data/{id}: is a copy of data/{of}, and passed over (it can be removed)"
                );
            }
            (Err(e), None) => log::warn!(
                "{e}; nothing refers to it, and it is passed over: if it is the library's, wait for the sync to finish"
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
        !self.log.journal().is_idle() || !self.log.new_packs().is_idle()
    }

    /// Publishes the packs that are full, and where the open segment is due, or space is short, that one too.
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
