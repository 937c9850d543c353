//! Packs: sealed blocks of contents, with a catalogue.
//!
//! A pack is a header, sealed blocks, a sealed catalogue, padding, and a sealed trailer of fixed size
//! (`man/hushfs-format.5`, section PACKS).

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
/// Bytes that a full block takes in the pack.
pub const BLOCK_CIPHER_LEN: u32 = BLOCK_PLAIN_LEN + SEAL_OVERHEAD as u32;
/// Bytes of the longest pack, and of every pack that was filled.
pub const PACK_CIPHER_LEN: u32 = 64 * 1024 * 1024;

/// Contents as they were sealed in one go: blocks of [`BLOCK_PLAIN_LEN`], the last one may be shorter.
///
/// Two runs of one pack that lie behind each other, the first a multiple of a block long, are one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// Which pack.
    pub pack: PackId,
    /// Where in the pack its first block starts.
    pub cipher_offset: u32,
    /// Bytes of plaintext; never 0.
    pub plain_len: u32,
}

impl Run {
    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        self.plain_len.div_ceil(BLOCK_PLAIN_LEN)
    }
    /// Where in the pack block `block` starts.
    pub fn block_cipher_offset(&self, block: u32) -> u32 {
        self.cipher_offset + block * BLOCK_CIPHER_LEN
    }
    /// Bytes of plaintext in block `block`, which must be below [`Run::blocks`].
    pub fn block_plain_len(&self, block: u32) -> u32 {
        (self.plain_len - block * BLOCK_PLAIN_LEN).min(BLOCK_PLAIN_LEN)
    }
    /// Where in the pack adjacent blocks lie; `blocks` must not be empty, nor end behind [`Run::blocks`].
    pub fn cipher_range(&self, blocks: std::ops::Range<u32>) -> std::ops::Range<u32> {
        let last = blocks.end - 1;
        let end =
            self.block_cipher_offset(last) + self.block_plain_len(last) + SEAL_OVERHEAD as u32;
        self.block_cipher_offset(blocks.start)..end
    }
    /// Bytes that it takes in the pack.
    pub fn cipher_len(&self) -> u32 {
        self.plain_len + self.blocks() * SEAL_OVERHEAD as u32
    }
}

/// What a sealed message of a pack is: the first byte of its associated data, so that none can stand for another.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum MessageKind {
    Block = 0,
    Catalogue = 1,
    Trailer = 2,
}

/// The associated data of a message: what it is, and where in the pack it starts (u64, little endian).
fn message_aad(kind: MessageKind, cipher_offset: u32) -> [u8; 9] {
    let mut aad = [0; 9];
    aad[0] = kind as u8;
    aad[1..].copy_from_slice(&u64::from(cipher_offset).to_le_bytes());
    aad
}
