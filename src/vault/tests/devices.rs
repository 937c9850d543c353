//! Several devices that write one library, each on its own copy, and a file copier between them: every copy shows the
//! same in the end, and nothing that anybody wrote is gone unless somebody who saw it removed it.

use std::collections::{BTreeMap, BTreeSet};

use super::fleet::*;
use super::*;
use crate::object::{Area, ObjectId};

/// Two devices that start from what the first made; each does its part without the other's, and both are merged.
fn beside(before: impl FnOnce(&Vault), a: impl FnOnce(&Vault), b: impl FnOnce(&Vault)) -> Shown {
    let dice = &mut Dice(1);
    let mut fleet = Device::fleet(2);
    fleet[0].session(before);
    fleet[1].pull(&fleet[0], dice, 4);
    fleet[0].session(a);
    fleet[1].session(b);
    merged(&mut fleet)
}

fn names(shown: &Shown) -> Vec<String> {
    let date = |name: &str| {
        // Of the day it is.
        let at = name.find(", 20")?;
        Some(format!(
            "{}{}",
            &name[..at],
            &name[at + ", 2026-11-28 14.03".len()..]
        ))
    };
    shown.keys().map(|n| date(n).unwrap_or(n.clone())).collect()
}

#[test]
fn two_folders_of_one_name_are_one() {
    let shown = beside(
        |_| (),
        |v| {
            mkdir(v, "/new").unwrap();
            put(v, "/new/a", b"a").unwrap();
            put(v, "/new/both", b"of a").unwrap();
        },
        |v| {
            mkdir(v, "/new").unwrap();
            mkdir(v, "/new/sub").unwrap();
            put(v, "/new/sub/b", b"b").unwrap();
            put(v, "/new/both", b"of b").unwrap();
        },
    );
    let conflict = names(&shown)
        .into_iter()
        .find(|n| n.starts_with("/new/both ("));
    let expected = [
        "/new",
        "/new/a",
        "/new/both",
        &conflict.unwrap(),
        "/new/sub",
        "/new/sub/b",
    ];
    assert_eq!(names(&shown), expected);
}

/// What was settled once is in conflict again: the names that follow do not tell who settles.
#[test]
fn three_folders_of_one_name_are_one_and_all_give_the_same_names() {
    let mut fleet = Device::fleet(3);
    fleet[0].session(|v| put(v, "/old", b"old").unwrap());
    for at in 1..3 {
        fleet[at].pull(&fleet[0], &mut Dice(1), 4);
    }
    for (device, text) in fleet.iter_mut().zip([&b"a"[..], b"b", b"c"]) {
        device.session(|v| {
            mkdir(v, "/new").unwrap();
            put(v, "/new/both", text).unwrap();
        });
    }
    let shown = merged(&mut fleet);
    assert_eq!(shown.len(), 5, "{:?}", shown.keys());
    let is_of = |name: &String| {
        (1..4).any(|id| name.contains(&format!("(conflict, 0{id}0{id}0{id}0{id}, ")))
    };
    assert_eq!(
        shown.keys().filter(|name| is_of(name)).count(),
        2,
        "{:?}",
        shown.keys()
    );
}

#[test]
fn an_editor_s_rename_on_both_keeps_both() {
    let save = |data: &'static [u8]| {
        move |v: &Vault| {
            put(v, "/.song.txt.swp", data).unwrap();
            rename(v, "/.song.txt.swp", "/song.txt").unwrap();
        }
    };
    let shown = beside(save(b"old"), save(b"new of a"), save(b"new of b"));
    let contents: BTreeSet<_> = shown.values().flatten().cloned().collect();
    assert_eq!(
        contents,
        BTreeSet::from([b"new of a".to_vec(), b"new of b".to_vec()])
    );
    assert_eq!(names(&shown).len(), 2);
    assert!(
        names(&shown)[0].starts_with("/song (conflict, 0"),
        "{shown:?}"
    );
    assert!(names(&shown)[0].ends_with(").txt"), "{shown:?}");
}

#[test]
fn folders_that_were_moved_into_each_other_are_there() {
    let shown = beside(
        |v| {
            mkdir(v, "/x").unwrap();
            mkdir(v, "/y").unwrap();
            put(v, "/x/in x", b"x").unwrap();
            put(v, "/y/in y", b"y").unwrap();
        },
        |v| rename(v, "/x", "/y/x").unwrap(),
        |v| rename(v, "/y", "/x/y").unwrap(),
    );
    let is_one = names(&shown) == ["/x", "/x/in x", "/x/y", "/x/y/in y"];
    let is_other = names(&shown) == ["/y", "/y/in y", "/y/x", "/y/x/in x"];
    assert!(is_one || is_other, "{shown:?}");
}

#[test]
fn contents_that_were_written_on_both_are_both_there() {
    let shown = beside(
        |v| put(v, "/song.flac", &[1; 50_000]).unwrap(),
        |v| put(v, "/song.flac", &[2; 50_000]).unwrap(),
        |v| {
            let ino = find(v, "/song.flac").unwrap();
            let handle = v.open(ino, libc::O_RDWR).unwrap();
            v.write(ino, handle, 10_000, &[3; 100]).unwrap();
            v.flush(ino, handle).unwrap();
            v.release(ino, handle);
        },
    );
    assert_eq!(shown.len(), 2, "{:?}", shown.keys());
    let mut patched = vec![1; 50_000];
    patched[10_000..10_100].fill(3);
    let contents: BTreeSet<_> = shown.values().flatten().cloned().collect();
    assert!(contents == BTreeSet::from([vec![2; 50_000], patched]));
}

#[test]
fn what_was_only_touched_yields_to_what_was_written() {
    for touched_last in [false, true] {
        let touch = |v: &Vault| {
            let times = SetAttr {
                mtime: Some(crate::volume::SetTime::At(Time { sec: 5, nsec: 0 })),
                ..SetAttr::default()
            };
            v.setattr(find(v, "/f").unwrap(), &times).unwrap();
        };
        let write = |v: &Vault| put(v, "/f", b"new").unwrap();
        let before = |v: &Vault| put(v, "/f", b"old").unwrap();
        let shown = match touched_last {
            true => beside(before, write, touch),
            false => beside(before, touch, write),
        };
        assert_eq!(shown, Shown::from([("/f".into(), Some(b"new".to_vec()))]));
    }
}

#[test]
fn a_removal_yields_to_a_change_of_what_it_removes() {
    let before = |v: &Vault| {
        mkdir(v, "/d").unwrap();
        mkdir(v, "/d/e").unwrap();
        put(v, "/d/e/f", b"old").unwrap();
        put(v, "/d/e/g", b"g").unwrap();
        put(v, "/moved", b"moved").unwrap();
        put(v, "/gone", b"gone").unwrap();
    };
    let shown = beside(
        before,
        |v| {
            for path in ["/d/e/f", "/d/e/g", "/d/e", "/d", "/moved", "/gone"] {
                remove(v, path).unwrap();
            }
        },
        |v| {
            put(v, "/d/e/f", b"new").unwrap();
            rename(v, "/moved", "/here").unwrap();
            remove(v, "/gone").unwrap();
        },
    );
    assert_eq!(names(&shown), ["/d", "/d/e", "/d/e/f", "/here"]);
    assert_eq!(shown["/d/e/f"].as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_file_that_one_replaced_and_the_other_wrote_to_is_there_twice() {
    let shown = beside(
        |v| put(v, "/f", b"old").unwrap(),
        |v| {
            put(v, "/tmp", b"of a").unwrap();
            rename(v, "/tmp", "/f").unwrap();
        },
        |v| put(v, "/f", b"of b").unwrap(),
    );
    assert_eq!(shown["/f"].as_deref(), Some(&b"of a"[..]));
    assert_eq!(shown.len(), 2);
    assert!(shown.values().any(|c| c.as_deref() == Some(b"of b")));
}

#[test]
fn turns_on_one_disk_make_no_conflict() {
    let mut fleet = Device::fleet(2);
    for i in 0..10u8 {
        let (a, b) = fleet.split_at_mut(1);
        let (mine, other) = if i % 2 == 0 {
            (&mut a[0], &b[0])
        } else {
            (&mut b[0], &a[0])
        };
        mine.pull(other, &mut Dice(1), 4);
        mine.session(|v| {
            put(v, "/same", &[i; 100]).unwrap();
            put(v, &format!("/own{i}"), &[i]).unwrap();
        });
        let unsettled = mine.open(true).unwrap().view.tree().was_merged();
        assert!(!unsettled);
    }
    let shown = merged(&mut fleet);
    assert_eq!(shown.len(), 11);
    assert_eq!(shown["/same"], Some(vec![9; 100]));
}

/// What a crash left is merged with what has come since, each as what its writer knew when it was written.
#[test]
fn what_a_crash_left_is_merged_with_what_came_since() {
    let dice = &mut Dice(1);
    let mut fleet = Device::fleet(2);
    fleet[0].session(|v| put(v, "/f", b"old").unwrap());
    fleet[1].pull(&fleet[0], dice, 4);
    fleet[0].mount();
    put(fleet[0].vault.as_ref().unwrap(), "/f", b"of a").unwrap();
    put(fleet[0].vault.as_ref().unwrap(), "/g", b"of a").unwrap();
    fleet[0].store = fleet[0].store.after_kill();
    fleet[0].vault = None;
    fleet[1].session(|v| {
        put(v, "/f", b"of b").unwrap();
        put(v, "/g", b"of b").unwrap();
    });
    fleet[0].pull(&fleet[1], dice, 4);
    fleet[0].session(|_| ());
    let shown = merged(&mut fleet);
    assert_eq!(shown.len(), 4, "{shown:?}");
}

/// Six segments of three devices, in all orders in which they may arrive: after each, what is there opens, and in the
/// end it is one tree.
#[test]
fn the_order_in_which_segments_arrive_changes_nothing() {
    let dice = &mut Dice(1);
    let mut fleet = Device::fleet(3);
    fleet[0].session(|v| {
        mkdir(v, "/d").unwrap();
        put(v, "/d/f", b"old").unwrap();
    });
    for i in 1..3 {
        fleet[i].pull(&fleet[0], dice, 4);
    }
    let texts = [&b"a"[..], b"b", b"c"];
    for (device, text) in fleet.iter_mut().zip(texts) {
        device.session(|v| {
            put(v, "/d/f", text).unwrap();
            mkdir(v, "/new").unwrap();
            put(v, "/new/both", text).unwrap();
        });
    }
    fleet[1].pull(&fleet[2], dice, 4);
    fleet[1].session(|v| rename(v, "/d", "/new/d").unwrap());
    fleet[0].session(|v| {
        remove(v, "/d/f").unwrap();
        remove(v, "/d").unwrap();
    });
    let library = Device::fleet(1).remove(0);
    fleet.iter().for_each(|from| library.pull(from, dice, 4));
    let all = library.store.objects(Area::Index);
    assert_eq!(all.len(), 6);
    let first = Device {
        code: fleet[0].code.clone(),
        ..library
    };
    let expected = first.shown();
    assert!(expected.len() > 6, "{:?}", expected.keys());
    for order in permutations(&all) {
        let store = MemoryStore::new();
        for area in [Area::Key, Area::Data] {
            for id in first.store.objects(area) {
                store.insert_object(area, id, first.store.object(area, id).unwrap());
            }
        }
        let arriving = Device {
            id: 9,
            code: first.code.clone(),
            store,
            vault: None,
        };
        for id in &order {
            let bytes = first.store.object(Area::Index, *id).unwrap();
            arriving.store.insert_object(Area::Index, *id, bytes);
            arriving.open_with(true, true).unwrap();
        }
        assert_same(&arriving.shown(), &expected, &format!("{order:?}"));
    }
}

fn permutations(all: &[ObjectId]) -> Vec<Vec<ObjectId>> {
    let [first, rest @ ..] = all else {
        return vec![Vec::new()];
    };
    let mut orders = Vec::new();
    for rest in permutations(rest) {
        for at in 0..=rest.len() {
            let mut order = rest.clone();
            order.insert(at, *first);
            orders.push(order);
        }
    }
    orders
}

#[test]
fn all_show_a_file_by_the_same_number() {
    let mut fleet = Device::fleet(2);
    fleet[0].session(|v| put(v, "/song", b"old").unwrap());
    fleet[1].pull(&fleet[0], &mut Dice(1), 4);
    for (at, id) in [Id(0xabc), Id(0xabc << 32)].into_iter().enumerate() {
        fleet[at].session(|v| {
            super::numbers::make_as(v, &format!("made by {at}"), id);
            put(v, "/song", format!("of {at}").as_bytes()).unwrap();
        });
    }
    let seen = |device: &Device| -> BTreeMap<String, Ino> {
        let vault = device.open(true).unwrap();
        let paths = shown(&vault).into_keys();
        paths
            .map(|path| (path.clone(), find(&vault, &path).unwrap()))
            .collect()
    };
    // Read alone, and where each has recorded what it came to.
    fleet[0].pull(&fleet[1], &mut Dice(1), 4);
    let first = seen(&fleet[0]);
    assert_eq!(first.len(), 4, "{first:?}");
    let apart: BTreeSet<Ino> = first.values().copied().collect();
    assert_eq!(apart.len(), 4, "{first:?}");
    assert!(apart.contains(&Ino(0xabc)));
    merged(&mut fleet);
    fleet[1].session(|v| v.upkeep.snapshots.write(&mut || ()).unwrap());
    for device in &fleet {
        assert_eq!(seen(device), first);
    }
}

/// Random work on three devices, with a copier that is in the middle of its work.
#[test]
fn nothing_is_lost_and_all_come_to_the_same() {
    for seed in 1..25 {
        storm(seed);
    }
}

/// What was written, by the bytes of each file, which are unlike all others.
#[derive(Default)]
struct Written {
    count: u32,
    all: BTreeSet<Vec<u8>>,
    given_up: BTreeSet<Vec<u8>>,
}

fn storm(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let dice = &mut dice;
    let mut fleet = Device::fleet(3);
    let mut written = Written::default();
    let packs = Device::fleet(1).remove(0);
    for _ in 0..12 {
        let at = dice.below(3) as usize;
        let other = dice.below(3) as usize;
        let quarters = 2 + dice.below(3);
        let (to, from) = (&fleet[at], &fleet[other]);
        to.pull(from, dice, quarters);
        // A segment that condemns a pack may be later than the removal: all packs that ever were are there.
        to.pull_packs(&packs);
        let Ok(vault) = fleet[at].open(false) else {
            // The copier has not brought all that this needs. A later pull does.
            continue;
        };
        fleet[at].vault = Some(vault);
        let vault = fleet[at].vault.clone().unwrap();
        for _ in 0..dice.below(6) {
            work(&vault, dice, &mut written);
        }
        if dice.below(4) == 0 {
            vault.upkeep.snapshots.write(&mut || ()).unwrap();
        }
        if dice.below(4) == 0 {
            fleet[at].store = fleet[at].store.after_kill();
            fleet[at].vault = None;
        } else {
            fleet[at].unmount();
        }
        packs.pull_packs(&fleet[at]);
    }
    // What crashes left is published.
    for to in 0..3 {
        for from in 0..3 {
            fleet[to].pull(&fleet[from], dice, 4);
        }
        fleet[to].pull_packs(&packs);
        fleet[to].session(|_| ());
    }
    let shown = merged(&mut fleet);
    let there: BTreeSet<Vec<u8>> = shown.into_values().flatten().collect();
    for bytes in written.all.difference(&written.given_up) {
        assert!(
            there.contains(bytes),
            "seed {seed}: {:?} is lost",
            String::from_utf8_lossy(bytes)
        );
    }
}

/// One operation. What it takes away on purpose, it gives up.
fn work(vault: &Vault, dice: &mut Dice, written: &mut Written) {
    let before = shown(vault);
    let mut pick = |names: &[&str]| {
        let dirs: Vec<&String> = before
            .iter()
            .filter(|e| e.1.is_none())
            .map(|e| e.0)
            .collect();
        let dir = match dice.below(dirs.len() as u64 + 1) as usize {
            0 => "",
            n => dirs[n - 1].as_str(),
        };
        format!("{dir}/{}", names[dice.below(names.len() as u64) as usize])
    };
    let (a, b) = (pick(&["a", "b", "x", "y"]), pick(&["a", "b", "x", "y"]));
    let kind = dice.below(10);
    let done = match kind {
        0..=3 => {
            written.count += 1;
            let bytes = format!("contents {}", written.count).into_bytes();
            let done = put(vault, &a, &bytes);
            if done.is_ok() {
                written.all.insert(bytes);
            }
            done
        }
        4 | 5 => mkdir(vault, &a),
        6 | 7 => rename(vault, &a, &b),
        _ => remove(vault, &a),
    };
    if done.is_ok() {
        let after: BTreeSet<Vec<u8>> = shown(vault).into_values().flatten().collect();
        let gone = before
            .into_values()
            .flatten()
            .filter(|bytes| !after.contains(bytes));
        written.given_up.extend(gone);
    }
}
