//! Writing a pack.

use std::sync::Arc;

use super::{PackId, Run};
use crate::crypto::MasterKey;
use crate::error::Result;
use crate::store::{DeviceId, Growing, Store};

/// What the catalogue says of a run, so that a library whose index is lost can be rebuilt.
pub struct Note<'a> {
    /// The inode's 128-bit id.
    pub inode: u128,
    /// The file's path at that time, from the root, without a leading slash; empty where it has none.
    pub path: &'a [u8],
    /// Where in the file the run belongs.
    pub plain_offset: u64,
    /// The Lamport counter of the operation.
    pub counter: u64,
}

/// A pack that grows.
pub struct PackWriter {}

/// A pack with catalogue, padding and trailer; not yet synced or published.
pub struct FinishedPack {
    /// Its id.
    pub id: PackId,
    /// Its whole length in bytes.
    pub cipher_len: u32,
    /// The file.
    pub file: Arc<dyn Growing>,
}

impl PackWriter {
    /// Starts a pack in the store's `new/` folder.
    pub fn create(_store: &dyn Store, _master: &MasterKey, _device: DeviceId) -> Result<Self> {
        unimplemented!()
    }
    /// Its id.
    pub fn id(&self) -> PackId {
        unimplemented!()
    }
    /// The file, for reading and syncing.
    pub fn file(&self) -> Arc<dyn Growing> {
        unimplemented!()
    }
    /// Bytes of plaintext that the next run may have, catalogue and trailer counted in; 0: finish it.
    /// A multiple of a block unless it is 0.
    pub fn room(&self) -> u32 {
        unimplemented!()
    }
    /// Seals the concatenated `plain` pieces (1 to `room()` bytes in all) as one run and writes it.
    /// After an error the pack is spoiled: `room()` is 0 and `finish` refuses.
    pub fn append(&mut self, _plain: &[&[u8]], _note: &Note<'_>) -> Result<Run> {
        unimplemented!()
    }
    /// Whether anything was appended.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }
    /// Whether a write failed.
    pub fn is_spoiled(&self) -> bool {
        unimplemented!()
    }
    /// Writes catalogue, padding and trailer.
    pub fn finish(self) -> Result<FinishedPack> {
        unimplemented!()
    }
}
