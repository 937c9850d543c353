//! Transactions: records that take effect together, or not at all. A record is in the journal before it is in the tree.

use super::Core;
use crate::error::{Error, Result};
use crate::index::record::{Content, Frame, Record, Splices};
use crate::index::{Inode, Tree};
use crate::overdue;
use crate::volume::Time;

/// Records that will take effect together.
pub(super) struct Draft {
    /// When the change was made.
    pub wall: Time,
    /// The records, in order.
    pub records: Vec<Record>,
    /// They are about an inode without a name.
    pub unlinked: bool,
}

impl Draft {
    /// Changes the contents of a file: its length, and where these ranges of it are.
    pub fn change_content(
        &mut self,
        tree: &Tree,
        inode: &Inode,
        plain_size: u64,
        mtime: Option<Time>,
        splices: Splices,
    ) {
        self.records.push(Record::Content(Content {
            inode: inode.id(),
            base: tree.wire(inode.version()),
            plain_size,
            mtime,
            packs: splices.packs,
            splices: splices.list,
        }));
        self.unlinked = !inode.is_linked();
    }
}

impl Core {
    /// Runs `build` against the tree as it is, and makes what it drafts take effect: all of it, or nothing.
    pub(super) fn transact<R>(
        &self,
        build: impl FnOnce(&Tree, &mut Draft) -> Result<R>,
    ) -> Result<R> {
        self.writable()?;
        overdue::go_on();
        self.transact_promised(build)
    }

    /// The same for what was answered already: that is kept also where nothing new may be written.
    pub(super) fn transact_promised<R>(
        &self,
        build: impl FnOnce(&Tree, &mut Draft) -> Result<R>,
    ) -> Result<R> {
        let mut journal = overdue::lock(&self.journal)?;
        let mut draft = Draft {
            wall: Time::now(),
            records: Vec::new(),
            unlinked: false,
        };
        let answer = build(&self.view.tree(), &mut draft)?;
        if draft.records.is_empty() {
            return Ok(answer);
        }
        if draft.unlinked {
            // What happens to an inode without a name is for its handles only, and ends with them.
            let mut tree = self.view.tree_mut();
            let counter = tree.next_counter();
            let Draft { wall, records, .. } = draft;
            let frame = Frame {
                counter,
                wall,
                durable_before: false,
                records,
            };
            overdue::unless_answered(|| tree.apply_frame(0, &frame))?
                .map_err(|why| Error::damaged("an open file", why))?;
            return Ok(answer);
        }
        journal
            .append(&self.view, draft.wall, draft.records)
            .inspect_err(|e| {
                if e.is_no_space() {
                    self.commit.want_room();
                }
            })?;
        drop(journal);
        self.commit.changed();
        Ok(answer)
    }
}
