//! Writing to the dirty buffer (`flush` empties it), and other operations that change contents.

use std::sync::mpsc;
use std::time::Duration;

use super::{Files, OpenFile};
use crate::dirty::Dirty;
use crate::error::{Error, Kind, Result};
use crate::index::Tree;
use crate::index::record::Splices;
use crate::overdue;
use crate::vault::log::Transaction;
use crate::vault::view::find;
use crate::volume::{FILE_LEN_MAX, FileKind, Handle, Ino};

/// A file written in long runs is flushed in the background when it has this many dirty bytes.
const STREAM_LEN: usize = 2 << 20;
/// The writer waits for a flush when the file has this many dirty bytes, because the background flush does not keep up.
const STREAM_LEN_MAX: usize = 8 << 20;

impl Files {
    pub fn write_file(
        &self,
        ino: Ino,
        handle: Handle,
        plain_offset: u64,
        data: &[u8],
        is_write_back: bool,
    ) -> Result<()> {
        self.log.check_writable()?;
        let end = plain_offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= FILE_LEN_MAX)
            .ok_or(Kind::FileTooLarge)?;
        if data.is_empty() {
            return Ok(());
        }
        self.bound_dirty()?;
        let promised = self.promised_for(ino, plain_offset, end);
        self.reserve_space(data.len() as u64 - promised)?;
        let file = self.file(ino);
        {
            let tree = self.view.tree();
            if tree.inode(find(&tree, ino)?).kind() != FileKind::Regular {
                return Err(Kind::InvalidArgument.into());
            }
        }
        let is_stream = |dirty: &Dirty| dirty.cost() / dirty.chunk_count().max(1) >= 64 * 1024;
        let must_wait = {
            let state = file.state.lock();
            state.dirty.cost() >= STREAM_LEN_MAX && is_stream(&state.dirty)
        };
        if must_wait {
            // Flush before any of this write is buffered, so that a failed write(2) leaves nothing in the buffer.
            self.flush_stream(&file).inspect_err(|_| {
                // This handle reports the failure now; the other handles do when they close.
                self.mark_reported(handle, &file);
            })?;
        }
        let is_due = overdue::unless_answered(|| {
            let mut state = file.state.lock();
            let before = state.dirty.cost();
            self.fill_promise(ino, &mut state, plain_offset, end);
            state.dirty.write(plain_offset, data);
            let cost = state.dirty.cost();
            state.touch(self.log.env(), is_write_back);
            self.budget.recount_dirty(before, cost);
            before < STREAM_LEN && cost >= STREAM_LEN && is_stream(&state.dirty)
        })?;
        self.log.requests().changed();
        if is_due {
            // If the queue is full, the writer flushes once it has to wait.
            self.streams.offer(&file);
        }
        Ok(())
    }

    /// Flushes everything if the limit of dirty memory is reached. Fails if it is still reached afterwards.
    fn bound_dirty(&self) -> Result<()> {
        if !self.budget.is_dirty_full() {
            return Ok(());
        }
        let flushed = self.flush_all();
        if self.budget.is_dirty_full() {
            flushed
        } else {
            Ok(())
        }
    }

    /// Reserves `len` bytes of free space in the store.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if the store is full, also after dead packs were removed.
    fn reserve_space(&self, len: u64) -> Result<()> {
        let len = len as i64;
        if self.budget.reserve(len) {
            return Ok(());
        }
        // An unpublished pack keeps a file descriptor open.
        if self.log.new_packs().finished().len() > self.view.packs().open_max() {
            self.wait_for_collection()?;
        }
        if !(self.has_space(len)? || self.wait_for_space()? && self.has_space(len)?) {
            return Err(Kind::NoSpace.into());
        }
        self.budget.reserve(len);
        Ok(())
    }

    /// Waits until dead packs are removed. Returns false if there are none.
    fn wait_for_space(&self) -> Result<bool> {
        let has_dead_packs = self.log.has_dead_packs();
        if has_dead_packs {
            self.wait_for_collection()?;
        }
        Ok(has_dead_packs)
    }

    /// Waits until upkeep has published everything and removed dead packs. The caller must not hold a lock.
    fn wait_for_collection(&self) -> Result<()> {
        /// Longest wait for a slow store, after which the writer continues without.
        const COLLECTION_WAIT: Duration = Duration::from_secs(20);
        let (send, receive) = mpsc::channel();
        self.log
            .requests()
            .request_collection(Box::new(move |done| drop(send.send(done))));
        receive.recv_timeout(COLLECTION_WAIT).unwrap_or(Ok(()))
    }

    /// Whether the store has free space for `len` bytes of contents.
    pub fn has_space(&self, len: i64) -> Result<bool> {
        if self.refresh_free_space()? >= len {
            return Ok(true);
        }
        // Data that is being flushed is counted twice: as dirty, and as used space in the store.
        if let Err(e) = self.flush_all() {
            log::debug!("flush to determine the free space: {e}");
        }
        Ok(self.refresh_free_space()? >= len)
    }

    /// Queries the store for its free space. Returns what remains, in bytes, once everything dirty and everything
    /// promised is written; negative if more was promised than is free by now.
    pub fn refresh_free_space(&self) -> Result<i64> {
        Ok(self.budget.refresh(&self.view.store().space()?))
    }

    /// Records that a handle has reported all failures so far.
    fn mark_reported(&self, handle: Handle, file: &OpenFile) {
        let failures = file.state.lock().failures;
        self.handles.mark_reported(handle, failures);
    }

    /// Flushes a file for close(2), so that its data survives the death of this process. Also reports, once, an earlier
    /// failure that the handle has not reported yet.
    pub fn flush_handle(&self, ino: Ino, handle: Handle) -> Result<()> {
        if self.log.gate().is_asked_for() || !self.handles.is_writer(handle) {
            return Ok(());
        }
        let Some(file) = self.opened(ino) else {
            return Ok(());
        };
        let flushed = self.flush_file(&file);
        // The kernel writes back mmapped pages before it sends FLUSH: pages written back later were modified later.
        file.state.lock().mtime_set = None;
        self.report_write_error(&file, handle, flushed)
    }

    /// Returns the result of a flush or sync of a handle: `done`, or if that is Ok, an earlier failure that the handle
    /// has not reported yet.
    pub fn report_write_error(
        &self,
        file: &OpenFile,
        handle: Handle,
        done: Result<()>,
    ) -> Result<()> {
        let (failures, for_space) = {
            let state = file.state.lock();
            (state.failures, state.failed_for_space)
        };
        let Some(reported) = self.handles.mark_reported(handle, failures) else {
            return done;
        };
        match done {
            Ok(()) if reported < failures && for_space => Err(Kind::NoSpace.into()),
            Ok(()) if reported < failures => Err(Error::from(Kind::Poisoned)),
            done => done,
        }
    }

    /// Runs a change of contents other than a write with nothing dirty and flushes blocked: a concurrent flush could
    /// write back contents that it had read before the change.
    fn while_flushed<R>(&self, ino: Ino, change: impl FnOnce() -> Result<R>) -> Result<R> {
        let file = self.file(ino);
        let flushing = overdue::lock(&file.flushing)?;
        let done = self.flush_locked(&file, true).and_then(|()| change());
        drop(flushing);
        drop(file);
        self.close_file(ino);
        done
    }

    /// Flushes the file, then commits the new length that `change` returns and the splices that it adds.
    pub fn change_ranges(
        &self,
        ino: Ino,
        change: impl FnOnce(u64, &mut Splices) -> u64,
    ) -> Result<()> {
        let frame = |tree: &Tree, transaction: &mut Transaction| {
            let inode = tree.inode(find(tree, ino)?);
            if inode.kind() != FileKind::Regular {
                return Err(Kind::InvalidArgument.into());
            }
            let mut splices = Splices::default();
            let plain_size = change(inode.plain_size(), &mut splices);
            transaction.change_content(tree, inode, plain_size, None, splices);
            Ok(())
        };
        self.while_flushed(ino, || self.log.commit(frame))
    }

    /// Makes a range of one file refer to the data of a range of another, without copying it. Returns the length in
    /// bytes, which may be less than `len`.
    pub fn share_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        self.log.check_writable()?;
        self.flush_ino(from)?;
        let frame = |tree: &Tree, transaction: &mut Transaction| {
            let (source, target) = (tree.inode(find(tree, from)?), tree.inode(find(tree, to)?));
            if source.kind() != FileKind::Regular || target.kind() != FileKind::Regular {
                return Err(Kind::InvalidArgument.into());
            }
            let mut len = len.min(source.plain_size().saturating_sub(from_offset));
            // Maximum number of extents in one record. copy_file_range(2) is then short, and the caller repeats it.
            const EXTENTS_PER_COPY: usize = 65_536;
            let extents = source.extents().overlapping(from_offset, from_offset + len);
            if let Some(next) = extents.get(EXTENTS_PER_COPY) {
                len = next.plain_offset - from_offset;
            }
            let Some(to_end) = to_offset
                .checked_add(len)
                .filter(|end| *end <= FILE_LEN_MAX)
            else {
                return Err(Kind::FileTooLarge.into());
            };
            if len == 0 {
                return Ok(0);
            }
            let mut splices = Splices::default();
            let (mut at, from_end) = (from_offset, from_offset + len);
            let moved = |plain_offset: u64| plain_offset - from_offset + to_offset;
            for e in source.extents().overlapping(from_offset, from_end) {
                let e = e.clip(from_offset, from_end);
                splices.hole(moved(at), e.plain_offset - at);
                let pack = tree.pack(e.pack).id;
                let run = crate::pack::Run {
                    pack,
                    cipher_offset: e.cipher_offset,
                    plain_len: e.run_len,
                };
                splices.data(moved(e.plain_offset), u64::from(e.plain_len), run, e.start);
                at = e.plain_end();
            }
            splices.hole(moved(at), from_end - at);
            let plain_size = target.plain_size().max(to_end);
            transaction.change_content(tree, target, plain_size, None, splices);
            Ok(len)
        };
        let shared = self.while_flushed(to, || self.log.commit(frame))?;
        self.cut_promise(to, FILE_LEN_MAX);
        Ok(shared)
    }
}
