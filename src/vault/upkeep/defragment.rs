//! Rewriting files that are stored in too many pieces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Task;
use crate::error::Result;
use crate::index::extents::Extent;
use crate::object::PackId;
use crate::vault::copy::{COPY_LEN, copy_ranges};
use crate::vault::files::Files;
use crate::vault::log::Log;
use crate::volume::Ino;

/// A file whose extents are shorter on average is rewritten, in bytes.
const EXTENT_LEN_MIN: u64 = 64 * 1024;
/// A file in fewer extents is left alone.
const EXTENTS_MIN: usize = 16;
/// A file is rewritten so long after it was closed: a program that writes in rounds is not hindered.
const REWRITE_AFTER: Duration = Duration::from_secs(10);
/// More files than this do not wait; they are seen again when they are closed the next time.
const QUEUE_MAX: usize = 1024;

/// Owns the queue of files that were closed in many pieces, and when. Does not own the files.
pub(in crate::vault) struct Defragmenter {
    log: Arc<Log>,
    files: Arc<Files>,
    queue: Mutex<Vec<(Ino, Instant)>>,
}

impl Defragmenter {
    /// Nothing waits.
    pub fn new(log: Arc<Log>, files: Arc<Files>) -> Self {
        Self {
            log,
            files,
            queue: Mutex::default(),
        }
    }

    /// Notes a file that was closed, to be rewritten where it is stored in too many pieces.
    pub fn note_closed(&self, ino: Ino) {
        let is_fragmented = {
            let tree = self.log.view().tree();
            tree.find(ino).is_some_and(|ix| {
                let extents = tree.inode(ix).extents();
                let count = extents.as_slice().len();
                count >= EXTENTS_MIN && extents.plain_bytes() / (count as u64) < EXTENT_LEN_MIN
            })
        };
        if is_fragmented {
            self.push_closed(ino);
            self.log.requests().changed();
        }
    }

    /// A file was closed: it waits from then on.
    fn push_closed(&self, ino: Ino) {
        let mut queue = self.queue.lock();
        queue.retain(|(other, _)| *other != ino);
        if queue.len() < QUEUE_MAX {
            queue.push((ino, self.log.env().now()));
        }
    }

    fn is_over(&self, (_, closed): &(Ino, Instant)) -> bool {
        self.log.env().since(*closed) >= REWRITE_AFTER
    }

    /// Takes one out that has waited long enough.
    fn take_due(&self) -> Option<Ino> {
        let mut queue = self.queue.lock();
        let due = queue.iter().position(|waits| self.is_over(waits))?;
        Some(queue.remove(due).0)
    }

    fn rewrite(&self, ino: Ino, go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        let view = self.log.view();
        let Ok(located) = view.locate(ino, 0, 0) else {
            return Ok(()); // removed meanwhile
        };
        let plain_size = located.plain_size;
        let mut at = 0;
        while at < plain_size && go_on() {
            let end = (at + COPY_LEN).min(plain_size);
            let Ok(located) = view.locate(ino, at, end) else {
                return Ok(()); // removed meanwhile
            };
            let lens = located.extents.iter().map(|(e, _)| u64::from(e.plain_len));
            let bytes: u64 = lens.sum();
            let count = located.extents.len() as u64;
            // Holes stay holes: only what lies between them is copied.
            if count > 1
                && bytes / count < EXTENT_LEN_MIN
                && !copy_ranges(&self.log, ino, &joined(&located.extents))?
            {
                return Ok(()); // written to meanwhile: it will be closed again
            }
            at = end;
        }
        Ok(())
    }
}

impl Task for Defragmenter {
    fn is_due(&self) -> Result<bool> {
        Ok(self.queue.lock().iter().any(|waits| self.is_over(waits)))
    }

    fn is_waiting(&self) -> bool {
        !self.queue.lock().is_empty()
    }

    /// Rewrites one file that was closed a while ago.
    fn run(&self, go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        if let Some(ino) = self.take_due()
            && self.files.opened(ino).is_none()
            && self.log.check_writable().is_ok()
        {
            self.rewrite(ino, go_on)?;
        }
        Ok(())
    }
}

/// Ranges without holes that the extents (ascending) cover.
fn joined(extents: &[(Extent, PackId)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (e, _) in extents {
        match ranges.last_mut() {
            Some((_, end)) if *end == e.plain_offset => *end = e.plain_end(),
            _ => ranges.push((e.plain_offset, e.plain_end())),
        }
    }
    ranges
}
