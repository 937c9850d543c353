//! Segments that contradict themselves.

use super::*;
use crate::object::{Area, ObjectId};
use crate::store::{MemoryStore, Objects, Staging};

fn opening(number: u64) -> SegmentHeader {
    SegmentHeader {
        device: ObjectId([1; 16]),
        number,
        ..SegmentHeader::default()
    }
}

/// Publishes a segment after applying `change`; returns the error of opening it.
fn check(opening: &SegmentHeader, change: impl FnOnce(&mut SegmentWriter)) -> Option<String> {
    let (store, master) = (MemoryStore::default(), MasterKey::generate().unwrap());
    let mut writer = SegmentWriter::create(
        &store,
        &master,
        SegmentId(crate::crypto::random_id().unwrap()),
        opening,
    )
    .unwrap();
    change(&mut writer);
    let closed = writer.close(Vec::new()).unwrap();
    closed.file.sync().unwrap();
    store.publish(closed.id.object(), Area::Index).unwrap();
    let object = store.open(Area::Index, closed.id.object()).unwrap();
    let read = SegmentReader::open(object, closed.id, &master, SegmentState::Published);
    read.err().map(|e| e.to_string())
}

#[test]
fn opening_and_trailer_name_one_writer_and_number() {
    assert_eq!(check(&opening(3), |_| ()), None);
    let errors = [
        check(&opening(3), |writer| writer.number = 4),
        check(&opening(3), |writer| writer.device = ObjectId([2; 16])),
    ];
    for error in errors {
        assert!(error.is_some_and(|text| text.contains("different writers")));
    }
}

#[test]
fn a_base_and_nothing_else_has_the_number_0() {
    let base = |number| SegmentHeader {
        stamp_segments: Some(Vec::new()),
        ..opening(number)
    };
    assert_eq!(check(&base(0), |_| ()), None);
    for wrong in [base(1), opening(0)] {
        let error = check(&wrong, |_| ()).unwrap();
        assert!(error.contains("a base with a number"), "{error}");
    }
}
