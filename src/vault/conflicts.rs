//! What several devices wrote beside each other: merged when a library is opened, and settled before anybody sees it.

use std::collections::HashSet;

use super::log::Log;
use crate::error::{Error, Result};
use crate::index::record::{Frame, Id, Record};
use crate::index::{Settling, Tree};

/// What was warned of: a mount that reads its index again settles the same conflicts each time.
#[derive(Default)]
pub(super) struct Told {
    conflicts: HashSet<Id>,
    lost: usize,
}

/// Settles what a merge left in conflict, and records it, before anything is made on top.
pub(super) fn settle(log: &Log) -> Result<()> {
    let mut told = Told::default();
    loop {
        let step = log.view().tree_mut().settle();
        let Some(step) = step else { break };
        told.note(&step);
        let mut journal = log.journal();
        journal.append((log.view(), log.gate()), step.wall, step.records)?;
        drop(journal);
        log.requests().changed();
    }
    told.end(&mut log.view().tree_mut(), 0);
    Ok(())
}

/// The same for a mount that only reads: the tree alone changes, which nobody sees yet.
pub(super) fn settle_in_memory(tree: &mut Tree, told: &mut Told) -> Result<()> {
    let before = told.conflicts.len();
    while let Some(step) = tree.settle() {
        told.note(&step);
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
    told.end(tree, before);
    Ok(())
}

impl Told {
    /// How many conflicts there were so far.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.conflicts.len()
    }

    /// Notes what a step gives a name for a conflict.
    fn note(&mut self, step: &Settling) {
        let Some(name) = &step.conflict else { return };
        for record in &step.records {
            if let Record::Link(link) = record
                && self.conflicts.insert(link.link)
            {
                log::debug!("conflict: {}", name.escape_ascii());
            }
        }
    }

    /// Ends the settling, and says what came of it that was not said before.
    fn end(&mut self, tree: &mut Tree, before: usize) {
        let count = self.conflicts.len() - before;
        if count > 0 {
            log::warn!(
                "{count} files or folders were changed on two devices beside each other: both are there, one of each as \
                 \"NAME (conflict, DEVICE, DATE)\""
            );
        }
        let lost = tree.settled();
        if lost > std::mem::replace(&mut self.lost, lost) {
            log::warn!(
                "{lost} files that another device changed were removed here meanwhile: these changes have no file"
            );
        }
    }
}
