//! Packs: files of encrypted blocks with the contents of files, and a catalogue of them (`man/hushfs-format.5`: PACKS).

use crate::crypto::SEAL_OVERHEAD;
use crate::object::PackId;

mod catalogue;
mod padding;
mod pool;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use catalogue::CatalogueEntry;
pub use padding::padme_len;
pub use pool::Packs;
pub use reader::{PackReader, Trailer};
pub use writer::{FinishedPack, Note, PackWriter};

/// Bytes of plaintext in a full block.
pub const BLOCK_PLAIN_LEN: u32 = 16 * 1024;
/// Bytes of a full block in the pack, encrypted.
pub const BLOCK_CIPHER_LEN: u32 = BLOCK_PLAIN_LEN + SEAL_OVERHEAD as u32;
/// Bytes of the longest possible pack. Full packs are padded to this length.
pub const PACK_CIPHER_LEN: u32 = 64 * 1024 * 1024;

/// Data that was encrypted in one go, in blocks of [`BLOCK_PLAIN_LEN`]; the last block may be shorter.
///
/// Two adjacent runs of a pack can be treated as one if the length of the first is a multiple of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// The pack that holds it.
    pub pack: PackId,
    /// Offset of its first block in the pack.
    pub cipher_offset: u32,
    /// Bytes of plaintext; never 0.
    pub plain_len: u32,
}

impl Run {
    /// The number of blocks.
    pub fn blocks(&self) -> u32 {
        self.plain_len.div_ceil(BLOCK_PLAIN_LEN)
    }
    /// Offset of a block in the pack.
    pub fn block_cipher_offset(&self, block: u32) -> u32 {
        self.cipher_offset + block * BLOCK_CIPHER_LEN
    }
    /// Bytes of plaintext in a block, whose number must be below [`Run::blocks`].
    pub fn block_plain_len(&self, block: u32) -> u32 {
        (self.plain_len - block * BLOCK_PLAIN_LEN).min(BLOCK_PLAIN_LEN)
    }
    /// Bytes in the pack, encrypted.
    pub fn cipher_len(&self) -> u32 {
        self.plain_len + self.blocks() * SEAL_OVERHEAD as u32
    }
}

/// The kinds of encrypted messages in a pack. The kind is part of the associated data, so that no message can be used in
/// place of one of another kind.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum MessageKind {
    Block = 0,
    Catalogue = 1,
    Trailer = 2,
}

/// The associated data of a message: its kind, and its offset in the pack (u64, little endian).
fn message_aad(kind: MessageKind, cipher_offset: u32) -> [u8; 9] {
    let mut aad = [0; 9];
    aad[0] = kind as u8;
    aad[1..].copy_from_slice(&u64::from(cipher_offset).to_le_bytes());
    aad
}
