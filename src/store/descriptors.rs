//! Opening files when there are too few file descriptors: other files are closed first.

use std::time::Duration;

use parking_lot::RwLock;
use rustix::io::{Errno, retry_on_intr};

/// Closes files that can be opened again when they are needed. Returns false if there are none.
pub type Closer = Box<dyn Fn() -> bool + Send + Sync>;

/// How often to try to open a file, and how long to wait before the next try if no file could be closed. Other threads close
/// theirs when they have read them.
const TRIES: u32 = 50;
const WAIT: Duration = Duration::from_millis(10);

/// Opens files, and closes others if there are too few descriptors.
#[derive(Default)]
pub(super) struct Descriptors(RwLock<Option<Closer>>);

impl Descriptors {
    /// Sets the function that closes files.
    pub fn set(&self, closer: Closer) {
        *self.0.write() = Some(closer);
    }

    /// Calls `open`, and again if the process or the system has too many open files and some could be closed.
    pub fn open<T>(&self, mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        let mut tries = 1;
        loop {
            match retry_on_intr(&mut open) {
                Err(Errno::MFILE | Errno::NFILE) if tries < TRIES => {
                    let has_closed = self.0.read().as_ref().map(|close| close());
                    match has_closed {
                        Some(true) => {}
                        Some(false) => std::thread::sleep(WAIT),
                        None => return retry_on_intr(&mut open),
                    }
                    tries += 1;
                }
                opened => return opened,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn files_are_closed_until_one_can_be_opened() {
        let closed = Arc::new(AtomicU32::new(0));
        let (descriptors, count) = (Descriptors::default(), closed.clone());
        let full = || Err::<(), _>(Errno::MFILE);
        assert_eq!(descriptors.open(full), Err(Errno::MFILE));
        descriptors.set(Box::new(move || count.fetch_add(1, Ordering::Relaxed) < 5));
        let when_closed = || match closed.load(Ordering::Relaxed) {
            0..3 => Err(Errno::NFILE),
            n => Ok(n),
        };
        assert_eq!(descriptors.open(when_closed), Ok(3));
        // Who never gets one is told so, and nothing is closed for another error.
        assert_eq!(descriptors.open(full), Err(Errno::MFILE));
        let tries = Cell::new(0);
        let denied = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(Errno::ACCESS)
        };
        assert_eq!(
            (descriptors.open(denied), tries.get()),
            (Err(Errno::ACCESS), 1)
        );
    }
}
