//! Encoding and decoding of records.

use super::*;
use crate::index::encoding::{from_cbor, to_cbor};
use crate::object::ObjectId;

#[test]
fn a_frame_comes_back_as_it_was() {
    let pack = PackId(ObjectId([7; 16]));
    let stamp = WireStamp {
        counter: 5,
        segment: ObjectId([9; 16]).into(),
    };
    let mut splices = Splices::default();
    splices.data(
        0,
        10,
        Run {
            pack,
            cipher_offset: 48,
            plain_len: 30,
        },
        20,
    );
    splices.hole(10, 5);
    let frame = Frame {
        counter: 6,
        wall: Time {
            sec: -1,
            nsec: 999_999_999,
        },
        durable_before: true,
        records: vec![
            Record::Link(LinkAt {
                link: Id(2),
                inode: None,
                parent: ROOT_ID,
                name: b"\xff\xfe".to_vec(),
            }),
            Record::Content(Content {
                inode: Id(2),
                base: stamp,
                plain_size: 15,
                mtime: None,
                packs: splices.packs,
                splices: splices.list,
            }),
            Record::Xattr(XattrChange {
                inode: Id(2),
                name: b"user.a".to_vec(),
                value: None,
            }),
            Record::Condemn(vec![pack]),
        ],
    };
    let bytes = to_cbor(&frame);
    assert_eq!(from_cbor::<Frame>(&bytes).unwrap(), frame);
    for end in 0..bytes.len() {
        assert!(from_cbor::<Frame>(&bytes[..end]).is_err(), "cut at {end}");
    }
}

/// As the format page says: null and absent are the same, and members of later versions are skipped.
#[test]
fn absent_members_may_be_null_and_unknown_ones_follow() {
    let stamp = || [&[0x82, 0x05, 0x50][..], &[9; 16]].concat();
    let link = || [&[0x50][..], &[2; 16]].concat();
    let spelled = [&[0x83][..], &link(), &[0xf6], &stamp()].concat();
    let unlink: Unlink = from_cbor(&spelled).unwrap();
    assert_eq!((unlink.inode, unlink.seen.counter), (None, 5));
    assert_eq!(to_cbor(&unlink), spelled);

    let attr = |tail: &[u8]| [&[0x81 + tail.len() as u8][..], &link(), tail].concat();
    for tail in [
        &[][..],
        &[0xf6],
        &[0xf6, 0xf6, 0xf6],
        &[0xf6, 0xf6, 0xf6, 0xf6, 0x07],
    ] {
        let change: AttrChange = from_cbor(&attr(tail)).unwrap();
        assert_eq!(to_cbor(&change), attr(&[]), "{tail:?}");
    }
}

#[test]
fn members_of_a_later_version_are_passed_over_everywhere() {
    let time = Time { sec: 5, nsec: 6 };
    assert_eq!(from_cbor::<Time>(&[0x84, 5, 6, 7, 0x81, 8]).unwrap(), time);
    assert!(from_cbor::<Time>(&[0x81, 5]).is_err());
    // An array that is shorter than it says is refused.
    let mut endless = vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    endless.extend([5, 6]);
    assert!(from_cbor::<Time>(&endless).is_err());

    let owner = [0x83, 1, 2, 3];
    assert_eq!(
        from_cbor::<Owner>(&owner).unwrap(),
        Owner { uid: 1, gid: 2 }
    );
    let head = Head {
        device: ObjectId([1; 16]),
        number: 2,
        sha256: [3; 32],
    };
    let mut longer = to_cbor(&head);
    longer[0] += 1;
    longer.push(0xf6);
    assert_eq!(from_cbor::<Head>(&longer).unwrap(), head);

    // [8, [[], 1], 2]
    let record = [0x83, 8, 0x82, 0x80, 1, 2];
    assert_eq!(
        from_cbor::<Record>(&record).unwrap(),
        Record::Condemn(Vec::new())
    );
    assert!(from_cbor::<Record>(&[0x82, 9, 0x81, 0x80]).is_err());
}

#[test]
fn no_stamp_is_of_a_counter_that_nobody_reaches() {
    let stamp = |counter| WireStamp {
        counter,
        segment: ObjectId([9; 16]).into(),
    };
    let highest = stamp(1 << 62);
    assert_eq!(from_cbor::<WireStamp>(&to_cbor(&highest)).unwrap(), highest);
    assert!(from_cbor::<WireStamp>(&to_cbor(&stamp((1 << 62) + 1))).is_err());
}

#[test]
fn what_cannot_be_is_refused() {
    assert!(from_cbor::<Id>(&to_cbor(&minicbor::bytes::ByteVec::from(vec![0; 15]))).is_err());
    assert!(
        from_cbor::<Time>(&[0x82, 0x00, 0x1a, 0x3b, 0x9a, 0xca, 0x00]).is_err(),
        "a whole second of nanoseconds"
    );
    assert!(from_cbor::<FileKind>(&[0x07]).is_err());
}
