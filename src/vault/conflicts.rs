//! What several devices wrote beside each other: merged when a library is opened, and settled before anybody sees it.

use super::Core;
use crate::error::{Error, Result};
use crate::index::record::Frame;
use crate::index::{Settling, Tree, replay};
use crate::volume::Time;

impl Core {
    /// After `count` leftovers were adopted: where several devices write, they were written beside what the index holds,
    /// so all is applied again, each in its place. With `accept`, also what was made on top of something that is missing.
    pub(super) fn merge_adopted(&self, count: usize, accept: bool) -> Result<()> {
        if count == 0 || !self.others.are_there() {
            return Ok(());
        }
        let root = self.tree.read().attr(crate::index::ROOT_IX);
        let empty = || Tree::new(root.uid, root.gid, Time::now());
        *self.tree.write() = replay(&*self.store, &self.master, accept, empty)?.tree;
        Ok(())
    }

    /// Settles what a merge left in conflict, and records it, before anything is made on top.
    pub(super) fn settle_conflicts(&self) -> Result<()> {
        let mut count = 0;
        loop {
            let step = self.tree.write().settle();
            let Some(step) = step else { break };
            count += note(&step);
            let mut journal = self.journal.lock();
            journal.append(&self.tree, step.wall, step.records)?;
            drop(journal);
            self.commit.changed();
        }
        end(&mut self.tree.write(), count);
        Ok(())
    }
}

/// The same for a mount that only reads: the tree alone changes, which nobody sees yet.
pub(super) fn settle_in_memory(tree: &mut Tree) -> Result<()> {
    let mut count = 0;
    while let Some(step) = tree.settle() {
        count += note(&step);
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
    end(tree, count);
    Ok(())
}

/// How many names a step makes for what is in conflict.
fn note(step: &Settling) -> usize {
    let Some(name) = &step.conflict else { return 0 };
    log::debug!("conflict: {}", name.escape_ascii());
    1
}

/// Ends the settling, and says what came of it.
fn end(tree: &mut Tree, count: usize) {
    if count > 0 {
        log::warn!(
            "{count} files or folders were changed on two devices beside each other: both are there, one of each as \
             \"NAME (conflict, DEVICE, DATE)\""
        );
    }
    let lost = tree.settled();
    if lost > 0 {
        log::warn!(
            "{lost} files that another device changed were removed here meanwhile: these changes have no file"
        );
    }
}
