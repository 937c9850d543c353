//! AES-256-GCM (NIST SP 800-38D), with a random nonce for each message.
//!
//! There are two implementations of the same interface: `aws` is fast, and `pure` does not need a C compiler. The tests
//! compare them with each other and with published vectors.

use super::random;
use crate::error::{Kind, Result};

#[cfg(not(any(feature = "aws-lc", feature = "pure-rust")))]
compile_error!(
    "hushfs needs an AES-256-GCM: turn on the feature `aws-lc` (the default) or `pure-rust`"
);

#[cfg(feature = "aws-lc")]
use aws::Cipher;
#[cfg(not(feature = "aws-lc"))]
use pure::Cipher;

#[cfg(test)]
mod tests;

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Bytes that encryption adds to a message: the nonce before it, and the tag after it.
pub const SEAL_OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// A key that encrypts (seals) and decrypts (opens) the messages of one object.
///
/// Nonces are 96 random bits from getrandom(2), without any state in the process. Therefore they stay unique after a crash,
/// and if a virtual machine is cloned or set back. SP 800-38D allows 2^32 messages per key; an object has far fewer.
pub struct SealKey {
    cipher: Cipher,
}

impl SealKey {
    /// A key of 32 bytes, which must not be used for anything else.
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Cipher::new(key),
        }
    }

    /// Encrypts the concatenated `plain` pieces with a new random nonce, and appends `nonce || ciphertext || tag` to `out`.
    /// After an error, `out` is unchanged.
    pub fn seal(&self, aad: &[u8], plain: &[&[u8]], out: &mut Vec<u8>) -> Result<()> {
        let nonce = fresh_nonce()?;
        let start = out.len();
        out.reserve(SEAL_OVERHEAD + plain_len(plain));
        out.extend_from_slice(&nonce);
        for piece in plain {
            out.extend_from_slice(piece);
        }
        match self
            .cipher
            .seal_in_place(&nonce, aad, &mut out[start + NONCE_LEN..])
        {
            Some(tag) => out.extend_from_slice(&tag),
            None => {
                // The plaintext must not stay in a buffer that may be written.
                out.truncate(start);
                return Err(Kind::TooBig.into());
            }
        }
        Ok(())
    }

    /// Like [`SealKey::seal`], but fills `out`, which must be exactly [`SEAL_OVERHEAD`] bytes longer than the plaintext
    /// ([`Kind::InvalidArgument`] otherwise). A single piece is not copied first. After an error, `out` may hold plaintext
    /// and must not be written anywhere.
    pub fn seal_into(&self, aad: &[u8], plain: &[&[u8]], out: &mut [u8]) -> Result<()> {
        let len = plain_len(plain);
        if out.len() != len + SEAL_OVERHEAD {
            return Err(Kind::InvalidArgument.into());
        }
        let nonce = fresh_nonce()?;
        let (front, rest) = out.split_at_mut(NONCE_LEN);
        let (text, back) = rest.split_at_mut(len);
        front.copy_from_slice(&nonce);
        let tag = if let [piece] = plain {
            self.cipher.seal_apart(&nonce, aad, piece, text)
        } else {
            let mut at = 0;
            for piece in plain {
                text[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            self.cipher.seal_in_place(&nonce, aad, text)
        };
        back.copy_from_slice(&tag.ok_or(Kind::TooBig)?);
        Ok(())
    }

    /// Decrypts `nonce || ciphertext || tag` into `plain`, which must be exactly as long as the plaintext. Returns false if
    /// the message is not authentic; the contents of `plain` are then undefined.
    #[must_use]
    pub fn open(&self, aad: &[u8], sealed: &[u8], plain: &mut [u8]) -> bool {
        if sealed.len().checked_sub(SEAL_OVERHEAD) != Some(plain.len()) {
            return false;
        }
        let Some((nonce, rest)) = sealed.split_first_chunk::<NONCE_LEN>() else {
            return false;
        };
        let Some((text, tag)) = rest.split_last_chunk::<TAG_LEN>() else {
            return false;
        };
        self.cipher.open(nonce, aad, text, tag, plain)
    }
}

fn plain_len(pieces: &[&[u8]]) -> usize {
    pieces.iter().map(|piece| piece.len()).sum()
}

fn fresh_nonce() -> Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    Ok(nonce)
}

/// AES-256-GCM of aws-lc-rs, which wipes the key when its context is dropped.
#[cfg(feature = "aws-lc")]
mod aws {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    use super::{NONCE_LEN, TAG_LEN};

    pub struct Cipher(LessSafeKey);

    impl Cipher {
        pub fn new(key: &[u8; 32]) -> Self {
            let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
            Self(LessSafeKey::new(key))
        }

        pub fn seal_in_place(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            in_out: &mut [u8],
        ) -> Option<[u8; TAG_LEN]> {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let tag = self
                .0
                .seal_in_place_separate_tag(nonce, Aad::from(aad), in_out);
            tag.ok()?.as_ref().try_into().ok()
        }

        pub fn seal_apart(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            plain: &[u8],
            out: &mut [u8],
        ) -> Option<[u8; TAG_LEN]> {
            let mut tag = [0; TAG_LEN];
            let nonce = Nonce::assume_unique_for_key(*nonce);
            self.0
                .seal_out_of_place_scatter(nonce, Aad::from(aad), plain, out, &[], &mut tag)
                .ok()?;
            Some(tag)
        }

        pub fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            text: &[u8],
            tag: &[u8; TAG_LEN],
            plain: &mut [u8],
        ) -> bool {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            self.0
                .open_separate_gather(nonce, Aad::from(aad), text, tag, plain)
                .is_ok()
        }
    }
}

/// AES-256-GCM of the crate aes-gcm, which wipes the key when it is dropped (its feature `zeroize`).
#[cfg(any(test, not(feature = "aws-lc")))]
mod pure {
    use aes_gcm::aead::inout::InOutBuf;
    use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};

    use super::{NONCE_LEN, TAG_LEN};

    pub struct Cipher(Aes256Gcm);

    impl Cipher {
        pub fn new(key: &[u8; 32]) -> Self {
            Self(Aes256Gcm::new(key.into()))
        }

        pub fn seal_in_place(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            in_out: &mut [u8],
        ) -> Option<[u8; TAG_LEN]> {
            let tag = self
                .0
                .encrypt_inout_detached(nonce.into(), aad, in_out.into());
            Some(tag.ok()?.into())
        }

        pub fn seal_apart(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            plain: &[u8],
            out: &mut [u8],
        ) -> Option<[u8; TAG_LEN]> {
            let buffer = InOutBuf::new(plain, out).ok()?;
            let tag = self.0.encrypt_inout_detached(nonce.into(), aad, buffer);
            Some(tag.ok()?.into())
        }

        pub fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            text: &[u8],
            tag: &[u8; TAG_LEN],
            plain: &mut [u8],
        ) -> bool {
            let Ok(buffer) = InOutBuf::new(text, plain) else {
                return false;
            };
            self.0
                .decrypt_inout_detached(nonce.into(), aad, buffer, tag.into())
                .is_ok()
        }
    }
}
