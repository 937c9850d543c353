//! Writing: into the dirty buffer (`flush` has the way out of it); and the other ways to change contents.

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

/// A file that is written in long pieces is written out, beside its writer, when it has this much.
const STREAM_LEN: usize = 2 << 20;
/// The writer waits when it has this much: what is to be written out does not keep up.
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
        self.take_room(data.len() as u64 - promised)?;
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
            // Before anything of this is taken in: then it is so only if the answer says so.
            self.flush_stream(&file).inspect_err(|_| {
                // This caller hears of it now; the other handles, when they close.
                self.note_told(handle, &file);
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
            // Where nobody takes it, the writer does when it has to wait.
            self.streams.offer(&file);
        }
        Ok(())
    }

    /// Writes out what is dirty where it is too much. What cannot be written out lets nothing more in.
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

    /// Takes `len` bytes of the room in the store, or says that it is full.
    fn take_room(&self, len: u64) -> Result<()> {
        let len = len as i64;
        if self.budget.take(len) {
            return Ok(());
        }
        // Each of these is an open file, until it is published.
        if self.log.new_packs().finished().len() > self.view.packs().open_max() {
            self.wait_for_collection()?;
        }
        if !(self.has_room(len)? || self.wait_for_room()? && self.has_room(len)?) {
            return Err(Kind::NoSpace.into());
        }
        self.budget.take(len);
        Ok(())
    }

    /// Has what is dead removed; false where nothing is.
    fn wait_for_room(&self) -> Result<bool> {
        let is_any_dead = self.log.is_any_dead();
        if is_any_dead {
            self.wait_for_collection()?;
        }
        Ok(is_any_dead)
    }

    /// Has all published that there is, and what is dead removed. The caller holds no lock: the committer does it.
    fn wait_for_collection(&self) -> Result<()> {
        /// Who writes to a store so slow goes on without.
        const ROOM_WAIT: Duration = Duration::from_secs(20);
        let (send, receive) = mpsc::channel();
        self.log
            .requests()
            .collection(Box::new(move |done| drop(send.send(done))));
        receive.recv_timeout(ROOM_WAIT).unwrap_or(Ok(()))
    }

    /// Whether there is room for so many bytes of contents.
    pub fn has_room(&self, len: i64) -> Result<bool> {
        if self.look_for_room()? >= len {
            return Ok(true);
        }
        // What is being written out counts as dirty, and takes room in the store already.
        if let Err(e) = self.flush_all() {
            log::debug!("looking for room: {e}");
        }
        Ok(self.look_for_room()? >= len)
    }

    /// Asks the store how much space there is; answers what is left when all that is dirty is written, and all that was
    /// promised. Less than 0 if more was promised than there is by now.
    pub fn look_for_room(&self) -> Result<i64> {
        Ok(self.budget.look(&self.view.store().space()?))
    }

    /// Notes that a handle was told of the last failure.
    fn note_told(&self, handle: Handle, file: &OpenFile) {
        let failures = file.state.lock().failures;
        self.handles.tell(handle, failures);
    }

    /// What close(2) waits for: everything is out of this process. A failure that the handle was not told of is
    /// told now, once.
    pub fn flush_handle(&self, ino: Ino, handle: Handle) -> Result<()> {
        if self.log.gate().is_asked_for() || !self.handles.is_writer(handle) {
            return Ok(());
        }
        let Some(file) = self.opened(ino) else {
            return Ok(());
        };
        let flushed = self.flush_file(&file);
        // The kernel has written back before: what comes now was stored later.
        file.state.lock().mtime_set = None;
        self.tell_failures(&file, handle, flushed)
    }

    /// What a handle is told when it flushes or syncs: how that went, or else a failure that it was not told of.
    pub fn tell_failures(&self, file: &OpenFile, handle: Handle, done: Result<()>) -> Result<()> {
        let (failures, for_space) = {
            let state = file.state.lock();
            (state.failures, state.failed_for_space)
        };
        let Some(told) = self.handles.tell(handle, failures) else {
            return done;
        };
        match done {
            Ok(()) if told < failures && for_space => Err(Kind::NoSpace.into()),
            Ok(()) if told < failures => Err(Error::from(Kind::Poisoned)),
            done => done,
        }
    }

    /// Changes contents in another way than write: with nothing dirty, and no flush until it is done, which would
    /// bring back what it read before.
    fn while_flushed<R>(&self, ino: Ino, change: impl FnOnce() -> Result<R>) -> Result<R> {
        let file = self.file(ino);
        let flushing = overdue::lock(&file.flushing)?;
        let done = self.flush_locked(&file, true).and_then(|()| change());
        drop(flushing);
        drop(file);
        self.close_file(ino);
        done
    }

    /// Flushes, then frames what `change` says: the new length, and splices.
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

    /// Lets a range of one file show what a range of another does; nothing is copied.
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
            // One record names so many pieces at most; the caller comes again for the rest.
            const PIECES_PER_COPY: usize = 65_536;
            let pieces = source.extents().overlapping(from_offset, from_offset + len);
            if let Some(next) = pieces.get(PIECES_PER_COPY) {
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
