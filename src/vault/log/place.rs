//! Whether the library is still where the next mount will look for it, and what is done where somebody meddled.

use std::collections::HashSet;

use super::Log;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, ObjectId, PackId, SegmentId};

impl Log {
    /// Asked before anybody is told that something is durable: an error where that would not be true.
    pub fn check_place(&self) -> Result<()> {
        self.look_after_place()?.map_or(Ok(()), Err)
    }

    /// See [`Staging::check_place`](crate::store::Staging::check_place). Answers what is gone for good or has to be written
    /// anew, where the mount goes on nevertheless.
    pub fn look_after_place(&self) -> Result<Option<Error>> {
        let mut gone = None;
        for area in self.view.store().check_place()? {
            let checked = match area {
                Area::Index => self.check_index(),
                Area::Data => self.check_data(),
                Area::Key => self.check_slots(),
            };
            if let Err(e) = checked {
                log::error!("{e}");
                gone = gone.or(Some(e));
            }
        }
        Ok(gone)
    }

    /// After a publication: whether what was published lately is still there. Whoever mirrors an older copy over the
    /// library removes just that.
    pub fn check_published(&self) {
        const LOOKED_AT: usize = 8;
        let newest = self.journal().index().newest(LOOKED_AT);
        let is_gone = |id: &SegmentId| {
            let opened = self.view.store().open(Area::Index, id.object());
            opened.is_err_and(|e| matches!(e.kind(), Kind::Missing))
        };
        if newest.iter().any(is_gone)
            && let Err(e) = self.check_index()
        {
            log::error!("{e}");
        }
    }

    /// Where segments are gone that were there, the index is written anew: the tree has all that they said.
    fn check_index(&self) -> Result<()> {
        let there = self.there(Area::Index)?;
        let gone = self.journal().index_mut().find_lost(&there);
        if gone == 0 {
            return Ok(());
        }
        self.requests.changed();
        let what = format!("{gone} files were removed from it while the library is mounted");
        Err(Error::new(Kind::Displaced(what.into()), "index")
            .hint("the index is being written anew: sync again, or unmount"))
    }

    /// Where packs are gone, whoever has them can only be told.
    fn check_data(&self) -> Result<()> {
        let there = self.there(Area::Data)?;
        let unpublished: HashSet<PackId> = {
            let finished = self.new_packs.finished();
            finished.iter().map(|p| p.pack).collect()
        };
        let gone = {
            let tree = self.view.tree();
            let published = tree.packs().iter().filter(|p| {
                p.cipher_len.is_some() && p.live_plain_bytes > 0 && !unpublished.contains(&p.id)
            });
            published
                .filter(|p| !there.contains(&p.id.object()))
                .count()
        };
        if gone == 0 {
            log::warn!(
                "data: was replaced by another folder with the same packs, which is used now"
            );
            return Ok(());
        }
        let what =
            format!("was replaced by another folder while it is mounted, which lacks {gone} packs");
        Err(Error::new(Kind::Displaced(what.into()), "data").hint(
            "put them back from where they were moved, or from a copy; `hushfs verify` names what is missing",
        ))
    }

    /// Where slots are gone, whoever needs them can only be told.
    fn check_slots(&self) -> Result<()> {
        let there = self.there(Area::Key)?;
        let known = self.journal().index().slots().0.to_vec();
        let gone = known
            .iter()
            .filter(|id| !there.contains(&id.object()))
            .count();
        if gone == 0 {
            return Ok(());
        }
        if !there.is_empty() {
            log::warn!(
                "key: was replaced by another folder while it is mounted, which lacks {gone} of the {} slots",
                known.len()
            );
            return Ok(());
        }
        let what = "was removed or renamed while it is mounted: no password and no key file opens the library";
        Err(Error::new(Kind::Displaced(what.into()), "key")
            .hint("put it back, or add a password with `hushfs key add --recovery`"))
    }

    fn there(&self, area: Area) -> Result<HashSet<ObjectId>> {
        Ok(self
            .view
            .store()
            .list(area)?
            .into_iter()
            .map(|(id, _)| id)
            .collect())
    }
}
