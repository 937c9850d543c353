//! Collection: removing packs in which nothing is live, and segments that a base covers.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Core;
use crate::error::{Kind, Result};
use crate::index::record::Record;
use crate::index::{PackInfo, Published};
use crate::object::{Area, PackId};
use crate::pack::PackReader;

/// What may be removed once the index that says so is published. Does not own the decision what is garbage: the tree
/// has it.
pub(super) struct Garbage {
    /// Packs whose condemnation is framed.
    condemned: Mutex<Vec<PackId>>,
    /// Segments that the newest base covers.
    covered: Mutex<Vec<Published>>,
    /// What earlier mounts left to be removed, is.
    is_swept: AtomicBool,
}

impl Garbage {
    /// Segments that a base covers.
    pub fn new(covered: Vec<Published>) -> Self {
        Self {
            condemned: Mutex::default(),
            covered: Mutex::new(covered),
            is_swept: AtomicBool::new(false),
        }
    }

    /// Segments that a base covers by now.
    pub fn supersede(&self, covered: impl Iterator<Item = Published>) {
        self.covered.lock().extend(covered);
    }

    /// The segments that a base covers.
    pub fn covered(&self) -> Vec<Published> {
        self.covered.lock().clone()
    }
}

/// Whether a published pack has no use any more, and that is not recorded yet.
fn is_dead(pack: &PackInfo) -> bool {
    pack.cipher_len.is_some() && pack.live_plain_bytes == 0 && !pack.condemned
}

impl Core {
    /// Whether what was condemned may be removed: others are looked for again. After the condemnation is published, so
    /// that who comes later knows of it.
    fn may_remove(&self) -> Result<bool> {
        if self.may_collect() {
            self.look_for_others()?;
        }
        Ok(self.may_collect())
    }

    /// Only in a library that one device alone writes to: the others' view is not known.
    pub(super) fn may_collect(&self) -> bool {
        !self.others.are_there() && !self.view.has_gaps() && self.writable().is_ok()
    }

    /// Publishes all that there is, and removes packs without a live byte. In this order: a pack that the published
    /// index names is there, for who copies the library, verifies it, or mounts it read-only after a crash.
    pub(super) fn collect(&self) -> Result<()> {
        self.give_up_dead();
        if !self.may_collect() {
            return self.publish();
        }
        let condemns = self.condemn()?;
        match self.publish() {
            Err(e) if e.is_no_space() && condemns => {
                log::warn!(
                    "there is no room to publish the index, so what was removed makes room before: {e}"
                );
                // Durable at least: else a crash would bring back a name without contents.
                self.sync()?;
            }
            published => published?,
        }
        self.remove_condemned()
    }

    /// Has the packs of this mount without a live byte that are not published treated like those that failed: they are
    /// discarded, and never published.
    fn give_up_dead(&self) {
        // No flush is between sealing into a pack and framing what it sealed.
        let _sealing = self.sealing.write();
        self.contents.give_up(|id| self.is_dead_unpublished(id));
    }

    /// Whether nothing is live in a pack that is not published, and no record says how long it is: what a closed segment
    /// records is published with that.
    fn is_dead_unpublished(&self, id: PackId) -> bool {
        let tree = self.view.tree();
        tree.find_pack(id)
            .is_some_and(|p| p.live_plain_bytes == 0 && p.cipher_len.is_none())
    }

    /// Whether so much is dead, or so little room is left, that it cannot wait for the next publication.
    pub(super) fn is_room_wanted(&self) -> Result<bool> {
        const DEAD_BYTES_MAX: u64 = 256 << 20;
        const ROOM_BYTES_MIN: u64 = 1 << 30;
        if !self.is_any_dead() {
            return Ok(false);
        }
        Ok(self.dead_bytes() >= DEAD_BYTES_MAX
            || self.view.store().space()?.available_bytes < ROOM_BYTES_MIN)
    }

    /// Whether collection would remove a pack.
    pub(super) fn is_any_dead(&self) -> bool {
        self.dead_bytes() > 0
            || self
                .contents
                .unpublished_any(|id| self.is_dead_unpublished(id))
    }

    /// Bytes of published packs that may be collected.
    fn dead_bytes(&self) -> u64 {
        if !self.may_collect() {
            return 0;
        }
        let tree = self.view.tree();
        let dead = tree.packs().iter().filter(|p| is_dead(p));
        dead.filter_map(|p| p.cipher_len).map(u64::from).sum()
    }

    /// Frames the condemnation of every published pack without a live byte; whether packs wait to be removed.
    pub(super) fn condemn(&self) -> Result<bool> {
        // No flush is between sealing into a pack and framing what it sealed.
        let _sealing = self.sealing.write();
        let unpublished = self.contents.finished();
        let dead = self.transact(|tree, draft| {
            let dead = tree.packs().iter().filter(|p| is_dead(p)).map(|p| p.id);
            let dead: Vec<PackId> = dead
                .filter(|id| unpublished.iter().all(|u| u.pack != *id))
                .collect();
            if !dead.is_empty() {
                draft.records.push(Record::Condemn(dead.clone()));
            }
            Ok(dead)
        })?;
        let mut condemned = self.garbage.condemned.lock();
        condemned.extend(dead);
        Ok(!condemned.is_empty())
    }

    /// Removes packs whose condemnation is published, and what earlier mounts left of such.
    pub(super) fn remove_condemned(&self) -> Result<()> {
        if self.garbage.is_swept.load(Ordering::Relaxed) && self.garbage.condemned.lock().is_empty()
            || !self.may_remove()?
        {
            return Ok(());
        }
        let mut condemned = self.garbage.condemned.lock();
        while let Some(id) = condemned.last() {
            self.view.packs().forget(*id);
            self.view.store().remove(Area::Data, id.object())?;
            condemned.pop();
        }
        drop(condemned);
        if self.garbage.is_swept.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.sweep()
    }

    /// Removes segments that the base makes superfluous.
    pub(super) fn remove_covered(&self) -> Result<()> {
        if self.garbage.covered.lock().is_empty() || !self.may_remove()? {
            return Ok(());
        }
        let covered = std::mem::take(&mut *self.garbage.covered.lock());
        covered
            .iter()
            .try_for_each(|segment| self.view.store().remove(Area::Index, segment.id.object()))
    }

    /// Once a mount: packs that were condemned and are still there, and packs of this device that no record names
    /// (a crash came between their publication and the record's).
    fn sweep(&self) -> Result<()> {
        let unpublished = self.contents.finished();
        for (id, _) in self.view.store().list(Area::Data)? {
            let id = PackId(id);
            let info = self.view.tree().find_pack(id).copied();
            let garbage = match info {
                Some(info) => info.condemned && info.live_plain_bytes == 0,
                None => unpublished.iter().all(|u| u.pack != id) && self.is_own_pack(id),
            };
            if garbage {
                log::info!("data/{id}: nothing refers to it, removed");
                self.view.packs().forget(id);
                self.view.store().remove(Area::Data, id.object())?;
            }
        }
        Ok(())
    }

    /// Whether this device wrote a pack that no record names. What is no pack of this library is passed over.
    pub(super) fn is_own_pack(&self, id: PackId) -> bool {
        let object = match self.view.store().open(Area::Data, id.object()) {
            Ok(object) => object,
            Err(e) if matches!(e.kind(), Kind::Missing) => return false,
            Err(e) => {
                log::warn!("{e}; nothing refers to it, and it is passed over");
                return false;
            }
        };
        let trailer = PackReader::open(object.clone(), id, self.view.master())
            .and_then(|reader| reader.trailer());
        match (
            trailer,
            PackReader::copy_of(&object, id, self.view.master()),
        ) {
            (Ok(trailer), _) => return trailer.device == self.device,
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
