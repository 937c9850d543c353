//! A mount that only reads, of a copy into which others' work goes on coming.

use super::fleet::*;
use super::*;

#[test]
fn a_conflict_that_comes_is_shown_and_told_once() {
    let dice = &mut Dice(1);
    let mut fleet = Device::fleet(3);
    fleet[0].session(|v| {
        put(v, "/f", b"old").unwrap();
        put(v, "/g", b"old").unwrap();
    });
    fleet[1].pull(&fleet[0], dice, 4);
    fleet[2].pull(&fleet[0], dice, 4);
    let reader = fleet[2].open(true).unwrap();
    let tell = |reader: &Vault| (reader.view.check_now(), shown(reader).len());
    assert_eq!(tell(&reader), (0, 2));
    fleet[0].session(|v| put(v, "/f", b"of one").unwrap());
    fleet[1].session(|v| put(v, "/f", b"of another").unwrap());
    fleet[2].pull(&fleet[0], dice, 4);
    assert_eq!(tell(&reader), (0, 2));
    fleet[2].pull(&fleet[1], dice, 4);
    assert_eq!(tell(&reader), (1, 3));
    // What comes later has the conflict as it was, and another one.
    fleet[0].session(|v| put(v, "/later", b"new").unwrap());
    fleet[2].pull(&fleet[0], dice, 4);
    assert_eq!(tell(&reader), (1, 4));
    fleet[0].session(|v| put(v, "/g", b"of one").unwrap());
    fleet[1].session(|v| put(v, "/g", b"of another").unwrap());
    for from in 0..2 {
        fleet[2].pull(&fleet[from], dice, 4);
    }
    assert_eq!(tell(&reader), (2, 5));
    // One that writes has settled them: they are files like others, by the same numbers.
    let before = shown(&reader);
    let numbers = |paths: &Shown| -> Vec<Option<Ino>> {
        paths.keys().map(|path| find(&reader, path)).collect()
    };
    let found = numbers(&before);
    fleet[0].pull(&fleet[1], dice, 4);
    fleet[0].session(|_| ());
    fleet[2].pull(&fleet[0], dice, 4);
    assert_eq!(tell(&reader), (2, 5));
    assert_same(&shown(&reader), &before, "settled");
    assert_eq!(numbers(&before), found);
}
