//! What the fuzz targets do with their input, whatever it is: nothing here may panic, loop, or take memory without
//! bound. `tests/fuzz_smoke.rs` runs the same functions.
//!
//! Nothing that is sealed can be reached by changing its bytes. So the input is what stands inside: it is sealed here
//! as a writer would, and then read.

use std::sync::OnceLock;

use hushfs::crypto::{HEADER_LEN, Header, Magic, MasterKey, SEAL_OVERHEAD, SealKey, Slot};
use hushfs::index::record::{Frame, SegmentFooter, SegmentHeader, StampSegment};
use hushfs::index::{SegmentReader, SegmentState, Tree, from_cbor, to_cbor};
use hushfs::object::{Area, ObjectId};
use hushfs::pack::{PackReader, padme_len};
use hushfs::state::StateFile;
use hushfs::store::{MemoryStore, Objects};
use hushfs::vault::acl::Acl;
use hushfs::volume::Time;

mod foreign;
mod trees;

pub use foreign::{
    foreign_settings, images_file, medusa_frames, medusa_manifest, mms_index, mms_library,
};

pub use trees::tree;
use trees::{Choices, check};

/// A target: bytes in, and nothing bad out.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const ALL: [(&str, Target); 14] = [
    ("slot", slot),
    ("pack", pack),
    ("segment", segment),
    ("records", records),
    ("tree", tree),
    ("state", state),
    ("acl", acl),
    ("padding", padding),
    ("mms_index", mms_index),
    ("mms_library", mms_library),
    ("medusa_frames", medusa_frames),
    ("medusa_manifest", medusa_manifest),
    ("images_file", images_file),
    ("foreign_settings", foreign_settings),
];

const ID: ObjectId = ObjectId([0x1d; 16]);

/// A key that is the same in every run.
fn master() -> &'static MasterKey {
    static MASTER: OnceLock<MasterKey> = OnceLock::new();
    MASTER.get_or_init(|| {
        let code = "000G-40R4-0M30-E209-185G-R38E-1W81-24GK-2GAH-C5RR-34D1-P70X-3RFT-5WF7";
        MasterKey::from_recovery_code(code).expect("the code of the format page")
    })
}

/// A slot file.
pub fn slot(data: &[u8]) {
    let Ok(slot) = Slot::parse(ID.into(), data) else {
        return;
    };
    // Not opened by a password: what parses may cost a gigabyte, as it may by the bounds that are documented.
    let _ = slot.verify(master());
    let _ = slot.label(master());
    let _ = slot.writable();
}

/// The associated data of packs and segments.
fn aad(kind: u8, at: usize) -> [u8; 9] {
    let mut aad = [kind; 9];
    aad[1..].copy_from_slice(&(at as u64).to_le_bytes());
    aad
}

fn seal(key: &SealKey, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
    let aad = aad(kind, out.len());
    key.seal(&aad, &[plain], out)
        .expect("memory and randomness do not fail");
}

/// A pack: as it is, with this as the plaintext of its catalogue, and of its trailer.
pub fn pack(data: &[u8]) {
    let header = Header::new(Magic::Pack, ID);
    let key = master().object_key(&header);
    read_pack(data);

    let mut file = header.encode().to_vec();
    seal(&key, 0, b"a block", &mut file);
    let at = file.len();
    seal(&key, 1, data, &mut file);
    let len = file.len() - at;
    let mut trailer = [0; 32];
    for (place, number) in [(0, at), (4, len), (8, file.len() + 60), (28, 1)] {
        trailer[place..place + 4].copy_from_slice(&(number as u32).to_le_bytes());
    }
    // The number of runs as the input has it, where it is one that can be read off.
    trailer[28] = data.first().copied().unwrap_or(0);
    let body = file.len();
    seal(&key, 2, &trailer, &mut file);
    read_pack(&file);

    file.truncate(body);
    let given = data.len().min(32);
    trailer[..given].copy_from_slice(&data[..given]);
    seal(&key, 2, &trailer, &mut file);
    read_pack(&file);
}

fn read_pack(file: &[u8]) {
    let store = MemoryStore::default();
    store
        .put(Area::Data, ID, file)
        .expect("a store in memory takes it");
    let object = store.open(Area::Data, ID).expect("it was just put there");
    let Ok(reader) = PackReader::open(object, ID.into(), master()) else {
        return;
    };
    let _ = reader.trailer();
    let Ok(entries) = reader.catalogue() else {
        return;
    };
    for entry in entries {
        let blocks = entry.run.blocks();
        for block in [0, blocks - 1] {
            let start = entry.run.block_cipher_offset(block);
            let len = entry.run.block_plain_len(block) as usize + SEAL_OVERHEAD;
            let mut sealed = vec![0; len];
            if reader.read_sealed(start, &mut sealed).is_ok() {
                let mut plain = vec![0; sealed.len() - SEAL_OVERHEAD];
                let _ = reader.open_block(&entry.run, block, &sealed, &mut plain);
            }
        }
    }
}

/// A segment: as it is, and with the input cut into the plaintexts of its messages.
pub fn segment(data: &[u8]) {
    read_segment(data);
    let Some((flags, mut rest)) = data.split_first() else {
        return;
    };
    let header = Header::new(Magic::Segment, ID);
    let key = master().object_key(&header);
    let mut file = header.encode().to_vec();
    let mut frames = 0u64;
    if flags & 1 == 0 {
        message(&key, 1, &to_cbor(&opening()), &mut file);
        frames += 1;
    }
    while let Some((len, tail)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(tail.len());
        message(&key, 1, &tail[..len], &mut file);
        frames += 1;
        rest = &tail[len..];
    }
    if flags & 2 == 0 {
        let needs = Vec::new();
        message(
            &key,
            2,
            &to_cbor(&SegmentFooter { frames, needs }),
            &mut file,
        );
    } else {
        message(&key, 2, rest, &mut file);
    }
    let mut trailer = [0; 32];
    let true_len = file.len() as u64 + u64::from(flags >> 4);
    trailer[..8].copy_from_slice(&true_len.to_le_bytes());
    seal(&key, 3, &trailer, &mut file);
    read_segment(&file);
    file.truncate(file.len() - usize::from(flags >> 4).min(file.len() - HEADER_LEN));
    read_segment(&file);
}

fn opening() -> SegmentHeader {
    SegmentHeader {
        device: ID,
        number: 1,
        ..SegmentHeader::default()
    }
}

fn message(key: &SealKey, kind: u8, plain: &[u8], file: &mut Vec<u8>) {
    seal(key, 0, &(plain.len() as u32).to_le_bytes(), file);
    seal(key, kind, plain, file);
}

fn read_segment(file: &[u8]) {
    let store = MemoryStore::default();
    store
        .put(Area::Index, ID, file)
        .expect("a store in memory takes it");
    for extent in [SegmentState::Published, SegmentState::Leftover] {
        let object = store.open(Area::Index, ID).expect("it was just put there");
        let Ok(reader) = SegmentReader::open(object, ID.into(), master(), extent) else {
            continue;
        };
        let is_base = reader.opening().stamp_segments.clone();
        let mut tree = Tree::new(0, 0, Time::default());
        let numbers: Vec<u32> = is_base
            .iter()
            .flatten()
            .map(|s| tree.intern_segment(*s))
            .collect();
        let segment = tree.intern_segment(stamp_segment(1));
        let mut refused = false;
        let _ = reader.frames(|frame| {
            if is_base.is_some() {
                for record in &frame.records {
                    refused |= tree
                        .apply_base(record, &numbers, &Default::default())
                        .is_err();
                }
            } else {
                refused |= tree.apply_frame(segment, &frame).is_err();
            }
            Ok(())
        });
        if !refused {
            check(&mut tree);
        }
    }
}

fn stamp_segment(number: u8) -> StampSegment {
    StampSegment {
        segment: ObjectId([number; 16]).into(),
        device: ID,
        number: u64::from(number),
    }
}

/// CBOR: whatever decodes, encodes to something that decodes to the same.
pub fn records(data: &[u8]) {
    fn round_trip<T>(data: &[u8])
    where
        T: minicbor_bounds::Both + PartialEq + std::fmt::Debug,
    {
        if let Ok(value) = T::read(data) {
            let again = T::read(&value.write()).expect("what was encoded decodes");
            assert_eq!(value, again);
        }
    }
    round_trip::<SegmentHeader>(data);
    round_trip::<SegmentFooter>(data);
    round_trip::<Frame>(data);
    if let Ok(frame) = from_cbor::<Frame>(data) {
        let mut tree = Tree::new(0, 0, Time::default());
        let segment = tree.intern_segment(stamp_segment(1));
        if tree.apply_frame(segment, &frame).is_ok() {
            check(&mut tree);
        }
        let mut tree = Tree::new(0, 0, Time::default());
        let mut apply = |record| {
            tree.apply_base(record, &[0, segment], &Default::default())
                .is_ok()
        };
        if frame.records.iter().all(&mut apply) {
            check(&mut tree);
        }
    }
}

/// The two directions of what is round-tripped, without naming the CBOR library.
mod minicbor_bounds {
    use super::{Frame, SegmentFooter, SegmentHeader, from_cbor, to_cbor};

    pub trait Both: Sized {
        fn read(data: &[u8]) -> Result<Self, ()>;
        fn write(&self) -> Vec<u8>;
    }

    macro_rules! both {
        ($($t:ty),*) => {$(
            impl Both for $t {
                fn read(data: &[u8]) -> Result<Self, ()> {
                    from_cbor(data).map_err(drop)
                }
                fn write(&self) -> Vec<u8> {
                    to_cbor(self)
                }
            }
        )*};
    }
    both!(SegmentHeader, SegmentFooter, Frame);
}

/// A state file.
pub fn state(data: &[u8]) {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("hushfs-fuzz-{}.state", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    let file = StateFile::at(path.clone());
    if let Ok(Some(remembered)) = file.load() {
        file.save(&remembered)
            .expect("what was read can be written");
        assert_eq!(std::fs::read(&path).expect("just written"), data);
    }
    let _ = std::fs::remove_file(path);
}

/// An access control list.
pub fn acl(data: &[u8]) {
    let Ok(mut acl) = Acl::parse(data) else {
        return;
    };
    // The ids of entries that name nobody are not kept: as to the kernel, they mean nothing.
    assert_eq!(Acl::parse(&acl.encode()).ok().as_ref(), Some(&acl));
    for perm in [0, 0o7777, 0o640] {
        let (bits, list) = acl.inherit(perm);
        assert_eq!(bits & !perm, 0, "nothing that was not asked for");
        if let Some(list) = list {
            assert_eq!(Acl::parse(&list.encode()).ok(), Some(list));
        }
        acl.chmod(perm);
        assert_eq!(acl.perm_of().0, perm & 0o777);
    }
}

/// Lengths.
pub fn padding(data: &[u8]) {
    let number = |skip: usize| {
        let bytes = data.get(skip..skip + 8).unwrap_or(&[0; 8]);
        u64::from_le_bytes(bytes.try_into().unwrap_or_default()) >> 3
    };
    let (len, floor) = (number(0), number(8));
    let padded = padme_len(len, floor);
    assert!(padded >= len.max(floor));
    assert_eq!(padme_len(padded, floor), padded);
    assert!((padded - len.max(floor)) as u128 * 100 <= len.max(floor) as u128 * 12);
}

/// Something that is valid, to be changed: for a target's name.
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    if let Some(seeds) = foreign::seeds(name) {
        return seeds;
    }
    let frame = |data: &[u8]| to_cbor(&Choices(data).frame(1));
    let varied: Vec<Vec<u8>> = (0..32u8)
        .map(|n| {
            (0..200u8)
                .map(|i| i.wrapping_mul(n | 1) ^ n.rotate_left(3))
                .collect()
        })
        .collect();
    match name {
        "records" => varied.iter().map(|v| frame(v)).collect(),
        "segment" => varied
            .iter()
            .map(|v| {
                let frame = frame(v);
                let mut out = vec![0];
                out.extend_from_slice(&(frame.len() as u16).to_le_bytes());
                out.extend(frame);
                out
            })
            .collect(),
        "acl" => vec![
            [
                &[2, 0, 0, 0][..],
                &[1, 0, 6, 0, 255, 255, 255, 255],
                &[2, 0, 7, 0, 232, 3, 0, 0],
                &[4, 0, 4, 0, 255, 255, 255, 255],
                &[16, 0, 6, 0, 255, 255, 255, 255],
                &[32, 0, 0, 0, 255, 255, 255, 255],
            ]
            .concat(),
        ],
        "state" => vec![
            format!(
                "hushfs-state 1\nfingerprint {}\ndevice {}\nhead {} 7 {}{}\n",
                ID, ID, ID, ID, ID
            )
            .into_bytes(),
        ],
        "pack" => {
            // [[path], [[48, 7, inode, 0, 0, 1]]]
            let mut catalogue = vec![0x82, 0x81, 0x41, b'p', 0x81, 0x86, 0x18, 48, 7, 0x50];
            catalogue.extend([3; 16]);
            catalogue.extend([0, 0, 1]);
            vec![catalogue]
        }
        _ => varied,
    }
}
