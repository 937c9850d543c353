//! Which files programs may change through memory maps. Such changes stay in the kernel until it writes them back, and
//! until then we would answer "a hole" where there is data: cp and tar then copy zeros.

use std::collections::HashMap;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

/// Files that are open for reading and writing, which shared maps need, with the number of handles.
#[derive(Default)]
pub(super) struct Mapped {
    files: Mutex<HashMap<INodeNo, usize>>,
    writing_back: Mutex<()>,
}

/// Whether a map can be written through a handle with these flags.
fn is_mappable(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

impl Mapped {
    /// A file was opened.
    pub(super) fn opened(&self, ino: INodeNo, flags: i32) {
        if is_mappable(flags) {
            *self.files.lock().entry(ino).or_insert(0) += 1;
        }
    }

    /// A handle was released, and with it all maps that were made through it.
    pub(super) fn released(&self, ino: INodeNo, flags: i32) {
        if !is_mappable(flags) {
            return;
        }
        let mut files = self.files.lock();
        if let Some(handles) = files.get_mut(&ino) {
            *handles -= 1;
            if *handles == 0 {
                files.remove(&ino);
            }
        }
    }

    /// Has the kernel write back what is changed of a file, and drop what it has cached. False where that could not
    /// be: the file may then hold data anywhere.
    ///
    /// Within a request this waits for other requests, so one thread does it at a time: the others answer those.
    pub(super) fn write_back(&self, ino: INodeNo, kernel: &Notifier) -> bool {
        if !self.files.lock().contains_key(&ino) {
            return true;
        }
        let Some(_only) = self.writing_back.try_lock() else {
            return false;
        };
        const TO_THE_END: i64 = 0;
        match kernel.inval_inode(ino, 0, TO_THE_END) {
            Ok(()) => true,
            Err(e) => {
                log::debug!("inode {ino}: not written back: {e}");
                false
            }
        }
    }
}
