//! Fernet frames: a length, a token, again and again (format page, 2.1 and 2.2).

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::super::cipher::{BLOCK_LEN, Iv, Key, random_iv, unpadded_len};
use super::super::sealer::Seal;
use super::super::{Reader, read_at};
use crate::cache::{BlockCache, BlockKey};
use crate::error::{Error, Kind, Result};

/// Bytes of plaintext in a frame that a writer makes.
pub const FRAME_PLAIN_LEN: usize = 1 << 20;
/// The longest token, in bytes: a reader of the original refuses more.
const TOKEN_LEN_MAX: u32 = 2 << 20;
/// Bytes of the length before a token.
const LENGTH_LEN: u64 = 4;
/// Version, time, vector; then comes the ciphertext, then the HMAC.
const HEAD_LEN: usize = 1 + 8 + BLOCK_LEN;
const MAC_LEN: usize = 32;
/// The shortest token: one block.
const TOKEN_LEN_MIN: u32 = 100;
/// Letters at the end of a token that hold the last two blocks and the HMAC.
const TAIL_LEN: usize = 88;
/// More frames than these are no file of Medusa's.
const FRAMES_MAX: usize = 1 << 20;
/// What the files start with that later heads of the original make, with the AWS Encryption SDK.
const AWS_SDK: u8 = 0x02;
/// Frames that came before their turn, kept for the digest.
const EARLY_MAX: usize = 12;

/// The key of a bucket.
#[derive(Clone)]
pub struct FernetKey {
    mac: Hmac<Sha256>,
    aes: Key,
}

impl FernetKey {
    /// From the text of `key_secret_base64`: both alphabets, other letters passed over, padding required, 32 bytes.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let letter = |b: &u8| match b {
            b'-' => Some(b'+'),
            b'_' => Some(b'/'),
            b'+' | b'/' | b'=' => Some(*b),
            b if b.is_ascii_alphanumeric() => Some(*b),
            _ => None,
        };
        let text: Zeroizing<Vec<u8>> = Zeroizing::new(text.iter().filter_map(letter).collect());
        let bytes = Zeroizing::new(STANDARD.decode(&*text).ok()?);
        let (signing, encryption) = bytes.split_at_checked(16)?;
        let encryption: &[u8; 16] = encryption.try_into().ok()?;
        let mac = Hmac::new_from_slice(signing).ok()?;
        Some(Self {
            mac,
            aes: Key::short(encryption),
        })
    }

    /// A frame of `plain`, with its length, appended to `out`.
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
        let text = URL_SAFE.encode(token);
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    /// Opens a token: its plaintext, authenticated.
    pub fn open(&self, token: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut bytes = decode(token).ok_or("it is no base64")?;
        if bytes.len() < HEAD_LEN + BLOCK_LEN + MAC_LEN || bytes[0] != 0x80 {
            return Err("it is no Fernet token");
        }
        let (signed, mac) = bytes.split_at(bytes.len() - MAC_LEN);
        if self
            .mac
            .clone()
            .chain_update(signed)
            .verify_slice(mac)
            .is_err()
        {
            return Err("its HMAC is wrong: changed, or another key");
        }
        bytes.truncate(bytes.len() - MAC_LEN);
        let (head, cipher) = bytes.split_at_mut(HEAD_LEN);
        let iv: &Iv = head.last_chunk().expect("a head ends in a vector");
        let len = self
            .aes
            .decrypt_padded(iv, cipher)
            .ok_or("its padding is wrong")?;
        bytes.copy_within(HEAD_LEN..HEAD_LEN + len, 0);
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Bytes of plaintext in a token of `token_len` letters that ends in `tail`; found by its last block alone.
    fn plain_len(&self, token_len: u32, tail: &[u8]) -> Option<u32> {
        let bytes = decode(tail)?;
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

/// Base64 of either alphabet, with padding, as Python reads it; what it passes over besides is refused here.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    if let Ok(bytes) = URL_SAFE.decode(text) {
        return Some(bytes);
    }
    STANDARD.decode(text).ok()
}

/// Bytes of a file of canonical frames.
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

/// Whether a file that starts so is one of frames.
pub fn looks_like_frames(head: &[u8]) -> bool {
    head.len() >= 10 && head[0] == 0 && &head[4..10] == b"gAAAAA"
}

/// Whether a file that starts so is one of the AWS Encryption SDK (format page, 2.7).
pub fn looks_like_aws(head: &[u8]) -> bool {
    // Version 2 and the one suite with commitment that Medusa's later heads use.
    head.starts_with(&[AWS_SDK, 0x05, 0x78]) || head.starts_with(&[AWS_SDK, 0x04, 0x78])
}

/// Encrypts a file.
pub struct FrameSeal {
    /// The bucket's key.
    pub key: FernetKey,
    /// For tests with known answers: time and vector. Else the clock's, and a random one each.
    pub pinned: Option<(u64, Iv)>,
    /// For what is read back.
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

/// Where the frames of a file are.
pub enum Frames {
    /// All of [`FRAME_PLAIN_LEN`] but the last, so that their places can be computed.
    Canonical,
    /// Where each starts: in the file, and in the plaintext.
    Listed(Vec<(u64, u64)>),
}

/// Finds the frames of a file of `len` bytes and how long its plaintext is; decrypts a block of each.
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
                "no token is that long: changed, or not encrypted",
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
            .ok_or_else(|| damaged(at, "it does not open"))?;
        starts.push((at, plain));
        plain += u64::from(frame);
        at = end;
    }
    Ok((Frames::Listed(starts), plain))
}

/// The refusal of a file of the later format, by name.
pub fn aws_sdk() -> Error {
    let what = "this is the AWS Encryption SDK format of Medusa's later pull requests, which is not read here";
    Error::from(Kind::Unsupported(what.into()))
}

/// Reads a file of frames.
pub struct FrameReader {
    file: Arc<File>,
    key: FernetKey,
    frames: Frames,
    plain_size: u64,
    cache: Arc<BlockCache>,
    /// Its number in the cache.
    number: u32,
    /// Held while a frame is decrypted, so that readers of one frame do not all do it.
    loading: [Mutex<()>; 4],
    order: Option<Mutex<Order>>,
}

/// The digest of the plaintext, as far as it was read in order: what HMACs cannot tell is that a frame is another's
/// or in another's place.
struct Order {
    expected: [u8; 16],
    md5: Md5,
    next: u64,
    early: BTreeMap<u64, Arc<[u8]>>,
    wrong: bool,
}

impl FrameReader {
    /// Of a file whose frames are known; `source_md5` is the digest of its plaintext by its manifest.
    pub fn new(
        file: Arc<File>,
        key: FernetKey,
        frames: Frames,
        plain_size: u64,
        source_md5: Option<[u8; 16]>,
        cache: Arc<BlockCache>,
    ) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let order = source_md5.map(|expected| {
            let early = BTreeMap::new();
            Mutex::new(Order {
                expected,
                md5: Md5::new(),
                next: 0,
                early,
                wrong: false,
            })
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            file,
            key,
            frames,
            plain_size,
            cache,
            number,
            loading: Default::default(),
            order,
        }
    }

    fn count(&self) -> u64 {
        match &self.frames {
            Frames::Canonical => self.plain_size.div_ceil(FRAME_PLAIN_LEN as u64),
            Frames::Listed(starts) => starts.len() as u64,
        }
    }

    /// The frame that holds this byte.
    fn frame_at(&self, plain_offset: u64) -> u64 {
        match &self.frames {
            Frames::Canonical => plain_offset / FRAME_PLAIN_LEN as u64,
            Frames::Listed(starts) => {
                starts.partition_point(|(_, plain)| *plain <= plain_offset) as u64 - 1
            }
        }
    }

    /// Where a frame starts, in the file and in the plaintext.
    fn start(&self, frame: u64) -> (u64, u64) {
        match &self.frames {
            Frames::Canonical => {
                let plain = frame * FRAME_PLAIN_LEN as u64;
                (cipher_len(plain), plain)
            }
            Frames::Listed(starts) => starts[frame as usize],
        }
    }

    fn load(&self, frame: u64) -> Result<Vec<u8>> {
        let (at, plain_start) = self.start(frame);
        let wrong = |why: &str| {
            Error::from(Kind::Damaged(
                format!("frame {frame} at {at}: {why}").into(),
            ))
        };
        let mut length = [0; LENGTH_LEN as usize];
        read_at(&self.file, at, &mut length)?;
        let token_len = u32::from_be_bytes(length);
        if !(TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&token_len) {
            return Err(wrong("no token is that long: changed, or not encrypted"));
        }
        let mut token = vec![0; token_len as usize];
        read_at(&self.file, at + LENGTH_LEN, &mut token)?;
        let plain = self.key.open(&token).map_err(wrong)?;
        let end = if frame + 1 < self.count() {
            self.start(frame + 1).1
        } else {
            self.plain_size
        };
        if plain.len() as u64 != end - plain_start {
            return Err(wrong("it holds another number of bytes than its place"));
        }
        Ok(plain)
    }

    /// Decrypts all frames in order: the digest of the plaintext.
    pub fn digest(&self) -> Result<[u8; 16]> {
        let mut md5 = Md5::new();
        for frame in 0..self.count() {
            md5.update(self.load(frame)?);
        }
        Ok(md5.finalize().into())
    }

    fn frame(&self, frame: u64) -> Result<Arc<[u8]>> {
        let key = BlockKey {
            pack: self.number,
            cipher_offset: frame as u32,
        };
        if let Some(plain) = self.cache.get(key) {
            return Ok(plain);
        }
        let _loading = self.loading[(frame % 4) as usize].lock();
        if self.cache.contains(key)
            && let Some(plain) = self.cache.get(key)
        {
            return Ok(plain);
        }
        let plain: Arc<[u8]> = self.load(frame)?.into();
        self.note(frame, &plain)?;
        self.cache.insert(key, Arc::clone(&plain));
        Ok(plain)
    }

    /// Takes a frame into the digest where it is its turn; who has read nearly all in order has the rest done for
    /// him. A wrong digest shows at the last frame, and from then on everywhere.
    fn note(&self, frame: u64, plain: &Arc<[u8]>) -> Result<()> {
        let Some(order) = &self.order else {
            return Ok(());
        };
        let mut order = order.lock();
        let count = self.count();
        if frame >= order.next {
            order.early.insert(frame, Arc::clone(plain));
        }
        while let Some(plain) = {
            let next = order.next;
            order.early.remove(&next)
        } {
            order.md5.update(&plain);
            order.next += 1;
        }
        while order.early.len() > EARLY_MAX {
            order.early.pop_last();
        }
        if frame + 1 == count && order.next < count && count - order.next <= EARLY_MAX as u64 {
            while order.next < count {
                let plain = self.load(order.next)?;
                order.md5.update(&plain);
                order.next += 1;
            }
        }
        if order.next == count {
            let digest: [u8; 16] = order.md5.clone().finalize().into();
            order.wrong = digest != order.expected;
        }
        if order.wrong {
            let check = "all of its frames are authentic, and not those, or not in the order, that its manifest says";
            return Err(Kind::Damaged(check.into()).into());
        }
        Ok(())
    }
}

impl Reader for FrameReader {
    fn plain_size(&self) -> u64 {
        self.plain_size
    }

    fn read_exact_at(&self, mut plain_offset: u64, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let number = self.frame_at(plain_offset);
            let frame = self.frame(number)?;
            let skip = (plain_offset - self.start(number).1) as usize;
            let len = (frame.len() - skip).min(out.len());
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(&frame[skip..skip + len]);
            out = later;
            plain_offset += len as u64;
        }
        Ok(())
    }
}
