//! An encrypted file: an initialisation vector, then AES-256-CBC (`man/hushfs-foreign.5`: Encrypted images).

use std::fs::File;
use std::sync::Arc;

use super::super::cipher::{BLOCK_LEN, Iv, Key, unpadded_len};
use super::super::sealer::Seal;
use super::super::{Reader, read_at, with_buffer};
use crate::error::{Error, Kind, Result};

/// The shortest encrypted file: a vector and one block.
pub const CIPHER_LEN_MIN: u64 = 2 * BLOCK_LEN as u64;

/// Encrypts a file.
pub struct ImageSeal {
    key: Key,
    iv: Iv,
    /// The last encrypted block; `None` at the start.
    chain: Option<Iv>,
}

impl ImageSeal {
    /// Starts a file with an initialisation vector, which is stored at its beginning.
    pub fn new(key: Key, iv: Iv) -> Self {
        Self {
            key,
            iv,
            chain: None,
        }
    }
}

impl Seal for ImageSeal {
    fn unit_plain_len(&self) -> usize {
        256 << 10
    }

    fn seal(&mut self, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<()> {
        if self.chain.is_none() {
            out.extend_from_slice(&self.iv);
        }
        let chain = self.chain.unwrap_or(self.iv);
        let start = out.len();
        if last {
            self.key.encrypt_padded(&chain, plain, out);
        } else {
            out.extend_from_slice(plain);
            self.key.encrypt_blocks(&chain, &mut out[start..]);
        }
        self.chain = out.last_chunk().copied();
        Ok(())
    }

    fn reader(&self, file: Arc<File>, plain_size: u64) -> Arc<dyn Reader> {
        Arc::new(ImageReader {
            file,
            key: self.key.clone(),
            plain_size,
        })
    }
}

/// Reads an encrypted file.
pub struct ImageReader {
    file: Arc<File>,
    key: Key,
    plain_size: u64,
}

impl ImageReader {
    /// Opens a file of `cipher_len` bytes. Its last block determines the length of the plaintext.
    pub fn new(file: Arc<File>, key: Key, cipher_len: u64) -> Result<Self> {
        if cipher_len < CIPHER_LEN_MIN || !cipher_len.is_multiple_of(BLOCK_LEN as u64) {
            let check = format!("no encrypted file has {cipher_len} bytes: it was cut");
            return Err(Kind::Damaged(check.into()).into());
        }
        let mut end = [0; 2 * BLOCK_LEN];
        read_at(&file, cipher_len - CIPHER_LEN_MIN, &mut end)?;
        let (chain, block) = end.split_at_mut(BLOCK_LEN);
        let chain: Iv = (&*chain).try_into().expect("half of two blocks");
        key.decrypt_blocks(&chain, block);
        let kept = unpadded_len(block).ok_or_else(|| {
            Error::from(Kind::Damaged(
                "its last block cannot be decrypted: truncated, changed, or a wrong key".into(),
            ))
        })?;
        let plain_size = cipher_len - CIPHER_LEN_MIN + kept as u64;
        Ok(Self {
            file,
            key,
            plain_size,
        })
    }
}

impl Reader for ImageReader {
    fn plain_size(&self) -> u64 {
        self.plain_size
    }

    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        // The vector of a block is the one before it, and that of the first block is at the start of the file.
        let first = plain_offset / BLOCK_LEN as u64;
        let end = (plain_offset + out.len() as u64).div_ceil(BLOCK_LEN as u64) + 1;
        with_buffer((end - first) as usize * BLOCK_LEN, |cipher| {
            read_at(&self.file, first * BLOCK_LEN as u64, cipher)?;
            let (chain, blocks) = cipher.split_at_mut(BLOCK_LEN);
            let chain: Iv = (&*chain).try_into().expect("one block");
            self.key.decrypt_blocks(&chain, blocks);
            let skip = (plain_offset % BLOCK_LEN as u64) as usize;
            out.copy_from_slice(&blocks[skip..skip + out.len()]);
            Ok(())
        })
    }
}
