//! The 48 bytes in front of every object, all of which go into its key.

use crate::error::Result;
use crate::store::ObjectId;

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;

/// What kind of object a file is: its first 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// `HUSHSLOT`
    Slot,
    /// `HUSHINDX`
    Segment,
    /// `HUSHPACK`
    Pack,
}

/// Feature bits of a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// May be ignored.
    pub ignore: u32,
    /// Whoever does not know one of these must not write.
    pub read_only: u32,
    /// Whoever does not know one of these must not open.
    pub refuse: u32,
}

/// The header: magic (8), version u16 = 1, suite u16 = 1, key epoch u32, ignore u32, read-only u32, refuse u32, zero u32, id (16); little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub magic: Magic,
    /// Which master key.
    pub epoch: u32,
    /// Feature bits.
    pub features: Features,
    /// The object's own id, so that a file under another name opens nothing.
    pub id: ObjectId,
}

impl Header {
    /// A header of this version, epoch 0, no features.
    pub fn new(magic: Magic, id: ObjectId) -> Self {
        Self { magic, epoch: 0, features: Features::default(), id }
    }
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        unimplemented!()
    }
    /// From bytes; checks magic, id, version, suite, refused features. `name` is for errors.
    pub fn decode(_bytes: &[u8; HEADER_LEN], _magic: Magic, _id: ObjectId, _name: &str) -> Result<Self> {
        unimplemented!()
    }
}
