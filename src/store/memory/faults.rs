//! The faults of a store in memory.

use std::io;
use std::time::Duration;

use crate::dice::Dice;

/// Which faults happen, and when. Operations are numbered from 0: each create, write, sync, publish, put, remove and discard.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    cut_after: Option<u64>,
    fail_once: Option<(u64, i32)>,
    pub(super) sync_delay: Duration,
    pub(super) space_bytes: Option<u64>,
    pub(super) seed: u64,
}

impl Faults {
    /// The power fails in operation `n`, which may be done, partly done or not done. It and all later calls fail.
    #[must_use]
    pub fn cut_after(mut self, n: u64) -> Self {
        self.cut_after = Some(n);
        self
    }
    /// Operation `n` fails with `errno`; if it is a write, it may be partly done. Later operations work.
    #[must_use]
    pub fn fail_once(mut self, n: u64, errno: i32) -> Self {
        self.fail_once = Some((n, errno));
        self
    }
    /// How long each sync takes.
    #[must_use]
    pub fn sync_delay(mut self, delay: Duration) -> Self {
        self.sync_delay = delay;
        self
    }
    /// The size of the store in bytes.
    #[must_use]
    pub fn space(mut self, bytes: u64) -> Self {
        self.space_bytes = Some(bytes);
        self
    }
    /// The seed that decides how much of a failing operation is done.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The fate of operation `n`.
    pub(super) fn fate(&self, n: u64) -> Fate {
        let chance = Dice::new(self.seed ^ n).next();
        if self.cut_after.is_some_and(|cut| n >= cut) {
            return Fate::Cut(chance);
        }
        match self.fail_once {
            Some((at, errno)) if at == n => {
                Fate::Fails(io::Error::from_raw_os_error(errno), chance)
            }
            _ => Fate::Done,
        }
    }
}

/// The fate of an operation.
pub(super) enum Fate {
    /// It is done.
    Done,
    /// It fails with this error; the number decides how much of it is done.
    Fails(io::Error, u64),
    /// The power fails; the number decides how much of it is done.
    Cut(u64),
}
