//! Whether a library may be written to: one answer for the whole mount, and why not.
//!
//! Owns only the answer, not the failure that causes it. The log checks it before every change. The gate can close
//! while the library is mounted, and never opens again.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Kind, Result};

/// Why nothing may be written, in increasing order of what is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// A later version wrote a pack with a feature that this version can read, but must not write next to.
    NewerPack = 1,
    /// The library was opened read-only.
    Asked = 2,
    /// A background thread that writes has panicked.
    Panicked = 3,
    /// The tree refused a record that is in the journal: the state on disk and in memory may differ.
    RecordRefused = 4,
}

/// Open, or closed for a [`Reason`].
#[derive(Debug, Default)]
pub struct WriteGate(AtomicU8);

impl WriteGate {
    /// Closes the gate. A reason that is not stronger than the present one changes nothing. Returns whether the reason
    /// changed; the caller must log it then.
    pub fn close(&self, reason: Reason) -> bool {
        let reason = reason as u8;
        self.0.fetch_max(reason, Ordering::AcqRel) < reason
    }

    /// Why nothing may be written; `None` while the gate is open.
    pub fn reason(&self) -> Option<Reason> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Reason::NewerPack),
            2 => Some(Reason::Asked),
            3 => Some(Reason::Panicked),
            _ => Some(Reason::RecordRefused),
        }
    }

    /// Whether the library was opened read-only.
    pub fn is_asked_for(&self) -> bool {
        self.reason() == Some(Reason::Asked)
    }

    /// Checks that new data may be written.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] if the library was opened read-only or a later version wrote to it, [`Kind::Poisoned`] after
    /// an internal failure. Both are EROFS.
    pub fn check(&self) -> Result<()> {
        match self.reason() {
            None => Ok(()),
            Some(Reason::Asked | Reason::NewerPack) => Err(Kind::ReadOnly.into()),
            Some(Reason::Panicked | Reason::RecordRefused) => Err(failed()),
        }
    }

    /// Checks that data may be written whose write(2) has already returned success. Only a failure that could damage
    /// the library prevents that.
    ///
    /// # Errors
    /// [`Kind::Poisoned`] after such a failure.
    pub fn check_acknowledged(&self) -> Result<()> {
        match self.reason() {
            Some(Reason::RecordRefused) => Err(failed()),
            _ => Ok(()),
        }
    }
}

fn failed() -> Error {
    Error::from(Kind::Poisoned).hint("unmount and mount again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_stays_closed_and_keeps_the_strongest_reason() {
        let gate = WriteGate::default();
        assert!(gate.check().is_ok() && gate.reason().is_none());
        assert!(gate.close(Reason::NewerPack));
        assert!(!gate.close(Reason::NewerPack) && !gate.is_asked_for());
        assert!(matches!(gate.check().unwrap_err().kind(), Kind::ReadOnly));
        assert!(gate.check_acknowledged().is_ok());
        assert!(gate.close(Reason::RecordRefused));
        assert!(!gate.close(Reason::Panicked));
        assert_eq!(gate.reason(), Some(Reason::RecordRefused));
        assert!(gate.check().is_err() && gate.check_acknowledged().is_err());
    }
}
