//! Recovery: makes the files that an unclean shutdown left in this device's `new/` folder part of the library.
//!
//! `scan` classifies the files, `judge` decides which frames are valid (a pure function of the frames), `adopt` writes
//! the valid ones through the log and publishes them through the outbox, and `full_disk` frees space if there is too
//! little for that. Owns nothing once it has ended; nothing else writes while it runs.

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

/// Segments that an earlier recovery has adopted, each with the published segment that replaces it.
pub(super) type Adopted = Vec<(SegmentId, SegmentId)>;

/// Recovery of one library, before anything else works on it.
pub(super) struct Recovery<'a> {
    log: &'a Log,
    outbox: &'a Outbox,
    upkeep: &'a Upkeep,
    /// Damaged data is discarded, and segments that depend on missing ones are applied.
    accept: bool,
    adopted: &'a [(SegmentId, SegmentId)],
}

impl<'a> Recovery<'a> {
    /// Recovery of the library that `log`, `outbox` and `upkeep` belong to.
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

    /// Adopts the leftovers, settles conflicts between devices, and remembers the new heads.
    ///
    /// # Errors Durable data is damaged, or there is no free space. Nothing is lost then; files in `new/` that are of
    /// no use may have been removed.
    pub fn run(&self) -> Result<()> {
        // A crash may have left the reserve file: recovery needs its space.
        self.view().store().reserve(0)?;
        let former = self.outbox.take_over_former()?;
        self.adopt_leftovers().map_err(|e| match e.is_no_space() {
            true => e.hint(format_args!(
                "free {} MiB to recover the changes that the last mount left; nothing is lost, and --read-only shows \
                 them until then",
                self.adoption_bytes().div_ceil(1 << 20)
            )),
            false => e,
        })?;
        if former.is_some() {
            self.outbox.memory().forget_former();
        }
        conflicts::settle(self.log)?;
        match self.outbox.remember() {
            // The state file may be on the same full disk.
            Err(e) if e.is_no_space() => log::warn!("{e}"),
            remembered => remembered?,
        }
        Ok(())
    }

    /// Called after `count` segments were adopted. If several devices write, these segments are concurrent with others
    /// in the index, so the whole index is replayed, with each segment in its place.
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
