//! Invalid and hostile records.

use super::*;
use crate::object::{ObjectId, PackId, SegmentId};

const FILE: Id = Id(0x77);
const SEGMENT: SegmentId = SegmentId(ObjectId([9; 16]));

struct Bench {
    tree: Tree,
    segment: u32,
}

impl Bench {
    fn new() -> Self {
        let mut tree = Tree::new(0, 0, Time::default());
        let segment = tree.intern_segment(StampSegment {
            segment: SEGMENT,
            device: ObjectId([1; 16]),
            number: 1,
        });
        Self { tree, segment }
    }

    /// Applies one record as a frame; returns its stamp.
    fn apply(&mut self, record: Record) -> Result<WireStamp, Refusal> {
        let counter = self.tree.next_counter();
        let frame = Frame {
            counter,
            wall: Time::default(),
            durable_before: false,
            records: vec![record],
        };
        self.tree.apply_frame(self.segment, &frame)?;
        Ok(WireStamp {
            counter,
            segment: SEGMENT,
        })
    }

    fn create(&mut self, kind: FileKind, target: &[u8]) -> Result<WireStamp, Refusal> {
        self.apply(Record::Inode(NewInode {
            id: FILE,
            kind,
            perm: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: target.to_vec(),
        }))
    }

    fn resize(&mut self, base: WireStamp, plain_size: u64) -> WireStamp {
        let content = Content {
            inode: FILE,
            base,
            plain_size,
            mtime: None,
            packs: Vec::new(),
            splices: Vec::new(),
        };
        self.apply(Record::Content(content)).unwrap()
    }
}

#[test]
fn targets_have_no_zero_and_are_symbolic_links() {
    for (kind, target, is_right) in [
        (FileKind::Symlink, &b"a/b"[..], true),
        (FileKind::Symlink, b"a\0b", false),
        (FileKind::Symlink, b"", false),
        (FileKind::Regular, b"a", false),
        (FileKind::Directory, b"a", false),
        (FileKind::Fifo, b"", true),
    ] {
        let created = Bench::new().create(kind, target);
        assert_eq!(created.is_ok(), is_right, "{kind:?} {target:?}");
    }
}

#[test]
fn a_relocation_brings_nothing_back_that_lies_behind_the_end() {
    let mut bench = Bench::new();
    let made = bench.create(FileKind::Regular, b"").unwrap();
    let version = bench.resize(made, 10);
    let mut splices = Splices::default();
    let run = Run {
        pack: PackId(ObjectId([7; 16])),
        cipher_offset: 48,
        plain_len: 500,
    };
    splices.data(0, 500, run, 0);
    bench
        .apply(Record::Relocate(Relocate {
            inode: FILE,
            version,
            packs: splices.packs,
            splices: splices.list,
        }))
        .unwrap();
    bench.resize(version, 400);
    let ix = bench.tree.find_id(FILE).unwrap();
    assert_eq!(bench.tree.inode(ix).plain_size(), 400);
    assert_eq!(bench.tree.inode(ix).extents().plain_bytes(), 10);
    assert_eq!(bench.tree.find_pack(run.pack).unwrap().live_plain_bytes, 10);
}
