//! Which open files go past the kernel's page cache.
//!
//! A file that is created for writing only is written by its creator and read, if at all, by others later: copies
//! in the page cache would cost a copy each, and the kernel asks for an extended attribute before the first write
//! into it. Without, small files are created 3 to 11 % faster. Whoever opens such a file before it is closed goes past
//! the cache, too: beside direct writes, cached pages could be read before a write and kept after it.

use std::collections::HashMap;

use fuser::{FopenFlags, INodeNo};
use parking_lot::Mutex;

/// The files that were created so and are open, and those of them whose pages have to be dropped: one entry per
/// inode that the kernel knows, at most.
#[derive(Default)]
pub(super) struct Uncached(Mutex<HashMap<INodeNo, State>>);

enum State {
    Open {
        handles: usize,
        /// Somebody else has had it open, and may have mapped pages into memory, which are cached ones.
        is_shared: bool,
    },
    /// Closed by all. Pages that are left in the cache may be older than the last writes.
    Stale,
}

impl Uncached {
    /// A new file was opened with `flags` as it was made.
    pub(super) fn created(&self, ino: INodeNo, flags: i32) -> FopenFlags {
        if flags & libc::O_ACCMODE != libc::O_WRONLY {
            return FopenFlags::empty();
        }
        let state = State::Open {
            handles: 1,
            is_shared: false,
        };
        self.0.lock().insert(ino, state);
        FopenFlags::FOPEN_DIRECT_IO
    }

    /// A file was opened, for which `flags` are what the kernel would be told otherwise.
    pub(super) fn opened(&self, ino: INodeNo, flags: FopenFlags) -> FopenFlags {
        let mut files = self.0.lock();
        match files.get_mut(&ino) {
            None => flags,
            Some(State::Open { handles, is_shared }) => {
                *handles += 1;
                *is_shared = true;
                flags | FopenFlags::FOPEN_DIRECT_IO
            }
            Some(State::Stale) => {
                files.remove(&ino);
                flags - FopenFlags::FOPEN_KEEP_CACHE
            }
        }
    }

    /// Whether the handles of a file go past the cache.
    pub(super) fn is_open(&self, ino: INodeNo) -> bool {
        matches!(self.0.lock().get(&ino), Some(State::Open { .. }))
    }

    /// A handle was released.
    pub(super) fn released(&self, ino: INodeNo) {
        let mut files = self.0.lock();
        let Some(State::Open { handles, is_shared }) = files.get_mut(&ino) else {
            return;
        };
        *handles -= 1;
        match (*handles, *is_shared) {
            (0, false) => drop(files.remove(&ino)),
            (0, true) => drop(files.insert(ino, State::Stale)),
            _ => {}
        }
    }

    /// The kernel has dropped the inode, and its pages. (While it is open, the kernel at most forgets that it has
    /// looked it up once more.)
    pub(super) fn forgotten(&self, ino: INodeNo) {
        let mut files = self.0.lock();
        if matches!(files.get(&ino), Some(State::Stale)) {
            files.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: INodeNo = INodeNo(7);
    const CACHED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE;

    fn is_direct(flags: FopenFlags) -> bool {
        flags.contains(FopenFlags::FOPEN_DIRECT_IO)
    }

    #[test]
    fn only_what_is_created_for_writing_only() {
        let files = Uncached::default();
        assert!(!is_direct(files.created(INO, libc::O_RDWR)));
        assert_eq!(files.opened(INO, CACHED), CACHED);
        assert!(is_direct(files.created(INodeNo(8), libc::O_WRONLY)));
        files.released(INodeNo(8));
        assert_eq!(files.opened(INodeNo(8), CACHED), CACHED);
    }

    #[test]
    fn who_opens_it_meanwhile_is_not_cached_either_and_what_they_mapped_is_dropped() {
        let files = Uncached::default();
        files.created(INO, libc::O_WRONLY);
        assert!(is_direct(files.opened(INO, CACHED)));
        files.released(INO);
        assert!(is_direct(files.opened(INO, CACHED)), "one is still open");
        files.released(INO);
        files.released(INO);
        assert_eq!(files.opened(INO, CACHED), FopenFlags::empty());
        assert_eq!(files.opened(INO, CACHED), CACHED);
    }

    #[test]
    fn nothing_is_kept_of_forgotten_inodes() {
        let files = Uncached::default();
        files.created(INO, libc::O_WRONLY);
        files.opened(INO, CACHED);
        files.forgotten(INO);
        assert!(is_direct(files.opened(INO, CACHED)), "it is open");
        for _ in 0..3 {
            files.released(INO);
        }
        files.forgotten(INO);
        assert!(files.0.lock().is_empty());
    }
}
