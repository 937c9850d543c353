//! Reading a pack.

use std::ops::Range;
use std::sync::Arc;

use super::{PackId, Run};
use crate::crypto::MasterKey;
use crate::error::Result;
use crate::store::{DeviceId, Object};

/// What the catalogue says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The run.
    pub run: Run,
    /// The inode's id.
    pub inode: u128,
    /// The path at that time.
    pub path: Vec<u8>,
    /// Where in the file.
    pub plain_offset: u64,
    /// Lamport counter.
    pub counter: u64,
}

/// What stands at the end of a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where the catalogue starts.
    pub catalogue_cipher_offset: u32,
    /// Its sealed length.
    pub catalogue_cipher_len: u32,
    /// Bytes without padding.
    pub true_cipher_len: u32,
    /// Who wrote it.
    pub device: DeviceId,
}

/// A pack open for reading, growing or published.
pub struct PackReader {}

impl PackReader {
    /// Reads and checks the header.
    pub fn open(_object: Arc<dyn Object>, _id: PackId, _master: &MasterKey) -> Result<Self> {
        unimplemented!()
    }
    /// Reads the sealed bytes of adjacent blocks of a run, in one read, to `sealed` (cleared first).
    pub fn read_sealed(&self, _run: &Run, _blocks: Range<u32>, _sealed: &mut Vec<u8>) -> Result<()> {
        unimplemented!()
    }
    /// Opens block `block` of `run` from its sealed bytes into `plain`, exactly `run.block_plain_len(block)` long.
    pub fn open_block(&self, _run: &Run, _block: u32, _sealed: &[u8], _plain: &mut [u8]) -> Result<()> {
        unimplemented!()
    }
    /// Says that these bytes of the pack will be read soon.
    pub fn prefetch(&self, _cipher_offset: u32, _cipher_len: u32) {}
    /// Opens the trailer; only finished packs have one.
    pub fn trailer(&self) -> Result<Trailer> {
        unimplemented!()
    }
    /// Opens the catalogue.
    pub fn catalogue(&self) -> Result<Vec<CatalogueEntry>> {
        unimplemented!()
    }
}
