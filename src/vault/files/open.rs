//! Opening and closing files, fsync, and what is reported of them together.

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
            inode.hold(1);
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

    /// The last reference to a handle is gone. Returns the file where the handle could write.
    pub fn release(&self, handle: Handle) -> Option<Ino> {
        let open = self.handles.close(handle)?;
        if open.writes {
            // What was stored through a map since close(2). No one is there to be told: it stays dirty and is tried again.
            if let Err(e) = self.flush_ino(open.ino) {
                let name = logged::file_name(open.ino, self.view.path_of(open.ino));
                log::warn!("{name}: not written out when it was closed: {e}");
            }
        }
        if let Some(file) = self.opened(open.ino) {
            let mut state = file.state.lock();
            state.handles = state.handles.saturating_sub(1);
        }
        self.let_go(open.ino, 1);
        open.writes.then_some(open.ino)
    }

    /// Has `done` called when what was written to a file is durable; a failure that the handle was not told of is told.
    pub fn fsync(files: &Arc<Self>, ino: Ino, handle: Handle, done: Done) {
        if files.log.gate().is_asked_for() {
            return done(Ok(()));
        }
        let Some(file) = files.opened(ino) else {
            return files.log.requests().sync(done);
        };
        // The kernel has written back before: what comes now was stored later.
        file.state.lock().mtime_set = None;
        if let Err(e) = files.flush_file(&file) {
            return done(files.tell_failures(&file, handle, Err(e)));
        }
        let teller = Arc::clone(files);
        // Looked up again: a reference that waits with it would keep the file in the table when it is closed.
        let tell = move |synced| {
            done(match teller.opened(ino) {
                Some(file) => teller.tell_failures(&file, handle, synced),
                None => synced,
            })
        };
        files.log.requests().sync(Box::new(tell));
    }

    /// Makes everything durable, and waits for it.
    pub fn write_all(&self) -> Result<()> {
        if self.log.gate().is_asked_for() {
            return Ok(());
        }
        self.flush_all()?;
        let (tell, told) = std::sync::mpsc::channel();
        self.log.requests().sync(Box::new(move |synced| {
            // Whoever waited may have given up.
            let _ = tell.send(synced);
        }));
        told.recv().unwrap_or_else(|_| Err(Kind::Poisoned.into()))
    }

    /// Paths of files with bytes that are not in a pack, and how many.
    pub fn unwritten(&self) -> Vec<(Vec<u8>, u64)> {
        let files = self.all();
        let unwritten = files.iter().filter_map(|file| {
            let bytes = {
                let state = file.state.lock();
                state.dirty.plain_bytes() + state.leaving.as_ref().map_or(0, |l| l.plain_bytes())
            };
            let tree = self.view.tree();
            let ix = tree.find(file.ino).filter(|_| bytes > 0)?;
            tree.inode(ix).is_linked().then(|| (tree.path(ix), bytes))
        });
        unwritten.collect()
    }

    /// How much space there is, as statfs(2) asks for it.
    pub fn statfs(&self) -> Result<Statfs> {
        const UNIT: u64 = 4096;
        // The store may yet take 1 MiB ahead of small appends, to a pack and to a segment each; a disk wastes some, too.
        const AHEAD: i64 = 3 << 20;
        let space = self.view.store().space()?;
        let free = (self.budget.left(&space) - AHEAD).max(0) as u64;
        let files = self.view.tree().inode_count();
        Ok(Statfs {
            block_bytes: UNIT as u32,
            blocks: space.total_bytes / UNIT,
            // Not even root may write more.
            blocks_free: free / UNIT,
            blocks_available: free / UNIT,
            // As many as there are numbers; more than 32 bits, and 32-bit programs are told nothing at all.
            files: files.max(u32::MAX.into()),
            files_free: u64::from(u32::MAX).saturating_sub(files),
        })
    }
}
