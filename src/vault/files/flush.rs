//! Flushing: encrypts dirty data into packs, then writes the record that refers to it.

use std::sync::Arc;

use super::{FileState, Files, OpenFile};
use crate::dirty::Dirty;
use crate::error::{Kind, Result};
use crate::index::record::Splices;
use crate::overdue;
use crate::pack::BLOCK_PLAIN_LEN;
use crate::vault::log::{Subject, split};
use crate::volume::{Ino, Time};

/// Maximum number of extents in an aligned block. A block with more is rewritten in one piece.
const BLOCK_EXTENTS_MAX: usize = 8;

impl Files {
    /// Flushes a file, if it is open.
    pub fn flush_ino(&self, ino: Ino) -> Result<()> {
        let Some(file) = self.opened(ino) else {
            return Ok(());
        };
        self.flush_file(&file)
    }

    /// Flushes every file.
    pub fn flush_all(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.all() {
            result = result.and(self.flush_and_close(file));
        }
        result
    }

    /// Flushes a file, then removes it from the table if it is not needed any more.
    pub fn flush_and_close(&self, file: Arc<OpenFile>) -> Result<()> {
        let flushed = self.flush_file(&file);
        let ino = file.ino;
        drop(file);
        self.close_file(ino);
        flushed
    }

    /// Encrypts dirty data into packs and records its location. Data that could not be written stays dirty.
    pub fn flush_file(&self, file: &OpenFile) -> Result<()> {
        let _flushing = overdue::lock(&file.flushing)?;
        self.flush_locked(file, true)
    }

    /// Like [`Files::flush_file`], for a file that is still being written: keeps the incomplete last block dirty, so
    /// that runs are aligned to blocks whatever the lengths of the writes.
    pub fn flush_stream(&self, file: &OpenFile) -> Result<()> {
        let _flushing = overdue::lock(&file.flushing)?;
        self.flush_locked(file, false)
    }

    /// Like [`Files::flush_file`], if the caller holds `flushing`. Without `with_tail`, like [`Files::flush_stream`].
    pub fn flush_locked(&self, file: &OpenFile, with_tail: bool) -> Result<()> {
        let (dirty, mtime) = {
            let mut state = file.state.lock();
            if let Some(unfinished) = state.in_flight.take() {
                // An earlier flush has panicked.
                self.put_back(&mut state, &unfinished);
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
            state.in_flight = Some(dirty.clone());
            (dirty, state.mtime)
        };
        let flushed = self.write_out(file.ino, &dirty, mtime);
        overdue::go_on();
        let mut state = file.state.lock();
        state.in_flight = None;
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
                // A request that gave up waiting for a lock has not attempted a write.
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

    /// Puts data back into the buffer of a file, below data written since.
    pub fn put_back(&self, state: &mut FileState, dirty: &Dirty) {
        let before = state.dirty.cost() + dirty.cost();
        state.dirty.put_under(dirty);
        self.budget.recount_dirty(before, state.dirty.cost());
    }

    /// Returns whether holes next to the dirty data may have been filled.
    fn write_out(&self, ino: Ino, dirty: &Dirty, mtime: Option<Time>) -> Result<bool> {
        let (subject, extents, plain_size) = {
            let tree = self.view.tree();
            // The inode has neither links nor handles, so its data is not needed.
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
        // Dirty data up to this offset is in a pack: the preceding step may have rewritten the whole block in which the
        // next range begins.
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
                        .append(&subject, at, &[&bytes], &mut splices)?;
                    at + bytes.len() as u64
                }
                None => {
                    self.log
                        .new_packs()
                        .append(&subject, at, &parts, &mut splices)?;
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
            // Times must agree with what stat(2) reported while the data was dirty, and ctime must not move backwards.
            let attr = tree.attr(ix);
            transaction.wall = mtime.map_or(attr.ctime, |mtime| mtime.max(attr.ctime));
            let mtime = mtime.or(Some(attr.mtime));
            transaction.change_content(tree, inode, plain_size, mtime, splices);
            Ok(())
        })?;
        Ok(filled_holes)
    }

    /// If a dirty range is within one block that has too many extents, returns the offset and current contents of that
    /// block from `done` on, to be encrypted as one run. Data before `done` is in a pack already.
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
        if extents < BLOCK_EXTENTS_MAX || end > block_at + block_len {
            return None;
        }
        let from = block_at.max(done);
        let to = plain_size.min(block_at + block_len);
        let located = self.view.locate(ino, from, to).ok()?;
        if located.extents.len() < BLOCK_EXTENTS_MAX {
            return None;
        }
        let mut block = vec![0; (to - from) as usize];
        // Read like a sequential reader, without caching: these blocks are about to be replaced. If they cannot be
        // read, only the dirty range is written.
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
