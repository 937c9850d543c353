//! SegmentHeader and closing files, fsync, and statistics of all open files.

use std::sync::Arc;

use super::Files;
use crate::error::{Kind, Result};
use crate::logged;
use crate::vault::view::find;
use crate::volume::{Done, FileKind, Handle, Ino, Statfs};

impl Files {
    /// Opens a file.
    pub fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let truncates = flags & libc::O_TRUNC != 0;
        if writes || truncates {
            self.log.check_writable()?;
        }
        {
            let tree = self.view.tree();
            let inode = tree.inode(find(&tree, ino)?);
            if inode.kind() == FileKind::Directory {
                return Err(Kind::IsDirectory.into());
            }
            inode.incref(1);
        }
        let failures = {
            let file = self.file(ino);
            let mut state = file.state.lock();
            state.handles += 1;
            state.failures
        };
        let handle = self.handles.open(ino, writes, failures);
        if truncates && let Err(e) = self.truncate(ino, 0) {
            self.release(handle);
            return Err(e);
        }
        Ok(handle)
    }

    /// Closes a handle to which the kernel has dropped its last reference. Returns the inode if the handle could write.
    pub fn release(&self, handle: Handle) -> Option<Ino> {
        let open = self.handles.close(handle)?;
        if open.writes {
            // Pages written through mmap(2) after close(2). RELEASE cannot report an error: they stay dirty, and are
            // retried.
            if let Err(e) = self.flush_ino(open.ino) {
                let name = logged::file_name(open.ino, self.view.path_of(open.ino));
                log::warn!("{name}: could not be written out on close: {e}");
            }
        }
        if let Some(file) = self.opened(open.ino) {
            let mut state = file.state.lock();
            state.handles = state.handles.saturating_sub(1);
        }
        self.forget(open.ino, 1);
        open.writes.then_some(open.ino)
    }

    /// Calls `done` when the data written to a file is durable. Also reports an earlier failure that the handle has not
    /// reported yet.
    pub fn fsync(files: &Arc<Self>, ino: Ino, handle: Handle, done: Done) {
        if files.log.gate().is_asked_for() {
            return done(Ok(()));
        }
        let Some(file) = files.opened(ino) else {
            return files.log.requests().request_sync(done);
        };
        // The kernel writes back mmapped pages before it sends FSYNC: pages written back later were modified later.
        file.state.lock().mtime_set = None;
        if let Err(e) = files.flush_file(&file) {
            return done(files.report_write_error(&file, handle, Err(e)));
        }
        let open_files = Arc::clone(files);
        // Looked up again later: a reference held by the closure would keep a closed file in the table.
        let report = move |synced| {
            done(match open_files.opened(ino) {
                Some(file) => open_files.report_write_error(&file, handle, synced),
                None => synced,
            })
        };
        files.log.requests().request_sync(Box::new(report));
    }

    /// Makes everything durable, and waits for it.
    pub fn write_all(&self) -> Result<()> {
        if self.log.gate().is_asked_for() {
            return Ok(());
        }
        self.flush_all()?;
        let (send, receive) = std::sync::mpsc::channel();
        self.log.requests().request_sync(Box::new(move |synced| {
            // The receiver may be gone.
            let _ = send.send(synced);
        }));
        receive
            .recv()
            .unwrap_or_else(|_| Err(Kind::Poisoned.into()))
    }

    /// Returns the paths of files with data that is not in a pack, and its length in bytes.
    pub fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        let files = self.all();
        let unwritten = files.iter().filter_map(|file| {
            let bytes = {
                let state = file.state.lock();
                state.dirty.plain_bytes() + state.in_flight.as_ref().map_or(0, |l| l.plain_bytes())
            };
            let tree = self.view.tree();
            let ix = tree.find(file.ino).filter(|_| bytes > 0)?;
            tree.inode(ix).is_linked().then(|| (tree.path(ix), bytes))
        });
        unwritten.collect()
    }

    /// Returns the capacity and free space, for statfs(2).
    pub fn statfs(&self) -> Result<Statfs> {
        const UNIT: u64 = 4096;
        // For small appends the store may allocate 1 MiB ahead in a pack and in a segment; the disk has overhead, too.
        const ALLOCATED_AHEAD: i64 = 3 << 20;
        let space = self.view.store().space()?;
        let free = (self.budget.available(&space) - ALLOCATED_AHEAD).max(0) as u64;
        let files = self.view.tree().inode_count();
        Ok(Statfs {
            block_bytes: UNIT as u32,
            blocks: space.total_bytes / UNIT,
            // No blocks are reserved for root.
            blocks_free: free / UNIT,
            blocks_available: free / UNIT,
            // The number of possible inode numbers. With more than 32 bits, statfs(2) fails in 32-bit programs.
            files: files.max(u32::MAX.into()),
            files_free: u64::from(u32::MAX).saturating_sub(files),
        })
    }
}
