//! Out of the dirty buffer: sealed into packs, then framed.

use std::sync::Arc;

use super::{FileState, Files, OpenFile};
use crate::dirty::Dirty;
use crate::error::{Kind, Result};
use crate::index::record::Splices;
use crate::overdue;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::vault::log::{Subject, split};
use crate::volume::{Ino, Time};

/// Pieces that a block-aligned range may be in; more, and it is rewritten as one block.
const PIECES_MAX: usize = 8;

impl Files {
    /// Writes out what is dirty in a file, if it is open.
    pub fn flush_ino(&self, ino: Ino) -> Result<()> {
        let Some(file) = self.opened(ino) else {
            return Ok(());
        };
        self.flush_file(&file)
    }

    /// Writes out what is dirty in every file.
    pub fn flush_all(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.all() {
            result = result.and(self.flush_and_close(file));
        }
        result
    }

    /// Writes out what is dirty in a file, and forgets it where nothing else needs it.
    pub fn flush_and_close(&self, file: Arc<OpenFile>) -> Result<()> {
        let flushed = self.flush_file(&file);
        let ino = file.ino;
        drop(file);
        self.close_file(ino);
        flushed
    }

    /// Seals what is dirty into packs, and frames it. What could not be written stays dirty.
    pub fn flush_file(&self, file: &OpenFile) -> Result<()> {
        let _flushing = overdue::lock(&file.flushing)?;
        self.flush_locked(file, true)
    }

    /// The same for a file to which more is coming: the block that it ends in stays until it is whole. So runs
    /// begin and end where blocks do, whatever the lengths of the writes.
    pub fn flush_stream(&self, file: &OpenFile) -> Result<()> {
        let _flushing = overdue::lock(&file.flushing)?;
        self.flush_locked(file, false)
    }

    /// The same for who holds `flushing` already.
    pub fn flush_locked(&self, file: &OpenFile, with_tail: bool) -> Result<()> {
        let (dirty, mtime) = {
            let mut state = file.state.lock();
            if let Some(left) = state.leaving.take() {
                // Who was writing this out has panicked.
                self.put_back(&mut state, &left);
                state.failures += 1;
            }
            let before = state.dirty.cost();
            let mut dirty = std::mem::take(&mut state.dirty);
            if !with_tail {
                state.dirty = dirty.take_tail(u64::from(BLOCK_PLAIN_LEN));
                self.budget
                    .recount_dirty(before, dirty.cost() + state.dirty.cost());
            }
            if dirty.is_empty() {
                return Ok(());
            }
            let dirty = Arc::new(dirty);
            state.leaving = Some(dirty.clone());
            (dirty, state.mtime)
        };
        let flushed = self.write_out(file.ino, &dirty, mtime);
        overdue::go_on();
        let mut state = file.state.lock();
        state.leaving = None;
        match flushed {
            Ok(filled_holes) => {
                // A write since then has its own time.
                if state.dirty.is_empty() {
                    state.mtime = None;
                }
                self.budget.recount_dirty(dirty.cost(), 0);
                if !state.promised.is_empty() && filled_holes {
                    self.recount_promise(file.ino, &mut state);
                }
                Ok(())
            }
            Err(e) => {
                self.put_back(&mut state, &dirty);
                // Who only waited too long has written nothing that could have failed.
                if !matches!(e.kind(), Kind::TimedOut) {
                    state.failures += 1;
                    state.failed_for_space = e.is_no_space();
                    if state.failed_for_space {
                        self.log.requests().want_space();
                    }
                }
                Err(e)
            }
        }
    }

    /// Gives a file back what was taken out of its buffer, under what was written since.
    pub fn put_back(&self, state: &mut FileState, dirty: &Dirty) {
        let before = state.dirty.cost() + dirty.cost();
        state.dirty.put_under(dirty);
        self.budget.recount_dirty(before, state.dirty.cost());
    }

    /// Whether holes may have been filled beside what was dirty.
    fn write_out(&self, ino: Ino, dirty: &Dirty, mtime: Option<Time>) -> Result<bool> {
        let (subject, extents, plain_size) = {
            let tree = self.view.tree();
            // Its last name and handle are gone: nobody will ask.
            let Some(ix) = tree.find(ino) else {
                return Ok(false);
            };
            let inode = tree.inode(ix);
            let subject = Subject {
                inode: inode.id(),
                path: tree.path(ix),
                counter: tree.next_counter(),
            };
            (
                subject,
                inode.extents().as_slice().len(),
                inode.plain_size().max(dirty.end()),
            )
        };
        let _held_off = self.log.hold_off_collection()?;
        let mut splices = Splices::default();
        // Up to here everything dirty is sealed: a range may begin in a block that was taken whole before it.
        let mut done = 0;
        let mut filled_holes = false;
        for (at, parts) in dirty.ranges() {
            let end = at + parts.iter().map(|p| p.len() as u64).sum::<u64>();
            if end <= done {
                continue;
            }
            let (_, parts) = split(&parts, done.saturating_sub(at) as usize);
            let at = at.max(done);
            done = match self.whole_block(ino, dirty, (done, at, end), plain_size, extents) {
                Some((at, bytes)) => {
                    filled_holes = true;
                    self.log
                        .new_packs()
                        .seal(&subject, at, &[&bytes], &mut splices)?;
                    at + bytes.len() as u64
                }
                None => {
                    self.log
                        .new_packs()
                        .seal(&subject, at, &parts, &mut splices)?;
                    end
                }
            };
        }
        self.log.commit_acknowledged(|tree, transaction| {
            let Some(ix) = tree.find(ino) else {
                return Ok(());
            };
            let inode = tree.inode(ix);
            let plain_size = inode.plain_size().max(dirty.end());
            // When it was written is what was told meanwhile; what was changed since is later still.
            let told = tree.attr(ix);
            transaction.wall = mtime.map_or(told.ctime, |mtime| mtime.max(told.ctime));
            let mtime = mtime.or(Some(told.mtime));
            transaction.change_content(tree, inode, plain_size, mtime, splices);
            Ok(())
        })?;
        Ok(filled_holes)
    }

    /// Where a dirty range lies within one block of a file that is in too many pieces there: the whole block as it
    /// is now (but for what is sealed already, up to `done`), to be sealed in one piece.
    fn whole_block(
        &self,
        ino: Ino,
        dirty: &Dirty,
        (done, at, end): (u64, u64, u64),
        plain_size: u64,
        extents: usize,
    ) -> Option<(u64, Vec<u8>)> {
        let block_len = u64::from(BLOCK_PLAIN_LEN);
        let block_at = at / block_len * block_len;
        if extents < PIECES_MAX || end > block_at + block_len {
            return None;
        }
        let from = block_at.max(done);
        let to = plain_size.min(block_at + block_len);
        let located = self.view.locate(ino, from, to).ok()?;
        if located.extents.len() < PIECES_MAX {
            return None;
        }
        let mut block = vec![0; (to - from) as usize];
        // As a sequential reader: what is replaced now will not be asked for, nor what lies around it.
        // What cannot be read stays where it is, and the range is sealed alone.
        self.view
            .fill_extents(&located.extents, from, &mut block, true)
            .ok()?;
        for (at, part) in dirty.parts(from, to) {
            let place = (at - from) as usize;
            block[place..place + part.len()].copy_from_slice(part);
        }
        Some((from, block))
    }
}
