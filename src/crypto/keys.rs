//! The master key and what is derived from it.

use zeroize::Zeroizing;

use super::{Header, SealKey};
use crate::error::Result;

/// 16 public bytes that tell one library from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// The 32 random bytes that everything is derived from. In locked memory, wiped when dropped.
pub struct MasterKey {}

impl MasterKey {
    /// A new one.
    pub fn generate() -> Result<Self> {
        unimplemented!()
    }
    /// From the recovery code.
    pub fn from_recovery_code(_code: &str) -> Result<Self> {
        unimplemented!()
    }
    /// The recovery code: itself, in base32 groups with a checksum.
    pub fn recovery_code(&self) -> Zeroizing<String> {
        unimplemented!()
    }
    /// HKDF-SHA256 with a purpose and a context.
    pub fn derive(&self, _purpose: &str, _context: &[u8]) -> Zeroizing<[u8; 32]> {
        unimplemented!()
    }
    /// The key of one pack or segment: every byte of its header goes in.
    pub fn object_key(&self, _header: &Header) -> SealKey {
        unimplemented!()
    }
    /// The library's public fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        unimplemented!()
    }
}

/// Fills `out` from getrandom(2).
pub fn random(_out: &mut [u8]) -> Result<()> {
    unimplemented!()
}
