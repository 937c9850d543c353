//! Reading a file: stored contents from the view, overlaid with dirty data.

use super::Files;
use crate::error::Result;
use crate::vault::view::AccessPattern;
use crate::volume::{Ino, Whence};

impl Files {
    pub fn read_file(&self, ino: Ino, plain_offset: u64, out: &mut [u8]) -> Result<usize> {
        let wanted_end = plain_offset.saturating_add(out.len() as u64);
        let file = self.opened(ino);
        let mut overlays = Vec::new();
        let located = match &file {
            // The state stays locked while the extents are looked up, so that a concurrent flush cannot move data to
            // the tree between the two, where this read would miss it.
            Some(file) => {
                let state = file.state.lock();
                let mut located = self.view.locate(ino, plain_offset, wanted_end)?;
                located.plain_size = located.plain_size.max(state.end());
                let len = located
                    .plain_size
                    .saturating_sub(plain_offset)
                    .min(out.len() as u64) as usize;
                if !state.dirty.is_empty() || state.in_flight.is_some() {
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
        if let Some(AccessPattern::Sequential(next)) =
            file.map(|f| f.pattern.record(plain_offset, len))
        {
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

    /// Returns copies of the dirty data in a range, with offsets relative to the range.
    fn overlay(
        &self,
        state: &super::FileState,
        plain_offset: u64,
        len: usize,
    ) -> Vec<(usize, Vec<u8>)> {
        let end = plain_offset + len as u64;
        let mut out = Vec::new();
        for dirty in state.in_flight.as_deref().into_iter().chain([&state.dirty]) {
            for (start, part) in dirty.parts(plain_offset, end) {
                out.push(((start - plain_offset) as usize, part.to_vec()));
            }
        }
        out
    }

    pub fn seek(&self, ino: Ino, plain_offset: u64, whence: Whence) -> Result<u64> {
        // Dirty ranges count as data, and the view knows stored extents only.
        if !self.log.gate().is_asked_for() {
            self.flush_ino(ino)?;
        }
        self.view.seek(ino, plain_offset, whence)
    }
}
