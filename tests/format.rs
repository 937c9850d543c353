//! `man/hushfs-format.5` says what the program does.
//!
//! The decoder here was written from the page alone: it uses no code of the crate to take apart keys, slots, packs,
//! segments or CBOR. It reads the worked example in hex out of the page itself, and what the program writes today;
//! and the program opens the example. So neither can change without the other.
#![allow(
    clippy::unwrap_used,
    reason = "a test that has nothing to go on with fails"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use hushfs::crypto::{KdfParams, MasterKey, Secret, Slot};
use hushfs::store::{Area, MemoryStore, ObjectId, Store};
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Caller, ROOT, RenameMode, SetAttr, SetTime, Time, Volume, XattrMode};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("../man/hushfs-format.5");
const PASSWORD: &[u8] = b"correct horse battery staple";
const HELLO: &[u8] = b"Hello, library!\n";

// ---------------------------------------------------------------------------------------------------------------
// The page.

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    assert!(digits.len().is_multiple_of(2), "{digits}");
    let pair = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// An object of the worked example: lines of `offset hex`, behind a comment with its name and length. What is left
/// out is padding.
fn example(name: &str) -> Vec<u8> {
    let start = format!(".\\\" example {name} ");
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(&start));
    let first = lines.next().unwrap_or_else(|| panic!("no example {name}"));
    let mut bytes = vec![0; first[start.len()..].parse().unwrap()];
    for line in lines.take_while(|line| !line.starts_with(".\\\" end")) {
        let Some((offset, digits)) = line.split_once("  ") else {
            continue;
        };
        let at = usize::from_str_radix(offset, 16).unwrap();
        let part = unhex(digits);
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    bytes
}

/// A word of the example that stands in the page as `name = value`.
fn constant(name: &str) -> String {
    let start = format!("{name} = ");
    let line = PAGE.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("the page does not say {name}"))
        .replace("\\-", "-")
}

// ---------------------------------------------------------------------------------------------------------------
// The decoder.

const EXTRACT_SALT: &[u8] = b"hushfs master key";

fn derive(master: &[u8], purpose: &str, context: &[u8]) -> [u8; 32] {
    let info = [purpose.as_bytes(), b"\0", context].concat();
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(EXTRACT_SALT), master)
        .expand(&info, &mut key)
        .unwrap();
    key
}

fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
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

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The associated data of a message of a pack or segment.
fn aad(kind: u8, at: usize) -> Vec<u8> {
    [&[kind][..], &(at as u64).to_le_bytes()].concat()
}

fn check_header(bytes: &[u8], magic: &[u8; 8]) {
    assert_eq!(&bytes[0..8], magic);
    assert_eq!((le(&bytes[8..10]), le(&bytes[10..12])), (1, 1));
    assert_eq!(bytes[12..32], [0; 20]);
}

/// What CBOR is used for; definite lengths and shortest heads only.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Int(i128),
    Bytes(Vec<u8>),
    Array(Vec<Item>),
    Bool(bool),
    Null,
}

impl Item {
    fn read(bytes: &mut &[u8]) -> Self {
        let (head, rest) = bytes.split_first().expect("an item");
        *bytes = rest;
        let (major, info) = (head >> 5, head & 31);
        let extra = match info {
            0..24 => 0,
            24..=27 => 1 << (info - 24),
            _ => panic!("a head of {head:#x}"),
        };
        let (argument, rest) = bytes.split_at(extra);
        *bytes = rest;
        let n = argument.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let n = if extra == 0 { u64::from(info) } else { n };
        let least = [0, 24, 1 << 8, 0, 1 << 16, 0, 0, 0, 1 << 32][extra];
        assert!(major == 7 || n >= least, "not the shortest head");
        match major {
            0 => Item::Int(i128::from(n)),
            1 => Item::Int(-1 - i128::from(n)),
            2 => {
                let (value, rest) = bytes.split_at(n as usize);
                *bytes = rest;
                Item::Bytes(value.to_vec())
            }
            4 => Item::Array((0..n).map(|_| Item::read(bytes)).collect()),
            7 if info == 20 || info == 21 => Item::Bool(info == 21),
            7 if info == 22 => Item::Null,
            _ => panic!("a head of {head:#x}"),
        }
    }

    fn whole(mut bytes: &[u8]) -> Self {
        let item = Self::read(&mut bytes);
        assert!(bytes.is_empty(), "bytes behind an item");
        item
    }

    fn int(&self) -> u64 {
        match self {
            Item::Int(n) => u64::try_from(*n).unwrap(),
            other => panic!("{other:?} is no number"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Item::Bytes(b) => b,
            other => panic!("{other:?} are no bytes"),
        }
    }

    fn array(&self) -> &[Item] {
        match self {
            Item::Array(a) => a,
            other => panic!("{other:?} is no array"),
        }
    }

    /// Member `at` of a record; those at the end that are absent are left out.
    fn member(&self, at: usize) -> &Item {
        self.array().get(at).unwrap_or(&Item::Null)
    }
}

#[derive(Debug)]
struct PackRun {
    at: usize,
    plain: Vec<u8>,
    inode: Vec<u8>,
    path: Vec<u8>,
    plain_offset: u64,
    counter: u64,
}

/// A run of blocks.
fn open_run(file: &[u8], key: &[u8; 32], at: usize, plain_len: usize) -> Vec<u8> {
    let (mut plain, mut at) = (Vec::new(), at);
    while plain.len() < plain_len {
        let len = (plain_len - plain.len()).min(16384) + 28;
        let block = open(key, &aad(0, at), &file[at..at + len]);
        plain.extend(block.unwrap_or_else(|| panic!("the block at {at} does not open")));
        at += len;
    }
    plain
}

fn decode_pack(master: &[u8], file: &[u8]) -> (Vec<PackRun>, Vec<u8>) {
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

/// The diagnostic notation of CBOR, as the page writes it, without blanks.
fn diagnostic(item: &Item) -> String {
    match item {
        Item::Int(n) => n.to_string(),
        Item::Bytes(b) => format!("h\\(aq{}\\(aq", hex(b)),
        Item::Bool(b) => b.to_string(),
        Item::Null => "null".into(),
        Item::Array(items) => {
            let items: Vec<String> = items.iter().map(diagnostic).collect();
            format!("[{}]", items.join(","))
        }
    }
}

fn assert_shown(item: &str) {
    let page: String = PAGE.split_whitespace().collect();
    assert!(page.contains(item), "the page does not show {item}");
}

/// The page's rule for padding, in other words than the program's.
fn padme(len: usize, floor: usize) -> usize {
    let len = len.max(floor) as u64;
    let e = 63 - len.leading_zeros();
    let s = 32 - e.leading_zeros();
    let unit = 1u64 << (e - s);
    (len.div_ceil(unit) * unit) as usize
}

struct Segment {
    device: Vec<u8>,
    number: u64,
    opening: Item,
    frames: Vec<Item>,
}

fn decode_segment(master: &[u8], file: &[u8]) -> Segment {
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

/// The shapes of the page's CDDL. `?` may be null or left out at the end.
fn check_shape(item: &Item, shape: &str) {
    let (optional, shape) = match shape.strip_prefix('?') {
        Some(shape) => (true, shape),
        None => (false, shape),
    };
    if optional && *item == Item::Null {
        return;
    }
    match shape {
        "u16" => assert!(item.int() < 1 << 16),
        "u32" => assert!(item.int() < 1 << 32),
        "u64" => drop(item.int()),
        "bool" => assert!(matches!(item, Item::Bool(_))),
        "id" => assert_eq!(item.bytes().len(), 16),
        "digest" => assert_eq!(item.bytes().len(), 32),
        "bytes" => drop(item.bytes()),
        "time" => {
            let [Item::Int(sec), nsec] = item.array() else {
                panic!("{item:?} is no time")
            };
            i64::try_from(*sec).unwrap();
            assert!(nsec.int() < 1_000_000_000);
        }
        "owner" => check_members(item, &["u32", "u32"]),
        "stamp" => check_members(item, &["u64", "id"]),
        "head" => check_members(item, &["id", "u64", "digest"]),
        "source" => check_members(item, &["u32", "u32", "u32", "u32"]),
        "splice" => check_members(item, &["u64", "u64", "?source"]),
        "base-ref" => check_members(item, &["id", "digest"]),
        "stamp-segment" => check_members(item, &["id", "id", "u64"]),
        "record" => check_record(item),
        list => {
            let inner = list.strip_prefix("*").unwrap_or_else(|| panic!("{list}"));
            item.array().iter().for_each(|i| check_shape(i, inner));
        }
    }
}

fn check_members(item: &Item, shapes: &[&str]) {
    assert!(item.array().len() <= shapes.len(), "{item:?}");
    assert_ne!(item.array().last(), Some(&Item::Null), "{item:?}");
    for (at, shape) in shapes.iter().enumerate() {
        check_shape(item.member(at), shape);
    }
}

fn check_record(item: &Item) {
    let [number, body] = item.array() else {
        panic!("{item:?} is no record")
    };
    let [body] = body.array() else {
        panic!("{item:?} has one body")
    };
    match number.int() {
        0 => check_members(body, &["id", "u16", "u16", "u32", "u32", "u32", "bytes"]),
        1 => check_members(body, &["id", "?id", "id", "bytes"]),
        2 => check_members(body, &["id", "?id", "stamp"]),
        3 => check_members(body, &["id", "?u16", "?owner", "?time"]),
        4 => check_members(body, &["id", "stamp", "u64", "?time", "*id", "*splice"]),
        5 => check_members(body, &["id", "stamp", "*id", "*splice"]),
        6 => check_members(body, &["id", "bytes", "?bytes"]),
        7 => check_members(body, &["id", "u32"]),
        8 => check_shape(body, "*id"),
        n => panic!("record {n}"),
    }
}

fn check_segment_shapes(segment: &Segment) {
    check_members(
        &segment.opening,
        &[
            "id",
            "u64",
            "*head",
            "?base-ref",
            "*id",
            "*id",
            "?*stamp-segment",
            "?id",
        ],
    );
    for frame in &segment.frames {
        check_members(frame, &["u64", "time", "bool", "*record"]);
    }
}

/// Records as (number, body), in order.
fn records(segment: &Segment) -> Vec<(u64, Item)> {
    let frames = segment.frames.iter();
    let records = frames.flat_map(|f| f.member(3).array().iter());
    records
        .map(|r| (r.member(0).int(), r.member(1).member(0).clone()))
        .collect()
}

/// Contents of regular files by name, as the records and packs say: enough of the rules of applying for a tree in
/// which no name comes twice.
fn files(master: &[u8], segments: &[Segment], packs: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names: BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
    let mut contents: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let packs: BTreeMap<&[u8], &[u8]> = packs.iter().map(|p| (&p[32..48], &p[..])).collect();
    let mut ordered: Vec<&Segment> = segments.iter().collect();
    ordered.sort_by_key(|s| s.number);
    for (kind, body) in ordered.into_iter().flat_map(records) {
        let id = body.array()[0].clone();
        match kind {
            0 if body.member(1).int() == 0 => drop(contents.insert(id.bytes().to_vec(), vec![])),
            1 => {
                let inode = match body.member(1) {
                    Item::Null => id.bytes(),
                    other => other.bytes(),
                };
                let name = body.member(3).bytes().to_vec();
                names.insert(id.bytes().to_vec(), (inode.to_vec(), name));
            }
            2 => drop(names.remove(id.bytes())),
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

// ---------------------------------------------------------------------------------------------------------------
// The slot and the recovery code.

const SLOT_WRAPPED: Range<usize> = 104..164;
const SLOT_LABEL: Range<usize> = 164..256;

#[test]
fn the_slot_of_the_page_opens_with_its_password() {
    let slot = example("slot");
    assert_eq!(slot.len(), 320);
    check_header(&slot, b"HUSHSLOT");
    assert_eq!(Sha256::digest(&slot[..288])[..], slot[288..]);
    assert_eq!(le(&slot[48..52]), 1);
    let cost = |at: usize| le(&slot[at..at + 4]) as u32;
    let params = argon2::Params::new(cost(52), cost(56), cost(60), Some(32)).unwrap();
    let salt = &slot[72..104];
    let mut stretched = [0; 32];
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(PASSWORD, salt, &mut stretched)
        .unwrap();
    let mut wrapping = [0; 32];
    let info = [b"hushfs slot wrap\0", &slot[..48]].concat();
    Hkdf::<Sha256>::new(Some(salt), &stretched)
        .expand(&info, &mut wrapping)
        .unwrap();
    let master = open(&wrapping, b"", &slot[SLOT_WRAPPED]).expect("the master key opens");
    assert_eq!(hex(&master), constant("master"));

    let label = open(
        &derive(&master, "hushfs slot", &slot[..48]),
        b"",
        &slot[SLOT_LABEL],
    )
    .unwrap();
    let (len, label) = label.split_first().unwrap();
    assert_eq!(&label[..usize::from(*len)], constant("label").as_bytes());
    assert!(label[usize::from(*len)..].iter().all(|b| *b == 0));
    let mut mac = Hmac::<Sha256>::new_from_slice(&derive(&master, "hushfs slot mac", b"")).unwrap();
    mac.update(&slot[..256]);
    assert_eq!(mac.finalize().into_bytes()[..], slot[256..288]);
    let fingerprint = &derive(&master, "hushfs fingerprint", b"")[..16];
    assert_eq!(hex(fingerprint), constant("fingerprint"));
}

#[test]
fn the_recovery_code_of_the_page_is_its_key() {
    let master = unhex(&constant("master"));
    let mut crc = 0xb7_04ce_u32;
    for byte in &master {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            crc = if crc & 0x80_0000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x186_4cfb
            };
        }
    }
    let bits: String = master
        .iter()
        .chain(&crc.to_be_bytes()[1..])
        .map(|b| format!("{b:08b}"))
        .collect();
    let characters: Vec<char> = (0..bits.len())
        .step_by(5)
        .map(|i| usize::from_str_radix(&bits[i..i + 5], 2).unwrap())
        .map(|i| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[i]))
        .collect();
    let groups: Vec<String> = characters.chunks(4).map(|g| g.iter().collect()).collect();
    assert_eq!(groups.join("-"), constant("code"));
}

// ---------------------------------------------------------------------------------------------------------------
// The pack and the segment.

#[test]
fn the_pack_and_the_segment_of_the_page_are_as_it_says() {
    let master = unhex(&constant("master"));
    let (pack, segment) = (example("pack"), example("segment"));
    let (runs, device) = decode_pack(&master, &pack);
    assert_eq!(hex(&device), constant("device"));
    let [run] = &runs[..] else {
        panic!("the example has one run")
    };
    assert_eq!((run.at, &run.plain[..], run.plain_offset), (48, HELLO, 0));
    assert_eq!(run.path, b"album/hello.txt");
    assert_shown(&format!(
        "[[\\(dqalbum/hello.txt\\(dq],[[48,16,h\\(aq{}\\(aq,0,0,{}]]]",
        hex(&run.inode),
        run.counter
    ));

    let segment = decode_segment(&master, &segment);
    check_segment_shapes(&segment);
    assert_eq!(hex(&segment.device), constant("device"));
    assert_eq!(segment.number, 1);
    assert_shown(&diagnostic(&segment.opening));
    assert_shown(&diagnostic(&segment.frames[2]));
    let kinds: Vec<u64> = records(&segment).iter().map(|(kind, _)| *kind).collect();
    let spelled: Vec<String> = kinds.iter().map(u64::to_string).collect();
    assert_eq!(spelled.join(" "), constant("records"));
    let content = records(&segment)
        .into_iter()
        .find(|(kind, _)| *kind == 4)
        .unwrap()
        .1;
    assert_eq!(content.member(0).bytes(), run.inode);
    let files = files(&master, &[segment], &[pack]);
    assert_eq!(
        files,
        BTreeMap::from([(b"hello.txt".to_vec(), HELLO.to_vec())])
    );
}

fn vault(store: &MemoryStore, read_only: bool) -> Arc<Vault> {
    let options = Options {
        read_only,
        cache_bytes: 1 << 20,
        accept_rollback: false,
        uid: 1000,
        gid: 100,
    };
    let master = MasterKey::from_recovery_code(&constant("code")).unwrap();
    let device = ObjectId::parse(&constant("device")).unwrap();
    Vault::open(Arc::new(store.clone()), master, device, None, &options).unwrap()
}

fn id_of(file: &[u8]) -> ObjectId {
    ObjectId(file[32..48].try_into().unwrap())
}

fn objects(store: &MemoryStore, area: Area) -> Vec<Vec<u8>> {
    let listed = store.list(area).unwrap();
    let read = |(id, len): (ObjectId, u64)| {
        let mut bytes = vec![0; len as usize];
        store
            .open(area, id)
            .unwrap()
            .read_at(&mut bytes, 0)
            .unwrap();
        bytes
    };
    listed.into_iter().map(read).collect()
}

#[test]
fn the_program_opens_the_example() {
    let store = MemoryStore::default();
    for (area, name) in [
        (Area::Key, "slot"),
        (Area::Index, "segment"),
        (Area::Data, "pack"),
    ] {
        let bytes = example(name);
        store.put(area, id_of(&bytes), &bytes).unwrap();
    }
    let slot = example("slot");
    let slot = Slot::parse(id_of(&slot), &slot).unwrap();
    let secret = Secret::Password(PASSWORD.to_vec().into());
    let master = slot.open(&secret).unwrap();
    assert_eq!(*master.recovery_code(), constant("code"));
    let vault = vault(&store, true);
    let album = vault.lookup(ROOT, OsStr::new("album")).unwrap();
    let hello = vault.lookup(album.ino, OsStr::new("hello.txt")).unwrap();
    let handle = vault.open(hello.ino, libc::O_RDONLY).unwrap();
    let mut bytes = [0; 100];
    let len = vault.read(hello.ino, handle, 0, &mut bytes).unwrap();
    assert_eq!(&bytes[..len], HELLO);
}

const CALLER: Caller = Caller {
    uid: 1000,
    gid: 100,
    umask: 0o022,
};

fn write_file(vault: &Vault, name: &str, bytes: &[u8]) {
    let (attr, handle) = vault
        .create(ROOT, OsStr::new(name), 0o644, libc::O_RDWR, CALLER)
        .unwrap();
    vault.write(attr.ino, handle, 0, bytes).unwrap();
    vault.flush(attr.ino, handle).unwrap();
    vault.release(attr.ino, handle);
}

/// What the program writes today is what the page says, for every kind of record that a mount makes by itself.
#[test]
fn what_is_written_today_is_what_the_page_says() {
    let store = MemoryStore::default();
    let master = unhex(&constant("master"));
    let long: Vec<u8> = (0..100_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let first = vault(&store, false);
    write_file(&first, "long", &long);
    write_file(&first, "short", b"short");
    write_file(&first, "gone", b"gone");
    first.close().unwrap();
    let second = vault(&store, false);
    let name = OsStr::new;
    let attr = second.lookup(ROOT, name("long")).unwrap();
    let handle = second.open(attr.ino, libc::O_RDWR).unwrap();
    second
        .write(attr.ino, handle, 50_000, b"in between")
        .unwrap();
    second
        .write(attr.ino, handle, 200_000, b"behind a hole")
        .unwrap();
    second.flush(attr.ino, handle).unwrap();
    second.release(attr.ino, handle);
    second.link(attr.ino, ROOT, name("other name")).unwrap();
    second.mkdir(ROOT, name("dir"), 0o755, CALLER).unwrap();
    second
        .symlink(ROOT, name("link"), b"short", CALLER)
        .unwrap();
    second
        .setxattr(attr.ino, name("user.a"), b"value", XattrMode::Any)
        .unwrap();
    second
        .setxattr(attr.ino, name("user.b"), b"value", XattrMode::Any)
        .unwrap();
    second.removexattr(attr.ino, name("user.b")).unwrap();
    let at = SetTime::At(Time {
        sec: -5,
        nsec: 999_999_999,
    });
    let changes = [
        SetAttr {
            perm: Some(0o600),
            ..SetAttr::default()
        },
        SetAttr {
            uid: Some(7),
            ..SetAttr::default()
        },
        SetAttr {
            atime: Some(at),
            ..SetAttr::default()
        },
        SetAttr {
            mtime: Some(at),
            ..SetAttr::default()
        },
    ];
    for change in changes {
        second.setattr(attr.ino, &change).unwrap();
    }
    second.unlink(ROOT, name("gone")).unwrap();
    second
        .rename(
            ROOT,
            name("short"),
            ROOT,
            name("renamed"),
            RenameMode::Replace,
        )
        .unwrap();
    second.close().unwrap();

    let packs = objects(&store, Area::Data);
    for pack in &packs {
        decode_pack(&master, pack);
    }
    let sealed = objects(&store, Area::Index);
    let segments: Vec<Segment> = sealed.iter().map(|s| decode_segment(&master, s)).collect();
    segments.iter().for_each(check_segment_shapes);
    let kinds: std::collections::BTreeSet<u64> = segments
        .iter()
        .flat_map(records)
        .map(|(kind, _)| kind)
        .collect();
    assert!(
        (0..=7).filter(|k| *k != 5).all(|k| kinds.contains(&k)),
        "{kinds:?}"
    );

    // The second segment names the first as its head, by the digest of the whole file.
    let [one, two] = [1, 2].map(|n| segments.iter().position(|s| s.number == n).unwrap());
    let heads = segments[two].opening.member(2).array();
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0].member(1).int(), 1);
    assert_eq!(
        heads[0].member(2).bytes(),
        &Sha256::digest(&sealed[one])[..]
    );

    let mut expected = long.clone();
    expected[50_000..50_010].copy_from_slice(b"in between");
    expected.resize(200_000, 0);
    expected.extend(b"behind a hole");
    let shown = files(&master, &segments, &packs);
    let expected = BTreeMap::from([
        (b"long".to_vec(), expected.clone()),
        (b"other name".to_vec(), expected),
        (b"renamed".to_vec(), b"short".to_vec()),
    ]);
    assert!(shown == expected, "{:?}", shown.keys());
}

// ---------------------------------------------------------------------------------------------------------------
// Making the example.

fn print_object(name: &str, bytes: &[u8], padding: Range<usize>) {
    println!(".\\\" example {name} {}", bytes.len());
    for range in [0..padding.start, padding.end..bytes.len()] {
        for at in range.clone().step_by(32) {
            println!("{at:05x}  {}", hex(&bytes[at..(at + 32).min(range.end)]));
        }
        if range.end == padding.start && !padding.is_empty() {
            println!("* (padding)");
        }
    }
    println!(".\\\" end");
}

#[test]
fn a_new_example_can_be_made() {
    let store = MemoryStore::default();
    let master = MasterKey::from_recovery_code(&constant("code")).unwrap();
    let mut id = ObjectId([0; 16]);
    hushfs::crypto::random(&mut id.0).unwrap();
    let kdf = KdfParams {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };
    let secret = Secret::Password(PASSWORD.to_vec().into());
    let slot = Slot::seal(id, &master, &secret, kdf, &constant("label")).unwrap();
    print_object("slot", &slot, 320..320);
    let vault = vault(&store, false);
    let album = vault
        .mkdir(ROOT, OsStr::new("album"), 0o755, CALLER)
        .unwrap();
    let (attr, handle) = vault
        .create(
            album.ino,
            OsStr::new("hello.txt"),
            0o644,
            libc::O_RDWR,
            CALLER,
        )
        .unwrap();
    vault.write(attr.ino, handle, 0, HELLO).unwrap();
    vault.flush(attr.ino, handle).unwrap();
    vault.release(attr.ino, handle);
    vault.close().unwrap();
    let master = unhex(&constant("master"));
    for (area, name, purpose, kind, true_len) in [
        (Area::Data, "pack", "hushfs pack", 2, 8..12),
        (Area::Index, "segment", "hushfs segment", 3, 0..8),
    ] {
        for bytes in objects(&store, area) {
            let end = bytes.len() - 60;
            let key = derive(&master, purpose, &bytes[..48]);
            let trailer = open(&key, &aad(kind, end), &bytes[end..]).unwrap();
            let true_len = le(&trailer[true_len.clone()]) as usize;
            let start = if kind == 2 { true_len - 60 } else { true_len };
            print_object(name, &bytes, start..end);
            if kind == 3 {
                let segment = decode_segment(&master, &bytes);
                println!("opening {:?}", segment.opening);
                segment.frames.iter().for_each(|f| println!("frame {f:?}"));
            } else {
                println!("{:?}", decode_pack(&master, &bytes));
            }
        }
    }
}
