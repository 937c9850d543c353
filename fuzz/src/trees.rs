//! Trees of records: what replays, must stay consistent.

use std::collections::BTreeMap;

use hushfs::index::record::{
    AttrChange, Content, Frame, Id, LinkAt, NewInode, Number, Owner, PackLen, Record, Relocate,
    RunSlice, Splice, Unlink, WireStamp, XattrChange,
};
use hushfs::index::{ROOT_IX, SnapshotCursor, Tree, from_cbor, to_cbor};
use hushfs::object::{ObjectId, PackId};
use hushfs::volume::{Attr, FileKind, Ino, Time};

use super::stamp_segment;

/// Input as a row of choices; zeros when it is used up.
pub(super) struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Few ids, so that they meet; some with the same low half. 1 is the root's.
    fn id(&mut self) -> Id {
        let byte = self.byte();
        Id(u128::from(byte >> 6) << 64 | u128::from(byte & 7))
    }

    fn other_id(&mut self) -> Option<Id> {
        let byte = self.byte();
        (byte & 8 != 0).then(|| self.id())
    }

    /// Numbers on the edge of something, mostly.
    fn number(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            48,
            100,
            16_383,
            16_384,
            16_385,
            16_412,
            1 << 26,
            (1 << 26) + 1,
            u32::MAX as u64,
            1 << 32,
            1 << 62,
            i64::MAX as u64,
            u64::MAX,
        ];
        let byte = self.byte();
        if byte & 0x80 == 0 {
            u64::from(byte)
        } else {
            EDGES[usize::from(byte & 15)]
        }
    }

    fn time(&mut self) -> Time {
        Time {
            sec: self.number() as i64,
            nsec: u32::from(self.byte()),
        }
    }

    fn stamp(&mut self) -> WireStamp {
        WireStamp {
            counter: self.number().min(1 << 62),
            segment: ObjectId([self.byte() & 3; 16]).into(),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let byte = self.byte();
        match byte {
            0xff => vec![b'x'; 256],
            0xfe => b"..".to_vec(),
            0xfd => Vec::new(),
            _ => vec![b'a' + (byte & 3)],
        }
    }

    fn kind(&mut self) -> FileKind {
        match self.byte() & 7 {
            0 | 1 => FileKind::Regular,
            2..=5 => FileKind::Directory,
            6 => FileKind::Symlink,
            _ => FileKind::CharDevice,
        }
    }

    fn packs(&mut self) -> Vec<PackId> {
        (0..self.byte() & 3)
            .map(|_| PackId(ObjectId([self.byte() & 3; 16])))
            .collect()
    }

    fn splices(&mut self) -> Vec<Splice> {
        let mut at = 0u64;
        (0..self.byte() & 7)
            .map(|_| {
                at = at.wrapping_add(self.number());
                let plain_len = self.number();
                let source = (self.byte() & 3 != 0).then(|| RunSlice {
                    pack: u32::from(self.byte() & 3),
                    cipher_offset: self.number() as u32,
                    run_len: self.number() as u32,
                    start: self.number() as u32,
                });
                let splice = Splice {
                    plain_offset: at,
                    plain_len,
                    source,
                };
                at = at.wrapping_add(plain_len);
                splice
            })
            .collect()
    }

    fn link_at(&mut self) -> LinkAt {
        LinkAt {
            link: self.id(),
            inode: self.other_id(),
            parent: self.id(),
            name: self.name(),
        }
    }

    fn new_inode(&mut self) -> NewInode {
        NewInode {
            id: self.id(),
            kind: self.kind(),
            perm: u16::from(self.byte()) << 8 | 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: self.name(),
        }
    }

    fn record(&mut self) -> Record {
        match self.byte() % 16 {
            0..=2 => Record::Inode(self.new_inode()),
            3..=6 => Record::Link(self.link_at()),
            7..=8 => Record::Unlink(Unlink {
                link: self.id(),
                inode: self.other_id(),
                seen: self.stamp(),
            }),
            9 => Record::Attr(AttrChange {
                inode: self.id(),
                perm: Some(u16::from(self.byte()) << 8),
                owner: Some(Owner { uid: 1, gid: 2 }),
                atime: Some(self.time()),
                number: Some(Number(self.number().clamp(2, (1 << 53) - 1))),
            }),
            10..=11 => Record::Content(Content {
                inode: self.id(),
                base: self.stamp(),
                plain_size: self.number(),
                mtime: None,
                packs: self.packs(),
                splices: self.splices(),
            }),
            12 => Record::Relocate(Relocate {
                inode: self.id(),
                version: self.stamp(),
                packs: self.packs(),
                splices: self.splices(),
            }),
            13 => Record::Xattr(XattrChange {
                inode: self.id(),
                name: self.name(),
                value: (self.byte() & 1 == 0).then(|| self.name()),
            }),
            14 => Record::Pack(PackLen {
                pack: ObjectId([self.byte() & 3; 16]).into(),
                cipher_len: self.number() as u32,
            }),
            _ => Record::Condemn(self.packs()),
        }
    }

    pub(super) fn frame(&mut self, counter: u64) -> Frame {
        Frame {
            counter,
            wall: self.time(),
            durable_before: false,
            records: (0..1 + (self.byte() & 3)).map(|_| self.record()).collect(),
        }
    }
}

/// Frames that mean something: well-formed records about few inodes, of several writers.
pub fn tree(data: &[u8]) {
    let mut choices = Choices(data);
    let mut tree = Tree::new(0, 0, Time::default());
    let segments: Vec<u32> = (1..4)
        .map(|n| tree.intern_segment(stamp_segment(n)))
        .collect();
    let mut counter = 1;
    while !choices.0.is_empty() {
        let segment = segments[usize::from(choices.byte()) % segments.len()];
        counter = match choices.byte() {
            0xff => choices.number(),
            back @ 0xf0.. => u64::saturating_sub(counter, u64::from(back & 15)),
            _ => tree.next_counter(),
        };
        let frame = choices.frame(counter);
        assert_eq!(
            from_cbor::<Frame>(&to_cbor(&frame)).ok(),
            Some(frame.clone())
        );
        if tree.apply_frame(segment, &frame).is_err() {
            // A refused frame ends a replay: what is there of it is not looked at.
            return;
        }
    }
    check(&mut tree);
}

/// Asks a tree everything, ends its replay, and writes a base of it that is read again.
pub(super) fn check(tree: &mut Tree) {
    walk(tree);
    tree.drop_unlinked();
    let shown = walk(tree);
    let table = tree.stamp_table(0);
    let mut again = Tree::new(0, 0, Time::default());
    let numbers: Vec<u32> = table
        .segments
        .iter()
        .map(|s| again.intern_segment(*s))
        .collect();
    let mut cursor = SnapshotCursor::Inodes(0);
    let mut refused = None;
    while cursor != SnapshotCursor::End {
        let (records, next) = tree
            .base_records(cursor, 3, &table)
            .expect("no segment was begun since");
        assert!(next != cursor, "a base gets on");
        cursor = next;
        for record in from_cbor::<Vec<Record>>(&to_cbor(&records)).expect("what is encoded decodes")
        {
            refused = refused.or(again
                .apply_base(&record, &numbers, &Default::default())
                .err());
        }
    }
    assert_eq!(refused, None, "a base of what was accepted is accepted");
    again.drop_unlinked();
    assert_eq!(shown, walk(&again), "a base shows what the tree did");
}

/// What is below the root: paths with the inode's id and what stat(2) says, but for times of links.
fn walk(tree: &Tree) -> BTreeMap<Vec<u8>, String> {
    let mut shown = BTreeMap::new();
    let mut todo = vec![(ROOT_IX, Vec::new())];
    while let Some((ix, path)) = todo.pop() {
        let attr = tree.attr(ix);
        // Of two inodes that share a low half, another one may have it in the base.
        let stat = Attr {
            ino: Ino(0),
            ..attr
        };
        let inode = tree.inode(ix);
        let text = format!(
            "{:?} {stat:?} {:?} {:?}",
            inode.id(),
            inode.target(),
            inode.xattrs().collect::<Vec<_>>()
        );
        assert_eq!(tree.find(attr.ino), Some(ix));
        assert_eq!(tree.find_id(inode.id()), Some(ix));
        assert!(tree.is_within(ix, ROOT_IX));
        let _ = tree.path(ix);
        for e in inode.extents().as_slice() {
            assert!(e.start + e.plain_len <= e.run_len);
            let _ = tree.users_of(tree.pack(e.pack).id);
        }
        assert!(shown.insert(path.clone(), text).is_none());
        let mut cookie = 0;
        for (next, link) in tree.entries(ix, 0) {
            assert!(next > cookie, "cookies grow");
            cookie = next;
            assert_eq!(link.parent(), ix);
            let child = tree.child(ix, link.name()).map(|ix| tree.link(ix).inode());
            assert_eq!(child, Some(link.inode()));
            let path = [&path[..], b"/", link.name()].concat();
            todo.push((link.inode(), path));
        }
    }
    shown
}
