//! Logging of faults of the store.

use std::num::NonZeroUsize;
use std::sync::Weak;

use fuser::{Errno, INodeNo};
use lru::LruCache;
use parking_lot::Mutex;

use crate::error::{Error, Kind};
use crate::logged;
use crate::volume::{Ino, Volume};

/// How many failed reads are remembered, so as not to log them again.
const READS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");

/// Converts errors to errnos, and logs those that are faults of the store.
pub(super) struct Faults {
    /// Weak, because a late answer must not keep the volume open.
    volume: Weak<dyn Volume>,
    /// Failed reads by inode and subject of the error: programs and the kernel repeat a read that fails.
    reads: Mutex<LruCache<(u64, Box<str>), ()>>,
}

impl Faults {
    pub fn new(volume: Weak<dyn Volume>) -> Self {
        Self {
            volume,
            reads: Mutex::new(LruCache::new(READS_MAX)),
        }
    }

    /// Returns the errno of an error. A fault of the store, rather than of the request, is logged; this is the only place
    /// that does so. Failed reads are logged once for each file and object.
    pub fn report(&self, op: &str, ino: INodeNo, error: &Error) -> Errno {
        // A store that does not answer is logged once, by `watch`, and not for each request.
        let is_logged = matches!(error.kind(), Kind::TimedOut);
        if error.is_fault() && !is_logged && (op != "read" || self.record_read(ino, error)) {
            log::warn!("{op} of {}: {error}", self.name(ino));
        }
        Errno::from_i32(error.errno())
    }

    /// Records a failed read, and returns whether it is new.
    fn record_read(&self, ino: INodeNo, error: &Error) -> bool {
        let key = (ino.0, error.subject().unwrap_or_default().into());
        self.reads.lock().put(key, ()).is_none()
    }

    fn name(&self, ino: INodeNo) -> String {
        let ino = Ino(ino.0);
        let volume = self.volume.upgrade();
        logged::file_name(ino, volume.and_then(|volume| volume.path_of(ino)))
    }
}
