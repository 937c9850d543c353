//! Features of a later version, of which this one only knows that it must not write.

use super::*;
use crate::crypto::{Features, HEADER_LEN, Header, Magic, SEAL_OVERHEAD, SealKey};
use crate::object::{Area, ObjectId};

const TRAILER_CIPHER_LEN: usize = 60;

/// Moves the messages of an object under another key.
struct Resealer {
    old: SealKey,
    new: SealKey,
}

impl Resealer {
    /// For an object that gets an unknown feature; its new header is in `bytes` on return.
    fn with_feature(bench: &Bench, magic: Magic, id: ObjectId, bytes: &mut [u8]) -> Self {
        let master = MasterKey::from_recovery_code(&bench.code).unwrap();
        let mut header = Header::new(magic, id);
        let old = master.object_key(&header);
        header.features = Features {
            read_only: 4,
            ..Features::default()
        };
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        let new = master.object_key(&header);
        Self { old, new }
    }

    /// The message of `len` bytes at `at`, which may be of one of `kinds`; its plaintext where it opened.
    fn message(&self, bytes: &mut [u8], kinds: &[u8], at: usize, len: usize) -> Option<Vec<u8>> {
        let mut plain = vec![0; len - SEAL_OVERHEAD];
        for kind in kinds {
            let mut aad = [*kind; 9];
            aad[1..].copy_from_slice(&(at as u64).to_le_bytes());
            if self.old.open(&aad, &bytes[at..at + len], &mut plain) {
                let out = &mut bytes[at..at + len];
                self.new.seal_into(&aad, &[&plain], out).unwrap();
                return Some(plain);
            }
        }
        None
    }
}

fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
}

fn segment_with_feature(bench: &Bench, id: ObjectId) {
    let change = |bytes: &mut Vec<u8>| {
        let resealer = Resealer::with_feature(bench, Magic::Segment, id, bytes);
        let mut at = HEADER_LEN;
        while let Some(len) = resealer.message(bytes, &[0], at, 32) {
            let len = number(&len) + SEAL_OVERHEAD;
            resealer.message(bytes, &[1, 2], at + 32, len).unwrap();
            at += 32 + len;
        }
        let end = bytes.len() - TRAILER_CIPHER_LEN;
        resealer.message(bytes, &[3], end, TRAILER_CIPHER_LEN)
    };
    bench.store.with_object(Area::Index, id, change).unwrap();
}

/// Of a pack with one run of one block.
fn pack_with_feature(bench: &Bench, id: ObjectId) {
    let change = |bytes: &mut Vec<u8>| {
        let resealer = Resealer::with_feature(bench, Magic::Pack, id, bytes);
        let end = bytes.len() - TRAILER_CIPHER_LEN;
        let trailer = resealer.message(bytes, &[2], end, TRAILER_CIPHER_LEN);
        let at = number(&trailer.unwrap());
        resealer.message(bytes, &[0], HEADER_LEN, at - HEADER_LEN)
    };
    bench.store.with_object(Area::Data, id, change).unwrap();
}

#[test]
fn a_segment_with_an_unknown_read_only_feature_is_read_and_nothing_is_written() {
    let bench = Bench::new();
    bench.put("f", b"contents");
    bench.vault.close().unwrap();
    let id = bench.store.objects(Area::Index)[0];
    segment_with_feature(&bench, id);
    let Err(e) = open(&bench.code, &bench.store) else {
        panic!("opened for writing");
    };
    let text = e.to_string();
    assert!(
        text.contains(&format!("index/{id}")) && text.contains("--read-only"),
        "{text}"
    );

    let options = Options {
        read_only: true,
        cache_bytes: 0,
        accept_rollback: false,
        published_only: false,
        uid: 0,
        gid: 0,
    };
    let master = MasterKey::from_recovery_code(&bench.code).unwrap();
    let store = Arc::new(bench.store.clone());
    let vault = Vault::open(store, master, ObjectId([0xde; 16]), None, &options).unwrap();
    let bench = Bench { vault, ..bench };
    assert_eq!(bench.read("f").unwrap(), b"contents");
}

#[test]
fn an_index_with_a_gap_can_be_looked_at() {
    let mut bench = Bench::new();
    for name in ["first", "second", "third"] {
        bench.put(name, b"contents");
        bench.remount().unwrap();
    }
    bench.vault.close().unwrap();
    let is_second = |id: &ObjectId| {
        let without = bench.store.after_kill();
        without.take_object(Area::Index, *id).unwrap();
        open(&bench.code, &without).is_err()
    };
    let gone = bench.store.objects(Area::Index).into_iter().find(is_second);
    bench.store.take_object(Area::Index, gone.unwrap()).unwrap();
    let refused = open(&bench.code, &bench.store).err().unwrap();
    let hint = "--read-only --accept-rollback shows everything that exists";
    assert!(refused.to_string().contains(hint), "{refused}");
    let options = Options {
        read_only: true,
        accept_rollback: true,
        ..OPTIONS
    };
    let before = bench.store.operations();
    bench.vault = open_with(&bench.code, &bench.store, &options).unwrap();
    assert_eq!(bench.read("third").unwrap(), b"contents");
    assert_eq!(bench.store.operations(), before);
}

#[test]
fn a_pack_with_an_unknown_read_only_feature_ends_writing_when_it_is_met() {
    let mut bench = Bench::new();
    bench.put("f", b"contents");
    bench.remount().unwrap();
    let id = bench.store.objects(Area::Data)[0];
    pack_with_feature(&bench, id);
    let kept = bench.make("kept");
    let handle = bench.vault.open(kept, libc::O_RDWR).unwrap();
    bench.vault.write(kept, handle, 0, b"promised").unwrap();
    assert_eq!(bench.read("f").unwrap(), b"contents");
    let refused = bench.vault.mkdir(ROOT, OsStr::new("d"), 0o755, CALLER);
    assert!(matches!(refused.unwrap_err().kind(), Kind::ReadOnly));
    let refused = bench.vault.write(kept, handle, 0, b"more");
    assert!(matches!(refused.unwrap_err().kind(), Kind::ReadOnly));
    bench.vault.release(kept, handle);
    // What was answered before is kept.
    bench.remount().unwrap();
    assert_eq!(bench.read("kept").unwrap(), b"promised");
    assert!(bench.stat("d").is_none());
}

#[test]
fn what_a_later_version_left_is_neither_adopted_nor_removed() {
    // The format's version, and a feature that allows reading only.
    for (at, value) in [(8, 2), (20, 4)] {
        let mut bench = Bench::new();
        bench.put("f", &[1; 100]);
        let segment = bench.vault.log.journal().open_segment().unwrap();
        let found = bench.store.leftovers().unwrap();
        for id in found.iter().copied() {
            bench.store.with_leftover(id, |bytes| bytes[at] = value);
        }
        let refused = bench.kill().unwrap_err();
        assert_eq!(refused.exit_status(), crate::error::ExitStatus::NotLibrary);
        assert!(
            found.contains(&segment.object()) && found.len() == 2,
            "{refused}"
        );
        bench.store = bench.store.after_kill();
        assert!(bench.kill().is_err());
        assert_eq!(bench.store.after_kill().leftovers().unwrap().len(), 2);
    }
}
