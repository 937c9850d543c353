//! Reading a file: what the view has of it, then what is dirty over that.

use super::Files;
use crate::error::Result;
use crate::vault::view::Access;
use crate::volume::{Ino, Whence};

impl Files {
    pub fn read_file(&self, ino: Ino, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let wanted_end = plain_offset.saturating_add(out.len() as u64);
        let file = self.opened(ino);
        let mut overlays = Vec::new();
        let located = match &file {
            // The state is locked until the extents are here, so that a flush cannot move data past us.
            Some(file) => {
                let state = file.state.lock();
                let mut located = self.view.locate(ino, plain_offset, wanted_end)?;
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
            None => self.view.locate(ino, plain_offset, wanted_end)?,
        };
        let len = located
            .plain_size
            .saturating_sub(plain_offset)
            .min(out.len() as u64) as usize;
        let out = &mut out[..len];
        let mut sequential = false;
        if let Some(Access::Sequence(next)) = file.map(|f| f.pattern.note(plain_offset, len)) {
            sequential = true;
            self.view.read_ahead(ino, next);
        }
        self.view
            .fill(ino, &located, plain_offset, out, sequential)?;
        for (at, bytes) in overlays {
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(len)
    }

    /// What is dirty in a range, copied: place in the range, and bytes.
    fn overlay(
        &self,
        state: &super::FileState,
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

    pub fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // What is dirty is data, too.
        if !self.log.gate().is_asked_for() {
            self.flush_ino(ino)?;
        }
        self.view.seek(ino, plain_offset, whence)
    }
}
