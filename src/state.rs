//! What this machine remembers of a library, outside of it: the device's id, the library's fingerprint, and the
//! newest index segment seen of every device. So another library in its place, and an index that went back, are
//! noticed. Nothing here is secret, and losing it loses no data.

use std::path::{Path, PathBuf};

use crate::crypto::Fingerprint;
use crate::error::Result;
use crate::store::DeviceId;

/// The newest published segment of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose segment.
    pub device: DeviceId,
    /// Its number in the writer's order, from 1.
    pub number: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// What is remembered of the library at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Which library was there.
    pub fingerprint: Fingerprint,
    /// This device's id in that library.
    pub device: DeviceId,
    /// The newest segments seen.
    pub heads: Vec<Head>,
}

/// The state file of a library at one place.
pub struct Place {
    path: PathBuf,
}

impl Place {
    /// Of the library at `library`, below `$XDG_STATE_HOME/hushfs` or `~/.local/state/hushfs`.
    pub fn of(_library: &Path) -> Result<Self> {
        unimplemented!()
    }
    /// In a file of one's own choice.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }
    /// What is remembered; `None` where nothing is. A file that does not parse is an error that says to remove it.
    pub fn load(&self) -> Result<Option<Remembered>> {
        let _ = &self.path;
        unimplemented!()
    }
    /// Replaces what is remembered, atomically and durably.
    pub fn save(&self, _remembered: &Remembered) -> Result<()> {
        unimplemented!()
    }
}
