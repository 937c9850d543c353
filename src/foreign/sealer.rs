//! Encrypts a file while it is written to a temporary file. Plaintext is never on a disk, and little of it is in memory.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use md5::{Digest, Md5};

use super::cipher::Iv;
use super::stage::{Stage, Temp};
use super::{PlainReader, Reader};
use crate::error::{Error, Result};

/// Bytes that are kept of the start of a file, to detect its type.
const HEAD_LEN: usize = 4096;

/// Encrypts one file in a format, unit by unit.
pub trait Seal: Send {
    /// Bytes of plaintext in a unit; never 0.
    fn unit_plain_len(&self) -> usize;
    /// Encrypts the next unit and appends it to `out`. All units are full but the last, which may be short or empty. It is
    /// called with `last` exactly once.
    fn seal(&mut self, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<()>;
    /// A reader of the encrypted file.
    fn reader(&self, file: Arc<File>, plain_size: u64) -> Arc<dyn Reader>;
    /// The initialisation vector, if it is not stored in the file.
    fn iv(&self) -> Option<Iv> {
        None
    }
    /// Whether nothing is encrypted.
    fn in_clear(&self) -> bool {
        false
    }
}

/// Stores a file unencrypted.
pub struct InClear;

impl Seal for InClear {
    fn unit_plain_len(&self) -> usize {
        256 << 10
    }

    fn seal(&mut self, plain: &[u8], _last: bool, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(plain);
        Ok(())
    }

    fn reader(&self, file: Arc<File>, plain_size: u64) -> Arc<dyn Reader> {
        Arc::new(PlainReader { file, plain_size })
    }

    fn in_clear(&self) -> bool {
        true
    }
}

/// A file that is being encrypted.
pub struct Sealer {
    seal: Box<dyn Seal>,
    temp: Temp,
    /// At most one unit, which is kept until there is more, because the last unit is encrypted differently.
    unit: Vec<u8>,
    cipher: Vec<u8>,
    plain_len: u64,
    cipher_len: u64,
    digests: Option<(Md5, Md5)>,
    head: Vec<u8>,
}

/// A complete encrypted file that is not in the library yet.
pub struct Sealed {
    /// The file.
    pub temp: Temp,
    /// A reader of its plaintext.
    pub reader: Arc<dyn Reader>,
    /// Bytes of plaintext.
    pub plain_size: u64,
    /// Bytes of the file.
    pub cipher_len: u64,
    /// MD5 of the plaintext and of the file, if requested.
    pub digests: Option<Digests>,
    /// The initialisation vector, if it is not stored in the file.
    pub iv: Option<Iv>,
    /// The first bytes of plaintext.
    pub head: Vec<u8>,
    /// It is not encrypted.
    pub in_clear: bool,
}

/// The two MD5 digests of an encrypted file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Of the plaintext.
    pub plain: [u8; 16],
    /// Of the file.
    pub cipher: [u8; 16],
}

impl Sealer {
    /// Starts a file, with MD5 digests if `with_digests` is set.
    pub fn new(stage: &Stage, seal: Box<dyn Seal>, with_digests: bool) -> Result<Self> {
        Ok(Self {
            temp: stage.create()?,
            unit: Vec::with_capacity(seal.unit_plain_len()),
            seal,
            cipher: Vec::new(),
            plain_len: 0,
            cipher_len: 0,
            digests: with_digests.then(Default::default),
            head: Vec::new(),
        })
    }

    /// Bytes of plaintext written so far.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// Adds plaintext.
    pub fn write(&mut self, mut plain: &[u8]) -> Result<()> {
        self.plain_len += plain.len() as u64;
        let head = plain.len().min(HEAD_LEN.saturating_sub(self.head.len()));
        self.head.extend_from_slice(&plain[..head]);
        if let Some((digest, _)) = &mut self.digests {
            digest.update(plain);
        }
        let unit_len = self.seal.unit_plain_len();
        while !plain.is_empty() {
            if self.unit.len() == unit_len {
                self.put(false)?;
            }
            let (now, later) = plain.split_at(plain.len().min(unit_len - self.unit.len()));
            self.unit.extend_from_slice(now);
            plain = later;
        }
        Ok(())
    }

    fn put(&mut self, last: bool) -> Result<()> {
        self.cipher.clear();
        self.seal.seal(&self.unit, last, &mut self.cipher)?;
        self.unit.clear();
        if let Some((_, digest)) = &mut self.digests {
            digest.update(&self.cipher);
        }
        self.cipher_len += self.cipher.len() as u64;
        let written = (&*self.temp.file).write_all(&self.cipher);
        written.map_err(|e| Error::io(e, self.temp.path()))
    }

    /// Finishes the file. It is not durable until it is committed to the library.
    pub fn finish(mut self) -> Result<Sealed> {
        self.put(true)?;
        Ok(Sealed {
            reader: self
                .seal
                .reader(Arc::clone(&self.temp.file), self.plain_len),
            temp: self.temp,
            plain_size: self.plain_len,
            cipher_len: self.cipher_len,
            digests: self.digests.map(|(plain, cipher)| Digests {
                plain: plain.finalize().into(),
                cipher: cipher.finalize().into(),
            }),
            iv: self.seal.iv(),
            in_clear: self.seal.in_clear(),
            head: self.head,
        })
    }
}
