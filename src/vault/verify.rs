//! Checks beyond reading all files: catalogues and trailers of packs, and superseded segments.

use super::Vault;
use crate::error::{Error, Kind, Result};
use crate::index::{SegmentInfo, SegmentReader, SegmentState};
use crate::object::{Area, PackId};
use crate::pack::PackReader;

impl Vault {
    /// Checks trailer, catalogue and length of every published pack, and decrypts all segments and snapshots that were
    /// not needed to open the library. Calls `problem` for each damaged object, and for each known problem of the
    /// index.
    pub fn check_objects(&self, problem: &mut dyn FnMut(Error)) -> Result<()> {
        for text in self.view.problems() {
            problem(Error::from(Kind::RolledBack(text.as_str().into())));
        }
        for (id, cipher_len) in self.view.store().list(Area::Data)? {
            self.check_pack(PackId(id), cipher_len)
                .unwrap_or_else(&mut *problem);
        }
        for segment in &self.upkeep.snapshots.superseded() {
            self.check_superseded(segment).unwrap_or_else(&mut *problem);
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
            let check = format_args!("it is {cipher_len} bytes long, but the index says {known}");
            return Err(Error::damaged(name, check));
        }
        if let Some(of) = PackReader::copy_of(&object, id, self.view.master()) {
            let is_there = self.view.store().open(Area::Data, of.object()).is_ok();
            let check = format!("it was written as data/{of}, which is not there: rename it");
            return match is_there {
                true => {
                    log::warn!(
                        "{name}: is a copy of data/{of}, so it is ignored (it can be removed)"
                    );
                    Ok(())
                }
                false => Err(Error::damaged(name, check)),
            };
        }
        // Reading the catalogue also checks the trailer.
        PackReader::open(object, id, self.view.master())?
            .catalogue()
            .map(drop)
    }

    fn check_superseded(&self, segment: &SegmentInfo) -> Result<()> {
        let object = self.view.store().open(Area::Index, segment.id.object())?;
        let reader = SegmentReader::open(
            object,
            segment.id,
            self.view.master(),
            SegmentState::Published,
        )?;
        let name = reader.name().to_owned();
        let ending = reader.frames(|_| Ok(()))?;
        let head = self.log.journal().index().head_of(segment.device);
        match head {
            Some(head) if head.number == segment.number && head.sha256 != ending.sha256 => {
                Err(Error::damaged(
                    name,
                    "it is not the segment that the snapshot was made from",
                ))
            }
            _ => Ok(()),
        }
    }
}
