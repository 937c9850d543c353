//! Crashes: the power goes, or the process is killed, at every operation on the store in turn. What is there
//! afterwards must be the state at one moment between the last fsync and the crash; also when the power goes
//! again while that crash is being mended.
//!
//! Crashes of one device among others: `src/vault/tests/crashes.rs`.

#[path = "../src/dice.rs"]
mod dice;
mod support;

use std::ffi::OsStr;
use std::sync::Arc;

use dice::Dice;
use hushfs::error::Result;
use hushfs::store::{Faults, MemoryStore};
use hushfs::vault::Vault;
use hushfs::volume::*;
use support::{CALLER, Library, Tree, fsync, walk};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const STEPS: u64 = 36;
/// Before this step, the library is closed cleanly and opened again.
const REMOUNT_AT: u64 = STEPS / 2;

/// One step of the work; a file that it writes is closed within it. Returns whether everything so far is durable.
fn step(vault: &Vault, dice: &mut Dice, number: u64) -> Result<bool> {
    let name = NAMES[dice.below(5) as usize];
    let other = NAMES[dice.below(5) as usize];
    let (at, len) = (dice.below(3) * 9000, 1 + dice.below(40_000) as usize);
    let what = dice.below(12);
    let ignore = |done: Result<()>| match done {
        Err(e)
            if matches!(
                e.errno(),
                libc::ENOENT | libc::EEXIST | libc::EISDIR | libc::ENOTDIR | libc::ENOTEMPTY
            ) =>
        {
            Ok(())
        }
        done => done,
    };
    match what {
        0..=3 => {
            let attr = match vault.lookup(ROOT, OsStr::new(name)) {
                Ok(attr) => attr,
                // A new file with its first contents: two moments, of which the tests know both.
                Err(_) => {
                    vault.mknod(ROOT, OsStr::new(name), FileKind::Regular, 0o644, 0, CALLER)?
                }
            };
            if attr.kind != FileKind::Regular {
                return Ok(false);
            }
            let handle = vault.open(attr.ino, libc::O_RDWR)?;
            let written = vault.write(attr.ino, handle, at, &vec![number as u8 + 1; len]);
            let flushed = written.and_then(|()| vault.flush(attr.ino, handle));
            let synced = if what == 0 && flushed.is_ok() {
                fsync(vault, attr.ino).map(|()| true)
            } else {
                Ok(false)
            };
            vault.release(attr.ino, handle);
            vault.forget(attr.ino, 1);
            flushed?;
            return synced;
        }
        4 => ignore(vault.unlink(ROOT, OsStr::new(name)))?,
        5 => ignore(
            vault
                .mkdir(ROOT, OsStr::new(name), 0o755, CALLER)
                .map(|a| vault.forget(a.ino, 1)),
        )?,
        6 => ignore(vault.rmdir(ROOT, OsStr::new(name)))?,
        7 => ignore(vault.rename(
            ROOT,
            OsStr::new(name),
            ROOT,
            OsStr::new(other),
            RenameMode::Replace,
        ))?,
        8 => ignore(vault.rename(
            ROOT,
            OsStr::new(name),
            ROOT,
            OsStr::new(other),
            RenameMode::Exchange,
        ))?,
        9 => {
            let Ok(attr) = vault.lookup(ROOT, OsStr::new(name)) else {
                return Ok(false);
            };
            vault.forget(attr.ino, 1);
            if attr.kind == FileKind::Regular {
                let change = SetAttr {
                    plain_size: Some(at),
                    ..SetAttr::default()
                };
                vault.setattr(attr.ino, &change)?;
            }
        }
        10 => {
            let Ok(attr) = vault.lookup(ROOT, OsStr::new(name)) else {
                return Ok(false);
            };
            vault.forget(attr.ino, 1);
            vault.setxattr(
                attr.ino,
                OsStr::new("user.n"),
                &[number as u8],
                XattrMode::Any,
            )?;
        }
        _ => {
            fsync(vault, ROOT)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// For each step, the states that it can leave, in order.
type Model = Vec<Vec<Tree>>;

/// Does all steps without a crash: the model of them, and how many operations on the store they took.
fn record(library: &Library, seed: u64) -> (Model, u64) {
    let store = MemoryStore::new();
    let mut vault = library.open(&store).unwrap();
    let mut dice = Dice::new(seed);
    let mut model = Model::new();
    for number in 0..STEPS {
        if number == REMOUNT_AT {
            vault.close().unwrap();
            vault = library.open(&store).unwrap();
        }
        let before = walk(&*vault).unwrap();
        step(&vault, &mut dice, number).unwrap();
        model.push(middle_and_end(&before, walk(&*vault).unwrap()));
    }
    vault.close().unwrap();
    (model, store.operations())
}

/// What the work may have left when it ended.
struct History {
    /// The states up to the step that failed, in order, with those that this step can leave.
    states: Vec<Tree>,
    /// The first of them that may be found after a power cut: that of the last fsync.
    durable: usize,
    /// The first of them that may be found after the process was killed: that of the last step that was answered.
    answered: usize,
}

/// Does the steps of the model until one fails.
fn work(library: &Library, store: &MemoryStore, seed: u64, model: &Model) -> History {
    let mut history = History {
        states: vec![Tree::new()],
        durable: 0,
        answered: 0,
    };
    let Ok(mut vault) = library.open(store) else {
        return history;
    };
    let mut dice = Dice::new(seed);
    for (number, states) in (0..).zip(model) {
        if number == REMOUNT_AT {
            // A clean end publishes everything, and makes it durable.
            if vault.close().is_err() {
                return history;
            }
            history.durable = history.states.len() - 1;
            match library.open(store) {
                Ok(opened) => vault = opened,
                Err(_) => return history,
            }
        }
        history.states.extend(states.iter().cloned());
        let Ok(synced) = step(&vault, &mut dice, number) else {
            return history;
        };
        history.answered = history.states.len() - 1;
        if synced {
            history.durable = history.answered;
        }
    }
    if vault.close().is_ok() {
        history.durable = history.answered;
    }
    history
}

/// The states that a step goes through: a new file is there, empty, before its first contents are.
fn middle_and_end(before: &Tree, after: Tree) -> Vec<Tree> {
    let new = after
        .iter()
        .find(|(path, s)| !before.contains_key(*path) && !s.bytes.is_empty() && s.nlink == 1);
    let is_creation = after.len() == before.len() + 1;
    let middle = new.filter(|_| is_creation).map(|(path, shown)| {
        let mut middle = before.clone();
        middle.insert(
            path.clone(),
            support::Shown {
                bytes: Vec::new(),
                ..shown.clone()
            },
        );
        middle
    });
    middle.into_iter().chain([after]).collect()
}

/// Opens the library after a crash: what it shows must be one of `allowed`.
fn check(library: &Library, store: &MemoryStore, allowed: &[Tree], what: &str) -> Arc<Vault> {
    let vault = library
        .open(store)
        .unwrap_or_else(|e| panic!("{what}: does not open: {e}"));
    let tree = walk(&*vault).unwrap_or_else(|e| panic!("{what}: cannot be read: {e}"));
    if !allowed.contains(&tree) {
        let brief = |t: &Tree| {
            t.iter()
                .map(|(p, s)| format!("{}:{}", String::from_utf8_lossy(p), s.bytes.len()))
                .collect::<Vec<_>>()
        };
        let allowed: Vec<_> = allowed.iter().map(brief).collect();
        panic!(
            "{what}: a state that never was since the last fsync:\n{:?}\nallowed: {allowed:#?}",
            brief(&tree)
        );
    }
    vault
}

/// After a crash, the library must go on: written to, closed, and opened again.
fn goes_on(library: &Library, store: &MemoryStore, vault: Arc<Vault>, what: &str) {
    let made = vault
        .mkdir(ROOT, OsStr::new("afterwards"), 0o755, CALLER)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    vault.forget(made.ino, 1);
    let before = walk(&*vault).unwrap();
    vault
        .close()
        .unwrap_or_else(|e| panic!("{what}: does not close: {e}"));
    drop(vault);
    let vault = library
        .open(store)
        .unwrap_or_else(|e| panic!("{what}: does not open again: {e}"));
    assert_eq!(
        walk(&*vault).unwrap(),
        before,
        "{what}: differs after a clean remount"
    );
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_was_promised() {
    let library = Library::new();
    for seed in 0..12 {
        let (model, operations) = record(&library, seed);
        for cut in 0..operations {
            let store =
                MemoryStore::with_faults(Faults::default().cut_after(cut).seed(cut * 7 + seed));
            let history = work(&library, &store, seed, &model);
            let what = format!("seed {seed}, cut at operation {cut} of {operations}");
            let killed = &history.states[history.answered..];
            let after = store.after_kill();
            goes_on(
                &library,
                &after,
                check(&library, &after, killed, &format!("{what}, killed")),
                &what,
            );
            let cut_off = &history.states[history.durable..];
            for power in 0..2 {
                let what = format!("{what}, power cut {power}");
                let after = store.after_power_cut(power * 1000 + cut);
                let again = after.after_kill();
                goes_on(
                    &library,
                    &after,
                    check(&library, &after, cut_off, &what),
                    &what,
                );
                // The power goes once more, while the crash is mended.
                again.set_faults(Faults::default().cut_after(cut % 13).seed(cut));
                drop(library.open(&again));
                let last = again.after_power_cut(cut);
                check(
                    &library,
                    &last,
                    cut_off,
                    &format!("{what}, and again while it was mended"),
                );
            }
        }
    }
}

#[test]
fn an_operation_that_fails_once_loses_nothing() {
    let library = Library::new();
    for errno in [libc::ENOSPC, libc::EIO] {
        let (model, operations) = record(&library, 9);
        for failing in 2..operations {
            let store =
                MemoryStore::with_faults(Faults::default().fail_once(failing, errno).seed(failing));
            let history = work(&library, &store, 9, &model);
            let what = format!("errno {errno} in operation {failing}");
            let after = store.after_kill();
            goes_on(
                &library,
                &after,
                check(&library, &after, &history.states[history.answered..], &what),
                &what,
            );
        }
    }
}
