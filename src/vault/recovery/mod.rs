//! Recovery: what an unclean shutdown left in this device's `new/` folder becomes part of the library.
//!
//! `scan` says which files are what, `judge` how much of them counts (a pure function of the frames), `adopt` writes what
//! counts through the log and publishes it by the outbox, and `full_disk` makes room where there is none for that.
//! Owns nothing once it has ended; nothing else writes while it runs.

use crate::error::Result;
use crate::index::{Tree, replay};
use crate::object::SegmentId;
use crate::vault::conflicts;
use crate::vault::log::Log;
use crate::vault::outbox::Outbox;
use crate::vault::upkeep::Upkeep;
use crate::vault::view::View;

mod adopt;
mod full_disk;
mod judge;
mod scan;

/// Segments that an earlier recovery has adopted, each with the segment that was published in its stead.
pub(super) type Adopted = Vec<(SegmentId, SegmentId)>;

/// Recovery of one library, before anything else works on it.
pub(super) struct Recovery<'a> {
    log: &'a Log,
    outbox: &'a Outbox,
    upkeep: &'a Upkeep,
    /// Damaged data is given up, and segments are applied that were made on top of something that is missing.
    accept: bool,
    adopted: &'a [(SegmentId, SegmentId)],
}

impl<'a> Recovery<'a> {
    /// Of the library that these are of.
    pub fn new(
        (log, outbox, upkeep): (&'a Log, &'a Outbox, &'a Upkeep),
        accept: bool,
        adopted: &'a [(SegmentId, SegmentId)],
    ) -> Self {
        Self {
            log,
            outbox,
            upkeep,
            accept,
            adopted,
        }
    }

    fn view(&self) -> &View {
        self.log.view()
    }

    /// Adopts what was left, settles what several devices wrote at the same time, and remembers the new heads.
    ///
    /// # Errors
    /// Something that was durable is damaged; or there is no free space. Then nothing is lost, and less is left in `new/`
    /// where something was of no use.
    pub fn run(&self) -> Result<()> {
        // The reserve file may be left, too: recovery needs its space.
        self.view().store().reserve(0)?;
        let former = self.outbox.take_over_former()?;
        self.adopt_leftovers().map_err(|e| match e.is_no_space() {
            true => e.hint(format_args!(
                "free {} MiB for the recovery of what the last mount left; nothing is lost, and --read-only shows all of \
                 it meanwhile",
                self.adoption_bytes().div_ceil(1 << 20)
            )),
            false => e,
        })?;
        if former.is_some() {
            self.outbox.memory().forget_former();
        }
        conflicts::settle(self.log)?;
        match self.outbox.remember() {
            // It may be stored on the same disk.
            Err(e) if e.is_no_space() => log::warn!("{e}"),
            remembered => remembered?,
        }
        Ok(())
    }

    /// After `count` segments were adopted: where several devices write, these were written concurrently with what the index
    /// holds, so all of it is applied again, each in its place.
    fn merge_adopted(&self, count: usize) -> Result<()> {
        if count == 0 || !self.log.others().are_there() {
            return Ok(());
        }
        let view = self.view();
        let root = view.tree().attr(crate::index::ROOT_IX);
        let empty = || Tree::new(root.uid, root.gid, self.log.env().wall());
        let merged = replay(&**view.store(), view.master(), self.accept, empty)?;
        *view.tree_mut() = merged.tree;
        Ok(())
    }
}
