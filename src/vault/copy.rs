//! Copying ranges of a file into the open pack, for salvage and defragmentation. Owns nothing.

use super::log::{Log, Subject};
use crate::error::{Kind, Result};
use crate::index::Stamp;
use crate::index::record::{Record, Relocate, Splices};
use crate::volume::Ino;

/// Maximum length that is read and encrypted in one step, in bytes.
pub(super) const COPY_LEN: u64 = 4 << 20;

/// Re-encrypts ranges of a file into the open pack and records their new location. Returns false if the file was
/// changed in the meantime, in which case the copies are not used.
pub(super) fn copy_ranges(log: &Log, ino: Ino, ranges: &[(u64, u64)]) -> Result<bool> {
    let _held_off = log.hold_off_collection()?;
    let (subject, version) = {
        let tree = log.view().tree();
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
            let end = (at + COPY_LEN).min(*to);
            let mut plain = vec![0; (end - at) as usize];
            let filled = log.view().locate(ino, at, end).and_then(|located| {
                log.view()
                    .fill_extents(&located.extents, at, &mut plain, true)
            });
            match filled {
                Ok(()) => {}
                // If the file was removed or changed, its old packs may have been removed, too.
                Err(e) if matches!(e.kind(), Kind::Stale | Kind::Missing) => {
                    return match has_version(log, ino, version) {
                        None => Ok(true),
                        Some(false) => Ok(false),
                        Some(true) => Err(e),
                    };
                }
                Err(e) => return Err(e),
            }
            log.new_packs()
                .append(&subject, at, &[&plain], &mut splices)?;
            at = end;
        }
    }
    let Splices {
        packs,
        list: splices,
    } = splices;
    log.commit_acknowledged(|tree, transaction| {
        let Some(ix) = tree.find(ino) else {
            return Ok(true);
        };
        let inode = tree.inode(ix);
        if inode.version() != version {
            return Ok(false);
        }
        transaction.unlinked = !inode.is_linked();
        let version = tree.to_wire(version);
        transaction.records.push(Record::Relocate(Relocate {
            inode: inode.id(),
            version,
            packs,
            splices,
        }));
        Ok(true)
    })
}

/// Whether a file is unchanged; `None` if it is gone.
fn has_version(log: &Log, ino: Ino, version: Stamp) -> Option<bool> {
    let tree = log.view().tree();
    Some(tree.inode(tree.find(ino)?).version() == version)
}
