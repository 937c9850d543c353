//! Transactions: records that take effect together, or not at all. Records are written to the journal before they are
//! applied to the tree.

use super::Log;
use crate::error::{Error, Result};
use crate::index::record::{Content, Frame, Record, Splices};
use crate::index::{Inode, Tree};
use crate::overdue;
use crate::volume::Time;

/// Records that will take effect atomically.
pub struct Transaction {
    /// When the change was made.
    pub wall: Time,
    /// The records, in order.
    pub records: Vec<Record>,
    /// The records concern an inode without links.
    pub unlinked: bool,
}

impl Transaction {
    /// Adds a record that changes the contents of a file: its length, and the location of some ranges.
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
            base: tree.to_wire(inode.version()),
            plain_size,
            mtime,
            packs: splices.packs,
            splices: splices.list,
        }));
        self.unlinked = !inode.is_linked();
    }
}

impl Log {
    /// Runs `build` against the current tree, then writes and applies the records that it adds: all of them, or none.
    ///
    /// # Errors
    /// The error of `build`; the gate is closed; or the records could not be written.
    pub fn commit<R>(&self, build: impl FnOnce(&Tree, &mut Transaction) -> Result<R>) -> Result<R> {
        self.check_writable()?;
        overdue::go_on();
        self.commit_acknowledged(build)
    }

    /// Like [`Log::commit`], for data whose write(2) was already acknowledged: it is stored even if nothing new may be
    /// written.
    pub fn commit_acknowledged<R>(
        &self,
        build: impl FnOnce(&Tree, &mut Transaction) -> Result<R>,
    ) -> Result<R> {
        let mut journal = overdue::lock(&self.journal)?;
        let mut transaction = Transaction {
            wall: self.env().wall(),
            records: Vec::new(),
            unlinked: false,
        };
        let answer = build(&self.view.tree(), &mut transaction)?;
        if transaction.records.is_empty() {
            return Ok(answer);
        }
        if transaction.unlinked {
            // Only open handles can see an inode without links, so its changes are not written to the journal.
            let mut tree = self.view.tree_mut();
            let frame = Frame {
                counter: tree.next_counter(),
                wall: transaction.wall,
                durable_before: false,
                records: transaction.records,
            };
            overdue::unless_answered(|| tree.apply_frame(0, &frame))?
                .map_err(|why| Error::damaged("an open file", why))?;
            return Ok(answer);
        }
        let appended = journal.append(
            (&self.view, &self.gate),
            transaction.wall,
            transaction.records,
        );
        appended.inspect_err(|e| {
            if e.is_no_space() {
                self.requests.want_space();
            }
        })?;
        drop(journal);
        self.requests.changed();
        Ok(answer)
    }
}
