//! Which files programs may change through memory maps. Such changes stay in the kernel until it writes them back, and
//! until then we would answer "a hole" where there is data: cp and tar would copy zeros.
//!
//! The kernel cannot be made to write back from here: it would wait for an answer of this process, and could not be
//! killed while it does.

use std::collections::HashMap;

use fuser::{FileHandle, INodeNo};
use parking_lot::Mutex;

/// Handles for reading and writing, which shared maps need, of each file that has any.
#[derive(Default)]
pub(super) struct Mapped(Mutex<HashMap<INodeNo, Vec<FileHandle>>>);

/// Whether a map can be written through a handle with these flags.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

impl Mapped {
    /// A file was opened.
    pub(super) fn opened(&self, ino: INodeNo, handle: FileHandle, flags: i32) {
        if is_mappable(flags) {
            self.0.lock().entry(ino).or_default().push(handle);
        }
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

    /// Whether somebody other than who asks through `handle` may have changed the file through a map. (Who changes
    /// it so, and then looks for holes, has to call msync(2) in between.)
    pub(super) fn by_others(&self, ino: INodeNo, handle: FileHandle) -> bool {
        let files = self.0.lock();
        files
            .get(&ino)
            .is_some_and(|handles| handles.iter().any(|h| *h != handle))
    }
}
