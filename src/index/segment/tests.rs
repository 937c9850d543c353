//! Segments that contradict themselves.

use super::*;
use crate::object::{Area, ObjectId};
use crate::store::{MemoryStore, Objects, Staging};

fn opening(number: u64) -> Opening {
    Opening {
        device: ObjectId([1; 16]),
        number,
        ..Opening::default()
    }
}

/// Publishes a segment, with `change` made before it is closed; answers what is wrong with it.
fn check(opening: &Opening, change: impl FnOnce(&mut SegmentWriter)) -> Option<String> {
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
    let read = SegmentReader::open(object, closed.id, &master, Extent::Published);
    read.err().map(|e| e.to_string())
}

#[test]
fn opening_and_trailer_name_one_writer_and_number() {
    assert_eq!(check(&opening(3), |_| ()), None);
    let told = [
        check(&opening(3), |writer| writer.number = 4),
        check(&opening(3), |writer| writer.device = ObjectId([2; 16])),
    ];
    for told in told {
        assert!(told.is_some_and(|text| text.contains("different writers")));
    }
}

#[test]
fn a_base_and_nothing_else_has_the_number_0() {
    let base = |number| Opening {
        stamp_segments: Some(Vec::new()),
        ..opening(number)
    };
    assert_eq!(check(&base(0), |_| ()), None);
    for wrong in [base(1), opening(0)] {
        let told = check(&wrong, |_| ()).unwrap();
        assert!(told.contains("a base with a number"), "{told}");
    }
}
