//! The clock and the source of ids. They are passed in when a library is opened, so that a test can be repeated from
//! its seed. Not a source of keys and nonces: those come from getrandom(2) (`crypto`).

use std::time::{Duration, Instant};

#[cfg(any(test, feature = "testing"))]
use parking_lot::Mutex;

#[cfg(any(test, feature = "testing"))]
use crate::dice::Dice;
use crate::error::Result;
use crate::object::ObjectId;
use crate::volume::Time;

/// The clock and the source of ids of an open library.
#[derive(Default)]
pub struct Env {
    #[cfg(any(test, feature = "testing"))]
    seeded: Option<Mutex<Seeded>>,
}

#[cfg(any(test, feature = "testing"))]
struct Seeded {
    dice: Dice,
    start: Instant,
    elapsed: Duration,
}

impl Env {
    /// The system's clock, and getrandom(2).
    pub fn system() -> Self {
        Self::default()
    }

    /// Ids from a seed, and a clock that advances by [`Env::advance`], and by one microsecond whenever [`Env::wall`]
    /// reads it.
    #[cfg(any(test, feature = "testing"))]
    pub fn seeded(seed: u64) -> Self {
        let seeded = Seeded {
            dice: Dice::new(seed),
            start: Instant::now(),
            elapsed: Duration::ZERO,
        };
        Self {
            seeded: Some(Mutex::new(seeded)),
        }
    }

    /// Advances the clock of a seeded environment.
    #[cfg(any(test, feature = "testing"))]
    pub fn advance(&self, by: Duration) {
        if let Some(seeded) = &self.seeded {
            seeded.lock().elapsed += by;
        }
    }

    /// The time of day, for timestamps of files.
    pub fn wall(&self) -> Time {
        #[cfg(any(test, feature = "testing"))]
        if let Some(seeded) = &self.seeded {
            /// 14 November 2023.
            const START_SEC: i64 = 1_700_000_000;
            let mut seeded = seeded.lock();
            seeded.elapsed += Duration::from_micros(1);
            return Time {
                sec: START_SEC + seeded.elapsed.as_secs() as i64,
                nsec: seeded.elapsed.subsec_nanos(),
            };
        }
        Time::now()
    }

    /// The monotonic time, for [`Env::since`].
    pub fn now(&self) -> Instant {
        #[cfg(any(test, feature = "testing"))]
        if let Some(seeded) = &self.seeded {
            let seeded = seeded.lock();
            return seeded.start + seeded.elapsed;
        }
        Instant::now()
    }

    /// The time that has passed since `then`.
    pub fn since(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }

    /// A new unique id.
    ///
    /// # Errors
    /// getrandom(2) failed.
    pub fn id(&self) -> Result<ObjectId> {
        let mut id = ObjectId([0; 16]);
        self.random(&mut id.0)?;
        Ok(id)
    }

    /// Fills `out` with random bytes for ids.
    ///
    /// # Errors
    /// getrandom(2) failed.
    pub fn random(&self, out: &mut [u8]) -> Result<()> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(seeded) = &self.seeded {
            let dice = &mut seeded.lock().dice;
            for bytes in out.chunks_mut(8) {
                bytes.copy_from_slice(&dice.next().to_le_bytes()[..bytes.len()]);
            }
            return Ok(());
        }
        crate::crypto::random(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_times() {
        let [a, b, other] = [7, 7, 8].map(Env::seeded);
        assert_eq!(a.id().unwrap(), b.id().unwrap());
        assert_ne!(a.id().unwrap(), other.id().unwrap());
        b.id().unwrap();
        let then = a.now();
        for env in [&a, &b] {
            env.advance(Duration::from_secs(5));
        }
        assert!(a.wall() == b.wall() && a.wall() > other.wall());
        assert!(a.since(then) >= Duration::from_secs(5));
    }
}
