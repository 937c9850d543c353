//! Files that programs may change through memory maps.
//!
//! Such changes stay in the kernel until it writes them back. Until then the volume would report a hole where there is data,
//! or no blocks for a file that has some, and cp and tar would copy zeros. Therefore files with a handle for reading and
//! writing are reported to have at least one block and, through any other handle, no holes.
//!
//! The write-back cannot be forced from here: the kernel would wait for an answer of this process, and could not be killed
//! while it waits.
//!
//! Limitation: the kernel does not report mappings or stores to them either. If a file has just one handle, which dup(2),
//! fork(2) and SCM_RIGHTS share, holes are reported through it as if there were no map. Programs that write a sparse file
//! and then look for its holes need that.

use std::collections::HashMap;

use fuser::{FileHandle, INodeNo};
use parking_lot::Mutex;

use crate::volume::Attr;

/// For each file, its open handles for reading and writing. A shared map needs one.
#[derive(Default)]
pub(super) struct Mapped(Mutex<HashMap<INodeNo, Vec<FileHandle>>>);

/// Whether a file can be changed through a map of a handle with these flags.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Whether tar takes a file for all zeros, and does not read it. If a file has a block, all programs read it.
pub(super) fn seems_empty(attr: &Attr) -> bool {
    attr.blocks_512 == 0 && attr.plain_size > 0
}

impl Mapped {
    /// Called when a file was opened. Returns whether it can be changed through a map of this handle.
    pub(super) fn opened(&self, ino: INodeNo, handle: FileHandle, flags: i32) -> bool {
        if is_mappable(flags) {
            self.0.lock().entry(ino).or_default().push(handle);
        }
        is_mappable(flags)
    }

    /// Called when a handle was released, and with it all maps that were made through it.
    pub(super) fn released(&self, ino: INodeNo, handle: FileHandle, flags: i32) {
        if !is_mappable(flags) {
            return;
        }
        let mut files = self.0.lock();
        if let Some(handles) = files.get_mut(&ino) {
            handles.retain(|h| *h != handle);
            if handles.is_empty() {
                files.remove(&ino);
            }
        }
    }

    /// Whether the file may have been changed through a map of a handle other than `handle`.
    pub(super) fn is_mapped_by_others(&self, ino: INodeNo, handle: FileHandle) -> bool {
        let files = self.0.lock();
        files
            .get(&ino)
            .is_some_and(|handles| handles.iter().any(|h| *h != handle))
    }

    /// Whether a file seems empty, but may have been changed through a map. It must then be reported with a block, and
    /// the kernel must not cache that: it holds only while there are such handles.
    pub(super) fn may_hide_data(&self, attr: &Attr) -> bool {
        seems_empty(attr) && self.0.lock().contains_key(&INodeNo(attr.ino.0))
    }
}
