//! Work that the committer does unasked, and what becomes of it when it fails.

use std::time::{Duration, Instant};

use super::commit::LOOK;
use crate::error::Result;

/// What keeps failing is tried again after a wait that doubles up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Work that is tried again where it failed.
#[derive(Default)]
pub(super) struct Duty {
    failed: Option<String>,
    wait: Duration,
    not_before: Option<Instant>,
}

impl Duty {
    /// It was tried; answers what the log shall say. A failure that repeats is said once, and when it is over.
    fn tried(&mut self, result: Result<()>) -> Option<String> {
        let Err(e) = result else {
            (self.wait, self.not_before) = (Duration::ZERO, None);
            return Some(format!("{}: it works again", self.failed.take()?));
        };
        self.wait = (self.wait * 2).clamp(LOOK, LONGEST_WAIT);
        self.not_before = Instant::now().checked_add(self.wait);
        let failed = Some(e.to_string());
        let is_new = self.failed != failed;
        self.failed = failed;
        self.failed.clone().filter(|_| is_new)
    }

    pub fn note(&mut self, result: Result<()>) {
        if let Some(text) = self.tried(result) {
            log::warn!("{text}");
        }
    }

    pub fn may_be_tried(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }
}

/// What the committer does unasked. One that fails does not hold up the others, and what makes room least of all.
#[derive(Default)]
pub(super) struct Duties {
    pub empty: Duty,
    pub write: Duty,
    pub publish: Duty,
    pub rewrite: Duty,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_failure_that_repeats_is_said_once_and_tried_ever_more_seldom() {
        let mut duty = Duty::default();
        let fails = |why: &str| Err(Error::damaged("x", why));
        assert_eq!(duty.tried(Ok(())), None);
        assert!(duty.may_be_tried());
        assert_eq!(duty.tried(fails("a")).unwrap(), "x: damaged: a");
        assert!(!duty.may_be_tried());
        for _ in 0..10 {
            assert_eq!(duty.tried(fails("a")), None);
        }
        assert_eq!(duty.wait, LONGEST_WAIT);
        assert_eq!(duty.tried(fails("b")).unwrap(), "x: damaged: b");
        let over = duty.tried(Ok(())).unwrap();
        assert_eq!(over, "x: damaged: b: it works again");
        assert!(duty.may_be_tried());
        assert_eq!(duty.tried(Ok(())), None);
        assert!(duty.tried(fails("b")).is_some() && duty.wait == LOOK);
    }
}
