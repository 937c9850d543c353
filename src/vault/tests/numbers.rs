//! The numbers that programs see: small, and the same for the life of a file.

use super::*;
use crate::index::record::{LinkAt, NewInode, ROOT_ID};

/// A file that was made without looking whether its number is free, as another device makes one.
pub(super) fn make_as(vault: &Vault, name: &str, id: Id) {
    let made = vault.log.commit(|_, transaction| {
        transaction.records.push(Record::Inode(NewInode {
            id,
            kind: FileKind::Regular,
            perm: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Vec::new(),
        }));
        transaction.records.push(Record::Link(LinkAt {
            link: id,
            inode: None,
            parent: ROOT_ID,
            name: name.as_bytes().to_vec(),
        }));
        Ok(())
    });
    made.unwrap();
}

fn number(bench: &Bench, name: &str) -> u64 {
    bench.stat(name).unwrap().ino.0
}

#[test]
fn numbers_are_small_unlike_and_stay() {
    let mut bench = Bench::new();
    let names: Vec<String> = (0..500).map(|i| format!("f{i}")).collect();
    let before: Vec<u64> = names.iter().map(|name| bench.make(name).0).collect();
    assert!(before.iter().all(|n| (2..1 << 32).contains(n)));
    let apart: std::collections::HashSet<_> = before.iter().collect();
    assert_eq!(apart.len(), names.len());
    bench.rename("f7", "renamed");
    bench.rename("renamed", "f7");
    bench.remount().unwrap();
    bench.vault.upkeep.snapshots.write(&mut || ()).unwrap();
    bench.remount().unwrap();
    let after: Vec<u64> = names.iter().map(|name| number(&bench, name)).collect();
    assert_eq!(after, before);
}

#[test]
fn who_shares_a_number_gets_another_for_good() {
    let mut bench = Bench::new();
    make_as(&bench.vault, "first", Id(0xabc_0000_0000));
    make_as(&bench.vault, "second", Id(0xabc));
    make_as(&bench.vault, "third", Id(0xabc << 64));
    bench.remount().unwrap();
    let shown = ["first", "second", "third"].map(|name| number(&bench, name));
    assert_eq!(shown[0], 0xabc);
    assert!(shown[1] != shown[0] && shown[2] != shown[0] && shown[1] != shown[2]);
    let ctime = bench.stat("second").unwrap().ctime;
    bench.unlink("first");
    for with_base in [false, true, false] {
        if with_base {
            bench.vault.upkeep.snapshots.write(&mut || ()).unwrap();
        }
        bench.remount().unwrap();
        assert_eq!(
            [number(&bench, "second"), number(&bench, "third")],
            shown[1..]
        );
        assert_eq!(bench.stat("second").unwrap().ctime, ctime);
    }
    assert!(bench.vault.view.tree().unstored_numbers().is_empty());
    // What is made afterwards may have the number that became free.
    make_as(&bench.vault, "fourth", Id(0xabc << 96));
    bench.kill().unwrap();
    assert_eq!(number(&bench, "fourth"), 0xabc);
    assert_eq!(number(&bench, "second"), shown[1]);
}

#[test]
fn a_mount_that_writes_nothing_shows_the_same() {
    let bench = Bench::new();
    make_as(&bench.vault, "first", Id(0xabc_0000_0000));
    make_as(&bench.vault, "second", Id(0xabc));
    bench.vault.close().unwrap();
    let options = Options {
        read_only: true,
        ..OPTIONS
    };
    let seen = [&options, &options, &OPTIONS].map(|options| {
        let vault = open_with(&bench.code, &bench.store, options).unwrap();
        let attr = vault.lookup(ROOT, OsStr::new("second")).unwrap();
        vault.close().unwrap();
        attr.ino
    });
    assert_ne!(seen[0], Ino(0xabc));
    assert_eq!(seen, [seen[0]; 3]);
}

/// Names and cookies as a directory lists them.
fn list(bench: &Bench, cookie: u64) -> Vec<(String, u64)> {
    let mut listed = Vec::new();
    let list = &mut |e: crate::volume::Dirent<'_>| {
        listed.push((e.name.to_str().unwrap().to_owned(), e.cookie));
        true
    };
    bench.vault.readdir(ROOT, cookie, false, list).unwrap();
    listed
}

#[test]
fn directories_list_in_the_order_in_which_names_were_made() {
    let mut bench = Bench::new();
    for i in 0..20 {
        bench.make(&format!("a{i}"));
    }
    (0..20)
        .step_by(2)
        .for_each(|i| bench.unlink(&format!("a{i}")));
    // In the places that became free.
    for i in 0..20 {
        bench.make(&format!("b{i}"));
    }
    let names = |bench: &Bench| -> Vec<String> {
        let listed = list(bench, 0);
        assert!(listed.is_sorted_by_key(|(_, cookie)| *cookie));
        assert!(listed.iter().all(|(_, cookie)| *cookie < 1 << 31));
        listed.into_iter().map(|(name, _)| name).collect()
    };
    let odd = (0..20).filter(|i| i % 2 == 1).map(|i| format!("a{i}"));
    let made: Vec<String> = [".", ".."]
        .map(str::to_owned)
        .into_iter()
        .chain(odd)
        .chain((0..20).map(|i| format!("b{i}")))
        .collect();
    for _ in 0..2 {
        assert_eq!(names(&bench), made);
        bench.vault.upkeep.snapshots.write(&mut || ()).unwrap();
        bench.remount().unwrap();
    }
    // A position stays while names come, go and change.
    let before = list(&bench, 0);
    let (_, at) = &before[20];
    ["a1", "b0", "b19"]
        .iter()
        .for_each(|name| bench.unlink(name));
    bench.rename("b9", "renamed");
    bench.make("new");
    let rest: Vec<String> = list(&bench, *at)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let expected = before[21..].iter().map(|(name, _)| match &**name {
        "b19" => "new",
        "b9" => "renamed",
        name => name,
    });
    assert_eq!(rest, expected.collect::<Vec<_>>());
    assert_eq!(list(&bench, u64::MAX), []);
}
