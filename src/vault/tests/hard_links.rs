//! Several names of one file, removed on several devices, some of which wrote bases: a file goes only where somebody
//! removed the last name that he saw.

use std::collections::BTreeSet;

use super::fleet::*;
use super::*;
use crate::object::Area;
use crate::store::Objects;

/// Devices that start from what the first made.
fn fleet(count: u8, before: impl FnOnce(&Vault)) -> Vec<Device> {
    let mut fleet = Device::fleet(count);
    fleet[0].session(before);
    for at in 1..fleet.len() {
        pull(&fleet, at, 0);
    }
    fleet
}

fn pull(fleet: &[Device], to: usize, from: usize) {
    fleet[to].pull(&fleet[from], &mut Dice(1), 4);
}

fn link(vault: &Vault, of: &str, path: &str) -> Result<()> {
    let of = find(vault, of).ok_or(Kind::Stale)?;
    let (dir, name) = split(path);
    let dir = find(vault, dir).ok_or(Kind::Stale)?;
    vault.link(of, dir, OsStr::new(name))?;
    vault.forget(of, 1);
    Ok(())
}

/// A session that ends with a base, and without the segments that it covers, which page and program let go.
fn session_with_base(device: &mut Device, work: impl FnOnce(&Vault)) {
    device.session(|v| {
        work(v);
        v.outbox.publish().unwrap();
        v.upkeep.snapshots.write(&mut || ()).unwrap();
    });
    remove_covered(device);
}

fn remove_covered(device: &Device) {
    let vault = device.open(true).unwrap();
    let covered = vault.upkeep.snapshots.superseded();
    for segment in covered {
        device
            .store
            .remove(Area::Index, segment.id.object())
            .unwrap();
    }
}

/// A file of these names, the first of which made it.
fn named(names: &[&'static str]) -> impl FnOnce(&Vault) {
    move |v| {
        put(v, names[0], b"contents").unwrap();
        for name in &names[1..] {
            link(v, names[0], name).unwrap();
        }
    }
}

fn remove_all(names: &[&'static str]) -> impl FnOnce(&Vault) {
    move |v| names.iter().for_each(|name| remove(v, name).unwrap())
}

fn names(shown: &Shown) -> Vec<&str> {
    shown.keys().map(String::as_str).collect()
}

/// Two devices remove these names of `g` and `h` (and `i`), the first with a base.
fn merged_names(all: &[&'static str], a: &[&'static str], b: &[&'static str]) -> Vec<String> {
    let mut fleet = fleet(2, named(all));
    session_with_base(&mut fleet[0], remove_all(a));
    fleet[1].session(remove_all(b));
    merged(&mut fleet).into_keys().collect()
}

#[test]
fn a_file_whose_names_went_apart_keeps_the_one_that_a_base_has() {
    for all in [["/g", "/h"], ["/h", "/g"]] {
        assert_eq!(merged_names(&all, &["/h"], &["/g"]), ["/g"]);
    }
    for all in [["/g", "/h", "/i"], ["/i", "/h", "/g"], ["/h", "/g", "/i"]] {
        assert_eq!(merged_names(&all, &["/h"], &["/g", "/i"]), ["/i"]);
        assert_eq!(merged_names(&all, &["/h", "/i"], &["/g"]), ["/g"]);
        // It saw one of the two that are gone.
        assert_eq!(merged_names(&all, &["/h", "/i"], &["/g", "/h"]), ["/g"]);
        assert_eq!(merged_names(&all, &["/h", "/i"], &["/i", "/g"]), ["/g"]);
    }
}

#[test]
fn a_file_of_which_one_device_removed_all_names_is_gone() {
    for all in [["/g", "/h"], ["/h", "/g"]] {
        for removed in [["/g", "/h"], ["/h", "/g"]] {
            // Beside a base that has both, or removed one, too, or that was made of other things.
            assert!(merged_names(&all, &[], &removed).is_empty());
            assert!(merged_names(&all, &["/h"], &removed).is_empty());
            assert!(merged_names(&all, &["/g"], &removed).is_empty());
        }
        assert!(merged_names(&all, &["/g", "/h"], &["/g"]).is_empty());
    }
}

/// In sessions of their own, too, and with a segment of the other's in between.
#[test]
fn a_removal_that_was_seen_counts() {
    for all in [["/g", "/h"], ["/h", "/g"]] {
        let mut fleet = fleet(3, named(&all));
        fleet[0].session(remove_all(&["/h"]));
        pull(&fleet, 1, 0);
        session_with_base(&mut fleet[0], |v| put(v, "/other", b"other").unwrap());
        fleet[1].session(remove_all(&["/g"]));
        fleet[2].session(|v| put(v, "/third", b"third").unwrap());
        assert_eq!(names(&merged(&mut fleet)), ["/other", "/third"]);
    }
    for all in [["/g", "/h"], ["/h", "/g"]] {
        let mut fleet = fleet(2, named(&all));
        fleet[1].session(remove_all(&["/h"]));
        pull(&fleet, 0, 1);
        session_with_base(&mut fleet[0], |v| put(v, "/other", b"other").unwrap());
        fleet[1].session(remove_all(&["/g"]));
        assert_eq!(names(&merged(&mut fleet)), ["/other"]);
    }
}

#[test]
fn a_name_that_another_file_took_is_removed_like_any() {
    for all in [["/g", "/h"], ["/h", "/g"]] {
        let mut fleet = fleet(2, |v| {
            named(&all)(v);
            put(v, "/x", b"of x").unwrap();
        });
        session_with_base(&mut fleet[0], remove_all(&["/h"]));
        fleet[1].session(|v| rename(v, "/x", "/g").unwrap());
        let shown = merged(&mut fleet);
        let contents: BTreeSet<_> = shown.values().flatten().cloned().collect();
        assert_eq!(
            contents,
            BTreeSet::from([b"contents".to_vec(), b"of x".to_vec()])
        );
        assert_eq!(shown["/g"].as_deref(), Some(&b"of x"[..]), "{shown:?}");
        assert_eq!(shown.len(), 2, "{shown:?}");
    }
}

/// The base knows the newest removal of each device: a later one that was seen does not hide one that was not.
#[test]
fn a_removal_that_was_not_seen_is_not_hidden_by_a_later_one() {
    for all in [["/g", "/h", "/i"], ["/i", "/h", "/g"], ["/h", "/g", "/i"]] {
        let mut fleet = fleet(2, named(&all));
        fleet[1].session(|v| {
            (0..20).for_each(|i| mkdir(v, &format!("/d{i}")).unwrap());
            remove(v, "/i").unwrap();
        });
        fleet[0].session(remove_all(&["/h"]));
        pull(&fleet, 0, 1);
        session_with_base(&mut fleet[0], |_| ());
        fleet[1].session(remove_all(&["/g"]));
        let shown = merged(&mut fleet);
        assert!(shown.contains_key("/g"), "{:?}", shown.keys());
    }
}

/// Both wrote bases, and a third device has seen neither.
#[test]
fn names_that_went_on_three_devices() {
    for bases in 0..8 {
        let mut fleet = fleet(3, named(&["/g", "/h", "/i"]));
        for (at, name) in ["/g", "/h", "/i"].into_iter().enumerate() {
            match bases >> at & 1 {
                0 => fleet[at].session(remove_all(&[name])),
                _ => session_with_base(&mut fleet[at], remove_all(&[name])),
            }
        }
        assert!(!merged(&mut fleet).is_empty(), "bases {bases:b}");
    }
}

/// What one base moved to a name and the other made there are two files, whichever is later.
#[test]
fn a_name_that_two_bases_gave_to_two_files() {
    for later in [0, 1] {
        let mut fleet = fleet(2, |v| put(v, "/x", b"of x").unwrap());
        fleet[later].session(|v| (0..20).for_each(|i| mkdir(v, &format!("/d{i}")).unwrap()));
        session_with_base(&mut fleet[0], |v| rename(v, "/x", "/n").unwrap());
        session_with_base(&mut fleet[1], |v| put(v, "/n", b"of n").unwrap());
        let shown = merged(&mut fleet);
        let contents: BTreeSet<_> = shown.values().flatten().cloned().collect();
        let expected = BTreeSet::from([b"of n".to_vec(), b"of x".to_vec()]);
        assert_eq!(contents, expected, "later: {later}");
    }
}

/// Each of two bases lacks a name that the other has: both stay, even when one of them is moved afterwards.
#[test]
fn names_that_two_bases_have_left_stay_where_one_moves_on() {
    let mut fleet = fleet(2, named(&["/g", "/h"]));
    session_with_base(&mut fleet[0], remove_all(&["/h"]));
    session_with_base(&mut fleet[1], remove_all(&["/g"]));
    assert_eq!(names(&merged(&mut fleet)), ["/g", "/h"]);
    fleet[0].session(|v| rename(v, "/g", "/k").unwrap());
    assert_eq!(names(&merged(&mut fleet)), ["/h", "/k"]);
}

/// What one of two bases removed from the other does not come back where the rest is removed by who saw that.
#[test]
fn a_name_that_one_base_has_left_does_not_come_back_with_the_last_removal() {
    let mut fleet = fleet(2, named(&["/g", "/h"]));
    session_with_base(&mut fleet[0], remove_all(&["/h"]));
    session_with_base(&mut fleet[1], |v| put(v, "/other", b"other").unwrap());
    assert_eq!(names(&merged(&mut fleet)), ["/g", "/other"]);
    fleet[1].session(remove_all(&["/g"]));
    assert_eq!(names(&merged(&mut fleet)), ["/other"]);
}

#[test]
fn no_file_goes_whose_last_name_nobody_removed() {
    let seeds = std::env::var("HUSHFS_LINK_SEEDS").ok();
    let seeds: u64 = seeds.and_then(|n| n.parse().ok()).unwrap_or(150);
    let fails = |seed: &u64| std::panic::catch_unwind(|| links(*seed)).is_err();
    let failed: Vec<u64> = (1..=seeds).filter(fails).collect();
    assert!(failed.is_empty(), "seeds {failed:?}");
}

/// What was done, said where it led to a failure.
struct Log {
    seed: u64,
    lines: Vec<String>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: {:#?}", self.seed, self.lines);
        }
    }
}

/// Random work on the names of a few files, on two or three devices, with bases and a copier in the middle of its work.
fn links(seed: u64) {
    let dice = &mut Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let count = 2 + dice.below(2);
    let mut fleet = fleet(count as u8, |v| {
        for i in 0..3 {
            let bytes = format!("file {i}").into_bytes();
            put(v, &format!("/{i}"), &bytes).unwrap();
            for j in 0..dice.below(3) {
                link(v, &format!("/{i}"), &format!("/{i}{j}")).unwrap();
            }
        }
    });
    let all: BTreeSet<Vec<u8>> = fleet[0].shown().into_values().flatten().collect();
    let mut given_up = BTreeSet::new();
    let mut log = Log {
        seed,
        lines: Vec::new(),
    };
    for _ in 0..4 + dice.below(6) {
        let at = dice.below(count) as usize;
        let quarters = dice.below(5);
        if quarters > 0 {
            let from = dice.below(count) as usize;
            fleet[at].pull(&fleet[from], dice, quarters);
            log.lines.push(format!("{at}: pulls {quarters} of {from}"));
        }
        let Ok(vault) = fleet[at].open(false) else {
            continue;
        };
        fleet[at].vault = Some(vault.clone());
        for _ in 0..dice.below(4) {
            let before = shown(&vault);
            if let Some(done) = step(&vault, dice, &before) {
                log.lines.push(format!("{at}: {done}"));
            }
            let after: BTreeSet<Vec<u8>> = shown(&vault).into_values().flatten().collect();
            let before = before.into_values().flatten();
            given_up.extend(before.filter(|bytes| !after.contains(bytes)));
        }
        let base = dice.below(3);
        if base > 0 {
            vault.outbox.publish().unwrap();
            vault.upkeep.snapshots.write(&mut || ()).unwrap();
        }
        drop(vault);
        fleet[at].unmount();
        if base > 1 {
            remove_covered(&fleet[at]);
        }
        log.lines.push(format!("{at}: base {base}"));
    }
    let there: BTreeSet<Vec<u8>> = merged(&mut fleet).into_values().flatten().collect();
    for bytes in all.difference(&given_up) {
        let text = String::from_utf8_lossy(bytes);
        assert!(there.contains(bytes), "{text} is lost");
    }
}

fn step(vault: &Vault, dice: &mut Dice, before: &Shown) -> Option<String> {
    let paths: Vec<&String> = before.keys().collect();
    let some = |dice: &mut Dice| match paths.len() {
        0 => "/none".to_owned(),
        count => paths[dice.below(count as u64) as usize].clone(),
    };
    let new = |dice: &mut Dice| format!("/n{}", dice.below(4));
    let (done, text) = match dice.below(10) {
        0 | 1 => {
            let (of, path) = (some(dice), new(dice));
            (link(vault, &of, &path), format!("link {of} {path}"))
        }
        2 => {
            let (from, to) = (some(dice), new(dice));
            (rename(vault, &from, &to), format!("rename {from} {to}"))
        }
        3 => {
            let (from, to) = (some(dice), some(dice));
            (rename(vault, &from, &to), format!("rename {from} {to}"))
        }
        _ => {
            let path = some(dice);
            (remove(vault, &path), format!("remove {path}"))
        }
    };
    done.ok().map(|()| text)
}
