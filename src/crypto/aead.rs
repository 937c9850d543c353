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

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
        digits
            .chunks_exact(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// Test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B:
    /// key, nonce, associated data, plaintext, ciphertext, tag.
    fn vectors() -> Vec<[Vec<u8>; 6]> {
        let zero = "00".repeat(32);
        let key = "feffe9928665731c6d6a8f9467308308".repeat(2);
        let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                     1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
        let text = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
                    8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
        let (short_plain, short_text) = (hex(plain)[..60].to_vec(), hex(text)[..60].to_vec());
        let nonce = hex("cafebabefacedbaddecaf888");
        vec![
            [
                hex(&zero),
                vec![0; 12],
                vec![],
                vec![],
                vec![],
                hex("530f8afbc74536b9a963b4f1c4cb738b"),
            ],
            [
                hex(&zero),
                vec![0; 12],
                vec![],
                vec![0; 16],
                hex("cea7403d4d606b6e074ec5d3baf39d18"),
                hex("d0d1c8a799996bf0265b98b5d48ab919"),
            ],
            [
                hex(&key),
                nonce.clone(),
                vec![],
                hex(plain),
                hex(text),
                hex("b094dac5d93471bdec1a502270e3cc6c"),
            ],
            [
                hex(&key),
                nonce,
                hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
                short_plain,
                short_text,
                hex("76fc6ece0f4e1768cddf8853bb2d551b"),
            ],
        ]
    }

    macro_rules! published_vectors {
        ($name:ident, $cipher:ty) => {
            #[test]
            fn $name() {
                for [key, nonce, aad, plain, text, tag] in vectors() {
                    let cipher = <$cipher>::new(key[..].try_into().unwrap());
                    let nonce: [u8; NONCE_LEN] = nonce[..].try_into().unwrap();
                    let mut apart = vec![0; plain.len()];
                    let mut in_place = plain.clone();
                    let tag_apart = cipher.seal_apart(&nonce, &aad, &plain, &mut apart).unwrap();
                    let tag_in_place = cipher.seal_in_place(&nonce, &aad, &mut in_place).unwrap();
                    assert_eq!((&apart, &tag_apart[..]), (&text, &tag[..]));
                    assert_eq!((&in_place, &tag_in_place[..]), (&text, &tag[..]));
                    let mut opened = vec![0; text.len()];
                    assert!(cipher.open(&nonce, &aad, &text, &tag_apart, &mut opened));
                    assert_eq!(opened, plain);
                }
            }
        };
    }
    #[cfg(feature = "aws-lc")]
    published_vectors!(aws_lc_rs_passes_the_published_vectors, aws::Cipher);
    published_vectors!(aes_gcm_passes_the_published_vectors, pure::Cipher);

    #[cfg(feature = "aws-lc")]
    #[test]
    fn each_implementation_opens_what_the_other_sealed() {
        for len in [0, 1, 15, 16, 17, 255, 4096, 16 * 1024, 16 * 1024 + 5] {
            let (mut key, mut nonce, mut plain) = ([0; 32], [0; NONCE_LEN], vec![0; len]);
            random(&mut key).unwrap();
            random(&mut nonce).unwrap();
            random(&mut plain).unwrap();
            let aad = &plain[..len.min(13)];
            let (one, other) = (aws::Cipher::new(&key), pure::Cipher::new(&key));
            let (mut a, mut b, mut opened) = (vec![0; len], plain.clone(), vec![0; len]);
            let tag = one.seal_apart(&nonce, aad, &plain, &mut a).unwrap();
            assert!(other.open(&nonce, aad, &a, &tag, &mut opened));
            assert_eq!(opened, plain);
            opened.fill(0);
            let tag = other.seal_in_place(&nonce, aad, &mut b).unwrap();
            assert!(one.open(&nonce, aad, &b, &tag, &mut opened));
            assert_eq!(opened, plain);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn a_changed_byte_anywhere_opens_nothing() {
        let key = SealKey::new(&[7; 32]);
        let mut sealed = b"before".to_vec();
        key.seal(b"at 48", &[b"some ", b"", b"plaintext"], &mut sealed)
            .unwrap();
        let sealed = &sealed[6..];
        let mut plain = [0; 14];
        assert!(key.open(b"at 48", sealed, &mut plain));
        assert_eq!(&plain, b"some plaintext");
        assert!(!key.open(b"at 49", sealed, &mut plain));
        assert!(!SealKey::new(&[8; 32]).open(b"at 48", sealed, &mut plain));
        for at in 0..sealed.len() {
            let mut bad = sealed.to_vec();
            bad[at] ^= 1;
            assert!(!key.open(b"at 48", &bad, &mut plain), "byte {at}");
        }
        for len in 0..sealed.len() {
            let mut short = vec![0; len.saturating_sub(SEAL_OVERHEAD)];
            assert!(
                !key.open(b"at 48", &sealed[..len], &mut short),
                "length {len}"
            );
        }
        assert!(!key.open(b"at 48", sealed, &mut [0; 13]));
    }

    #[test]
    fn sealing_into_a_slice_is_sealing() {
        let key = SealKey::new(&[7; 32]);
        for pieces in [
            &[][..],
            &[&b"one piece"[..]],
            &[&b"two "[..], &b"pieces"[..]],
        ] {
            let len = plain_len(pieces);
            let mut sealed = vec![0; len + SEAL_OVERHEAD];
            key.seal_into(b"", pieces, &mut sealed).unwrap();
            let mut plain = vec![0; len];
            assert!(key.open(b"", &sealed, &mut plain));
            assert_eq!(plain, pieces.concat());
            assert!(key.seal_into(b"", pieces, &mut sealed[1..]).is_err());
            sealed.push(0);
            assert!(key.seal_into(b"", pieces, &mut sealed).is_err());
        }
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let key = SealKey::new(&[7; 32]);
        let mut nonces = std::collections::HashSet::new();
        for _ in 0..1000 {
            let mut sealed = Vec::new();
            key.seal(b"", &[b"same"], &mut sealed).unwrap();
            assert!(nonces.insert(sealed[..NONCE_LEN].to_vec()));
        }
    }
}
