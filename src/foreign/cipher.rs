//! AES-CBC with PKCS#7 padding, which all three foreign formats use. No I/O.

use aes::{Aes128, Aes256};
use cbc::cipher::array::Array;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt};
use cbc::cipher::{BlockSizeUser, InnerIvInit, KeyInit, consts::U16};

/// Bytes of an AES block, an initialisation vector, and the longest padding.
pub const BLOCK_LEN: usize = 16;

/// An initialisation vector.
pub type Iv = [u8; BLOCK_LEN];

/// An expanded key.
#[derive(Clone)]
pub enum Key {
    /// AES-128.
    Short(Box<Aes128>),
    /// AES-256.
    Long(Box<Aes256>),
}

impl Key {
    /// An AES-128 key.
    pub fn short(bytes: &[u8; 16]) -> Self {
        Self::Short(Box::new(Aes128::new(&Array::from(*bytes))))
    }

    /// An AES-256 key.
    pub fn long(bytes: &[u8; 32]) -> Self {
        Self::Long(Box::new(Aes256::new(&Array::from(*bytes))))
    }

    /// Decrypts whole blocks in place, without removing padding. The length of `data` must be a multiple of [`BLOCK_LEN`].
    pub fn decrypt_blocks(&self, iv: &Iv, data: &mut [u8]) {
        match self {
            Self::Short(aes) => decrypt(&**aes, iv, data),
            Self::Long(aes) => decrypt(&**aes, iv, data),
        }
    }

    /// Encrypts whole blocks in place, without padding. The length of `data` must be a multiple of [`BLOCK_LEN`].
    pub fn encrypt_blocks(&self, iv: &Iv, data: &mut [u8]) {
        match self {
            Self::Short(aes) => encrypt(&**aes, iv, data),
            Self::Long(aes) => encrypt(&**aes, iv, data),
        }
    }

    /// Decrypts a padded message in place, and returns its length; `None` if the padding is invalid.
    pub fn decrypt_padded(&self, iv: &Iv, data: &mut [u8]) -> Option<usize> {
        if data.is_empty() || !data.len().is_multiple_of(BLOCK_LEN) {
            return None;
        }
        self.decrypt_blocks(iv, data);
        unpadded_len(data)
    }

    /// Pads and encrypts `plain`, and appends the result to `out`.
    pub fn encrypt_padded(&self, iv: &Iv, plain: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(plain);
        let pad = BLOCK_LEN - plain.len() % BLOCK_LEN;
        out.resize(start + plain.len() + pad, pad as u8);
        self.encrypt_blocks(iv, &mut out[start..]);
    }
}

fn decrypt<C>(cipher: &C, iv: &Iv, data: &mut [u8])
where
    C: BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    let mode = cbc::Decryptor::inner_iv_init(cipher, &Array::from(*iv));
    let len = data.len();
    let whole = mode.decrypt_padded::<NoPadding>(data);
    debug_assert!(whole.is_ok_and(|plain| plain.len() == len), "whole blocks");
}

fn encrypt<C>(cipher: &C, iv: &Iv, data: &mut [u8])
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>,
{
    let mode = cbc::Encryptor::inner_iv_init(cipher, &Array::from(*iv));
    let len = data.len();
    let whole = mode.encrypt_padded::<NoPadding>(data, len);
    debug_assert!(whole.is_ok(), "whole blocks");
}

/// The length of a decrypted message without its PKCS#7 padding; `None` if the padding is invalid.
pub fn unpadded_len(plain: &[u8]) -> Option<usize> {
    let pad = usize::from(*plain.last()?);
    if pad == 0 || pad > BLOCK_LEN || pad > plain.len() {
        return None;
    }
    let (kept, padding) = plain.split_at(plain.len() - pad);
    let is_padding = padding.iter().all(|b| usize::from(*b) == pad);
    is_padding.then_some(kept.len())
}

/// The encrypted length of a message of `plain_len` bytes.
pub fn padded_len(plain_len: u64) -> u64 {
    (plain_len / BLOCK_LEN as u64 + 1) * BLOCK_LEN as u64
}

/// A new random initialisation vector.
pub fn random_iv() -> crate::error::Result<Iv> {
    let mut iv = [0; BLOCK_LEN];
    crate::crypto::random(&mut iv)?;
    Ok(iv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_one_to_sixteen_equal_bytes() {
        for len in 0..50 {
            let key = Key::short(&[7; 16]);
            let mut out = vec![0xaa];
            key.encrypt_padded(&[1; 16], &vec![5; len], &mut out);
            assert_eq!(out.len() as u64 - 1, padded_len(len as u64));
            assert_eq!(key.decrypt_padded(&[1; 16], &mut out[1..]), Some(len));
            assert!(out[1..=len].iter().all(|b| *b == 5));
        }
        assert_eq!(unpadded_len(&[]), None);
        assert_eq!(unpadded_len(&[0; 16]), None);
        assert_eq!(unpadded_len(&[17; 32]), None);
        assert_eq!(unpadded_len(&[9, 2, 3]), None);
        assert_eq!(unpadded_len(&[3, 3]), None);
        let mut odd = [0; 15];
        assert_eq!(Key::long(&[0; 32]).decrypt_padded(&[0; 16], &mut odd), None);
    }
}
