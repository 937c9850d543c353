//! Concurrent changes of several devices: they are merged when a library is opened, and conflicts are settled before
//! the tree is used.

use std::collections::HashSet;

use super::log::Log;
use crate::error::{Error, Result};
use crate::index::record::{Frame, Id, Record};
use crate::index::{Settling, Tree};

/// The conflicts that were reported already. A mount that rereads its index settles the same conflicts each time.
#[derive(Default)]
pub(super) struct ReportedConflicts {
    conflicts: HashSet<Id>,
    lost: usize,
}

/// Settles the conflicts that a merge left, and records how, before any other change.
pub(super) fn settle(log: &Log) -> Result<()> {
    let mut reported = ReportedConflicts::default();
    loop {
        let step = log.view().tree_mut().settle();
        let Some(step) = step else { break };
        reported.record(&step);
        let mut journal = log.journal();
        journal.append((log.view(), log.gate()), step.wall, step.records)?;
        drop(journal);
        log.requests().changed();
    }
    reported.finish(&mut log.view().tree_mut(), 0);
    Ok(())
}

/// Settles the conflicts that a merge left in a read-only mount: only `tree` changes, which must not be in use yet.
pub(super) fn settle_in_memory(tree: &mut Tree, reported: &mut ReportedConflicts) -> Result<()> {
    let before = reported.conflicts.len();
    while let Some(step) = tree.settle() {
        reported.record(&step);
        let frame = Frame {
            counter: tree.next_counter(),
            wall: step.wall,
            durable_before: false,
            records: step.records,
        };
        let applied = tree.apply_frame(0, &frame);
        applied.map_err(|why| Error::damaged("index", why))?;
        tree.drop_removed(&frame.records);
    }
    reported.finish(tree, before);
    Ok(())
}

impl ReportedConflicts {
    /// The number of conflicts so far.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.conflicts.len()
    }

    /// Records the links that a step renames because of a conflict.
    fn record(&mut self, step: &Settling) {
        let Some(name) = &step.conflict else { return };
        for record in &step.records {
            if let Record::Link(link) = record
                && self.conflicts.insert(link.link)
            {
                log::debug!("conflict: {}", name.escape_ascii());
            }
        }
    }

    /// Ends the settling, and logs the conflicts that were not reported before. `before` is the number of those that
    /// were.
    fn finish(&mut self, tree: &mut Tree, before: usize) {
        let count = self.conflicts.len() - before;
        if count > 0 {
            log::warn!(
                "{count} files or folders were changed on two devices at the same time: both versions are kept, one of \
                 each as \"NAME (conflict, DEVICE, DATE)\""
            );
        }
        let lost = tree.settled();
        if lost > std::mem::replace(&mut self.lost, lost) {
            log::warn!(
                "{lost} files were changed on another device and removed here at the same time: these changes could \
                 not be applied"
            );
        }
    }
}
