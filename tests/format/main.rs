//! `man/hushfs-format.5` says what the program does.
//!
//! The decoder here was written from the page alone: it uses no code of the crate to take apart keys, slots, packs,
//! segments or CBOR. It reads the worked example in hex out of the page itself, and what the program writes today;
//! and the program opens the example. So neither can change without the other.
#![allow(
    clippy::unwrap_used,
    reason = "a test that has nothing to go on with fails"
)]

mod cbor;
mod decoder;
mod foreign;
mod page;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;

use cbor::*;
use decoder::*;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use hushfs::crypto::{KdfParams, MasterKey, Secret, Slot};
use hushfs::object::{Area, ObjectId};
use hushfs::store::{MemoryStore, Objects};
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Caller, ROOT, RenameMode, SetAttr, SetTime, Time, Volume, XattrMode};
use page::*;
use sha2::{Digest, Sha256};

const PASSWORD: &[u8] = b"correct horse battery staple";
const HELLO: &[u8] = b"Hello, library!\n";

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
        "[[\\(aqalbum/hello.txt\\(aq],[[48,16,h\\(aq{}\\(aq,0,0,{}]]]",
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
        published_only: false,
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
    let slot = Slot::parse(id_of(&slot).into(), &slot).unwrap();
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
fn current_output_is_as_the_page_says() {
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
    let slot = Slot::seal(id.into(), &master, &secret, kdf, &constant("label")).unwrap();
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
