//! Whether a library may be written to: one answer for the whole mount, and why not.
//!
//! Owns the answer only; does not own what has failed. The log asks before every change. The gate can close while the
//! library is mounted, and never opens again.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Kind, Result};

/// Why nothing may be written. The later ones forbid more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// A newer version wrote a pack with a feature that this version may read, but not write beside.
    NewerPack = 1,
    /// The library was opened for reading only.
    Asked = 2,
    /// A thread that writes in the background ended by a panic.
    Panicked = 3,
    /// A record that is in the journal was refused by the tree: what is on disk and in memory may differ.
    RecordRefused = 4,
}

/// `Open`, or read-only for a [`Reason`].
#[derive(Debug, Default)]
pub struct WriteGate(AtomicU8);

impl WriteGate {
    /// Closes the gate. A reason that forbids less than the present one changes nothing. True for whoever is the first
    /// to close it for this reason or a stronger one, and so the one to log it.
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

    /// Whether the library was opened for reading only.
    pub fn is_asked_for(&self) -> bool {
        self.reason() == Some(Reason::Asked)
    }

    /// Whether something new may be written.
    ///
    /// # Errors
    /// [`Kind::ReadOnly`] where the library is read-only from the start or for its version, [`Kind::Poisoned`] after a
    /// failure of this program; EROFS both.
    pub fn check(&self) -> Result<()> {
        match self.reason() {
            None => Ok(()),
            Some(Reason::Asked | Reason::NewerPack) => Err(Kind::ReadOnly.into()),
            Some(Reason::Panicked | Reason::RecordRefused) => Err(failed()),
        }
    }

    /// Whether data may be written that a program was already told is written: only a failure that could damage the
    /// library forbids that.
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
