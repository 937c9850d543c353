//! The native filesystem: an encrypted library as a [`Volume`](crate::volume::Volume).

use std::sync::Arc;

use crate::crypto::MasterKey;
use crate::error::Result;
use crate::state::Place;
use crate::store::Store;
use crate::store::DeviceId;

pub mod acl;

/// How a library is opened.
pub struct Options {
    /// Nothing is written: leftovers are read, not adopted.
    pub read_only: bool,
    /// Bytes of decrypted blocks to keep.
    pub cache_bytes: usize,
    /// An index older than this machine has seen is accepted.
    pub accept_rollback: bool,
    /// Owner of the root directory of a new library.
    pub uid: u32,
    /// Group of the root directory of a new library.
    pub gid: u32,
}

/// An open library.
pub struct Vault {}

impl Vault {
    /// Opens a library: replays the index, adopts what a crash left, starts the committer.
    pub fn open(_store: Arc<dyn Store>, _master: MasterKey, _device: DeviceId, _place: Option<Place>, _options: &Options) -> Result<Arc<Self>> {
        unimplemented!()
    }
}
