//! Writing a pack.

use std::sync::Arc;

use super::catalogue::{CATALOGUE_PLAIN_MAX, Catalogue, NOTE_LEN_MAX};
use super::reader::{TRAILER_CIPHER_LEN, Trailer};
use super::{
    BLOCK_CIPHER_LEN, BLOCK_PLAIN_LEN, MessageKind, PACK_CIPHER_LEN, Run, message_aad, padme_len,
};
use crate::crypto::{
    HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey, random, random_id,
};
use crate::error::{Error, Kind, Result};
use crate::object::{DeviceId, PackId};
use crate::store::{Growing, Store};

/// Shortest pack, so that one that holds a single small file does not show its length.
const PACK_LEN_FLOOR: u64 = 64 * 1024;
/// Sealed bytes that are collected for one write, at most. More gains nothing.
const WRITE_LEN: usize = 1 << 20;
/// After so many bytes the disk is put to work. Measured: 16 packs and their syncs 3.7 GB/s; 1.0 without.
const WRITE_BACK_LEN: u32 = 8 << 20;

/// What the catalogue says of a run, so that a library whose index is lost can be rebuilt.
pub struct Note<'a> {
    /// The inode's 128-bit id.
    pub inode: u128,
    /// The file's path at that time, from the root, without a leading slash; empty where it has none. Of one longer
    /// than 4095 bytes the end is kept.
    pub path: &'a [u8],
    /// Where in the file the run belongs, in bytes.
    pub plain_offset: u64,
    /// The Lamport counter of the operation.
    pub counter: u64,
}

/// A pack that grows.
pub struct PackWriter {
    id: PackId,
    device: DeviceId,
    file: Arc<dyn Growing>,
    key: SealKey,
    /// Bytes written; the next block starts here.
    cipher_len: u32,
    /// Bytes handed to the disk.
    written_back: u32,
    catalogue: Catalogue,
    /// Sealed blocks on their way; kept from run to run, at most [`WRITE_LEN`] bytes.
    sealed: Vec<u8>,
    spoiled: bool,
    /// The pack must not be shorter than this.
    cipher_len_min: u64,
}

/// A pack with catalogue, padding and trailer; not yet synced or published.
pub struct FinishedPack {
    /// Its id.
    pub id: PackId,
    /// Its whole length in bytes.
    pub cipher_len: u32,
    /// The file.
    pub file: Arc<dyn Growing>,
}

impl PackWriter {
    /// Starts a pack in the store's `new/` folder.
    pub fn create(store: &dyn Store, master: &MasterKey, device: DeviceId) -> Result<Self> {
        let id = PackId(random_id()?);
        let header = Header::new(Magic::Pack, id.object());
        let key = master.object_key(&header);
        let file = store.create(id.object())?;
        if let Err(e) = file.write_at(&header.encode(), 0) {
            // Of no use to anybody; where it cannot be removed either, the next mount does it.
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
            spoiled: false,
            cipher_len_min: PACK_LEN_FLOOR,
        })
    }

    /// Gives a pack an end that a crash left without one: behind the last of these runs, which are in the order of
    /// their places. What lies behind them is written over.
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
            spoiled: false,
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
        // By now, paths may be longer than they were when place was kept for them.
        if !writer.has_place_for_end() {
            writer.catalogue = Catalogue::default();
            for (run, note) in runs {
                writer.catalogue.add(run, &Note { path: &[], ..*note });
            }
        }
        writer.finish()
    }

    /// Its id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// The file, for reading and syncing.
    pub fn file(&self) -> Arc<dyn Growing> {
        Arc::clone(&self.file)
    }

    /// Bytes written so far.
    pub fn cipher_len(&self) -> u32 {
        self.cipher_len
    }

    fn has_place_for_end(&self) -> bool {
        let catalogue = self.catalogue.plain_len_max();
        let end = self.cipher_len as usize + catalogue + SEAL_OVERHEAD + TRAILER_CIPHER_LEN;
        catalogue <= CATALOGUE_PLAIN_MAX && end <= PACK_CIPHER_LEN as usize
    }

    /// Bytes of plaintext that the next run may have, catalogue and trailer counted in; 0: finish it.
    /// A multiple of a block unless it is 0.
    pub fn room(&self) -> u32 {
        let catalogue = self.catalogue.plain_len_max() + NOTE_LEN_MAX;
        if self.spoiled || catalogue > CATALOGUE_PLAIN_MAX {
            return 0;
        }
        let taken = self.cipher_len as usize + catalogue + SEAL_OVERHEAD + TRAILER_CIPHER_LEN;
        let free = (PACK_CIPHER_LEN as usize).saturating_sub(taken);
        (free / BLOCK_CIPHER_LEN as usize) as u32 * BLOCK_PLAIN_LEN
    }

    /// Seals the concatenated `plain` pieces (1 to `room()` bytes in all) as one run and writes it, right behind
    /// the run before. After an error of the store the pack is spoiled: `room()` is 0 and `finish` refuses.
    pub fn append(&mut self, plain: &[&[u8]], note: &Note<'_>) -> Result<Run> {
        let plain_len: usize = plain.iter().map(|piece| piece.len()).sum();
        if self.spoiled {
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
            self.spoiled = true;
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
                self.assert_opens(&aad, &sealed[filled..end], &block_plain);
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

    /// What was just sealed opens again: whoever breaks one side of the pair hears of it in every debug build.
    fn assert_opens(&self, aad: &[u8], sealed: &[u8], plain: &[&[u8]]) {
        let mut back = vec![0; sealed.len() - SEAL_OVERHEAD];
        assert!(
            self.key.open(aad, sealed, &mut back),
            "a sealed block opens"
        );
        assert!(
            back == plain.concat(),
            "a sealed block opens to what it was"
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

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.catalogue.run_count() == 0
    }

    /// Whether a write failed.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Writes catalogue, padding and trailer. Syncing and publishing are the caller's.
    pub fn finish(mut self) -> Result<FinishedPack> {
        if self.spoiled {
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

/// The concatenation of pieces, cut into blocks without copying.
struct Pieces<'a> {
    rest: &'a [&'a [u8]],
    /// Bytes of the first of `rest` that are taken already.
    used: usize,
}

impl<'a> Pieces<'a> {
    /// Puts the next `len` bytes, which must be there, into `block` (cleared first).
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
