//! What is wrong with the store, as the log is told of it.

use std::num::NonZeroUsize;
use std::sync::Weak;

use fuser::{Errno, INodeNo};
use lru::LruCache;
use parking_lot::Mutex;

use crate::error::{Error, Kind};
use crate::logged;
use crate::volume::{Ino, Volume};

/// So many failed reads are remembered.
const READS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");

/// Tells the log of faults.
pub(super) struct Faults {
    /// Not held: who answers late must not keep the volume.
    volume: Weak<dyn Volume>,
    /// The reads that failed, by file and by what was wrong with: a program, or the kernel, reads again and again.
    reads: Mutex<LruCache<(u64, Box<str>), ()>>,
}

impl Faults {
    pub fn new(volume: Weak<dyn Volume>) -> Self {
        Self {
            volume,
            reads: Mutex::new(LruCache::new(READS_MAX)),
        }
    }

    /// What a program is told of an error. What is wrong with the store, rather than with the question, is logged, here
    /// and nowhere else; of reads once for each file and object.
    pub fn errno(&self, op: &str, ino: INodeNo, error: &Error) -> Errno {
        // That the store does not answer is said once for all that need it.
        let is_told = matches!(error.kind(), Kind::TimedOut);
        if error.is_fault() && !is_told && (op != "read" || self.is_first_read(ino, error)) {
            log::warn!("{op} of {}: {error}", self.name(ino));
        }
        Errno::from_i32(error.errno())
    }

    fn is_first_read(&self, ino: INodeNo, error: &Error) -> bool {
        let key = (ino.0, error.subject().unwrap_or_default().into());
        self.reads.lock().put(key, ()).is_none()
    }

    fn name(&self, ino: INodeNo) -> String {
        let ino = Ino(ino.0);
        let volume = self.volume.upgrade();
        logged::file_name(ino, volume.and_then(|volume| volume.path_of(ino)))
    }
}
