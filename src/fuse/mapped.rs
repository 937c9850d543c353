//! Which files programs may change through memory maps. Such changes stay in the kernel until it writes them back, and
//! until then we would answer "a hole" where there is data, or "no blocks" of a file that has some: cp and tar would
//! copy zeros.
//!
//! The kernel cannot be made to write back from here: it would wait for an answer of this process, and could not be
//! killed while it does.
//!
//! A limit: nor does it tell of maps, or of stores to them, before it writes back. So who asks through the handle that
//! the map was made with (dup(2), fork(2) and SCM_RIGHTS share it) is told of holes as if there were no map: programs
//! that write here and there, and then look for their holes, have just one handle, too.

use std::collections::HashMap;

use fuser::{FileHandle, INodeNo};
use parking_lot::Mutex;

use crate::volume::Attr;

/// Handles for reading and writing, which shared maps need, of each file that has any.
#[derive(Default)]
pub(super) struct Mapped(Mutex<HashMap<INodeNo, Vec<FileHandle>>>);

/// Whether a map can be written through a handle with these flags.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Whether a file is zeros to tar, which then asks for no data in it. (Where it has a block, all programs ask.)
pub(super) fn seems_empty(attr: &Attr) -> bool {
    attr.blocks_512 == 0 && attr.plain_size > 0
}

impl Mapped {
    /// A file was opened. Whether it may be changed through maps now.
    pub(super) fn opened(&self, ino: INodeNo, handle: FileHandle, flags: i32) -> bool {
        if is_mappable(flags) {
            self.0.lock().entry(ino).or_default().push(handle);
        }
        is_mappable(flags)
    }

    /// A handle was released, and with it all maps that were made through it.
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

    /// Whether somebody may have changed the file through a map and another handle than `handle`, through which is
    /// asked.
    pub(super) fn by_others(&self, ino: INodeNo, handle: FileHandle) -> bool {
        let files = self.0.lock();
        files
            .get(&ino)
            .is_some_and(|handles| handles.iter().any(|h| *h != handle))
    }

    /// Makes a file that seems empty have a block, where it may have been changed through a map. Whether it did: that
    /// holds only as long as there are handles, and the kernel must not keep it.
    pub(super) fn count_in(&self, attr: &mut Attr) -> bool {
        let counts = seems_empty(attr) && self.0.lock().contains_key(&INodeNo(attr.ino.0));
        if counts {
            attr.blocks_512 = 1;
        }
        counts
    }
}
