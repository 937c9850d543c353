use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::catalogue::{CATALOGUE_PLAIN_MAX, NOTE_LEN_MAX};
use super::*;
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey};
use crate::error::{Kind, Result};
use crate::object::{Area, DeviceId, ObjectId, PackId};
use crate::store::{Faults, MemoryStore, Objects, Staging};

mod tamper;

const DEVICE: DeviceId = ObjectId([9; 16]);
const BLOCK: usize = BLOCK_PLAIN_LEN as usize;

fn new_id() -> PackId {
    PackId(crate::crypto::random_id().unwrap())
}

fn library() -> (MemoryStore, Arc<MasterKey>) {
    (MemoryStore::new(), Arc::new(MasterKey::generate().unwrap()))
}

/// Bytes that are recognised wherever they turn up.
fn content(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n * 7 + n / 251 + seed * 31) as u8)
        .collect()
}

fn note(path: &[u8], plain_offset: u64) -> Note<'_> {
    Note {
        inode: 77,
        path,
        plain_offset,
        counter: 5,
    }
}

fn read_sealed(reader: &PackReader, run: &Run, blocks: Range<u32>) -> Result<Vec<u8>> {
    let len: u32 = blocks
        .clone()
        .map(|b| run.block_plain_len(b) + SEAL_OVERHEAD as u32)
        .sum();
    let mut sealed = vec![0; len as usize];
    reader.read_sealed(run.block_cipher_offset(blocks.start), &mut sealed)?;
    Ok(sealed)
}

fn read(reader: &PackReader, run: &Run) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let sealed = read_sealed(reader, run, 0..run.blocks())?;
    let mut rest = &sealed[..];
    for block in 0..run.blocks() {
        let len = run.block_plain_len(block) as usize;
        let (this, others) = rest.split_at(len + SEAL_OVERHEAD);
        let start = plain.len();
        plain.resize(start + len, 0);
        reader.open_block(run, block, this, &mut plain[start..])?;
        rest = others;
    }
    assert!(rest.is_empty());
    Ok(plain)
}

fn publish(store: &MemoryStore, writer: PackWriter) -> u32 {
    let done = writer.finish().unwrap();
    done.file.sync().unwrap();
    store.publish(done.id.object(), Area::Data).unwrap();
    done.cipher_len
}

fn open(store: &MemoryStore, master: &MasterKey, id: PackId) -> Result<PackReader> {
    PackReader::open(store.open(Area::Data, id.object())?, id, master)
}

/// A published pack with two runs.
fn small_pack(store: &MemoryStore, master: &MasterKey) -> [Run; 2] {
    let mut writer = PackWriter::create(store, master, new_id(), DEVICE).unwrap();
    let first = writer.append(&[b"first"], &note(b"a", 0)).unwrap();
    let second = writer
        .append(&[&content(2, BLOCK + 10)], &note(b"b", 0))
        .unwrap();
    publish(store, writer);
    [first, second]
}

#[test]
fn appended_runs_can_be_read_before_and_after_publishing() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    assert!(writer.is_empty());
    let growing = PackReader::open(writer.file(), writer.id(), &master).unwrap();
    let contents: Vec<_> = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]
        .map(|len| content(len, len))
        .into();
    let mut runs = Vec::new();
    for (n, plain) in contents.iter().enumerate() {
        // In pieces that do not fit the blocks.
        let (a, b) = plain.split_at(plain.len() / 3);
        let run = writer
            .append(&[a, b"", b], &note(b"x/y", n as u64))
            .unwrap();
        assert_eq!(read(&growing, &run).unwrap(), *plain);
        assert!(
            runs.last().is_none_or(
                |last: &Run| last.cipher_offset + last.cipher_len() == run.cipher_offset
            )
        );
        runs.push(run);
    }
    let id = writer.id();
    assert!(!writer.is_empty());
    let cipher_len = publish(&store, writer);
    assert_eq!(
        u64::from(cipher_len),
        padme_len(u64::from(cipher_len), 65_536),
        "padded"
    );

    let reader = open(&store, &master, id).unwrap();
    let entries = reader.catalogue().unwrap();
    assert_eq!(entries.iter().map(|e| e.run).collect::<Vec<_>>(), runs);
    assert!(
        entries
            .iter()
            .all(|e| e.path[..] == *b"x/y" && e.inode == 77 && e.counter == 5)
    );
    assert_eq!(
        entries.iter().map(|e| e.plain_offset).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5]
    );
    assert_eq!(reader.trailer().unwrap().device, DEVICE);
    for (run, plain) in runs.iter().zip(&contents) {
        assert_eq!(read(&reader, run).unwrap(), *plain);
    }
}

/// Reads a pack by what the format's page says alone.
#[test]
fn a_pack_is_laid_out_as_documented() {
    let (store, master) = library();
    let runs = small_pack(&store, &master);
    let bytes = store.object(Area::Data, runs[0].pack).unwrap();
    assert_eq!(bytes.len(), 65_536, "the shortest pack");
    let key = master.object_key(&Header::new(Magic::Pack, runs[0].pack.object()));
    let open = |kind: u8, at: usize, sealed_len: usize| {
        let aad = [&[kind][..], &(at as u64).to_le_bytes()].concat();
        let mut plain = vec![0; sealed_len - 28];
        key.open(&aad, &bytes[at..at + sealed_len], &mut plain)
            .then_some(plain)
    };
    assert_eq!(open(0, 48, 5 + 28).unwrap(), b"first");
    assert_eq!(
        open(0, 48 + 33, 16_384 + 28).unwrap(),
        content(2, BLOCK + 10)[..BLOCK]
    );
    assert_eq!(
        open(0, 48 + 33 + 16_412, 10 + 28).unwrap(),
        content(2, BLOCK + 10)[BLOCK..]
    );
    assert_eq!(
        open(1, 48, 5 + 28),
        None,
        "one kind of message cannot stand for another"
    );

    let trailer = open(2, 65_536 - 60, 60).unwrap();
    let number = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().unwrap()) as usize;
    let (offset, len) = (number(0), number(4));
    assert_eq!(offset, 48 + 33 + 16_412 + 38);
    assert_eq!(
        (number(8), &trailer[12..28], number(28)),
        (offset + len + 60, &DEVICE.0[..], 2)
    );

    let mut inode = [0; 17];
    (inode[0], inode[16]) = (0x50, 77);
    let expected = [
        &[0x82, 0x82, 0x41, b'a', 0x41, b'b', 0x82][..],
        &[0x86, 0x18, 48, 5],
        &inode,
        &[0, 0, 5],
        &[0x86, 0x18, 81, 0x19, 0x40, 0x0a],
        &inode,
        &[1, 0, 5],
    ];
    assert_eq!(open(1, offset, len).unwrap(), expected.concat());
}

#[test]
fn adjacent_runs_read_as_one() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let all = content(0, 3 * BLOCK + 7);
    let first = writer.append(&[&all[..2 * BLOCK]], &note(b"", 0)).unwrap();
    writer
        .append(&[&all[2 * BLOCK..]], &note(b"", 2 * BLOCK as u64))
        .unwrap();
    let both = Run {
        plain_len: all.len() as u32,
        ..first
    };
    let reader = PackReader::open(writer.file(), writer.id(), &master).unwrap();
    assert_eq!(read(&reader, &both).unwrap(), all);
}

#[test]
fn a_pack_that_is_filled_ends_at_64_mib() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let plain = content(1, 8 << 20);
    let mut runs = 0;
    while writer.room() > 0 {
        assert_eq!(writer.room() % BLOCK_PLAIN_LEN, 0);
        let len = plain.len().min(writer.room() as usize);
        writer
            .append(&[&plain[..len]], &note(&[b'p'; 5000], runs))
            .unwrap();
        runs += 1;
    }
    assert!(runs >= 8);
    assert!(matches!(
        writer.append(&[b"x"], &note(b"", 0)).unwrap_err().kind(),
        Kind::InvalidArgument
    ));
    let id = writer.id();
    assert_eq!(publish(&store, writer), PACK_CIPHER_LEN);
    let entries = open(&store, &master, id).unwrap().catalogue().unwrap();
    assert_eq!(entries.len() as u64, runs);
    assert_eq!(entries[0].path.len(), 4095, "the end of a longer path");
}

/// The last run may come with the longest note when room is down to a few bytes.
#[test]
fn room_is_kept_for_the_longest_note() {
    let (store, master) = library();
    let plain = content(1, 8 << 20);
    // Fills all but one block, then adds so many tiny runs.
    let filled = |tiny: usize| {
        let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
        while writer.room() > BLOCK_PLAIN_LEN {
            let len = plain.len().min((writer.room() - BLOCK_PLAIN_LEN) as usize);
            writer.append(&[&plain[..len]], &note(b"", 0)).unwrap();
        }
        let mut added = 0;
        while writer.room() > 0 && added < tiny {
            writer.append(&[b"."], &note(b"", 0)).unwrap();
            added += 1;
        }
        (writer, added)
    };
    let (spare, most) = filled(usize::MAX);
    store.discard(spare.id().object()).unwrap();
    let (mut writer, _) = filled(most - 1);
    assert_eq!(writer.room(), BLOCK_PLAIN_LEN);
    let note = Note {
        inode: u128::MAX,
        path: &[b'p'; 4095],
        plain_offset: u64::MAX,
        counter: u64::MAX,
    };
    let run = writer.append(&[&plain[..BLOCK]], &note).unwrap();
    assert_eq!(publish(&store, writer), PACK_CIPHER_LEN);
    let entries = open(&store, &master, run.pack)
        .unwrap()
        .catalogue()
        .unwrap();
    assert_eq!(entries.last().unwrap().run, run);
}

#[test]
fn a_catalogue_is_bounded_and_then_the_pack_is_full() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let mut runs = 0_u32;
    while writer.room() > 0 {
        // Another path each time, each of the longest.
        let mut path = [b'q'; 4095];
        path[..4].copy_from_slice(&runs.to_le_bytes());
        writer
            .append(
                &[b"."],
                &Note {
                    inode: u128::MAX,
                    path: &path,
                    plain_offset: u64::MAX,
                    counter: u64::MAX,
                },
            )
            .unwrap();
        runs += 1;
    }
    assert!(
        runs as usize >= CATALOGUE_PLAIN_MAX / NOTE_LEN_MAX - 2,
        "{runs}"
    );
    let id = writer.id();
    assert!(publish(&store, writer) < 6 << 20);
    let entries = open(&store, &master, id).unwrap().catalogue().unwrap();
    assert_eq!(entries.len(), runs as usize);
    assert_eq!(entries[17].path[..4], 17_u32.to_le_bytes());
    assert_eq!(entries[17].plain_offset, u64::MAX);
}

#[test]
fn after_a_failed_write_a_pack_takes_no_more() {
    let (store, master) = library();
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let kept = writer.append(&[b"kept"], &note(b"", 0)).unwrap();
    store.set_faults(
        Faults::default()
            .fail_once(store.operations(), libc::ENOSPC)
            .seed(3),
    );
    assert!(
        writer
            .append(&[&content(1, 3 * BLOCK)], &note(b"", 0))
            .unwrap_err()
            .is_no_space()
    );
    assert_eq!(writer.room(), 0);
    assert!(matches!(
        writer.append(&[b"more"], &note(b"", 0)).unwrap_err().kind(),
        Kind::Poisoned
    ));
    let reader = PackReader::open(writer.file(), writer.id(), &master).unwrap();
    assert_eq!(read(&reader, &kept).unwrap(), b"kept");
    assert!(matches!(
        writer.finish().err().unwrap().kind(),
        Kind::Poisoned
    ));
}

#[test]
fn the_pool_is_bounded_and_follows_a_pack_through_its_life() {
    let (store, master) = library();
    let packs = Packs::new(
        Arc::new(store.clone()),
        Arc::clone(&master),
        2,
        Arc::default(),
    );
    let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
    let run = writer.append(&[b"grows"], &note(b"", 0)).unwrap();
    assert!(matches!(
        packs.get(run.pack).err().unwrap().kind(),
        Kind::Missing
    ));
    packs.pin(run.pack, writer.file()).unwrap();
    for _ in 0..5 {
        let [other, _] = small_pack(&store, &master);
        assert_eq!(
            read(&packs.get(other.pack).unwrap(), &other).unwrap(),
            b"first"
        );
    }
    assert_eq!(packs.open_count(), (2, 1));
    assert_eq!(read(&packs.get(run.pack).unwrap(), &run).unwrap(), b"grows");
    publish(&store, writer);
    packs.unpin(run.pack);
    assert_eq!(read(&packs.get(run.pack).unwrap(), &run).unwrap(), b"grows");
    assert_eq!(packs.open_count(), (2, 0));
    store.remove(Area::Data, run.pack.object()).unwrap();
    packs.get(run.pack).unwrap();
    packs.forget(run.pack);
    let e = packs.get(run.pack).err().unwrap();
    let text = format!("data/{}: is missing from the library", run.pack);
    assert!(e.to_string().starts_with(&text), "{e}");
}

proptest! {
    #[test]
    fn blocks_of_a_run_lie_side_by_side(cipher_offset in 48u32..1 << 25, plain_len in 1u32..1 << 25) {
        let run = Run { pack: PackId::default(), cipher_offset, plain_len };
        let (mut at, mut plain) = (cipher_offset, 0);
        for block in 0..run.blocks() {
            prop_assert_eq!(run.block_cipher_offset(block), at);
            let len = run.block_plain_len(block);
            prop_assert!(len == BLOCK_PLAIN_LEN || block + 1 == run.blocks() && (1..=BLOCK_PLAIN_LEN).contains(&len));
            at += len + SEAL_OVERHEAD as u32;
            plain += len;
        }
        prop_assert_eq!((at - cipher_offset, plain), (run.cipher_len(), plain_len));
    }

    #[test]
    fn any_pieces_come_back(
        cuts in prop::collection::vec(0usize..60_000, 1..6),
        range in (0u32..8, 1u32..8),
    ) {
        let (store, master) = library();
        let mut writer = PackWriter::create(&store, &master, new_id(), DEVICE).unwrap();
        let pieces: Vec<_> = cuts.iter().enumerate().map(|(n, len)| content(n, *len)).collect();
        let slices: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
        prop_assume!(cuts.iter().sum::<usize>() > 0);
        writer.append(&[b"something in front"], &note(b"", 0)).unwrap();
        let run = writer.append(&slices, &note(b"", 0)).unwrap();
        let reader = PackReader::open(writer.file(), writer.id(), &master).unwrap();
        prop_assert_eq!(read(&reader, &run).unwrap(), pieces.concat());
        // A part in the middle is one read, and blocks stand where they should.
        let blocks = range.0..(range.0 + range.1).min(run.blocks());
        if !blocks.is_empty() {
            let sealed = read_sealed(&reader, &run, blocks.clone()).unwrap();
            let expected: u32 = blocks.map(|b| run.block_plain_len(b) + SEAL_OVERHEAD as u32).sum();
            prop_assert_eq!(sealed.len(), expected as usize);
        }
    }
}
