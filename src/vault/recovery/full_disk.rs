//! Adoption where the disk is full: room for it is made, and what lies in packs without an end stays where it is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Recovery;
use super::adopt::pack_of;
use super::judge::Judged;
use crate::crypto::Magic;
use crate::error::Result;
use crate::index::record::{Id, Record};
use crate::object::{Area, ObjectId, PackId};
use crate::pack::{Note, PackWriter, Run};

/// Whose a run is.
struct Owner {
    run: Run,
    inode: Id,
    plain_offset: u64,
    counter: u64,
}

/// The runs in a pack, by their places.
type Runs = BTreeMap<u32, Owner>;

impl Recovery<'_> {
    /// Where there is no room to adopt what a crash left: removes what is of no use, and gives packs that were not
    /// finished an end, so that nothing has to be copied out of them. Whether that was anything. Nothing is adopted
    /// with this tree.
    pub fn make_room(&self) -> Result<bool> {
        let Some(judged) = self.judge_leftovers()? else {
            return Ok(false);
        };
        self.show(&judged)?;
        let is_freed = self.log.may_collect() && self.remove_useless(&judged)?;
        match self.end_packs(&judged) {
            Err(e) if e.is_no_space() => Ok(is_freed),
            ended => Ok(ended? || is_freed),
        }
    }

    /// Bytes that adoption takes on a full disk, about: segments are copied.
    pub fn adoption_bytes(&self) -> u64 {
        /// The end of a pack, with its padding.
        const END_LEN: u64 = 2 << 20;
        let len = |id: &ObjectId| {
            let file = self.view().store().open_leftover(*id).ok()?;
            let mut magic = [0; 8];
            file.read_at(&mut magic, 0).ok()?;
            (&magic == Magic::Segment.bytes()).then(|| file.cipher_len().unwrap_or(0))
        };
        let left = self.view().store().leftovers().unwrap_or_default();
        left.iter().filter_map(len).sum::<u64>() + END_LEN
    }

    /// Removes published packs that nothing needs once what is left counts, what an adoption that was cut short
    /// published, and segments that a base covers.
    fn remove_useless(&self, judged: &Judged) -> Result<bool> {
        let named = judged.named(&judged.segments);
        let mut garbage = Vec::new();
        for (id, _) in self.view().store().list(Area::Data)? {
            let id = PackId(id);
            let info = self.view().tree().find_pack(id).copied();
            let is_garbage = match info {
                Some(info) => info.live_plain_bytes == 0,
                None => self.upkeep.collector.is_own_pack(id),
            };
            // What a frame names has to open for the frame to count, whatever became of it later.
            if is_garbage && !named.contains(&id) {
                garbage.push(id);
            }
        }
        let covers = !self.upkeep.snapshots.superseded().is_empty();
        if garbage.is_empty() && !covers {
            return Ok(false);
        }
        // Durable before: else a crash would bring back a name without contents.
        for id in self.needed(judged) {
            self.view().store().open_leftover(id)?.sync()?;
        }
        for id in &garbage {
            log::info!("data/{id}: nothing refers to it, removed");
            self.view().packs().forget(*id);
            self.view().store().remove(Area::Data, id.object())?;
        }
        self.upkeep.snapshots.remove_superseded()?;
        Ok(true)
    }

    /// Gives packs an end that have none, behind all that frames name that count: they are adopted as they are then.
    /// Whether there were any.
    fn end_packs(&self, judged: &Judged) -> Result<bool> {
        let mut all_runs = runs_of(judged)?;
        let left = &judged.left;
        let mut is_any = false;
        for (id, file) in &left.packs {
            let Some(runs) = all_runs.remove(id) else {
                continue;
            };
            if left.condemned.contains(id) {
                continue;
            }
            let paths: Vec<Vec<u8>> = {
                let tree = self.view().tree();
                let path = |owner: &Owner| tree.find_id(owner.inode).map(|ix| tree.path(ix));
                runs.values().map(|o| path(o).unwrap_or_default()).collect()
            };
            let notes = runs.values().zip(&paths).map(|(owner, path)| {
                let note = Note {
                    inode: owner.inode.0,
                    path,
                    plain_offset: owner.plain_offset,
                    counter: owner.counter,
                };
                (owner.run, note)
            });
            let file = file.clone();
            let notes: Vec<_> = notes.collect();
            let ended =
                PackWriter::end_leftover(file, self.view().master(), self.log.device(), &notes)?;
            ended.file.sync()?;
            is_any = true;
        }
        Ok(is_any)
    }
}

/// The runs that frames name that count, by their packs.
fn runs_of(judged: &Judged) -> Result<BTreeMap<PackId, Runs>> {
    let mut found: BTreeMap<PackId, Runs> = BTreeMap::new();
    let frames = judged.segments.iter().flat_map(|s| &s.frames);
    for (counter, record) in frames.flat_map(|f| f.records.iter().map(|r| (f.counter, r))) {
        let (inode, packs, splices) = match record {
            Record::Content(c) => (c.inode, &c.packs, &c.splices),
            Record::Relocate(r) => (r.inode, &r.packs, &r.splices),
            _ => continue,
        };
        for splice in splices {
            let Some(source) = splice.source else {
                continue;
            };
            let pack = pack_of(packs, source.pack)?;
            let run = Run {
                pack,
                cipher_offset: source.cipher_offset,
                plain_len: source.run_len,
            };
            let owner = Owner {
                run,
                inode,
                plain_offset: splice.plain_offset.saturating_sub(source.start.into()),
                counter,
            };
            match found.entry(pack).or_default().entry(run.cipher_offset) {
                Entry::Vacant(vacant) => {
                    vacant.insert(owner);
                }
                // Two that adjoin may be named as one.
                Entry::Occupied(mut known) => {
                    let known = &mut known.get_mut().run;
                    known.plain_len = known.plain_len.max(run.plain_len);
                }
            }
        }
    }
    Ok(found)
}
