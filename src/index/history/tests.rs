//! Histories of made-up libraries.

use super::*;
use crate::crypto::{KdfParams, Secret};
use crate::index::record::{BaseRef, StampSegment as Stamped};
use crate::index::{SegmentWriter, Tree, replay};
use crate::store::{MemoryStore, Objects, Staging};
use crate::volume::Time;

const A: DeviceId = ObjectId([0xa; 16]);
const B: DeviceId = ObjectId([0xb; 16]);

/// A library of segments without records.
struct Bench {
    store: MemoryStore,
    master: MasterKey,
}

impl Bench {
    fn new() -> Self {
        Self {
            store: MemoryStore::default(),
            master: MasterKey::generate().unwrap(),
        }
    }

    fn publish(&self, header: &SegmentHeader) -> (SegmentId, Head) {
        let mut writer = SegmentWriter::create(
            &self.store,
            &self.master,
            SegmentId(crate::crypto::random_id().unwrap()),
            header,
        )
        .unwrap();
        let closed = writer.close(Vec::new()).unwrap();
        closed.file.sync().unwrap();
        self.store.publish(closed.id.object(), Area::Index).unwrap();
        let head = Head {
            device: header.device,
            number: header.number,
            sha256: closed.sha256,
        };
        (closed.id, head)
    }

    /// The next segment of a device that has applied `heads`.
    fn segment(&self, device: DeviceId, heads: &[Head]) -> (SegmentId, Head) {
        let own = heads.iter().filter(|h| h.device == device);
        self.publish(&SegmentHeader {
            device,
            number: own.map(|h| h.number).max().unwrap_or(0) + 1,
            heads: heads.to_vec(),
            ..SegmentHeader::default()
        })
    }

    /// A snapshot of `heads`, with stamps of these segments.
    fn base(&self, heads: &[Head], stamps: &[(SegmentId, Head)]) -> SegmentId {
        let stamps = stamps.iter().map(|(segment, h)| Stamped {
            segment: *segment,
            device: h.device,
            number: h.number,
        });
        let header = SegmentHeader {
            device: A,
            heads: heads.to_vec(),
            stamp_segments: Some(stamps.collect()),
            ..SegmentHeader::default()
        };
        self.publish(&header).0
    }

    fn take(&self, id: SegmentId) -> Vec<u8> {
        self.store.take_object(Area::Index, id).unwrap()
    }

    fn survey(&self) -> Survey {
        Survey::new(&self.store, &self.master).unwrap()
    }

    fn history(&self) -> History {
        self.survey().history(false)
    }

    fn replay(&self) -> Result<crate::index::Replayed> {
        replay(&self.store, &self.master, false, || {
            Tree::new(0, 0, Time::default())
        })
    }

    /// The segments that are applied, in order.
    fn order(&self) -> Vec<SegmentId> {
        let segments = self.history().segments;
        segments.iter().map(|s| s.info.id).collect()
    }
}

#[test]
fn a_segment_that_goes_while_it_is_read_says_what_to_do() {
    let bench = Bench::new();
    let (id, _) = bench.segment(A, &[]);
    assert!(open_header(&bench.store, &bench.master, id, 0).is_ok());
    bench.take(id);
    let e = open_header(&bench.store, &bench.master, id, 0).unwrap_err();
    let text = e.to_string();
    assert!(
        text.starts_with(&format!("index/{id}: is missing")),
        "{text}"
    );
    assert!(text.contains("wait for the sync to finish"), "{text}");
}

#[test]
fn another_library_s_key_is_told_from_damage() {
    let bench = Bench::new();
    let other = MasterKey::generate().unwrap();
    let wrong_key = |master: &MasterKey| {
        let e = Survey::new(&bench.store, master).err();
        e.is_some_and(|e| matches!(e.kind(), Kind::WrongKey))
    };
    let (whole, _) = bench.segment(A, &[]);
    assert!(wrong_key(&other));

    // A segment that decrypts confirms the key, and so does a slot.
    let bad = ObjectId([7; 16]);
    let mut bytes = Header::new(Magic::Segment, bad).encode().to_vec();
    bytes.resize(4096, 0);
    bench.store.put(Area::Index, bad, &bytes).unwrap();
    assert!(!wrong_key(&bench.master));
    assert!(wrong_key(&other));

    bench.take(whole);
    assert!(wrong_key(&bench.master));
    let kdf = KdfParams {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };
    let secret = Secret::Password(b"p".to_vec().into());
    let id = ObjectId([8; 16]);
    let slot = Slot::seal(id.into(), &bench.master, &secret, kdf, "").unwrap();
    bench.store.put(Area::Key, id, &slot).unwrap();
    assert!(!wrong_key(&bench.master));
}

#[test]
fn a_segment_comes_after_what_its_writer_had_applied() {
    let bench = Bench::new();
    let (a1, head_a1) = bench.segment(A, &[]);
    let (b1, head_b1) = bench.segment(B, &[head_a1]);
    let (a2, head_a2) = bench.segment(A, &[head_a1, head_b1]);
    let (b2, _) = bench.segment(B, &[head_a2, head_b1]);
    assert_eq!(bench.order(), [a1, b1, a2, b2]);
    let history = bench.history();
    assert!(history.gaps.is_empty() && history.forked.is_empty());
}

#[test]
fn what_was_made_on_top_of_something_missing_waits() {
    let bench = Bench::new();
    let (a1, head_a1) = bench.segment(A, &[]);
    let (a2, head_a2) = bench.segment(A, &[head_a1]);
    let (a3, head_a3) = bench.segment(A, &[head_a2]);
    let (b1, _) = bench.segment(B, &[head_a3]);
    let late = bench.take(a2);
    assert_eq!(bench.order(), [a1]);
    let history = bench.history();
    assert_eq!(history.gaps, [format!("segment 2 of device {A}")]);
    assert_eq!(history.waiting.len(), 2);

    let all = bench.survey().history(true);
    let order: Vec<SegmentId> = all.segments.iter().map(|s| s.info.id).collect();
    assert_eq!(order, [a1, a3, b1]);
    assert_eq!((all.unfounded, all.waiting.len()), (2, 0));
    assert_eq!(all.gaps, history.gaps);

    bench.store.insert_object(Area::Index, a2, late);
    assert_eq!(bench.order(), [a1, a2, a3, b1]);
}

#[test]
fn a_file_that_no_head_names_is_passed_over() {
    let bench = Bench::new();
    let (a1, head_a1) = bench.segment(A, &[]);
    let (a2, _) = bench.segment(A, &[head_a1]);
    let whole = bench.store.object(Area::Index, a2).unwrap();
    let (foreign, strange) = (Bench::new(), |i: u8| SegmentId(ObjectId([i; 16])));
    let (id, _) = foreign.segment(A, &[]);
    let junk = [
        (strange(1), Vec::new()),
        (strange(2), vec![7; 100_000]),
        (strange(3), b"HUSHINDX".to_vec()),
        (strange(4), vec![0; 4096]),
        (strange(5), whole.clone()),
        (id, foreign.take(id)),
    ];
    for (id, bytes) in junk {
        bench.store.insert_object(Area::Index, id, bytes);
    }
    assert_eq!(bench.order(), [a1, a2]);
    let replayed = bench.replay().unwrap();
    assert!(replayed.gaps.is_empty());
    let copies: Vec<SegmentId> = replayed
        .ignored
        .iter()
        .filter(|i| !i.is_problem())
        .map(|i| i.id)
        .collect();
    assert_eq!(copies, [strange(5)]);
    assert_eq!(replayed.ignored.len(), 6);

    // If the original is missing, the copy is reported.
    bench.take(a2);
    let ignored = bench.replay().unwrap().ignored;
    let copy = ignored.iter().find(|i| i.id == strange(5)).unwrap();
    assert!(copy.text().contains("rename it"), "{}", copy.text());
}

#[test]
fn a_segment_that_is_cut_or_damaged_anywhere_counts_as_not_arrived() {
    let bench = Bench::new();
    let (a1, head_a1) = bench.segment(A, &[]);
    let (a2, head_a2) = bench.segment(A, &[head_a1]);
    let whole = bench.store.object(Area::Index, a2).unwrap();
    let put = |bytes: Vec<u8>| bench.store.insert_object(Area::Index, a2, bytes);
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let bad = || {
        let cut = [0, 1, 47, 48, 100, whole.len() / 2, whole.len() - 1];
        let cut = cut.into_iter().map(|len| whole[..len].to_vec());
        // Version, features, id, the header, the footer, the trailer.
        let at = [8, 24, 40, 90, 200, whole.len() - 1];
        cut.chain(at.map(flipped)).chain([vec![0; whole.len()]])
    };
    for bytes in bad() {
        put(bytes);
        let replayed = bench.replay();
        let replayed = replayed.unwrap_or_else(|e| panic!("{e}"));
        assert!(replayed.gaps.is_empty(), "{:?}", replayed.gaps);
        assert_eq!(replayed.uncovered.len(), 1);
        assert_eq!(replayed.ignored[0].id, a2);
    }
    // A missing segment that another refers to is a gap.
    let (_, head_a3) = bench.segment(A, &[head_a2]);
    bench.segment(B, &[head_a3]);
    for bytes in bad() {
        put(bytes);
        let replayed = bench.replay().unwrap();
        assert_eq!(replayed.gaps, [format!("segment 2 of device {A}")]);
        assert_eq!((replayed.waiting.len(), replayed.uncovered[0].id), (2, a1));
    }
    put(whole.clone());
    assert_eq!(bench.replay().unwrap().uncovered.len(), 4);
    // A change of its padding is detected by its digest, which the next one has.
    put(flipped(whole.len() - 100));
    let replayed = bench.replay().unwrap();
    assert!(
        replayed.gaps[0].contains("as it was when"),
        "{:?}",
        replayed.gaps
    );
}

#[test]
fn a_device_that_was_copied_is_two_writers() {
    let bench = Bench::new();
    let (_, head_1) = bench.segment(A, &[]);
    let (_, left_2) = bench.segment(A, &[head_1]);
    let (_, right_2) = bench.segment(A, &[head_1]);
    let (left, head_left) = bench.segment(A, &[left_2]);
    let (right, _) = bench.segment(A, &[right_2]);
    let (right_4, _) = bench.segment(A, &[bench.head_of(right)]);
    let (b1, _) = bench.segment(B, &[head_left, bench.head_of(right_4)]);
    let history = bench.history();
    assert!(history.gaps.is_empty(), "{:?}", history.gaps);
    assert_eq!(history.forked, [A]);
    assert_eq!(history.segments.len(), 7);
    assert_eq!(history.segments.last().unwrap().info.id, b1);
    let writer = |id| {
        let mut segments = history.segments.iter();
        segments.find(|s| s.info.id == id).unwrap().writer
    };
    assert_ne!(writer(left), writer(right));
    assert_eq!(writer(right), writer(right_4));
    assert!([writer(left), writer(right)].contains(&Writer(A)));

    let heads = bench.replay().unwrap().heads;
    assert_eq!(heads.len(), 3);
    assert!(check_rollback(&[left_2, right_2, head_left], heads.values()).is_ok());
    // If one half is missing, what is based on it waits; the rest does not.
    bench.take(right);
    let history = bench.history();
    assert_eq!((history.segments.len(), history.waiting.len()), (4, 2));
}

impl Bench {
    fn head_of(&self, id: SegmentId) -> Head {
        let opened = open_header(&self.store, &self.master, id, 0).unwrap();
        let bytes = self.store.object(Area::Index, id).unwrap();
        Head {
            device: opened.info.device,
            number: opened.info.number,
            sha256: Sha256::digest(bytes).into(),
        }
    }
}

#[test]
fn another_history_than_a_base_was_made_of_is_not_taken_for_superfluous() {
    let bench = Bench::new();
    let one = bench.segment(A, &[]);
    let two = bench.segment(A, &[one.1]);
    let other_two = bench.segment(A, &[one.1]);
    let three = bench.segment(A, &[two.1]);
    bench.base(&[three.1], &[one, two]);
    // All exist, and so does the other second one, which only its digest distinguishes.
    let ids = |found: &[SegmentInfo]| {
        let mut ids: Vec<SegmentId> = found.iter().map(|p| p.id).collect();
        ids.sort();
        ids
    };
    let sorted = |ids: &[SegmentId]| {
        let mut ids = ids.to_vec();
        ids.sort();
        ids
    };
    let history = bench.history();
    assert_eq!(bench.order(), [other_two.0]);
    assert_eq!(ids(&history.covered), sorted(&[one.0, two.0, three.0]));
    assert_eq!(history.forked, [A]);
    // Superseded segments are removed.
    for (id, _) in [one, two, three] {
        bench.take(id);
    }
    assert_eq!(bench.order(), [other_two.0]);
    let other_three = bench.segment(A, &[other_two.1]);
    assert_eq!(bench.order(), [other_two.0, other_three.0]);
    let four = bench.segment(A, &[three.1]);
    assert_eq!(bench.history().segments.len(), 3);
    assert!(bench.order().contains(&four.0));
    // The first snapshot does not supersede one of the other history.
    bench.base(&[other_three.1], &[one, other_two]);
    let history = bench.history();
    assert_eq!(history.bases.len(), 2);
    assert_eq!(bench.order(), [four.0]);
    assert_eq!(ids(&history.covered), sorted(&[other_two.0, other_three.0]));
}

#[test]
fn a_base_that_is_damaged_is_a_gap_unless_all_that_it_covers_is_there() {
    let bench = Bench::new();
    let one = bench.segment(A, &[]);
    let base = bench.base(&[one.1], &[one]);
    bench
        .store
        .with_object(Area::Index, base, |bytes| bytes.truncate(2000));
    let replayed = bench.replay().unwrap();
    assert!(replayed.gaps.is_empty());
    assert_eq!(replayed.uncovered.len(), 1);
    bench.take(one.0);
    bench.segment(B, &[]);
    let gaps = bench.replay().unwrap().gaps;
    assert_eq!(gaps, [format!("base {base}")]);
    // Segments that are based on a missing snapshot refer to it.
    bench.take(base);
    let sha256 = [7; 32];
    bench.publish(&SegmentHeader {
        device: A,
        number: 2,
        heads: vec![one.1],
        newest_base: Some(BaseRef {
            segment: base,
            sha256,
        }),
        ..SegmentHeader::default()
    });
    let gaps = bench.replay().unwrap().gaps;
    assert_eq!(
        gaps,
        [format!("segment 1 of device {A}"), format!("base {base}")]
    );
}

#[test]
fn what_is_gone_is_named_once() {
    let seen = Head {
        device: A,
        number: 1,
        sha256: [1; 32],
    };
    let e = check_rollback(&[seen, seen], std::iter::empty()).unwrap_err();
    let named = e.to_string().matches("segment 1 of device").count();
    assert_eq!(named, 1, "{e}");
}
