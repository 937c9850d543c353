//! Checks that the library is still where the next mount will look for it, and handles files removed by other programs.

use std::collections::HashSet;

use super::Log;
use crate::error::{Error, Kind, Result};
use crate::object::{Area, ObjectId, PackId, SegmentId};

impl Log {
    /// Called before data is reported as durable.
    ///
    /// # Errors
    /// Data that was synced would not be found by the next mount.
    pub fn check_place(&self) -> Result<()> {
        self.inspect_place()?.map_or(Ok(()), Err)
    }

    /// Runs [`Staging::check_place`](crate::store::Staging::check_place). Returns, as an error, the first thing that is
    /// missing or has to be rewritten, although the mount can continue.
    pub fn inspect_place(&self) -> Result<Option<Error>> {
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

    /// Called after a publication: checks that recently published segments still exist. Mirroring an older copy over
    /// the library removes exactly these.
    pub fn check_published(&self) {
        const CHECKED: usize = 8;
        let newest = self.journal().index().newest(CHECKED);
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

    /// If published segments are missing, has the index rewritten from the tree, which contains their effects.
    fn check_index(&self) -> Result<()> {
        let present = self.list_ids(Area::Index)?;
        let gone = self.journal().index_mut().find_lost(&present);
        if gone == 0 {
            return Ok(());
        }
        self.requests.changed();
        let what = format!("{gone} files were removed while the library is mounted");
        Err(Error::new(Kind::Displaced(what.into()), "index")
            .hint("the index is being rewritten: sync again, or unmount"))
    }

    /// Reports missing packs. Their contents cannot be restored from memory.
    fn check_data(&self) -> Result<()> {
        let present = self.list_ids(Area::Data)?;
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
                .filter(|p| !present.contains(&p.id.object()))
                .count()
        };
        if gone == 0 {
            log::warn!(
                "data: replaced by another folder with the same packs; continuing with that one"
            );
            return Ok(());
        }
        let what =
            format!("replaced while mounted by another folder, in which {gone} packs are missing");
        Err(Error::new(Kind::Displaced(what.into()), "data").hint(
            "move them back, or restore them from a copy; `hushfs verify` lists what is missing",
        ))
    }

    /// Reports missing slots. They cannot be restored without a password.
    fn check_slots(&self) -> Result<()> {
        let present = self.list_ids(Area::Key)?;
        let known = self.journal().index().slots().0.to_vec();
        let gone = known
            .iter()
            .filter(|id| !present.contains(&id.object()))
            .count();
        if gone == 0 {
            return Ok(());
        }
        if !present.is_empty() {
            log::warn!(
                "key: replaced while mounted by another folder, in which {gone} of the {} slots are missing",
                known.len()
            );
            return Ok(());
        }
        let what =
            "removed or renamed while mounted: no password and no key file can unlock the library";
        Err(Error::new(Kind::Displaced(what.into()), "key")
            .hint("restore it, or add a password with `hushfs key add --recovery`"))
    }

    fn list_ids(&self, area: Area) -> Result<HashSet<ObjectId>> {
        Ok(self
            .view
            .store()
            .list(area)?
            .into_iter()
            .map(|(id, _)| id)
            .collect())
    }
}
