//! When work that failed is tried again.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::vault::log::TICK;

/// Work that keeps failing is tried again after a wait that doubles up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How one kind of work has done so far.
#[derive(Default)]
pub(in crate::vault) struct Backoff {
    failed: Option<String>,
    wait: Duration,
    not_before: Option<Instant>,
}

/// What a result changes.
#[derive(Debug, PartialEq)]
enum Change {
    /// It works as before, or fails as before.
    Same,
    /// It fails, and did not before, or for another reason.
    Failed(String),
    /// It works, and failed before for this reason.
    Recovered(String),
}

impl Backoff {
    /// The work was tried. A failure that repeats is logged once, and when it is over.
    pub fn record(&mut self, now: Instant, result: Result<()>) {
        match self.note(now, result) {
            Change::Same => {}
            Change::Failed(why) => log::warn!("{why}"),
            Change::Recovered(why) => log::warn!("recovered: {why}"),
        }
    }

    fn note(&mut self, now: Instant, result: Result<()>) -> Change {
        let Err(e) = result else {
            (self.wait, self.not_before) = (Duration::ZERO, None);
            return self.failed.take().map_or(Change::Same, Change::Recovered);
        };
        self.wait = (self.wait * 2).clamp(TICK, LONGEST_WAIT);
        self.not_before = now.checked_add(self.wait);
        let why = e.to_string();
        if self.failed.as_ref() == Some(&why) {
            return Change::Same;
        }
        self.failed = Some(why.clone());
        Change::Failed(why)
    }

    /// Whether it may be tried.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_failure_that_repeats_is_logged_once_and_tried_ever_more_seldom() {
        let (now, mut backoff) = (Instant::now(), Backoff::default());
        let fails = |why: &str| Err(Error::damaged("x", why));
        let failed = |why: &str| Change::Failed(format!("x: damaged: {why}"));
        assert_eq!(backoff.note(now, Ok(())), Change::Same);
        assert!(backoff.is_ready(now));
        assert_eq!(backoff.note(now, fails("a")), failed("a"));
        assert!(!backoff.is_ready(now));
        for _ in 0..10 {
            assert_eq!(backoff.note(now, fails("a")), Change::Same);
        }
        assert_eq!(backoff.wait, LONGEST_WAIT);
        assert_eq!(backoff.note(now, fails("b")), failed("b"));
        let over = Change::Recovered("x: damaged: b".to_owned());
        assert_eq!(backoff.note(now, Ok(())), over);
        assert!(backoff.is_ready(now));
        assert_eq!(backoff.note(now, Ok(())), Change::Same);
        assert!(backoff.note(now, fails("b")) == failed("b") && backoff.wait == TICK);
    }
}
