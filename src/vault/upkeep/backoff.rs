//! Retries of work that failed, with exponential backoff.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::vault::log::TICK;

/// Maximum wait between two attempts. The wait doubles with each failure.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The recent failures of one kind of work, and when it may be tried again.
#[derive(Default)]
pub(in crate::vault) struct Backoff {
    failed: Option<String>,
    wait: Duration,
    not_before: Option<Instant>,
}

/// The difference between a result and the previous one.
#[derive(Debug, PartialEq)]
enum Change {
    /// Success after success, or the same error again.
    Same,
    /// An error after success, or a different error.
    Failed(String),
    /// Success after this error.
    Recovered(String),
}

impl Backoff {
    /// Records the result of an attempt. Logs an error once, however often it repeats, and once when the work succeeds
    /// again.
    pub fn record(&mut self, now: Instant, result: Result<()>) {
        match self.update(now, result) {
            Change::Same => {}
            Change::Failed(why) => log::warn!("{why}"),
            Change::Recovered(why) => log::warn!("recovered: {why}"),
        }
    }

    fn update(&mut self, now: Instant, result: Result<()>) -> Change {
        let Err(e) = result else {
            (self.wait, self.not_before) = (Duration::ZERO, None);
            return self.failed.take().map_or(Change::Same, Change::Recovered);
        };
        self.wait = (self.wait * 2).clamp(TICK, WAIT_MAX);
        self.not_before = now.checked_add(self.wait);
        let why = e.to_string();
        if self.failed.as_ref() == Some(&why) {
            return Change::Same;
        }
        self.failed = Some(why.clone());
        Change::Failed(why)
    }

    /// Whether the work may be tried now.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_repeated_failure_is_logged_once_and_retried_at_growing_intervals() {
        let (now, mut backoff) = (Instant::now(), Backoff::default());
        let fails = |why: &str| Err(Error::damaged("x", why));
        let failed = |why: &str| Change::Failed(format!("x: damaged: {why}"));
        assert_eq!(backoff.update(now, Ok(())), Change::Same);
        assert!(backoff.is_ready(now));
        assert_eq!(backoff.update(now, fails("a")), failed("a"));
        assert!(!backoff.is_ready(now));
        for _ in 0..10 {
            assert_eq!(backoff.update(now, fails("a")), Change::Same);
        }
        assert_eq!(backoff.wait, WAIT_MAX);
        assert_eq!(backoff.update(now, fails("b")), failed("b"));
        let over = Change::Recovered("x: damaged: b".to_owned());
        assert_eq!(backoff.update(now, Ok(())), over);
        assert!(backoff.is_ready(now));
        assert_eq!(backoff.update(now, Ok(())), Change::Same);
        assert!(backoff.update(now, fails("b")) == failed("b") && backoff.wait == TICK);
    }
}
