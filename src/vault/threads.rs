//! What begins with a mount that writes.

use std::sync::Arc;

use super::commit::Committer;
use super::stream::Streamer;
use super::{Core, Options};
use crate::error::Result;
use crate::object::SegmentId;

/// Leftovers that were adopted, each with the segment that is there in its stead.
pub(super) type Adopted = Vec<(SegmentId, SegmentId)>;

/// What works beside the requests in a mount that writes.
pub(super) struct Threads {
    pub streamer: Streamer,
    pub committer: Committer,
}

impl Threads {
    /// Adopts what a crash left, and goes to work.
    pub fn start(
        core: &Arc<Core>,
        options: &Options,
        adopted: &[(SegmentId, SegmentId)],
    ) -> Result<Self> {
        // What was kept back, a crash has left: adoption takes room.
        core.view.store().reserve(0)?;
        let former = core.take_over_former()?;
        core.adopt_leftovers(options.accept_rollback, adopted)
            .map_err(|e| match e.is_no_space() {
                true => e.hint(format_args!(
                    "make room: {} MiB are needed to take over what the last mount left. Nothing is lost, and \
                     --read-only shows all of it meanwhile",
                    core.adoption_bytes().div_ceil(1 << 20)
                )),
                false => e,
            })?;
        if former.is_some() {
            core.memory.forget_former();
        }
        core.settle_conflicts()?;
        match core.remember() {
            // It may lie on the same disk.
            Err(e) if e.is_no_space() => log::warn!("{e}"),
            remembered => remembered?,
        }
        let threads = Self {
            streamer: Streamer::start(core.clone())?,
            committer: Committer::start(core.clone())?,
        };
        core.restore_reserve();
        core.store_numbers();
        Ok(threads)
    }
}
