//! The read side: the tree, and the bytes that its extents refer to.
//!
//! Owns the tree, the cache of decrypted blocks and the open packs, and rereads the index in a read-only mount.
//! Complete without the other owners: everything published can be read with a view alone. Does not own data that is not
//! in the tree yet (dirty buffers, in `files`), nor any decision to write. Only the log, recovery and a reader that
//! follows the index change the tree.
//!
//! No lock is held over I/O, so a reader never waits for a write.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::opening::Findings;
use crate::cache::CacheStats;
use crate::crypto::MasterKey;
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::index::extents::Extent;
use crate::index::{InodeIx, Tree};
use crate::object::PackId;
use crate::pack::Packs;
use crate::store::Store;
use crate::volume::{Ino, Whence};

mod blocks;
mod follow;
mod readahead;

use blocks::Blocks;
pub(super) use follow::{Follow, Follower};
pub(super) use readahead::{AccessPattern, ReadPattern};

/// Extents of a file, with the packs that they refer to.
pub(super) struct Located {
    pub extents: Vec<(Extent, PackId)>,
    pub plain_size: u64,
}

/// The clock, the store and the key of a library.
#[derive(Clone)]
pub(super) struct Source {
    pub env: Arc<Env>,
    pub store: Arc<dyn Store>,
    pub master: Arc<MasterKey>,
}

/// The read side of an open library.
pub(crate) struct View {
    env: Arc<Env>,
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    tree: RwLock<Tree>,
    packs: Arc<Packs>,
    blocks: Blocks,
    findings: Findings,
    follow: Follow,
}

impl View {
    /// A view of a library whose index was replayed to `tree`. Caches at most `cache_bytes` bytes of decrypted blocks.
    pub fn new(
        source: Source,
        tree: Tree,
        packs: Arc<Packs>,
        cache_bytes: usize,
        findings: Findings,
        follow: Follow,
    ) -> Result<Self> {
        Ok(Self {
            tree: RwLock::new(tree),
            blocks: Blocks::new(packs.clone(), cache_bytes)?,
            env: source.env,
            store: source.store,
            master: source.master,
            packs,
            findings,
            follow,
        })
    }

    /// The tree, for reading.
    pub fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read()
    }

    /// The tree, for changes: by the log, after the record is written; by recovery; and by a reader that follows the
    /// index.
    pub fn tree_mut(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write()
    }

    /// The clock and the source of ids.
    pub fn env(&self) -> &Arc<Env> {
        &self.env
    }

    /// The store of the library.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The master key of the library.
    pub fn master(&self) -> &Arc<MasterKey> {
        &self.master
    }

    /// The packs of the library.
    pub fn packs(&self) -> &Arc<Packs> {
        &self.packs
    }

    /// Whether part of the index may be missing. If so, no packs are removed, and no snapshot is written.
    pub fn has_gaps(&self) -> bool {
        self.findings.has_gaps
    }

    /// Messages about missing or damaged parts of the index.
    pub fn problems(&self) -> &[String] {
        &self.findings.problems
    }

    /// Hits, misses and size of the cache of decrypted blocks.
    pub fn cache_stats(&self) -> CacheStats {
        self.blocks.cache_stats()
    }

    /// The path of an inode, for the log; `None` if it has no name.
    pub fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        let tree = self.tree();
        let path = tree.path(tree.find(ino)?);
        Some(path).filter(|path| !path.is_empty())
    }

    /// The extents that overlap `from..to`, clipped to it.
    pub fn locate(&self, ino: Ino, from: u64, to: u64) -> Result<Located> {
        let tree = self.tree();
        let inode = tree.inode(find(&tree, ino)?);
        let overlapping = inode.extents().overlapping(from, to).iter();
        let extents = overlapping
            .map(|e| (e.clip(from, to), tree.pack(e.pack).id))
            .collect();
        Ok(Located {
            extents,
            plain_size: inode.plain_size(),
        })
    }

    /// Fills `out`, which starts at `plain_offset` of a file, from extents that were located there. If a pack has been
    /// removed since, the extents are located once more. `sequential` reads bypass the cache.
    pub fn fill(
        &self,
        ino: Ino,
        located: &Located,
        plain_offset: u64,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        match self.fill_extents(&located.extents, plain_offset, out, sequential) {
            // The pack may have been collected since the extents were looked up; then the data has been copied
            // elsewhere.
            Err(e) if matches!(e.kind(), Kind::Missing) => {}
            filled => return filled,
        }
        self.reread_for_missing_pack();
        let end = plain_offset + out.len() as u64;
        let again = self.locate(ino, plain_offset, end)?;
        self.fill_extents(&again.extents, plain_offset, out, sequential)
    }

    /// Fills `out`, which starts at `plain_offset` of a file, from extents that are clipped to it.
    pub fn fill_extents(
        &self,
        extents: &[(Extent, PackId)],
        plain_offset: u64,
        out: &mut [u8],
        sequential: bool,
    ) -> Result<()> {
        self.blocks.fill(extents, plain_offset, out, sequential)
    }

    /// Starts to fetch a range of a file that will be read soon, in the background.
    pub fn read_ahead(&self, ino: Ino, plain: std::ops::Range<u64>) {
        if plain.is_empty() {
            return;
        }
        if let Ok(located) = self.locate(ino, plain.start, plain.end) {
            self.blocks.read_ahead(&located.extents);
        }
    }

    /// The next data or hole of a file, as for lseek(2).
    pub fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // Extents are not copied: programs that walk over a fragmented file call this once per extent.
        let tree = self.tree();
        let inode = tree.inode(find(&tree, ino)?);
        let plain_size = inode.plain_size();
        if plain_offset >= plain_size {
            return Err(Kind::NoSuchOffset.into());
        }
        match whence {
            Whence::Data => {
                let data = inode.extents().next_data(plain_offset);
                data.ok_or_else(|| Kind::NoSuchOffset.into())
            }
            Whence::Hole => Ok(inode.extents().next_hole(plain_offset).min(plain_size)),
        }
    }

    /// Waits until all requested read-ahead has completed.
    #[cfg(test)]
    pub fn settle(&self) {
        self.blocks.settle();
    }
}

/// The index of an inode in the tree; ESTALE if it is gone.
pub(super) fn find(tree: &Tree, ino: Ino) -> Result<InodeIx> {
    tree.find(ino).ok_or_else(|| Kind::Stale.into())
}
