//! Writing a pack.

use std::sync::Arc;

use super::catalogue::{CATALOGUE_PLAIN_MAX, Catalogue, NOTE_LEN_MAX};
use super::reader::{TRAILER_CIPHER_LEN, Trailer};
use super::{
    BLOCK_CIPHER_LEN, BLOCK_PLAIN_LEN, MessageKind, PACK_CIPHER_LEN, Run, message_aad, padme_len,
};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey, random};
use crate::error::{Error, Kind, Result};
use crate::object::{DeviceId, PackId};
use crate::store::{Growing, Store};

/// Bytes of the shortest pack, so that a pack with a single small file does not reveal the file's length.
const PACK_LEN_FLOOR: u64 = 64 * 1024;
/// Most encrypted bytes that are collected for one write. Measured: more gains nothing.
const WRITE_LEN: usize = 1 << 20;
/// After this many bytes, the kernel is told to start writing them to the disk. Measured for 16 packs including their
/// syncs: 3.7 GB/s, and 1.0 GB/s without.
const WRITE_BACK_LEN: u32 = 8 << 20;

/// What is recorded of a run in the catalogue, so that a library can be rebuilt if its index is lost.
pub struct Note<'a> {
    /// The inode's 128-bit id.
    pub inode: u128,
    /// The file's current path from the root, without a leading slash; empty if it has none. If it is longer than 4095
    /// bytes, its end is kept.
    pub path: &'a [u8],
    /// Offset of the run in the file.
    pub plain_offset: u64,
    /// The Lamport counter of the operation.
    pub counter: u64,
}

/// A pack that is being written.
pub struct PackWriter {
    id: PackId,
    device: DeviceId,
    file: Arc<dyn Growing>,
    key: SealKey,
    /// Bytes written so far: the offset of the next block.
    cipher_len: u32,
    /// Bytes that the kernel was told to write to the disk.
    written_back: u32,
    catalogue: Catalogue,
    /// Buffer of encrypted blocks, at most [`WRITE_LEN`] bytes; kept from run to run.
    sealed: Vec<u8>,
    /// A write failed, and nothing more may be written.
    failed: bool,
    /// The finished pack must be at least this long.
    cipher_len_min: u64,
}

/// A pack with catalogue, padding and trailer that is not yet synced or published.
pub struct FinishedPack {
    /// The pack's id.
    pub id: PackId,
    /// Bytes of the whole pack.
    pub cipher_len: u32,
    /// The file in `new/`.
    pub file: Arc<dyn Growing>,
}

impl PackWriter {
    /// Starts a pack in the store's `new/` folder.
    pub fn create(
        store: &dyn Store,
        master: &MasterKey,
        id: PackId,
        device: DeviceId,
    ) -> Result<Self> {
        let header = Header::new(Magic::Pack, id.object());
        let key = master.object_key(&header);
        let file = store.create(id.object())?;
        if let Err(e) = file.write_at(&header.encode(), 0) {
            // The file is useless. If it cannot be removed now, the next mount removes it.
            let _ = store.discard(id.object());
            return Err(e);
        }
        Ok(Self {
            id,
            device,
            file,
            key,
            cipher_len: HEADER_LEN as u32,
            written_back: 0,
            catalogue: Catalogue::default(),
            sealed: Vec::new(),
            failed: false,
            cipher_len_min: PACK_LEN_FLOOR,
        })
    }

    /// Finishes a pack that a crash left unfinished. `runs` are the runs to keep; the end is written after the last one, and
    /// overwrites anything there.
    pub fn end_leftover(
        file: Arc<dyn Growing>,
        master: &MasterKey,
        device: DeviceId,
        runs: &[(Run, Note<'_>)],
    ) -> Result<FinishedPack> {
        let id = PackId(file.id());
        let mut writer = Self {
            id,
            device,
            key: master.object_key(&Header::new(Magic::Pack, id.object())),
            cipher_len: HEADER_LEN as u32,
            written_back: 0,
            catalogue: Catalogue::default(),
            sealed: Vec::new(),
            failed: false,
            cipher_len_min: file.cipher_len()?.max(PACK_LEN_FLOOR),
            file,
        };
        let ends = runs
            .iter()
            .map(|(run, _)| run.cipher_offset + run.cipher_len());
        writer.cipher_len = ends.fold(writer.cipher_len, u32::max);
        for (run, note) in runs {
            writer.catalogue.add(run, note);
        }
        // Files may have been renamed since: with the longer paths, the catalogue may not fit any more.
        if !writer.end_fits() {
            writer.catalogue = Catalogue::default();
            for (run, note) in runs {
                writer.catalogue.add(run, &Note { path: &[], ..*note });
            }
        }
        writer.finish()
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// The file, for reading and syncing.
    pub fn file(&self) -> Arc<dyn Growing> {
        Arc::clone(&self.file)
    }

    /// Whether catalogue and trailer fit after the runs.
    fn end_fits(&self) -> bool {
        let catalogue = self.catalogue.plain_len_max();
        let end = self.cipher_len as usize + catalogue + SEAL_OVERHEAD + TRAILER_CIPHER_LEN;
        catalogue <= CATALOGUE_PLAIN_MAX && end <= PACK_CIPHER_LEN as usize
    }

    /// Bytes of plaintext that the next run may have, so that catalogue and trailer still fit. A multiple of a block; if it
    /// is 0, the pack must be finished.
    pub fn room(&self) -> u32 {
        let catalogue = self.catalogue.plain_len_max() + NOTE_LEN_MAX;
        if self.failed || catalogue > CATALOGUE_PLAIN_MAX {
            return 0;
        }
        let taken = self.cipher_len as usize + catalogue + SEAL_OVERHEAD + TRAILER_CIPHER_LEN;
        let free = (PACK_CIPHER_LEN as usize).saturating_sub(taken);
        (free / BLOCK_CIPHER_LEN as usize) as u32 * BLOCK_PLAIN_LEN
    }

    /// Encrypts the concatenated `plain` pieces (1 to `room()` bytes in all) as one run, and appends it. After an error of
    /// the store, `room()` is 0 and `finish` fails.
    pub fn append(&mut self, plain: &[&[u8]], note: &Note<'_>) -> Result<Run> {
        let plain_len: usize = plain.iter().map(|piece| piece.len()).sum();
        if self.failed {
            return Err(Error::new(Kind::Poisoned, self.file.name()));
        }
        if plain_len == 0 || plain_len > self.room() as usize {
            return Err(Error::new(Kind::InvalidArgument, self.file.name()));
        }
        let run = Run {
            pack: self.id,
            cipher_offset: self.cipher_len,
            plain_len: plain_len as u32,
        };
        if let Err(e) = self.write_run(plain, &run) {
            self.failed = true;
            return Err(e.about(self.file.name()));
        }
        self.catalogue.add(&run, note);
        Ok(run)
    }

    fn write_run(&mut self, plain: &[&[u8]], run: &Run) -> Result<()> {
        let mut sealed = std::mem::take(&mut self.sealed);
        let mut pieces = Pieces {
            rest: plain,
            used: 0,
        };
        let mut block_plain = Vec::with_capacity(plain.len().min(4));
        let mut filled = 0;
        for block in 0..run.blocks() {
            let plain_len = run.block_plain_len(block) as usize;
            let end = filled + plain_len + SEAL_OVERHEAD;
            if sealed.len() < end {
                sealed.resize(end, 0);
            }
            pieces.take(plain_len, &mut block_plain);
            let aad = message_aad(MessageKind::Block, run.block_cipher_offset(block));
            self.key
                .seal_into(&aad, &block_plain, &mut sealed[filled..end])?;
            if cfg!(debug_assertions) && block == 0 {
                self.assert_decrypts(&aad, &sealed[filled..end], &block_plain);
            }
            filled = end;
            if filled + BLOCK_CIPHER_LEN as usize > WRITE_LEN {
                self.write(&sealed[..filled])?;
                filled = 0;
            }
        }
        if filled > 0 {
            self.write(&sealed[..filled])?;
        }
        self.sealed = sealed;
        debug_assert_eq!(self.cipher_len, run.cipher_offset + run.cipher_len());
        Ok(())
    }

    /// Checks in debug builds that a block can be decrypted, so that encryption and decryption cannot drift apart.
    fn assert_decrypts(&self, aad: &[u8], sealed: &[u8], plain: &[&[u8]]) {
        let mut back = vec![0; sealed.len() - SEAL_OVERHEAD];
        assert!(
            self.key.open(aad, sealed, &mut back),
            "an encrypted block can be decrypted"
        );
        assert!(
            back == plain.concat(),
            "a decrypted block is what was encrypted"
        );
    }

    fn write(&mut self, sealed: &[u8]) -> Result<()> {
        self.file.write_at(sealed, u64::from(self.cipher_len))?;
        self.cipher_len += sealed.len() as u32;
        let waiting = self.cipher_len - self.written_back;
        if waiting >= WRITE_BACK_LEN {
            self.file
                .write_back(u64::from(self.written_back), u64::from(waiting));
            self.written_back = self.cipher_len;
        }
        Ok(())
    }

    /// Whether no run was appended.
    pub fn is_empty(&self) -> bool {
        self.catalogue.run_count() == 0
    }

    /// Writes catalogue, padding and trailer. The caller must sync and publish the pack.
    pub fn finish(mut self) -> Result<FinishedPack> {
        if self.failed {
            return Err(Error::new(Kind::Poisoned, self.file.name()));
        }
        let catalogue_cipher_offset = self.cipher_len;
        let (heads, bodies) = self.catalogue.heads();
        let plain = [&heads[0][..], bodies[0], &heads[1], bodies[1]];
        let mut end = Vec::new();
        self.key.seal(
            &message_aad(MessageKind::Catalogue, catalogue_cipher_offset),
            &plain,
            &mut end,
        )?;
        let catalogue_cipher_len = end.len() as u32;

        let true_cipher_len =
            catalogue_cipher_offset + catalogue_cipher_len + TRAILER_CIPHER_LEN as u32;
        let cipher_len = padme_len(u64::from(true_cipher_len), self.cipher_len_min) as u32;
        if cipher_len > PACK_CIPHER_LEN {
            return Err(Error::new(Kind::TooBig, self.file.name()));
        }
        let padding = (cipher_len - true_cipher_len) as usize;
        end.resize(end.len() + padding, 0);
        random(&mut end[catalogue_cipher_len as usize..])?;

        let trailer = Trailer {
            catalogue_cipher_offset,
            catalogue_cipher_len,
            true_cipher_len,
            device: self.device,
            runs: self.catalogue.run_count(),
        };
        let aad = message_aad(MessageKind::Trailer, cipher_len - TRAILER_CIPHER_LEN as u32);
        self.key.seal(&aad, &[&trailer.encode()], &mut end)?;
        self.write(&end)?;
        debug_assert_eq!(self.cipher_len, cipher_len);
        self.file.write_back(
            u64::from(self.written_back),
            u64::from(cipher_len - self.written_back),
        );
        Ok(FinishedPack {
            id: self.id,
            cipher_len,
            file: self.file,
        })
    }
}

/// Cuts the concatenation of pieces into blocks, without copying.
struct Pieces<'a> {
    rest: &'a [&'a [u8]],
    /// Bytes already taken of the first piece in `rest`.
    used: usize,
}

impl<'a> Pieces<'a> {
    /// Puts the next `len` bytes into `block`, which is cleared first. There must be that many.
    fn take(&mut self, mut len: usize, block: &mut Vec<&'a [u8]>) {
        block.clear();
        while len > 0 {
            let (first, rest) = self
                .rest
                .split_first()
                .expect("a run is as long as its pieces");
            let part = &first[self.used..];
            let taken = part.len().min(len);
            block.push(&part[..taken]);
            len -= taken;
            if taken == part.len() {
                (self.rest, self.used) = (rest, 0);
            } else {
                self.used += taken;
            }
        }
    }
}
