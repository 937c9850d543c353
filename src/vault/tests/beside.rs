//! Work beside a base: between two of its slices anything may happen to names, and nothing may be lost by it.

use std::collections::BTreeMap;

use super::*;
use crate::volume::XattrMode;

/// Writes a snapshot, with `what` done between its frames, and synced.
fn base_beside(bench: &Bench, mut what: impl FnMut()) {
    let mut between = || {
        what();
        bench.vault.log.sync().unwrap();
    };
    bench.vault.upkeep.snapshots.write(&mut between).unwrap();
    bench.vault.upkeep.collector.collect().unwrap();
}

type Found = BTreeMap<String, (Attr, Vec<u8>)>;

/// All that is below `dir`.
fn find(bench: &Bench, dir: Ino, path: &str, found: &mut Found) {
    let mut names = Vec::new();
    let list = &mut |e: crate::volume::Dirent<'_>| {
        names.push(e.name.to_str().unwrap().to_owned());
        true
    };
    bench.vault.readdir(dir, 0, false, list).unwrap();
    for name in names.iter().filter(|n| *n != "." && *n != "..") {
        let attr = bench.vault.lookup(dir, OsStr::new(name)).unwrap();
        bench.vault.forget(attr.ino, 1);
        let path = format!("{path}/{name}");
        let mut bytes = vec![0; attr.plain_size as usize];
        if attr.kind == FileKind::Directory {
            find(bench, attr.ino, &path, found);
        } else {
            let handle = bench.vault.open(attr.ino, libc::O_RDONLY).unwrap();
            let len = bench.vault.read(attr.ino, handle, 0, &mut bytes).unwrap();
            bytes.truncate(len);
            bench.vault.release(attr.ino, handle);
        }
        found.insert(path, (attr, bytes));
    }
}

fn find_all(bench: &Bench) -> Found {
    let mut found = Found::new();
    let root = bench.vault.getattr(ROOT).unwrap();
    find(bench, ROOT, "", &mut found);
    found.insert(String::new(), (root, Vec::new()));
    found
}

fn assert_same(after: &Bench, before: &Found, what: &str) {
    let now = find_all(after);
    for (path, entry) in before {
        assert_eq!(now.get(path), Some(entry), "{what}: {path}");
    }
    assert_eq!(now.len(), before.len(), "{what}");
}

/// A directory, three levels deep at most.
fn place(v: &Vault, dice: &mut Dice) -> Ino {
    let mut dir = ROOT;
    for _ in 0..dice.below(4) {
        let name = format!("d{}", dice.below(6));
        if let Ok(attr) = v.lookup(dir, OsStr::new(&name)) {
            v.forget(attr.ino, 1);
            if attr.kind == FileKind::Directory {
                dir = attr.ino;
            }
        }
    }
    dir
}

fn change(v: &Vault, ino: Ino, dice: &mut Dice) -> Result<()> {
    let handle = v.open(ino, libc::O_RDWR)?;
    v.write(ino, handle, dice.below(100), &[dice.below(256) as u8; 20])?;
    v.flush(ino, handle)?;
    v.release(ino, handle);
    let perm = Some(dice.below(0o1000) as u16);
    match dice.below(4) {
        0 => v
            .setattr(
                ino,
                &SetAttr {
                    perm,
                    ..SetAttr::default()
                },
            )
            .map(drop),
        1 => v.setxattr(
            ino,
            OsStr::new("user.a"),
            &[dice.below(9) as u8],
            XattrMode::Any,
        ),
        2 => v.removexattr(ino, OsStr::new("user.a")),
        _ => Ok(()),
    }
}

/// Something; what cannot be is refused, and that is right, too.
fn something(v: &Vault, dice: &mut Dice) -> Result<()> {
    let (a, b) = (place(v, dice), place(v, dice));
    let mut name = || match dice.below(2) {
        0 => format!("d{}", dice.below(6)),
        _ => format!("f{}", dice.below(12)),
    };
    let (x, y) = (name(), name());
    let (x, y) = (OsStr::new(&x), OsStr::new(&y));
    match dice.below(12) {
        0..=3 => v.rename(a, x, b, y, RenameMode::Replace),
        4 | 5 => v.rename(a, x, b, y, RenameMode::Exchange),
        6 => v.mkdir(a, x, 0o755, CALLER).map(|new| v.forget(new.ino, 1)),
        7 => v.unlink(a, x),
        8 => v.rmdir(a, x),
        9 => {
            let file = v.lookup(a, x)?;
            let linked = v.link(file.ino, b, y);
            v.forget(file.ino, 1);
            linked.map(|new| v.forget(new.ino, 1))
        }
        _ => {
            if let Ok(new) = v.mknod(a, x, FileKind::Regular, 0o644, 0, CALLER) {
                v.forget(new.ino, 1);
            }
            let file = v.lookup(a, x)?;
            let changed = change(v, file.ino, dice);
            v.forget(file.ino, 1);
            changed
        }
    }
}

#[test]
fn whatever_happens_beside_a_base_is_found_again() {
    for seed in 1..=60u64 {
        let mut bench = Bench::new();
        bench.halt_threads();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..400 {
            let _ = something(&bench.vault, &mut dice);
        }
        bench.vault.outbox.publish().unwrap();
        for round in 0..2 {
            let _ = something(&bench.vault, &mut dice);
            let (vault, mut beside) = (bench.vault.clone(), Dice(dice.below(u64::MAX)));
            base_beside(&bench, move || {
                for _ in 0..3 {
                    let _ = something(&vault, &mut beside);
                }
            });
            let before = find_all(&bench);
            bench.kill().unwrap();
            bench.halt_threads();
            assert_same(&bench, &before, &format!("seed {seed}, base {round}"));
        }
    }
}

#[test]
fn a_file_that_changes_its_names_beside_a_base_stays() {
    for at in 0..60 {
        let mut bench = Bench::new();
        bench.halt_threads();
        let ino = bench.put("a", b"contents");
        bench.vault.link(ino, ROOT, OsStr::new("b")).unwrap();
        bench.vault.forget(ino, 1);
        for i in 0..200 {
            bench.mkdir(&format!("d{i}"));
        }
        bench.make("m");
        bench.vault.outbox.publish().unwrap();
        bench.mkdir("last");
        let (vault, mut slice) = (bench.vault.clone(), 0);
        base_beside(&bench, move || {
            slice += 1;
            if slice == at {
                let rename = |from: &str, to: &str| {
                    let (from, to) = (OsStr::new(from), OsStr::new(to));
                    vault
                        .rename(ROOT, from, ROOT, to, RenameMode::Replace)
                        .unwrap();
                };
                rename("a", "x");
                vault.unlink(ROOT, OsStr::new("b")).unwrap();
                rename("x", "y");
                rename("m", "x");
            }
        });
        let name = if bench.stat("y").is_some() { "y" } else { "a" };
        bench.kill().unwrap();
        assert_eq!(bench.read(name).unwrap(), b"contents", "in slice {at}");
    }
}
