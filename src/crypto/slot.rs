//! Slots: the master key, wrapped by a password or a key file.

use zeroize::Zeroizing;

use super::MasterKey;
use crate::error::Result;
use crate::store::ObjectId;

/// What a person gives to open a library.
pub enum Secret {
    /// A password, as bytes of UTF-8 (or whatever the file held).
    Password(Zeroizing<Vec<u8>>),
    /// The contents of a key file: 32 bytes or more.
    KeyFile(Zeroizing<Vec<u8>>),
}

/// What a slot opens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// A password.
    Password,
    /// A key file.
    KeyFile,
}

/// Argon2id costs, stored in the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// A parsed slot, not opened.
pub struct Slot {
    /// Its name.
    pub id: ObjectId,
    /// What it opens with.
    pub kind: SlotKind,
}

impl Slot {
    /// Wraps the master key; the bytes are the whole file.
    pub fn seal(_id: ObjectId, _master: &MasterKey, _secret: &Secret, _kdf: KdfParams, _label: &str) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Reads a slot file; refuses parameters above fixed bounds.
    pub fn parse(_id: ObjectId, _bytes: &[u8]) -> Result<Self> {
        unimplemented!()
    }
    /// Opens it; WrongKey where the secret is not this slot's.
    pub fn open(&self, _secret: &Secret) -> Result<MasterKey> {
        unimplemented!()
    }
}
