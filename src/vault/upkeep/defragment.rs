//! Rewrites files that are stored in too many extents.

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

/// Minimum average length of a file's extents, in bytes. A file below it is rewritten.
const EXTENT_LEN_MIN: u64 = 64 * 1024;
/// Minimum number of extents of a file that is rewritten.
const EXTENTS_MIN: usize = 16;
/// Delay between the close of a file and its rewrite, so that programs that write it repeatedly are not slowed down.
const REWRITE_AFTER: Duration = Duration::from_secs(10);
/// Maximum number of files in the queue. Others are queued when they are closed the next time.
const QUEUE_MAX: usize = 1024;

/// Owns the queue of fragmented files, with the times when they were closed. Does not own the files.
pub(in crate::vault) struct Defragmenter {
    log: Arc<Log>,
    files: Arc<Files>,
    queue: Mutex<Vec<(Ino, Instant)>>,
}

impl Defragmenter {
    /// A defragmenter with an empty queue.
    pub fn new(log: Arc<Log>, files: Arc<Files>) -> Self {
        Self {
            log,
            files,
            queue: Mutex::default(),
        }
    }

    /// Records that a file was closed. If it is stored in too many extents, it will be rewritten.
    pub fn record_closed(&self, ino: Ino) {
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

    /// Puts a file into the queue. Its delay starts now.
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

    /// Removes a file whose delay is over from the queue.
    fn take_due(&self) -> Option<Ino> {
        let mut queue = self.queue.lock();
        let due = queue.iter().position(|waits| self.is_over(waits))?;
        Some(queue.remove(due).0)
    }

    fn rewrite(&self, ino: Ino, go_on: &mut dyn FnMut() -> bool) -> Result<()> {
        let view = self.log.view();
        let Ok(located) = view.locate(ino, 0, 0) else {
            return Ok(()); // the file was removed
        };
        let plain_size = located.plain_size;
        let mut at = 0;
        while at < plain_size && go_on() {
            let end = (at + COPY_LEN).min(plain_size);
            let Ok(located) = view.locate(ino, at, end) else {
                return Ok(()); // the file was removed
            };
            let lens = located.extents.iter().map(|(e, _)| u64::from(e.plain_len));
            let bytes: u64 = lens.sum();
            let count = located.extents.len() as u64;
            // Holes stay holes: only the data between them is copied.
            if count > 1
                && bytes / count < EXTENT_LEN_MIN
                && !copy_ranges(&self.log, ino, &joined(&located.extents))?
            {
                return Ok(()); // the file is being written: it will be queued again when it is closed
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

    /// Rewrites one file whose delay is over.
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

/// Merges adjacent extents, given in ascending order, to ranges without holes.
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
