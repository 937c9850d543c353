//! Collection: removing packs in which nothing is live, and segments that a base covers.

use std::sync::atomic::Ordering;

use super::Core;
use crate::error::Result;
use crate::index::PackInfo;
use crate::index::record::Record;
use crate::pack::{PackId, PackReader};
use crate::store::Area;

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
    fn may_collect(&self) -> bool {
        !self.shared.load(Ordering::Relaxed) && !self.has_gaps && self.writable().is_ok()
    }

    /// Publishes all that there is, and removes packs without a live byte. In this order: a pack that the published
    /// index names is there, for who copies the library, verifies it, or mounts it read-only after a crash.
    pub(super) fn collect(&self) -> Result<()> {
        if !self.may_collect() {
            return self.publish();
        }
        let condemns = self.condemn()?;
        match self.publish() {
            Err(e) if e.is_no_space() && condemns && self.is_room_low()? => {
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

    /// Whether so much is dead, or so little room is left, that it cannot wait for the next publication.
    pub(super) fn is_room_wanted(&self) -> Result<bool> {
        const DEAD_BYTES_MAX: u64 = 256 << 20;
        let dead_bytes: u64 = {
            let tree = self.tree.read();
            let dead = tree.packs().iter().filter(|p| is_dead(p));
            dead.filter_map(|p| p.cipher_len).map(u64::from).sum()
        };
        if dead_bytes == 0 || !self.may_collect() {
            return Ok(false);
        }
        Ok(dead_bytes >= DEAD_BYTES_MAX || self.is_room_low()?)
    }

    fn is_room_low(&self) -> Result<bool> {
        const ROOM_BYTES_MIN: u64 = 1 << 30;
        Ok(self.store.space()?.available_bytes < ROOM_BYTES_MIN)
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
        let mut condemned = self.condemned.lock();
        condemned.extend(dead);
        Ok(!condemned.is_empty())
    }

    /// Removes packs whose condemnation is published, and what earlier mounts left of such.
    pub(super) fn remove_condemned(&self) -> Result<()> {
        if self.swept.load(Ordering::Relaxed) && self.condemned.lock().is_empty()
            || !self.may_remove()?
        {
            return Ok(());
        }
        let mut condemned = self.condemned.lock();
        let makes_room = !condemned.is_empty();
        while let Some(id) = condemned.last() {
            self.packs.forget(*id);
            self.store.remove(Area::Data, *id)?;
            condemned.pop();
        }
        drop(condemned);
        if makes_room {
            self.restore_reserve();
        }
        match self.swept.swap(true, Ordering::Relaxed) {
            true => Ok(()),
            false => self.sweep(),
        }
    }

    /// Removes segments that the base makes superfluous.
    pub(super) fn remove_covered(&self) -> Result<()> {
        if self.covered.lock().is_empty() || !self.may_remove()? {
            return Ok(());
        }
        let covered = std::mem::take(&mut *self.covered.lock());
        covered
            .iter()
            .try_for_each(|segment| self.store.remove(Area::Index, segment.id))
    }

    /// Once a mount: packs that were condemned and are still there, and packs of this device that no record names
    /// (a crash came between their publication and the record's).
    fn sweep(&self) -> Result<()> {
        let unpublished = self.contents.finished();
        for (id, _) in self.store.list(Area::Data)? {
            let info = self.tree.read().find_pack(id).copied();
            let garbage = match info {
                Some(info) => info.condemned && info.live_plain_bytes == 0,
                None => unpublished.iter().all(|u| u.pack != id) && self.is_own_pack(id),
            };
            if garbage {
                log::info!("data/{id}: nothing refers to it, removed");
                self.packs.forget(id);
                self.store.remove(Area::Data, id)?;
            }
        }
        Ok(())
    }

    fn is_own_pack(&self, id: PackId) -> bool {
        let trailer = self
            .store
            .open(Area::Data, id)
            .and_then(|object| PackReader::open(object, id, &self.master));
        trailer
            .and_then(|reader| reader.trailer())
            .is_ok_and(|trailer| trailer.device == self.device)
    }
}
