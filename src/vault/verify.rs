//! What reading all files does not look at: the ends of packs, and segments that a base makes superfluous.

use super::Vault;
use crate::error::{Error, Kind, Result};
use crate::index::{Published, SegmentExtent, SegmentReader};
use crate::object::{Area, PackId};
use crate::pack::PackReader;

impl Vault {
    /// Says what is wrong with the index, opens trailer and catalogue of every published pack, holds its length against the index, and opens all of the
    /// segments and bases that were not needed to open the library. `problem` hears of each object that does not hold.
    pub fn check_objects(&self, problem: &mut dyn FnMut(Error)) -> Result<()> {
        for text in self.view.problems() {
            problem(Error::from(Kind::RolledBack(text.as_str().into())));
        }
        for (id, cipher_len) in self.view.store().list(Area::Data)? {
            self.check_pack(PackId(id), cipher_len)
                .unwrap_or_else(&mut *problem);
        }
        let covered = self.upkeep.snapshots.superseded();
        for segment in &covered {
            self.check_covered(segment).unwrap_or_else(&mut *problem);
        }
        Ok(())
    }

    fn check_pack(&self, id: PackId, cipher_len: u64) -> Result<()> {
        let object = self.view.store().open(Area::Data, id.object())?;
        let name = object.name();
        let known = self.view.tree().find_pack(id).and_then(|p| p.cipher_len);
        if let Some(known) = known
            && u64::from(known) != cipher_len
        {
            let check = format_args!("it is {cipher_len} bytes long, and the index says {known}");
            return Err(Error::damaged(name, check));
        }
        if let Some(of) = PackReader::copy_of(&object, id, self.view.master()) {
            let is_there = self.view.store().open(Area::Data, of.object()).is_ok();
            let check = format!("it was written as data/{of}, which is not there: rename it");
            return match is_there {
                true => {
                    log::warn!(
                        "{name}: is a copy of data/{of}, and passed over (it can be removed)"
                    );
                    Ok(())
                }
                false => Err(Error::damaged(name, check)),
            };
        }
        // The catalogue is opened by the trailer.
        PackReader::open(object, id, self.view.master())?
            .catalogue()
            .map(drop)
    }

    fn check_covered(&self, segment: &Published) -> Result<()> {
        let object = self.view.store().open(Area::Index, segment.id.object())?;
        let reader = SegmentReader::open(
            object,
            segment.id,
            self.view.master(),
            SegmentExtent::Published,
        )?;
        let name = reader.name().to_owned();
        let ending = reader.frames(|_| Ok(()))?;
        let head = self.log.journal().index().head_of(segment.device);
        match head {
            Some(head) if head.number == segment.number && head.sha256 != ending.sha256 => Err(
                Error::damaged(name, "it is another segment than a base was made of"),
            ),
            _ => Ok(()),
        }
    }
}
