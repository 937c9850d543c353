//! AES-256-GCM: one message, one random nonce.

use crate::error::Result;

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// What sealing adds: a nonce in front and a tag behind.
pub const SEAL_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// A key that seals and opens messages of one object.
pub struct SealKey {}

impl SealKey {
    /// From 32 bytes that nothing else uses.
    pub fn new(_key: &[u8; 32]) -> Self {
        unimplemented!()
    }
    /// Writes `nonce || ciphertext || tag` of the concatenated `plain` pieces to the end of `out`, with a fresh random nonce.
    pub fn seal(&self, _aad: &[u8], _plain: &[&[u8]], _out: &mut Vec<u8>) -> Result<()> {
        unimplemented!()
    }
    /// Opens `nonce || ciphertext || tag` straight into `plain`, which must be exactly as long as the plaintext.
    /// False where it does not open; then what is in `plain` means nothing.
    #[must_use]
    pub fn open(&self, _aad: &[u8], _sealed: &[u8], _plain: &mut [u8]) -> bool {
        unimplemented!()
    }
}
