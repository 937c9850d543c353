//! Rewriting files that lie in too many pieces.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Core;
use super::contents::Subject;
use crate::error::{Kind, Result};
use crate::index::Stamp;
use crate::index::record::{Record, Relocate, Splices};
use crate::object::PackId;
use crate::volume::Ino;

/// A file whose extents are shorter on average is rewritten, in bytes.
const EXTENT_LEN_MIN: u64 = 64 * 1024;
/// A file in fewer extents is left alone.
const EXTENTS_MIN: usize = 16;
/// A file is rewritten so long after it was closed: a program that writes in rounds is not hindered.
const REWRITE_AFTER: Duration = Duration::from_secs(10);
/// What is read and encrypted in one piece, in bytes.
const REWRITE_LEN: u64 = 4 << 20;
/// More files than this do not wait; they are seen again when they are closed the next time.
const QUEUE_MAX: usize = 1024;

/// Files that were closed in many pieces, and when.
#[derive(Default)]
pub(super) struct Fragmented(Mutex<Vec<(Ino, Instant)>>);

impl Fragmented {
    /// A file was closed: it waits from then on.
    pub fn push_closed(&self, ino: Ino, closed: Instant) {
        let mut queue = self.0.lock();
        queue.retain(|(other, _)| *other != ino);
        if queue.len() < QUEUE_MAX {
            queue.push((ino, closed));
        }
    }

    /// Takes one out that has waited long enough.
    fn take_due(&self) -> Option<Ino> {
        let mut queue = self.0.lock();
        let is_due = |(_, closed): &(Ino, Instant)| closed.elapsed() >= REWRITE_AFTER;
        let due = queue.iter().position(is_due)?;
        Some(queue.remove(due).0)
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Core {
    /// Notes a file that was closed, to be rewritten where it lies in too many pieces.
    pub(super) fn note_closed(&self, ino: Ino) {
        let fragmented = {
            let tree = self.view.tree();
            tree.find(ino).is_some_and(|ix| {
                let extents = tree.inode(ix).extents();
                let count = extents.as_slice().len();
                count >= EXTENTS_MIN && extents.plain_bytes() / (count as u64) < EXTENT_LEN_MIN
            })
        };
        if fragmented {
            self.fragmented.push_closed(ino, Instant::now());
            self.commit.changed();
        }
    }

    /// Rewrites one file that was closed a while ago. True where more wait.
    pub(super) fn rewrite_fragmented(&self) -> Result<bool> {
        if let Some(ino) = self.fragmented.take_due()
            && self.opened(ino).is_none()
            && self.writable().is_ok()
        {
            self.rewrite(ino)?;
        }
        Ok(!self.fragmented.is_empty())
    }

    fn rewrite(&self, ino: Ino) -> Result<()> {
        let plain_size = match self.view.locate(ino, 0, 0) {
            Ok(located) => located.plain_size,
            Err(_) => return Ok(()), // removed meanwhile
        };
        let mut at = 0;
        while at < plain_size {
            self.serve();
            let end = (at + REWRITE_LEN).min(plain_size);
            let Ok(located) = self.view.locate(ino, at, end) else {
                return Ok(()); // removed meanwhile
            };
            let bytes: u64 = located
                .extents
                .iter()
                .map(|(e, _)| u64::from(e.plain_len))
                .sum();
            let count = located.extents.len() as u64;
            // Holes stay holes: only what lies between them is copied.
            if count > 1
                && bytes / count < EXTENT_LEN_MIN
                && !self.copy_ranges(ino, &joined(&located.extents))?
            {
                return Ok(()); // written to meanwhile: it will be closed again
            }
            at = end;
        }
        Ok(())
    }

    /// Seals ranges of a file anew and frames where they are now. False where the file was written to meanwhile:
    /// then the copies count for nothing.
    pub(super) fn copy_ranges(&self, ino: Ino, ranges: &[(u64, u64)]) -> Result<bool> {
        let _sealing = self.sealing.read();
        let (subject, version) = {
            let tree = self.view.tree();
            let Some(ix) = tree.find(ino) else {
                return Ok(true);
            };
            let inode = tree.inode(ix);
            let subject = Subject {
                inode: inode.id(),
                path: tree.path(ix),
                counter: tree.next_counter(),
            };
            (subject, inode.version())
        };
        let mut splices = Splices::default();
        for (from, to) in ranges {
            let mut at = *from;
            while at < *to {
                let end = (at + REWRITE_LEN).min(*to);
                let mut plain = vec![0; (end - at) as usize];
                let filled = self.view.locate(ino, at, end).and_then(|located| {
                    self.view
                        .fill_extents(&located.extents, at, &mut plain, true)
                });
                match filled {
                    Ok(()) => {}
                    // Removed, or written to: then its packs may be gone, too.
                    Err(e) if matches!(e.kind(), Kind::Stale | Kind::Missing) => {
                        return match self.has_version(ino, version) {
                            None => Ok(true),
                            Some(false) => Ok(false),
                            Some(true) => Err(e),
                        };
                    }
                    Err(e) => return Err(e),
                }
                self.contents.seal(&subject, at, &[&plain], &mut splices)?;
                at = end;
            }
        }
        let Splices {
            packs,
            list: splices,
        } = splices;
        self.transact_promised(|tree, draft| {
            let Some(ix) = tree.find(ino) else {
                return Ok(true);
            };
            let inode = tree.inode(ix);
            if inode.version() != version {
                return Ok(false);
            }
            draft.unlinked = !inode.is_linked();
            let version = tree.wire(version);
            draft.records.push(Record::Relocate(Relocate {
                inode: inode.id(),
                version,
                packs,
                splices,
            }));
            Ok(true)
        })
    }

    /// Whether a file is still as it was; `None` where it is gone.
    fn has_version(&self, ino: Ino, version: Stamp) -> Option<bool> {
        let tree = self.view.tree();
        Some(tree.inode(tree.find(ino)?).version() == version)
    }
}

/// Ranges without holes that the extents (ascending) cover.
fn joined(extents: &[(crate::index::extents::Extent, PackId)]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (e, _) in extents {
        match ranges.last_mut() {
            Some((_, end)) if *end == e.plain_offset => *end = e.plain_end(),
            _ => ranges.push((e.plain_offset, e.plain_end())),
        }
    }
    ranges
}
