//! Fernet frames, each a length and a token (`man/hushfs-foreign.5`: Medusa key, Frames): encrypting, decrypting and finding
//! them.

use std::fs::File;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64_simd::{Out, URL_SAFE};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::super::cipher::{BLOCK_LEN, Iv, Key, random_iv, unpadded_len};
use super::super::sealer::Seal;
use super::super::{Reader, read_at};
use super::reader::FrameReader;
use crate::cache::BlockCache;
use crate::error::{Error, Kind, Result};

/// Bytes of plaintext in a full frame.
pub const FRAME_PLAIN_LEN: usize = 1 << 20;
/// The longest token that Medusa reads, in bytes.
pub(super) const TOKEN_LEN_MAX: u32 = 2 << 20;
/// Bytes of the length before a token.
pub(super) const LENGTH_LEN: u64 = 4;
/// Bytes of a token before its ciphertext: version, time and initialisation vector. The HMAC is at the end.
const HEAD_LEN: usize = 1 + 8 + BLOCK_LEN;
const MAC_LEN: usize = 32;
/// The shortest token: one block.
pub(super) const TOKEN_LEN_MIN: u32 = 100;
/// Characters at the end of a token that contain the last two blocks and the HMAC.
const TAIL_LEN: usize = 88;
/// Most frames of a file.
const FRAMES_MAX: usize = 1 << 20;
/// The first byte of files of later versions of Medusa, which use the AWS Encryption SDK.
const AWS_SDK: u8 = 0x02;

/// The key of a bucket.
#[derive(Clone)]
pub struct FernetKey {
    mac: Hmac<Sha256>,
    aes: Key,
}

impl FernetKey {
    /// Parses `key_secret_base64` as Python's `urlsafe_b64decode` does; it must be 32 bytes.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let bytes = decode_as_python(text)?;
        let (signing, encryption) = bytes.split_at_checked(16)?;
        let encryption: &[u8; 16] = encryption.try_into().ok()?;
        let mac = Hmac::new_from_slice(signing).ok()?;
        Some(Self {
            mac,
            aes: Key::short(encryption),
        })
    }

    /// Encrypts `plain` as a frame, and appends it with its length to `out`.
    pub fn seal(&self, time: u64, iv: &Iv, plain: &[u8], out: &mut Vec<u8>) {
        let mut token = Vec::with_capacity(HEAD_LEN + plain.len() + BLOCK_LEN + MAC_LEN);
        token.push(0x80);
        token.extend_from_slice(&time.to_be_bytes());
        token.extend_from_slice(iv);
        self.aes.encrypt_padded(iv, plain, &mut token);
        let mac = self
            .mac
            .clone()
            .chain_update(&token)
            .finalize()
            .into_bytes();
        token.extend_from_slice(&mac);
        let token_len = URL_SAFE.encoded_length(token.len());
        out.extend_from_slice(&(token_len as u32).to_be_bytes());
        let start = out.len();
        out.resize(start + token_len, 0);
        let _ = URL_SAFE.encode(&token, Out::from_slice(&mut out[start..]));
    }

    /// Authenticates and decrypts a token in place, and returns its plaintext.
    pub fn open<'a>(&self, token: &'a mut [u8]) -> Result<&'a [u8], &'static str> {
        let bytes = decode(token).ok_or("it is not base64")?;
        if bytes.len() < HEAD_LEN + BLOCK_LEN + MAC_LEN || bytes[0] != 0x80 {
            return Err("it is not a Fernet token");
        }
        let (signed, mac) = bytes.split_at_mut(bytes.len() - MAC_LEN);
        let computed = self.mac.clone().chain_update(&*signed);
        if computed.verify_slice(mac).is_err() {
            return Err("its HMAC is wrong: changed, or a wrong key");
        }
        let (head, cipher) = signed.split_at_mut(HEAD_LEN);
        let iv: &Iv = head.last_chunk().expect("a head ends in a vector");
        let len = self
            .aes
            .decrypt_padded(iv, cipher)
            .ok_or("its padding is wrong")?;
        Ok(&cipher[..len])
    }

    /// Bytes of plaintext in a token of `token_len` characters that ends in `tail`, by its last block.
    fn plain_len(&self, token_len: u32, tail: &[u8; TAIL_LEN]) -> Option<u32> {
        let mut decoded = *tail;
        let bytes = decode(&mut decoded)?;
        let padding = tail.iter().rev().take_while(|b| **b == b'=').count() as u32;
        let len = token_len / 4 * 3 - padding;
        let cipher_len = len.checked_sub((HEAD_LEN + MAC_LEN) as u32)?;
        let blocks =
            bytes.get(bytes.len().checked_sub(2 * BLOCK_LEN + MAC_LEN)?..bytes.len() - MAC_LEN)?;
        let (iv, block) = blocks.split_at(BLOCK_LEN);
        if cipher_len == 0 || cipher_len % BLOCK_LEN as u32 != 0 {
            return None;
        }
        let mut block: Iv = block.try_into().ok()?;
        self.aes.decrypt_blocks(iv.try_into().ok()?, &mut block);
        Some(cipher_len - BLOCK_LEN as u32 + unpadded_len(&block)? as u32)
    }
}

/// Decodes base64 with padding in place, as Python does: of either alphabet, or both mixed. Other characters, which Python
/// ignores, are refused.
fn decode(text: &mut [u8]) -> Option<&mut [u8]> {
    if URL_SAFE.check(text).is_err() {
        for letter in text.iter_mut() {
            *letter = match *letter {
                b'+' => b'-',
                b'/' => b'_',
                other => other,
            };
        }
    }
    URL_SAFE.decode_inplace(text).ok()
}

/// The length of a file with canonical frames.
pub fn cipher_len(plain_len: u64) -> u64 {
    let token = |len: u64| {
        let bytes = (HEAD_LEN + MAC_LEN) as u64 + super::super::cipher::padded_len(len);
        LENGTH_LEN + bytes.div_ceil(3) * 4
    };
    let full = plain_len / FRAME_PLAIN_LEN as u64 * token(FRAME_PLAIN_LEN as u64);
    match plain_len % FRAME_PLAIN_LEN as u64 {
        0 => full,
        rest => full + token(rest),
    }
}

/// Decodes base64 as Python's `binascii` does when it is not strict: both alphabets, up to the padding, which is required.
/// Other characters are ignored, as is everything after the padding (a comment, for example).
fn decode_as_python(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if !text.is_ascii() {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    // How many letters of the present four there were, what the last left over, and how much padding.
    let (mut place, mut left, mut padding) = (0, 0, 0);
    for letter in text {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' if place >= 2 => {
                padding += 1;
                if place + padding >= 4 {
                    return Some(bytes);
                }
                continue;
            }
            _ => continue,
        };
        padding = 0;
        match place {
            0 => {}
            1 => bytes.push(left << 2 | value >> 4),
            2 => bytes.push(left << 4 | value >> 2),
            _ => bytes.push(left << 6 | value),
        }
        left = value;
        place = (place + 1) % 4;
    }
    (place == 0).then_some(bytes)
}

/// Whether a file that starts so is one of frames.
pub fn looks_like_frames(head: &[u8]) -> bool {
    head.len() >= 10 && head[0] == 0 && &head[4..10] == b"gAAAAA"
}

/// Whether a file that starts so is one of the AWS Encryption SDK (`man/hushfs-foreign.5`: AWS form).
pub fn looks_like_aws(head: &[u8]) -> bool {
    // Version 2 and the one suite with commitment that Medusa's later heads use.
    head.starts_with(&[AWS_SDK, 0x05, 0x78]) || head.starts_with(&[AWS_SDK, 0x04, 0x78])
}

/// Encrypts a file.
pub struct FrameSeal {
    /// The bucket's key.
    pub key: FernetKey,
    /// Time and vector for tests with known answers. Otherwise the time is the clock's, and each vector is random.
    pub pinned: Option<(u64, Iv)>,
    /// The cache for reading the file back.
    pub cache: Arc<BlockCache>,
}

impl Seal for FrameSeal {
    fn unit_plain_len(&self) -> usize {
        FRAME_PLAIN_LEN
    }

    fn seal(&mut self, plain: &[u8], _last: bool, out: &mut Vec<u8>) -> Result<()> {
        if plain.is_empty() {
            return Ok(());
        }
        let (time, iv) = match self.pinned {
            Some(pinned) => pinned,
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                (now.map_or(0, |now| now.as_secs()), random_iv()?)
            }
        };
        self.key.seal(time, &iv, plain, out);
        Ok(())
    }

    fn reader(&self, file: Arc<File>, plain_size: u64) -> Arc<dyn Reader> {
        let frames = Frames::Canonical;
        Arc::new(FrameReader::new(
            file,
            self.key.clone(),
            frames,
            plain_size,
            None,
            Arc::clone(&self.cache),
        ))
    }
}

/// The positions of the frames in a file.
pub enum Frames {
    /// All but the last have [`FRAME_PLAIN_LEN`] bytes, so that the positions can be computed.
    Canonical,
    /// The start of each frame, in the file and in the plaintext.
    ListEntry(Vec<(u64, u64)>),
}

impl Frames {
    /// The number of frames in a file with `plain_size` bytes of plaintext.
    pub fn count(&self, plain_size: u64) -> u64 {
        match self {
            Self::Canonical => plain_size.div_ceil(FRAME_PLAIN_LEN as u64),
            Self::ListEntry(starts) => starts.len() as u64,
        }
    }
}

/// Finds the frames in a file of `len` bytes, and the length of its plaintext. Decrypts one block of each frame.
pub fn scan(file: &File, key: &FernetKey, len: u64) -> Result<(Frames, u64)> {
    let damaged =
        |at: u64, why: &str| Error::from(Kind::Damaged(format!("the frame at {at}: {why}").into()));
    let (mut starts, mut at, mut plain) = (Vec::new(), 0, 0);
    while at < len {
        if starts.len() == FRAMES_MAX {
            return Err(damaged(at, "there are too many frames"));
        }
        if len - at < LENGTH_LEN {
            return Err(damaged(at, "it is cut short"));
        }
        let mut length = [0; LENGTH_LEN as usize];
        read_at(file, at, &mut length)?;
        if at == 0 && length[0] == AWS_SDK {
            return Err(aws_sdk());
        }
        let token_len = u32::from_be_bytes(length);
        if !(TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&token_len) {
            return Err(damaged(
                at,
                "the length of its token is impossible: changed, or not encrypted",
            ));
        }
        let end = at + LENGTH_LEN + u64::from(token_len);
        if end > len {
            return Err(damaged(at, "it is cut short"));
        }
        let mut tail = [0; TAIL_LEN];
        read_at(file, end - TAIL_LEN as u64, &mut tail)?;
        let frame = key
            .plain_len(token_len, &tail)
            .ok_or_else(|| damaged(at, "it cannot be decrypted"))?;
        starts.push((at, plain));
        plain += u64::from(frame);
        at = end;
    }
    Ok((Frames::ListEntry(starts), plain))
}

/// The error for a file in the later format.
pub fn aws_sdk() -> Error {
    let what = "the AWS Encryption SDK's format, which later commits of Medusa's client-side encryption write";
    Error::from(Kind::OtherForm(what.into())).hint("Medusa itself decrypts it: `medusa download`")
}
