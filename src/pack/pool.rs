//! The packs that are open for reading.

use std::sync::Arc;

use super::{PackId, PackReader};
use crate::crypto::MasterKey;
use crate::error::Result;
use crate::store::{Object, Store};

/// Open packs, a bounded number of them; the longest unused is closed first.
pub struct Packs {}

impl Packs {
    /// Keeps at most `open_max` published packs open.
    pub fn new(_store: Arc<dyn Store>, _master: Arc<MasterKey>, _open_max: usize) -> Self {
        unimplemented!()
    }
    /// The reader of a pack, opened where it is not. No lock is held over the opening.
    pub fn get(&self, _id: PackId) -> Result<Arc<PackReader>> {
        unimplemented!()
    }
    /// Adds a pack that still grows (or a leftover); it stays until [`Packs::unpin`].
    pub fn pin(&self, _id: PackId, _object: Arc<dyn Object>) -> Result<()> {
        unimplemented!()
    }
    /// From now on it is one of the published packs.
    pub fn unpin(&self, _id: PackId) {
        unimplemented!()
    }
    /// Closes it: it is about to be removed.
    pub fn forget(&self, _id: PackId) {
        unimplemented!()
    }
}
