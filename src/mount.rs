//! Mounting.

use std::path::PathBuf;

use crate::crypto::MasterKey;
use crate::error::{Kind, Result};
use crate::state::Place;
use crate::store::DeviceId;

/// What is to be mounted, where, and how.
#[derive(Debug)]
pub struct Plan {
    /// The library's folder.
    pub library: PathBuf,
    /// Where it is to be seen.
    pub mountpoint: PathBuf,
    /// Its key.
    pub master: MasterKey,
    /// This device.
    pub device: DeviceId,
    /// Where this machine remembers it.
    pub place: Option<Place>,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Write nothing.
    pub read_only: bool,
    /// Other users may enter.
    pub allow_other: bool,
    /// Bytes of decrypted blocks to keep.
    pub cache_bytes: usize,
    /// An index older than this machine has seen is accepted.
    pub accept_rollback: bool,
    /// Set-user-id bits mean nothing.
    pub nosuid: bool,
    /// Device nodes open nothing.
    pub nodev: bool,
    /// Programs do not run.
    pub noexec: bool,
}

/// Mounts it.
pub fn run(plan: Plan) -> Result<()> {
    drop(plan);
    Err(Kind::NotSupported.into())
}
