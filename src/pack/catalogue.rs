//! The catalogue of a pack records which file each run belongs to, so that a library can be rebuilt if its index is lost
//! (`man/hushfs-format.5`: PACKS).

use std::convert::Infallible;
use std::sync::Arc;

use minicbor::{Decoder, Encoder};

use super::{Note, PACK_CIPHER_LEN, Run};
use crate::cbor::{elements, members};
use crate::crypto::HEADER_LEN;
use crate::object::PackId;

/// Bytes at which a catalogue is full. This bounds the writer's memory; only packs of very small runs reach it.
pub(super) const CATALOGUE_PLAIN_MAX: usize = 4 << 20;
/// Longest path that is recorded. Linux allows no longer one in a system call; of a longer path that was built step by
/// step, the end is recorded.
pub(super) const PATH_LEN_MAX: usize = 4095;
/// Most bytes that one note adds: a path with its length, and a run with six fields of maximum length.
pub(super) const NOTE_LEN_MAX: usize = 3 + PATH_LEN_MAX + 1 + 5 + 5 + 17 + 5 + 9 + 9;
/// Most bytes of the three array heads.
const HEADS_LEN_MAX: usize = 1 + 5 + 5;

/// What the catalogue records of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The run.
    pub run: Run,
    /// The 128-bit id of the file's inode.
    pub inode: u128,
    /// The file's path when the run was written. Shared, because a file may have many runs.
    pub path: Arc<[u8]>,
    /// Offset of the run in the file.
    pub plain_offset: u64,
    /// The Lamport counter of the operation.
    pub counter: u64,
}

/// A catalogue under construction. It is kept encoded, so that its size is always known.
#[derive(Default)]
pub(super) struct Catalogue {
    paths: Vec<u8>,
    path_count: u32,
    last_path: Vec<u8>,
    runs: Vec<u8>,
    run_count: u32,
}

/// Encoding into memory cannot fail.
fn encoded<T>(result: Result<T, minicbor::encode::Error<Infallible>>) -> T {
    result.expect("writing to a vector does not fail")
}

impl Catalogue {
    /// Upper bound of its encoded length.
    pub fn plain_len_max(&self) -> usize {
        HEADS_LEN_MAX + self.paths.len() + self.runs.len()
    }

    pub fn run_count(&self) -> u32 {
        self.run_count
    }

    pub fn add(&mut self, run: &Run, note: &Note<'_>) {
        let path = &note.path[note.path.len().saturating_sub(PATH_LEN_MAX)..];
        if self.path_count == 0 || self.last_path != path {
            encoded(Encoder::new(&mut self.paths).bytes(path));
            self.path_count += 1;
            self.last_path.clear();
            self.last_path.extend_from_slice(path);
        }
        let mut e = Encoder::new(&mut self.runs);
        encoded(e.array(6).and_then(|e| {
            e.u32(run.cipher_offset)?
                .u32(run.plain_len)?
                .bytes(&note.inode.to_be_bytes())
        }));
        encoded(
            e.u32(self.path_count - 1)
                .and_then(|e| e.u64(note.plain_offset)?.u64(note.counter)),
        );
        self.run_count += 1;
    }

    /// The three array heads and the two bodies, to be encrypted as one message.
    pub fn heads(&self) -> ([Vec<u8>; 2], [&[u8]; 2]) {
        let mut first = Vec::new();
        encoded(
            Encoder::new(&mut first)
                .array(2)
                .and_then(|e| e.array(u64::from(self.path_count))),
        );
        let mut second = Vec::new();
        encoded(Encoder::new(&mut second).array(u64::from(self.run_count)));
        ([first, second], [&self.paths, &self.runs])
    }
}

/// Decodes a catalogue. `end` is the offset at which the blocks of the pack end. The error describes what is wrong.
pub(super) fn decode(bytes: &[u8], pack: PackId, end: u32) -> Result<Vec<CatalogueEntry>, String> {
    let mut d = Decoder::new(bytes);
    let entries =
        decode_arrays(&mut d, pack).map_err(|e| format!("the catalogue does not parse: {e}"))?;
    if d.position() != bytes.len() {
        return Err("the catalogue has trailing bytes".into());
    }
    let outside = |run: &Run| {
        run.plain_len == 0
            || run.plain_len > PACK_CIPHER_LEN
            || (run.cipher_offset as usize) < HEADER_LEN
            || u64::from(run.cipher_offset) + u64::from(run.cipher_len()) > u64::from(end)
    };
    match entries.iter().find(|entry| outside(&entry.run)) {
        Some(entry) => Err(format!(
            "the catalogue has an impossible run at {}",
            entry.run.cipher_offset
        )),
        None => Ok(entries),
    }
}

fn decode_arrays(
    d: &mut Decoder<'_>,
    pack: PackId,
) -> Result<Vec<CatalogueEntry>, minicbor::decode::Error> {
    members(d, 2, |d| {
        // Nothing is allocated by the counts: each element takes bytes of the message, whose length is bounded.
        let mut paths: Vec<Arc<[u8]>> = Vec::new();
        for _ in 0..elements(d)? {
            paths.push(d.bytes()?.into());
        }
        let mut entries = Vec::new();
        for _ in 0..elements(d)? {
            entries.push(members(d, 6, |d| decode_run(d, pack, &paths))?);
        }
        Ok(entries)
    })
}

fn decode_run(
    d: &mut Decoder<'_>,
    pack: PackId,
    paths: &[Arc<[u8]>],
) -> Result<CatalogueEntry, minicbor::decode::Error> {
    let run = Run {
        pack,
        cipher_offset: d.u32()?,
        plain_len: d.u32()?,
    };
    let inode = d
        .bytes()?
        .try_into()
        .map_err(|_| minicbor::decode::Error::message("inode is not 16 bytes"))?;
    let path = paths
        .get(d.u32()? as usize)
        .ok_or_else(|| minicbor::decode::Error::message("no such path"))?;
    Ok(CatalogueEntry {
        run,
        inode: u128::from_be_bytes(inode),
        path: Arc::clone(path),
        plain_offset: d.u64()?,
        counter: d.u64()?,
    })
}
