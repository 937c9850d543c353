//! Reading a file: its extents, filled (`blocks`), then what is dirty over them.

use std::ops::Range;

use super::Core;
use super::ahead::Access;
use crate::error::{Kind, Result};
use crate::index::extents::Extent;
use crate::object::PackId;
use crate::volume::{Ino, Whence};

/// Extents of a file, with the packs that they name.
pub(super) struct Located {
    pub extents: Vec<(Extent, PackId)>,
    pub plain_size: u64,
}

impl Core {
    /// The extents that overlap `from..to`, clipped to it.
    pub(super) fn locate(&self, ino: Ino, from: u64, to: u64) -> Result<Located> {
        let tree = self.tree.read();
        let inode = tree.inode(self.find(&tree, ino)?);
        let overlapping = inode.extents().overlapping(from, to).iter();
        let extents = overlapping
            .map(|e| (e.clip(from, to), tree.pack(e.pack).id))
            .collect();
        Ok(Located {
            extents,
            plain_size: inode.plain_size(),
        })
    }

    pub(super) fn read_file(&self, ino: Ino, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let wanted_end = plain_offset.saturating_add(out.len() as u64);
        let file = self.opened(ino);
        let mut overlays = Vec::new();
        let located = match &file {
            // The state is locked until the extents are here, so that a flush cannot move data past us.
            Some(file) => {
                let state = file.state.lock();
                let mut located = self.locate(ino, plain_offset, wanted_end)?;
                located.plain_size = located.plain_size.max(state.end());
                let len = located
                    .plain_size
                    .saturating_sub(plain_offset)
                    .min(out.len() as u64) as usize;
                if !state.dirty.is_empty() || state.leaving.is_some() {
                    overlays = self.overlay(&state, plain_offset, len);
                }
                located
            }
            None => self.locate(ino, plain_offset, wanted_end)?,
        };
        let len = located
            .plain_size
            .saturating_sub(plain_offset)
            .min(out.len() as u64) as usize;
        let out = &mut out[..len];
        let mut sequential = false;
        if let Some(Access::Sequence(next)) = file.map(|f| f.pattern.note(plain_offset, len)) {
            sequential = true;
            self.read_ahead(ino, next);
        }
        if let Err(e) = self
            .blocks
            .fill(&located.extents, plain_offset, out, sequential)
        {
            // The pack may have been collected since the extents were looked up: then they are elsewhere now.
            if !matches!(e.kind(), Kind::Missing) {
                return Err(e);
            }
            if self.read_only {
                self.reread_for_missing();
            }
            let again = self.locate(ino, plain_offset, wanted_end)?;
            self.blocks
                .fill(&again.extents, plain_offset, out, sequential)?;
        }
        for (at, bytes) in overlays {
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(len)
    }

    /// What is dirty in a range, copied: place in the range, and bytes.
    fn overlay(
        &self,
        state: &super::file::FileState,
        plain_offset: u64,
        len: usize,
    ) -> Vec<(usize, Vec<u8>)> {
        let end = plain_offset + len as u64;
        let mut out = Vec::new();
        for dirty in state.leaving.as_deref().into_iter().chain([&state.dirty]) {
            for (start, part) in dirty.parts(plain_offset, end) {
                out.push(((start - plain_offset) as usize, part.to_vec()));
            }
        }
        out
    }

    /// Has fetched what lies in a range of a file.
    fn read_ahead(&self, ino: Ino, plain: Range<u64>) {
        if plain.is_empty() {
            return;
        }
        if let Ok(located) = self.locate(ino, plain.start, plain.end) {
            self.blocks.read_ahead(&located.extents);
        }
    }

    pub(super) fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // What is dirty is data, too.
        if !self.read_only {
            self.flush_ino(ino)?;
        }
        // Nothing is copied: a walk over a file in many pieces asks once for each.
        let tree = self.tree.read();
        let inode = tree.inode(self.find(&tree, ino)?);
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
}
