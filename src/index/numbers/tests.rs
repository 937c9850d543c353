//! Inode numbers are small, stable and unique.

use super::*;
use crate::index::{from_cbor, to_cbor};
use crate::object::ObjectId;
use crate::volume::{FileKind, Time};

/// Four with one number, two with reserved numbers, and one with the number that is assigned to others first.
const IDS: [Id; 7] = [
    Id(0x77),
    Id(0x77 << 32),
    Id(0x77 << 64),
    Id(0x77 << 96),
    Id(5 << 32 | 5),
    Id(1 << 64),
    Id(0x9e37_7a30),
];

fn new_inode(id: Id) -> Record {
    Record::Inode(NewInode {
        id,
        kind: FileKind::Regular,
        perm: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Vec::new(),
    })
}

fn apply(tree: &mut Tree, segment: u8, counter: u64, record: Record) {
    let segment = tree.intern_segment(StampSegment {
        segment: ObjectId([segment; 16]).into(),
        device: ObjectId([segment; 16]),
        number: 1,
    });
    let frame = Frame {
        counter,
        wall: Time::default(),
        durable_before: false,
        records: vec![record],
    };
    tree.apply_frame(segment, &frame).unwrap();
}

/// Each inode is created by another device at the same time; the ids of the segments decide which is earlier.
fn tree_of(order: &[usize]) -> Tree {
    let mut tree = Tree::new(0, 0, Time::default());
    for i in order {
        apply(&mut tree, 10 + *i as u8, 5, new_inode(IDS[*i]));
    }
    tree.settle_numbers();
    tree
}

fn numbers(tree: &Tree) -> Vec<u64> {
    let numbers = IDS.map(|id| {
        let ix = tree.find_id(id).unwrap();
        let ino = tree.ino(ix);
        assert_eq!(tree.find(ino), Some(ix), "{ino:?}");
        ino.0
    });
    numbers.to_vec()
}

#[test]
fn the_first_keeps_a_number_in_whatever_order_they_come() {
    let all: Vec<usize> = (0..IDS.len()).collect();
    let expected = numbers(&tree_of(&all));
    assert_eq!((expected[0], expected[6]), (0x77, 0x9e37_7a30));
    let apart: HashSet<u64> = expected.iter().copied().collect();
    assert_eq!(apart.len(), IDS.len());
    assert!(expected.iter().all(|n| (2..1 << 32).contains(n)));
    let mut order = all.clone();
    let mut count = 0;
    permute(&mut order, 0, &mut |order| {
        assert_eq!(numbers(&tree_of(order)), expected, "{order:?}");
        count += 1;
    });
    assert_eq!(count, 5040);
}

fn permute(order: &mut Vec<usize>, from: usize, each: &mut impl FnMut(&[usize])) {
    if from == order.len() {
        return each(order);
    }
    for i in from..order.len() {
        order.swap(from, i);
        permute(order, from + 1, each);
        order.swap(from, i);
    }
}

#[test]
fn a_number_that_was_stored_stays_when_its_owner_goes() {
    let mut tree = tree_of(&[0, 1]);
    let [_, shown] = [0, 1].map(|i| tree.ino(tree.find_id(IDS[i]).unwrap()));
    let stored = tree.unstored_numbers();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].inode, IDS[1]);
    let stored = Record::Attr(stored[0].clone());

    apply(&mut tree, 1, 9, stored.clone());
    assert!(tree.unstored_numbers().is_empty());
    let (first, second) = (tree.find_id(IDS[0]).unwrap(), tree.find_id(IDS[1]).unwrap());
    assert_eq!(tree.ino(second), shown);
    tree.drop_if_unused(first);
    tree.settle_numbers();
    assert_eq!((tree.ino(second), tree.find(Ino(0x77))), (shown, None));

    // On another machine the first is unknown, and a later inode has the number.
    let mut elsewhere = Tree::new(0, 0, Time::default());
    let taken = Id(u128::from(shown.0));
    for (segment, counter, record) in [
        (9, 20, new_inode(taken)),
        (11, 5, new_inode(IDS[1])),
        (1, 9, stored),
    ] {
        apply(&mut elsewhere, segment, counter, record);
    }
    elsewhere.settle_numbers();
    let [kept, moved] = [IDS[1], taken].map(|id| elsewhere.ino(elsewhere.find_id(id).unwrap()));
    assert_eq!(kept, shown);
    assert_ne!(moved, shown);
    // The later of two given numbers counts.
    let give = |number| {
        Record::Attr(AttrChange {
            inode: IDS[1],
            number: Some(Number(number)),
            ..Default::default()
        })
    };
    apply(&mut elsewhere, 1, 30, give(1 << 40));
    apply(&mut elsewhere, 1, 29, give(77));
    elsewhere.settle_numbers();
    let ix = elsewhere.find_id(IDS[1]).unwrap();
    assert_eq!(elsewhere.ino(ix), Ino(1 << 40));
    assert_eq!(elsewhere.find(Ino(1 << 40)), Some(ix));
    let moved = elsewhere.find_id(taken).unwrap();
    assert_eq!(elsewhere.ino(moved), shown, "it is free again");
}

#[test]
fn what_is_held_keeps_its_number_in_a_tree_that_takes_the_place() {
    // Of those with one number, the kernel has seen the last three; the first is added, and another one is removed.
    let old = tree_of(&[3, 1, 2, 6]);
    let ids = [1, 2, 3].map(|i| IDS[i]);
    let shown = ids.map(|id| {
        let ix = old.find_id(id).unwrap();
        old.inode(ix)
            .refs
            .store(1, std::sync::atomic::Ordering::Relaxed);
        old.ino(ix)
    });
    for order in [
        &[0, 1, 2, 3, 4, 5, 6][..],
        &[6, 3, 2, 1, 0],
        &[0, 1, 3],
        &[0, 2],
    ] {
        let mut new = tree_of(order);
        new.take_references(&old);
        for (id, shown) in ids.iter().zip(shown) {
            assert_eq!(new.find(shown), new.find_id(*id), "{order:?} {id:?}");
        }
        for i in order {
            let ix = new.find_id(IDS[*i]).unwrap();
            assert_eq!(new.find(new.ino(ix)), Some(ix), "{order:?} {i}");
        }
    }
}

#[test]
fn the_root_keeps_its_number_and_nobody_gets_one_that_cannot_be() {
    let mut tree = tree_of(&[5]);
    let one = tree.find_id(IDS[5]).unwrap();
    assert_ne!(tree.ino(one), ROOT);
    for (inode, number) in [(ROOT_ID, 2), (IDS[5], 1)] {
        let change = AttrChange {
            inode,
            number: Some(Number(number)),
            ..Default::default()
        };
        assert_eq!(
            from_cbor::<AttrChange>(&to_cbor(&change)).is_ok(),
            number == 2
        );
        apply(&mut tree, 1, 9, Record::Attr(change));
    }
    tree.settle_numbers();
    assert_eq!(tree.find(ROOT), Some(ROOT_IX));
    assert_eq!(tree.ino(ROOT_IX), ROOT);
    assert_ne!(tree.ino(one), ROOT);
    for (number, is_right) in [
        (0, false),
        (2, true),
        ((1 << 53) - 1, true),
        (1 << 53, false),
    ] {
        let read = from_cbor::<Number>(&to_cbor(&Number(number)));
        assert_eq!(read.is_ok(), is_right, "{number}");
    }
}

#[test]
fn what_has_its_own_number_is_stored_as_before() {
    let change = AttrChange {
        inode: IDS[0],
        perm: Some(0o644),
        ..Default::default()
    };
    let last = to_cbor(&change);
    let mut array = last.clone();
    assert_eq!(array[0], 0x82, "id and permissions");
    // A reader skips unknown members; here, one after the last known.
    array[0] = 0x86;
    array.extend([0xf6, 0xf6, 0x18, 0x63, 0x07]);
    let read: AttrChange = from_cbor(&array).unwrap();
    assert_eq!(read.number, Some(Number(0x63)));
    assert_eq!(from_cbor::<AttrChange>(&last).unwrap(), change);
}
