//! The decoder, written from the page alone.

use std::collections::BTreeMap;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;

use crate::cbor::Item;

pub const EXTRACT_SALT: &[u8] = b"hushfs master key";

pub fn derive(master: &[u8], purpose: &str, context: &[u8]) -> [u8; 32] {
    let info = [purpose.as_bytes(), b"\0", context].concat();
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(EXTRACT_SALT), master)
        .expand(&info, &mut key)
        .unwrap();
    key
}

pub fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<12>()?;
    let (text, tag) = rest.split_last_chunk::<16>()?;
    let mut plain = vec![0; text.len()];
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(
            nonce.into(),
            aad,
            InOutBuf::new(text, &mut plain).unwrap(),
            tag.into(),
        )
        .ok()?;
    Some(plain)
}

pub fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The associated data of a message of a pack or segment.
pub fn aad(kind: u8, at: usize) -> Vec<u8> {
    [&[kind][..], &(at as u64).to_le_bytes()].concat()
}

pub fn check_header(bytes: &[u8], magic: &[u8; 8]) {
    assert_eq!(&bytes[0..8], magic);
    assert_eq!((le(&bytes[8..10]), le(&bytes[10..12])), (1, 1));
    assert_eq!(bytes[12..32], [0; 20]);
}

#[derive(Debug)]
pub struct PackRun {
    pub at: usize,
    pub plain: Vec<u8>,
    pub inode: Vec<u8>,
    pub path: Vec<u8>,
    pub plain_offset: u64,
    pub counter: u64,
}

/// A run of blocks.
pub fn open_run(file: &[u8], key: &[u8; 32], at: usize, plain_len: usize) -> Vec<u8> {
    let (mut plain, mut at) = (Vec::new(), at);
    while plain.len() < plain_len {
        let len = (plain_len - plain.len()).min(16384) + 28;
        let block = open(key, &aad(0, at), &file[at..at + len]);
        plain.extend(block.unwrap_or_else(|| panic!("the block at {at} does not open")));
        at += len;
    }
    plain
}

pub fn decode_pack(master: &[u8], file: &[u8]) -> (Vec<PackRun>, Vec<u8>) {
    check_header(file, b"HUSHPACK");
    let key = derive(master, "hushfs pack", &file[..48]);
    let end = file.len() - 60;
    let trailer = open(&key, &aad(2, end), &file[end..]).expect("the trailer opens");
    assert_eq!(trailer.len(), 32);
    let (start, len) = (le(&trailer[0..4]) as usize, le(&trailer[4..8]) as usize);
    let true_len = le(&trailer[8..12]) as usize;
    assert_eq!(true_len, start + len + 60);
    assert_eq!(file.len(), padme(true_len, 65536));
    let catalogue =
        open(&key, &aad(1, start), &file[start..start + len]).expect("the catalogue opens");
    let catalogue = Item::whole(&catalogue);
    let [paths, runs] = catalogue.array() else {
        panic!("a catalogue has two members")
    };
    assert_eq!(runs.array().len() as u64, le(&trailer[28..32]));
    let runs = runs.array().iter().map(|run| {
        let [at, plain_len, inode, path, plain_offset, counter] = run.array() else {
            panic!("a run has six members")
        };
        PackRun {
            at: at.int() as usize,
            plain: open_run(file, &key, at.int() as usize, plain_len.int() as usize),
            inode: inode.bytes().to_vec(),
            path: paths.array()[path.int() as usize].bytes().to_vec(),
            plain_offset: plain_offset.int(),
            counter: counter.int(),
        }
    });
    (runs.collect(), trailer[12..28].to_vec())
}

/// The page's rule for padding, in other words than the program's.
pub fn padme(len: usize, floor: usize) -> usize {
    let len = len.max(floor) as u64;
    let e = 63 - len.leading_zeros();
    let s = 32 - e.leading_zeros();
    let unit = 1u64 << (e - s);
    (len.div_ceil(unit) * unit) as usize
}

pub struct Segment {
    pub device: Vec<u8>,
    pub number: u64,
    pub opening: Item,
    pub frames: Vec<Item>,
}

pub fn decode_segment(master: &[u8], file: &[u8]) -> Segment {
    check_header(file, b"HUSHINDX");
    let key = derive(master, "hushfs segment", &file[..48]);
    let end = file.len() - 60;
    let trailer = open(&key, &aad(3, end), &file[end..]).expect("the trailer opens");
    let true_len = le(&trailer[0..8]) as usize;
    assert_eq!(file.len(), padme(true_len + 60, 4096));
    let (mut at, mut frames) = (48, Vec::new());
    let closing = loop {
        let len = open(&key, &aad(0, at), &file[at..at + 32]).expect("a length opens");
        let len = le(&len) as usize + 28;
        at += 32;
        let sealed = &file[at..at + len];
        let start = at;
        at += len;
        match open(&key, &aad(1, start), sealed) {
            Some(frame) => frames.push(Item::whole(&frame)),
            None => break open(&key, &aad(2, start), sealed).expect("a frame opens"),
        }
    };
    assert_eq!(at, true_len);
    let closing = Item::whole(&closing);
    assert_eq!(closing.member(0).int(), frames.len() as u64);
    assert_eq!(closing.member(1).array(), []);
    let opening = frames.remove(0);
    assert_eq!(opening.member(0).bytes(), &trailer[8..24]);
    assert_eq!(opening.member(1).int(), le(&trailer[24..32]));
    Segment {
        device: trailer[8..24].to_vec(),
        number: le(&trailer[24..32]),
        opening,
        frames,
    }
}

/// Records as (number, body), in order.
pub fn records(segment: &Segment) -> Vec<(u64, Item)> {
    let frames = segment.frames.iter();
    let records = frames.flat_map(|f| f.member(3).array().iter());
    records
        .map(|r| (r.member(0).int(), r.member(1).member(0).clone()))
        .collect()
}

/// Contents of regular files by name, as the records and packs say: enough of the rules of applying for a tree in
/// which no name comes twice.
pub fn files(master: &[u8], segments: &[Segment], packs: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names: BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
    let mut contents: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let packs: BTreeMap<&[u8], &[u8]> = packs.iter().map(|p| (&p[32..48], &p[..])).collect();
    let mut ordered: Vec<&Segment> = segments.iter().collect();
    ordered.sort_by_key(|s| s.number);
    for (kind, body) in ordered.into_iter().flat_map(records) {
        let id = body.array()[0].clone();
        match kind {
            0 if body.member(1).int() == 0 => {
                contents.insert(id.bytes().to_vec(), vec![]);
            }
            1 => {
                let inode = match body.member(1) {
                    Item::Null => id.bytes(),
                    other => other.bytes(),
                };
                let name = body.member(3).bytes().to_vec();
                names.insert(id.bytes().to_vec(), (inode.to_vec(), name));
            }
            2 => {
                names.remove(id.bytes());
            }
            4 => {
                let Some(file) = contents.get_mut(id.bytes()) else {
                    continue; // a directory's mtime
                };
                for splice in body.member(5).array() {
                    let (at, len) = (
                        splice.member(0).int() as usize,
                        splice.member(1).int() as usize,
                    );
                    file.resize(file.len().max(at + len), 0);
                    let Item::Array(source) = splice.member(2) else {
                        file[at..at + len].fill(0);
                        continue;
                    };
                    let [pack, offset, run_len, start] = &source[..] else {
                        panic!("a source has four members")
                    };
                    let pack = packs[body.member(4).member(pack.int() as usize).bytes()];
                    let key = derive(master, "hushfs pack", &pack[..48]);
                    let run = open_run(pack, &key, offset.int() as usize, run_len.int() as usize);
                    let start = start.int() as usize;
                    file[at..at + len].copy_from_slice(&run[start..start + len]);
                }
                file.resize(body.member(2).int() as usize, 0);
            }
            _ => {}
        }
    }
    let named = names
        .into_values()
        .filter_map(|(inode, name)| Some((name, contents.get(&inode)?.clone())));
    named.collect()
}
