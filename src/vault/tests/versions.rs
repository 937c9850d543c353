//! Versions of one file on several devices, and files with several names: what of them is there in the end.

use super::fleet::{Device, Shown, find, merged, mkdir, put, remove, rename, split};
use super::*;
use crate::volume::SetTime;

fn touch(vault: &Vault, path: &str) {
    let times = SetAttr {
        mtime: Some(SetTime::At(Time { sec: 5, nsec: 0 })),
        ..SetAttr::default()
    };
    let ino = find(vault, path).unwrap();
    vault.setattr(ino, &times).unwrap();
}

fn chmod(vault: &Vault, path: &str) {
    let perm = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    let ino = find(vault, path).unwrap();
    vault.setattr(ino, &perm).unwrap();
}

fn append(vault: &Vault, path: &str, data: &[u8]) {
    let ino = find(vault, path).unwrap();
    let end = vault.getattr(ino).unwrap().plain_size;
    let handle = vault.open(ino, libc::O_RDWR).unwrap();
    vault.write(ino, handle, end, data).unwrap();
    vault.flush(ino, handle).unwrap();
    vault.release(ino, handle);
}

fn link(vault: &Vault, old: &str, new: &str) {
    let ino = find(vault, old).unwrap();
    let (dir, name) = split(new);
    let dir = find(vault, dir).unwrap();
    vault.link(ino, dir, OsStr::new(name)).unwrap();
    vault.forget(ino, 1);
}

/// A fleet whose devices have all seen what the first one did.
fn fleet(count: u8, before: impl FnOnce(&Vault)) -> Vec<Device> {
    let mut fleet = Device::fleet(count);
    fleet[0].session(before);
    for at in 1..fleet.len() {
        pull(&fleet, at, 0);
    }
    fleet
}

/// One device gets all that another has.
fn pull(fleet: &[Device], to: usize, from: usize) {
    fleet[to].pull(&fleet[from], &mut Dice(1), 4);
}

fn two(before: impl FnOnce(&Vault), a: impl FnOnce(&Vault), b: impl FnOnce(&Vault)) -> Shown {
    let mut fleet = fleet(2, before);
    fleet[0].session(a);
    fleet[1].session(b);
    merged(&mut fleet)
}

/// All contents, whatever they are called.
fn contents(shown: &Shown) -> Vec<String> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let mut all: Vec<_> = shown.values().flatten().map(text).collect();
    all.sort();
    all
}

#[test]
fn of_two_that_were_touched_one_stays_beside_what_a_third_wrote() {
    let mut fleet = fleet(3, |v| put(v, "/doc", b"0").unwrap());
    fleet[0].session(|v| put(v, "/doc", b"0A").unwrap());
    pull(&fleet, 2, 0);
    fleet[0].session(|v| touch(v, "/doc"));
    fleet[2].session(|v| touch(v, "/doc"));
    fleet[1].session(|v| put(v, "/doc", b"0B").unwrap());
    assert_eq!(contents(&merged(&mut fleet)), ["0A", "0B"]);
}

#[test]
fn a_third_version_leaves_what_two_have_settled() {
    for exchanged in [false, true] {
        let mut fleet = fleet(3, |v| put(v, "/doc", b"0").unwrap());
        fleet[0].session(|v| put(v, "/doc", b"0A").unwrap());
        fleet[2].session(|v| put(v, "/doc", b"0C").unwrap());
        for _ in 0..=usize::from(exchanged) {
            pull(&fleet, 0, 2);
            pull(&fleet, 2, 0);
            fleet[0].session(|_| ());
            fleet[2].session(|_| ());
        }
        fleet[1].session(|v| put(v, "/doc", b"0B").unwrap());
        assert_eq!(
            contents(&merged(&mut fleet)),
            ["0A", "0B", "0C"],
            "{exchanged}"
        );
    }
}

#[test]
fn one_of_two_names_is_removed_and_the_change_stays() {
    let both = |v: &Vault| {
        put(v, "/h", b"0").unwrap();
        link(v, "/h", "/g");
    };
    let change: [fn(&Vault); 3] = [
        |v| chmod(v, "/h"),
        |v| touch(v, "/g"),
        |v| rename(v, "/g", "/k").unwrap(),
    ];
    for change in change {
        let shown = two(both, change, |v| {
            put(v, "/g", b"0B").unwrap();
            remove(v, "/h").unwrap();
        });
        assert_eq!(contents(&shown), ["0B"]);
    }
}

#[test]
fn a_name_that_came_and_went_on_one_device_does_not_show() {
    let shown = two(
        |v| put(v, "/g", b"0").unwrap(),
        |v| touch(v, "/g"),
        |v| {
            put(v, "/g", b"0B").unwrap();
            link(v, "/g", "/g.lock");
            remove(v, "/g.lock").unwrap();
        },
    );
    assert_eq!(shown, Shown::from([("/g".into(), Some(b"0B".to_vec()))]));
}

#[test]
fn both_write_and_both_remove_one_name_of_two() {
    let shown = two(
        |v| {
            put(v, "/h", b"0").unwrap();
            link(v, "/h", "/g");
        },
        |v| {
            put(v, "/g", b"0A").unwrap();
            remove(v, "/h").unwrap();
        },
        |v| {
            put(v, "/g", b"0B").unwrap();
            remove(v, "/h").unwrap();
        },
    );
    assert_eq!(contents(&shown), ["0A", "0B"]);
    assert!(!shown.contains_key("/h"));
}

#[test]
fn each_removes_another_name_and_the_file_stays() {
    let names = |v: &Vault| {
        put(v, "/h", b"0").unwrap();
        link(v, "/h", "/g");
    };
    let shown = two(
        names,
        |v| remove(v, "/h").unwrap(),
        |v| remove(v, "/g").unwrap(),
    );
    assert_eq!(contents(&shown), ["0"]);
    // Who removes all names removes the file, unless it was changed meanwhile.
    let remove_all = |v: &Vault| {
        remove(v, "/h").unwrap();
        remove(v, "/g").unwrap();
    };
    let shown = two(names, remove_all, |v| remove(v, "/g").unwrap());
    assert_eq!(contents(&shown), [""; 0]);
    let shown = two(names, remove_all, |v| put(v, "/g", b"0B").unwrap());
    assert_eq!(contents(&shown), ["0B", "0B"]);
    let shown = two(names, remove_all, |v| {
        put(v, "/g", b"0B").unwrap();
        remove(v, "/h").unwrap();
    });
    assert_eq!(shown, Shown::from([("/g".into(), Some(b"0B".to_vec()))]));
}

#[test]
fn a_conflict_of_a_conflict_keeps_the_name_whole() {
    let mut fleet = fleet(2, |v| put(v, "/Makefile", b"0").unwrap());
    for round in ["1", "2"] {
        let names: Vec<String> = fleet[0].shown().into_keys().collect();
        for (device, mark) in fleet.iter_mut().zip(["A", "B"]) {
            device.session(|v| {
                for name in &names {
                    put(v, name, format!("{name}{round}{mark}").as_bytes()).unwrap();
                }
            });
        }
        merged(&mut fleet);
    }
    let digits = |text: &str| -> String {
        let digit = |c: char| if c.is_ascii_hexdigit() { '0' } else { c };
        text.chars().map(digit).collect()
    };
    for name in fleet[0].shown().keys() {
        let mut parts = name.split(" (conflict, ");
        assert_eq!(parts.next(), Some("/Makefile"), "{name}");
        for mark in parts {
            let mark = digits(mark);
            let mark = mark.strip_prefix("00000000, 0000-00-00 00.00)");
            assert!(matches!(mark, Some("" | " 0")), "{name}");
        }
    }
}

/// Writes a base, as many changes would have it.
fn base(vault: &Vault) {
    vault.outbox.publish().unwrap();
    vault.upkeep.snapshots.write(&mut || ()).unwrap();
    vault.upkeep.snapshots.remove_superseded().unwrap();
}

fn save(vault: &Vault, data: &[u8]) {
    put(vault, "/t", data).unwrap();
    rename(vault, "/t", "/doc").unwrap();
}

#[test]
fn a_base_that_is_still_there_brings_nothing_back_and_hides_nothing() {
    for both_write_one in [false, true] {
        let mut fleet = fleet(2, |v| {
            put(v, "/doc", b"0").unwrap();
            put(v, "/gone", b"gone").unwrap();
            mkdir(v, "/d").unwrap();
            put(v, "/d/in", b"in").unwrap();
            put(v, "/kept", b"kept").unwrap();
            base(v);
        });
        fleet[0].session(|v| {
            save(v, b"0A");
            remove(v, "/gone").unwrap();
            remove(v, "/d/in").unwrap();
            remove(v, "/d").unwrap();
            remove(v, "/kept").unwrap();
            base(v);
        });
        fleet[1].session(|v| {
            put(v, "/doc", b"0B").unwrap();
            chmod(v, "/kept");
            if both_write_one {
                base(v);
            }
        });
        let shown = merged(&mut fleet);
        assert_eq!(contents(&shown), ["0A", "0B", "kept"], "{:?}", shown.keys());
        assert!(!shown.contains_key("/d") && shown.contains_key("/kept"));
    }
}

#[test]
fn one_of_two_names_that_a_base_lacks_is_gone() {
    let mut fleet = fleet(2, |v| {
        put(v, "/h", b"0").unwrap();
        link(v, "/h", "/g");
        base(v);
    });
    fleet[0].session(|v| {
        remove(v, "/h").unwrap();
        base(v);
    });
    fleet[1].session(|v| put(v, "/g", b"0B").unwrap());
    let shown = merged(&mut fleet);
    assert_eq!(shown, Shown::from([("/g".into(), Some(b"0B".to_vec()))]));
}

#[test]
fn two_sessions_beside_a_base_leave_what_it_has() {
    for _ in 0..8 {
        let mut fleet = fleet(2, |v| put(v, "/doc", b"0").unwrap());
        fleet[1].session(|v| put(v, "/doc", b"0B").unwrap());
        fleet[1].session(|v| append(v, "/doc", b"B"));
        fleet[0].session(|v| {
            put(v, "/doc", b"0A").unwrap();
            base(v);
        });
        assert_eq!(contents(&merged(&mut fleet)), ["0A", "0BB"]);
    }
}

#[test]
fn a_version_of_which_only_a_part_is_known_says_so() {
    let mut fleet = fleet(2, |v| put(v, "/doc", b"one old two old ").unwrap());
    fleet[1].session(|v| append(v, "/doc", b"B"));
    fleet[0].session(|v| {
        put(v, "/doc", b"ONE NEW TWO NEW ").unwrap();
        base(v);
    });
    let shown = merged(&mut fleet);
    assert_eq!(shown["/doc"].as_deref(), Some(&b"ONE NEW TWO NEW "[..]));
    let other = shown
        .keys()
        .find(|name| name.contains("(conflict"))
        .unwrap();
    assert!(other.ends_with(", incomplete)"), "{other}");
}

#[test]
fn sessions_go_on_from_a_version_that_a_base_does_not_have() {
    // What the second session does: a touch says nothing of the contents.
    let second: [fn(&Vault); 2] = [|v| touch(v, "/doc"), |v| append(v, "/doc", b"2")];
    for second in second {
        let mut fleet = fleet(2, |v| put(v, "/doc", b"0").unwrap());
        fleet[1].session(|v| append(v, "/doc", b"B"));
        fleet[1].session(second);
        fleet[0].session(|v| {
            append(v, "/doc", b"A");
            base(v);
        });
        let shown = merged(&mut fleet);
        assert!(
            contents(&shown).iter().any(|text| text.contains('B')),
            "{:?}",
            contents(&shown)
        );
        assert_eq!(shown["/doc"].as_deref(), Some(&b"0A"[..]));
    }
}

#[test]
fn a_mixture_of_two_versions_does_not_take_the_name() {
    let mut fleet = fleet(2, |v| put(v, "/doc", b"0").unwrap());
    fleet[1].session(|v| {
        append(v, "/doc", b"B");
        append(v, "/doc", b"2");
    });
    fleet[0].session(|v| {
        put(v, "/doc", b"A").unwrap();
        base(v);
    });
    let shown = merged(&mut fleet);
    assert_eq!(shown["/doc"].as_deref(), Some(&b"A"[..]));
    let mixed = shown
        .keys()
        .find(|name| name.contains("(conflict"))
        .unwrap();
    assert!(mixed.ends_with(", incomplete)"), "{mixed}");
}

#[test]
fn a_removal_that_yielded_has_removed_no_name() {
    for changes_it in [false, true] {
        let mut fleet = fleet(3, |v| put(v, "/f", b"0").unwrap());
        fleet[1].session(|v| remove(v, "/f").unwrap());
        fleet[0].session(|v| put(v, "/f", b"0A").unwrap());
        pull(&fleet, 0, 1);
        fleet[0].session(|v| {
            link(v, "/f", "/f.lock");
            remove(v, "/f.lock").unwrap();
        });
        fleet[2].session(|v| match changes_it {
            true => put(v, "/f", b"0C").unwrap(),
            false => chmod(v, "/f"),
        });
        let shown = merged(&mut fleet);
        assert!(
            contents(&shown).contains(&"0A".into()),
            "{:?}",
            contents(&shown)
        );
        assert!(!shown.contains_key("/f.lock"));
    }
}

#[test]
fn what_both_changed_and_then_removed_is_gone() {
    let work = |v: &Vault| {
        chmod(v, "/f");
        remove(v, "/f").unwrap();
    };
    let shown = two(|v| put(v, "/f", b"0").unwrap(), work, work);
    assert_eq!(shown, Shown::new());
}

#[test]
fn what_was_removed_stays_away_while_an_older_base_is_there() {
    let mut fleet = fleet(2, |v| {
        put(v, "/doc", b"0").unwrap();
        base(v);
    });
    fleet[0].session(|v| put(v, "/doc", b"1").unwrap());
    pull(&fleet, 1, 0);
    fleet[1].session(|v| remove(v, "/doc").unwrap());
    fleet[0].session(|v| {
        put(v, "/other", b"other").unwrap();
        base(v);
    });
    assert_eq!(contents(&merged(&mut fleet)), ["other"]);
}
