//! Adoption on a full disk: frees space, and gives unfinished packs a trailer in place, so that their data is not
//! copied.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Recovery;
use super::adopt::pack_of;
use super::judge::JudgedRemains;
use crate::crypto::Magic;
use crate::error::Result;
use crate::index::record::{Id, Record};
use crate::object::{Area, ObjectId, PackId};
use crate::pack::{Note, PackWriter, Run};

/// A run, and the file that it belongs to.
struct Owner {
    run: Run,
    inode: Id,
    plain_offset: u64,
    counter: u64,
}

/// The runs in a pack, by their offsets.
type Runs = BTreeMap<u32, Owner>;

impl Recovery<'_> {
    /// Called if there is no free space to adopt what a crash left: removes files that are of no use, and gives
    /// unfinished packs a trailer, so that nothing has to be copied out of them. Returns whether that changed anything.
    /// The tree must not be used for adoption afterwards.
    pub fn free_space(&self) -> Result<bool> {
        let Some(judged) = self.judge_leftovers()? else {
            return Ok(false);
        };
        self.show(&judged)?;
        let is_freed = self.log.may_collect() && self.remove_unneeded(&judged)?;
        match self.finish_packs(&judged) {
            Err(e) if e.is_no_space() => Ok(is_freed),
            finished => Ok(finished? || is_freed),
        }
    }

    /// The approximate number of bytes that adoption takes on a full disk, where it copies segments only.
    pub fn adoption_bytes(&self) -> u64 {
        /// Catalogue and trailer of a pack, with padding.
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

    /// Removes published packs that are not needed once the leftovers are applied, packs that an interrupted adoption
    /// published, and superseded segments. Returns whether there were any.
    fn remove_unneeded(&self, judged: &JudgedRemains) -> Result<bool> {
        let referenced = judged.referenced_packs(&judged.segments);
        let mut garbage = Vec::new();
        for (id, _) in self.view().store().list(Area::Data)? {
            let id = PackId(id);
            let info = self.view().tree().find_pack(id).copied();
            let is_garbage = match info {
                Some(info) => info.live_plain_bytes == 0,
                None => self.upkeep.collector.is_own_pack(id),
            };
            // A frame is valid only if all packs that it refers to can be read, even if a later frame deletes the data.
            if is_garbage && !referenced.contains(&id) {
                garbage.push(id);
            }
        }
        let has_superseded = !self.upkeep.snapshots.superseded().is_empty();
        if garbage.is_empty() && !has_superseded {
            return Ok(false);
        }
        // Sync first: a crash could otherwise bring back a file whose contents were removed.
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

    /// Gives unfinished packs a catalogue and a trailer after the last run that a valid frame refers to, so that they
    /// are adopted in place. Returns whether there were any.
    fn finish_packs(&self, judged: &JudgedRemains) -> Result<bool> {
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

/// The runs that valid frames refer to, by pack.
fn runs_of(judged: &JudgedRemains) -> Result<BTreeMap<PackId, Runs>> {
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
                // Records may refer to two adjacent runs as one.
                Entry::Occupied(mut known) => {
                    let known = &mut known.get_mut().run;
                    known.plain_len = known.plain_len.max(run.plain_len);
                }
            }
        }
    }
    Ok(found)
}
