//! Reading a pack.

use std::ops::Range;
use std::sync::Arc;

use super::catalogue::{self, CatalogueEntry};
use super::{MessageKind, PACK_CIPHER_LEN, Run, message_aad};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey};
use crate::error::{Error, Result};
use crate::object::{DeviceId, ObjectId, PackId};
use crate::store::Object;

const TRAILER_PLAIN_LEN: usize = 32;
/// Bytes of the encrypted trailer.
pub(super) const TRAILER_CIPHER_LEN: usize = TRAILER_PLAIN_LEN + SEAL_OVERHEAD;
/// Bytes of the longest encrypted catalogue that is read. A writer stops at half of it.
const CATALOGUE_CIPHER_MAX: u32 = 8 << 20;

/// The end of a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Offset of the catalogue in the pack.
    pub catalogue_cipher_offset: u32,
    /// Bytes of the catalogue, encrypted.
    pub catalogue_cipher_len: u32,
    /// Bytes of the pack without its padding.
    pub true_cipher_len: u32,
    /// The device that wrote the pack.
    pub device: DeviceId,
    /// Number of runs in the catalogue.
    pub runs: u32,
}

impl Trailer {
    pub(super) fn encode(&self) -> [u8; TRAILER_PLAIN_LEN] {
        let mut bytes = [0; TRAILER_PLAIN_LEN];
        bytes[0..4].copy_from_slice(&self.catalogue_cipher_offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.catalogue_cipher_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.true_cipher_len.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.device.0);
        bytes[28..32].copy_from_slice(&self.runs.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; TRAILER_PLAIN_LEN]) -> Self {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut device = [0; 16];
        device.copy_from_slice(&bytes[12..28]);
        Self {
            catalogue_cipher_offset: number(0),
            catalogue_cipher_len: number(4),
            true_cipher_len: number(8),
            device: ObjectId(device),
            runs: number(28),
        }
    }

    /// Whether its offsets and lengths are possible in a pack of `cipher_len` bytes.
    pub(super) fn is_possible(&self, cipher_len: u64) -> bool {
        let end = u64::from(self.catalogue_cipher_offset)
            + u64::from(self.catalogue_cipher_len)
            + TRAILER_CIPHER_LEN as u64;
        self.catalogue_cipher_offset as usize >= HEADER_LEN
            && (SEAL_OVERHEAD as u32..=CATALOGUE_CIPHER_MAX).contains(&self.catalogue_cipher_len)
            && u64::from(self.true_cipher_len) == end
            && end <= cipher_len
    }
}

/// A pack that is open for reading, unfinished or published.
pub struct PackReader {
    id: PackId,
    object: Arc<dyn Object>,
    key: SealKey,
    writable: bool,
}

impl PackReader {
    /// Opens a pack: reads and checks its header.
    pub fn open(object: Arc<dyn Object>, id: PackId, master: &MasterKey) -> Result<Self> {
        let mut header = [0; HEADER_LEN];
        object.read_at(&mut header, 0)?;
        let header = Header::decode(&header, Magic::Pack, id.object(), &object.name())?;
        Ok(Self {
            id,
            object,
            key: master.object_key(&header),
            writable: header.writable(),
        })
    }

    /// If the object named `id` is a complete pack that was written under another name, returns that name.
    pub fn copy_of(object: &Arc<dyn Object>, id: PackId, master: &MasterKey) -> Option<PackId> {
        let mut header = [0; HEADER_LEN];
        object.read_at(&mut header, 0).ok()?;
        let of = Header::id_of(&header, Magic::Pack)
            .map(PackId)
            .filter(|of| *of != id)?;
        let reader = Self::open(Arc::clone(object), of, master).ok()?;
        reader.trailer().is_ok().then_some(of)
    }

    /// Whether the header allows this version to write to the library. Authentic only once a message of the pack has been
    /// decrypted.
    pub fn writable(&self) -> bool {
        self.writable
    }

    fn damaged(&self, check: impl std::fmt::Display) -> Error {
        Error::damaged(self.object.name(), check)
    }

    /// Checks a run before anything is computed from it: the index that it is from may be another device's.
    fn check_run(&self, run: &Run, blocks: &Range<u32>) -> Result<()> {
        let in_pack = run.pack == self.id
            && (1..=PACK_CIPHER_LEN).contains(&run.plain_len)
            && run.cipher_offset as usize >= HEADER_LEN
            && u64::from(run.cipher_offset) + u64::from(run.cipher_len())
                <= u64::from(PACK_CIPHER_LEN);
        if in_pack && blocks.start < blocks.end && blocks.end <= run.blocks() {
            return Ok(());
        }
        let (offset, len) = (run.cipher_offset, run.plain_len);
        Err(self.damaged(format_args!(
            "cannot hold blocks {blocks:?} of a run at {offset} of {len} bytes"
        )))
    }

    /// Fills `sealed` from the pack, in one read.
    ///
    /// It is damage if the pack is too short, or the range larger than a pack can be. After an error, the contents of
    /// `sealed` are undefined.
    pub fn read_sealed(&self, cipher_offset: u32, sealed: &mut [u8]) -> Result<()> {
        let (start, len) = (u64::from(cipher_offset), sealed.len() as u64);
        if start >= HEADER_LEN as u64 && len > 0 && start + len <= u64::from(PACK_CIPHER_LEN) {
            return self.object.read_at(sealed, start);
        }
        Err(self.damaged(format_args!("cannot hold {len} bytes at {start}")))
    }

    /// Reads from `cipher_offset`, as [`Object::read_stream`] does.
    pub fn read_stream(&self, cipher_offset: u32, sealed: &mut [u8]) -> Result<usize> {
        self.object.read_stream(sealed, u64::from(cipher_offset))
    }

    /// Decrypts block `block` of `run` from `sealed` into `plain`, which must be `run.block_plain_len(block)` bytes long.
    ///
    /// After an error, the contents of `plain` are undefined.
    pub fn open_block(&self, run: &Run, block: u32, sealed: &[u8], plain: &mut [u8]) -> Result<()> {
        self.check_run(run, &(block..block.saturating_add(1)))?;
        let cipher_offset = run.block_cipher_offset(block);
        let fits = plain.len() == run.block_plain_len(block) as usize
            && sealed.len() == plain.len() + SEAL_OVERHEAD;
        debug_assert!(fits, "callers size their buffers by the run");
        if fits
            && self.key.open(
                &message_aad(MessageKind::Block, cipher_offset),
                sealed,
                plain,
            )
        {
            return Ok(());
        }
        Err(self.damaged(format_args!(
            "the block at {cipher_offset} cannot be decrypted"
        )))
    }

    /// A hint that these bytes of the pack will be read soon.
    pub fn prefetch(&self, cipher_offset: u32, cipher_len: u32) {
        self.object
            .prefetch(u64::from(cipher_offset), u64::from(cipher_len));
    }

    /// A hint that these bytes of the pack will not be read again soon.
    pub fn uncache(&self, cipher_offset: u32, cipher_len: u32) {
        self.object
            .uncache(u64::from(cipher_offset), u64::from(cipher_len));
    }

    /// Reads the trailer. Only finished packs have one.
    pub fn trailer(&self) -> Result<Trailer> {
        let cipher_len = self.object.cipher_len()?;
        if cipher_len < (HEADER_LEN + TRAILER_CIPHER_LEN) as u64
            || cipher_len > u64::from(PACK_CIPHER_LEN)
        {
            return Err(self.damaged(format_args!("no pack is {cipher_len} bytes long")));
        }
        let offset = cipher_len as u32 - TRAILER_CIPHER_LEN as u32;
        let mut sealed = [0; TRAILER_CIPHER_LEN];
        self.object.read_at(&mut sealed, u64::from(offset))?;
        let mut plain = [0; TRAILER_PLAIN_LEN];
        if !self.key.open(
            &message_aad(MessageKind::Trailer, offset),
            &sealed,
            &mut plain,
        ) {
            return Err(self.damaged(format_args!("the trailer at {offset} cannot be decrypted")));
        }
        let trailer = Trailer::decode(&plain);
        if trailer.is_possible(cipher_len) {
            return Ok(trailer);
        }
        Err(self.damaged("the trailer has impossible offsets"))
    }

    /// Reads the catalogue.
    pub fn catalogue(&self) -> Result<Vec<CatalogueEntry>> {
        let trailer = self.trailer()?;
        let offset = trailer.catalogue_cipher_offset;
        let mut sealed = vec![0; trailer.catalogue_cipher_len as usize];
        self.object.read_at(&mut sealed, u64::from(offset))?;
        let mut plain = vec![0; sealed.len() - SEAL_OVERHEAD];
        if !self.key.open(
            &message_aad(MessageKind::Catalogue, offset),
            &sealed,
            &mut plain,
        ) {
            return Err(self.damaged(format_args!(
                "the catalogue at {offset} cannot be decrypted"
            )));
        }
        let entries =
            catalogue::decode(&plain, self.id, offset).map_err(|check| self.damaged(check))?;
        if entries.len() != trailer.runs as usize {
            return Err(
                self.damaged("the catalogue and the trailer disagree on the number of runs")
            );
        }
        Ok(entries)
    }
}
