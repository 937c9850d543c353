//! Crashes of a device among others: the power goes, or the process is killed, at every operation on the store of a
//! plan in which three devices write, publish and merge. The copier goes on, and so do the others. In the end all show
//! the same, and everything is there that an fsync of anybody promised.

use super::fleet::*;
use super::ledger::{Deed, Ledger};
use super::*;
use crate::error::Error;
use crate::object::Area;

/// One step of a plan.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    Mount,
    Unmount,
    Fsync,
    Base,
    Collect,
    /// New contents, which are unlike all others.
    Put(&'static str),
    Mkdir(&'static str),
    Rename(&'static str, &'static str),
    Remove(&'static str),
    /// The copier brings what this device has published; of the index, each file with this chance in four.
    Pull(usize, u64),
}

use Act::*;

const DEVICES: u8 = 3;

/// The first device writes alone, collects and writes a base, when another has a copy of what was before that.
const BEGINNING: &[(usize, Act)] = &[
    (0, Mount),
    (0, Put("/f")),
    (0, Unmount),
    (1, Pull(0, 4)),
    (0, Mount),
    (0, Put("/f")),
    (0, Mkdir("/d")),
    (0, Put("/d/h")),
    (0, Fsync),
    (0, Put("/mine 0")),
    (0, Collect),
    (0, Base),
    (0, Unmount),
    (2, Pull(0, 4)),
];

/// All write one file, two make one folder, one renames what another removes; a base is written beside that; and what is
/// merged is changed again.
const MIDDLE: &[(usize, Act)] = &[
    (0, Mount),
    (1, Mount),
    (2, Mount),
    (0, Put("/f")),
    (0, Rename("/d/h", "/moved")),
    (0, Mkdir("/new")),
    (0, Put("/new/both")),
    (0, Fsync),
    (1, Put("/f")),
    (1, Mkdir("/new")),
    (1, Put("/new/both")),
    (1, Fsync),
    (1, Base),
    (2, Remove("/f")),
    (2, Remove("/d/h")),
    (2, Remove("/d")),
    (0, Unmount),
    (2, Put("/tmp")),
    (2, Rename("/tmp", "/f")),
    (2, Fsync),
    (2, Pull(0, 4)),
    (1, Unmount),
    (0, Pull(1, 4)),
    (0, Mount),
    (0, Remove("/mine 0")),
    (0, Put("/f")),
    (0, Fsync),
    (2, Unmount),
    (2, Pull(1, 2)),
    (2, Mount),
    (2, Put("/new/both")),
    (2, Base),
    (0, Rename("/new", "/renamed")),
    (0, Unmount),
    (2, Unmount),
    (1, Pull(2, 4)),
    (1, Mount),
    (1, Put("/mine 1")),
    (1, Fsync),
    (1, Remove("/mine 1")),
    (1, Unmount),
];

/// How a device ends at its crash.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// The process is killed, and the device mounts again.
    Killed,
    /// The power goes, and the device is away until the end; the power goes again while that crash is mended.
    PowerCut,
    /// All have one power supply, and mount again.
    PowerOfAll,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    device: usize,
    operation: u64,
    how: How,
}

/// Devices at work on a plan, and a crash to come.
struct Scene {
    fleet: Vec<Device>,
    /// Since when each is mounted.
    mounted_at: Vec<usize>,
    /// It crashed, and does nothing until the end.
    is_away: Vec<bool>,
    cut: Option<Cut>,
    /// Not all of what somebody published was brought here.
    is_partial: Vec<bool>,
    ledger: Ledger,
    written: usize,
    dice: Dice,
}

impl Scene {
    fn play(plan: impl Iterator<Item = (usize, Act)>, cut: Option<Cut>) -> Self {
        let mut scene = Self {
            fleet: Device::fleet(DEVICES),
            mounted_at: vec![0; DEVICES.into()],
            is_away: vec![false; DEVICES.into()],
            cut,
            is_partial: vec![false; DEVICES.into()],
            ledger: Ledger::default(),
            written: 0,
            dice: Dice(1),
        };
        if let Some(cut) = cut {
            let faults = Faults::default().cut_after(cut.operation);
            scene.fleet[cut.device]
                .store
                .set_faults(faults.seed(cut.operation));
        }
        for (at, act) in plan {
            match act {
                Pull(from, quarters) => scene.pull(at, from, quarters),
                _ if scene.is_away[at] => {}
                _ => scene.act(at, act),
            }
        }
        scene
    }

    fn act(&mut self, at: usize, act: Act) {
        let done = match act {
            Mount => self.unmount(at).and_then(|()| self.mount(at)),
            Unmount => self.unmount(at),
            _ => self.work(at, act),
        };
        if self.is_cut(at) {
            self.crash();
        } else if let Err(e) = done {
            panic!("device {at}, {act:?}: {e}");
        } else if self
            .cut
            .is_some_and(|cut| cut.how == How::Killed && cut.device == at)
        {
            // A kill loses nothing that was answered.
            self.ledger.promise(at);
        }
    }

    fn pull(&mut self, at: usize, from: usize, quarters: u64) {
        self.fleet[at].pull(&self.fleet[from], &mut self.dice, quarters);
        self.is_partial[at] |= quarters < 4 || self.is_partial[from];
    }

    fn is_cut(&self, at: usize) -> bool {
        let Some(cut) = self.cut else { return false };
        cut.device == at && self.fleet[at].store.operations() > cut.operation
    }

    fn unmount(&mut self, at: usize) -> Result<()> {
        match self.fleet[at].vault.take() {
            Some(vault) => vault.close().inspect(|()| self.ledger.promise(at)),
            None => Ok(()),
        }
    }

    /// Mounts, if what is there is enough for that.
    fn mount(&mut self, at: usize) -> Result<()> {
        let lacks_index = self.fleet[at].store.objects(Area::Index).is_empty();
        let mut opened = self.fleet[at].open(false);
        if opened.is_err() && !self.is_cut(at) && (self.is_partial[at] || lacks_index) {
            // The copier has not brought all that this needs: now it does.
            (0..self.fleet.len()).for_each(|from| self.pull(at, from, 4));
            self.is_partial[at] = false;
            if self.fleet[at].store.objects(Area::Index).is_empty() {
                // The only one who could write it has crashed: there is no library yet.
                return Ok(());
            }
            opened = self.fleet[at].open(false);
        }
        let vault = opened?;
        vault.threads.as_ref().unwrap().halt(&vault.log)?;
        self.ledger.count += 1;
        self.mounted_at[at] = self.ledger.count;
        self.fleet[at].vault = Some(vault);
        Ok(())
    }

    fn work(&mut self, at: usize, act: Act) -> Result<()> {
        let Some(vault) = self.fleet[at].vault.clone() else {
            return Ok(());
        };
        let vault = &vault;
        match act {
            Fsync => {
                vault.files.flush_all()?;
                vault.log.sync()?;
                self.ledger.promise(at);
                return Ok(());
            }
            Base => return vault.upkeep.snapshots.write(&mut || ()),
            Collect => return vault.upkeep.collector.collect(),
            _ => {}
        }
        let before = shown(vault);
        let noted = self.ledger.events.len();
        self.ledger.take(act, &before, at, self.mounted_at[at]);
        self.written += 1;
        let new = format!("contents {} ", self.written).repeat(1 + self.written % 5 * 100);
        let done = match act {
            Put(path) => put(vault, path, new.as_bytes()),
            Mkdir(path) => mkdir(vault, path),
            Rename(from, to) => rename(vault, from, to),
            Remove(path) => remove(vault, path),
            _ => Ok(()),
        };
        match (act, done) {
            (_, Err(e)) if self.is_cut(at) => return Err(e),
            // A crash took what it needs, or another device did.
            (_, Err(e)) if is_refusal(&e) => self.ledger.events.truncate(noted),
            (_, Err(e)) => return Err(e),
            (Put(path), Ok(())) => {
                let (new, since) = (new.into_bytes(), self.mounted_at[at]);
                self.ledger.note(new, Deed::Placed, path, at, since);
            }
            (Rename(from, to), Ok(())) => {
                if let Some(Some(moved)) = before.get(from) {
                    let (moved, since) = (moved.clone(), self.mounted_at[at]);
                    self.ledger.note(moved, Deed::Placed, to, at, since);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn crash(&mut self) {
        let Some(cut) = self.cut.take() else { return };
        for at in 0..self.fleet.len() {
            if at != cut.device && cut.how != How::PowerOfAll {
                continue;
            }
            let was_mounted = self.fleet[at].vault.is_some();
            let store = &self.fleet[at].store;
            self.fleet[at].store = match cut.how {
                How::Killed => store.after_kill(),
                _ => store.after_power_cut(cut.operation * 10 + at as u64),
            };
            self.fleet[at].vault = None;
            self.ledger.crash(at);
            match cut.how {
                How::PowerCut => self.is_away[at] = true,
                _ if was_mounted || at == cut.device => self.mount(at).unwrap(),
                _ => {}
            }
        }
    }

    /// Everybody mounts again, everything is exchanged, and checked. Answers what all show.
    fn end(mut self, operation: u64) -> Shown {
        // Not every run has as many operations as the first: the crash may not have come.
        if let Some(cut) = self.cut.take() {
            self.fleet[cut.device].store.set_faults(Faults::default());
        }
        for at in 0..self.fleet.len() {
            if std::mem::take(&mut self.is_away[at]) {
                let device = &mut self.fleet[at];
                let faults = Faults::default().cut_after(operation % 17);
                device.store.set_faults(faults.seed(operation));
                drop(device.open(false));
                device.store = device.store.after_power_cut(operation);
            }
            if self.fleet[at].vault.is_none() {
                self.mount(at).unwrap();
            }
            self.unmount(at).unwrap();
        }
        let shown = merged(&mut self.fleet);
        self.ledger.check(&shown);
        shown
    }
}

/// An answer that says that a name is there or not, or is something else.
fn is_refusal(e: &Error) -> bool {
    matches!(
        e.errno(),
        libc::ENOENT
            | libc::ESTALE
            | libc::EEXIST
            | libc::EISDIR
            | libc::ENOTDIR
            | libc::ENOTEMPTY
            | libc::EINVAL
    )
}

/// Says where a test was when it failed.
struct Whereabouts(String);

impl Drop for Whereabouts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Plays a plan with a crash at every operation; with `every` of them only. How many crashes there were.
fn crash_everywhere(plan: &[(usize, Act)], every: usize) -> usize {
    let plan = || BEGINNING.iter().chain(plan).copied();
    let whole = Scene::play(plan(), None);
    let operations: Vec<u64> = whole.fleet.iter().map(|d| d.store.operations()).collect();
    whole.end(0);
    let mut count = 0;
    for (device, all) in operations.into_iter().enumerate() {
        for operation in (0..all).step_by(every) {
            for how in [How::Killed, How::PowerCut, How::PowerOfAll] {
                let cut = Cut {
                    device,
                    operation,
                    how,
                };
                let _here = Whereabouts(format!("{cut:?} of {all}"));
                let scene = Scene::play(plan(), Some(cut));
                count += usize::from(scene.cut.is_none());
                scene.end(operation);
            }
        }
    }
    count
}

#[test]
fn a_crash_at_any_operation_of_three_devices_loses_nothing_that_was_promised() {
    let plan = BEGINNING.iter().chain(MIDDLE).copied();
    let shown = Scene::play(plan, None).end(0);
    let conflicts = shown.keys().filter(|name| name.contains(" (conflict, "));
    assert!(conflicts.count() > 1, "{:?}", shown.keys());
    let count = crash_everywhere(MIDDLE, 1);
    assert!(count > 300, "only {count} crashes");
}

/// Random plans, with a crash at every operation: as many as `HUSHFS_CRASH_SEEDS` says. Without it one, with some crashes.
#[test]
fn crashes_in_any_plan_lose_nothing_that_was_promised() {
    let seeds = std::env::var("HUSHFS_CRASH_SEEDS").ok();
    let (seeds, every) = match seeds.and_then(|s| s.parse().ok()) {
        Some(seeds) => (seeds, 1),
        None => (1u64, 11),
    };
    for seed in 1..=seeds {
        let _here = Whereabouts(format!("seed {seed}"));
        crash_everywhere(&plan_of_chance(seed), every);
    }
}

fn plan_of_chance(seed: u64) -> Vec<(usize, Act)> {
    const STEPS: usize = 60;
    const PATHS: [&str; 9] = [
        "/f", "/g", "/d", "/d/h", "/d/f", "/new", "/new/f", "/new/d", "/d/new",
    ];
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // All know that they are several.
    let mut plan = vec![(1, Mount), (1, Put("/g")), (1, Unmount), (0, Pull(1, 4))];
    plan.extend((0..DEVICES.into()).map(|at| (at, Mount)));
    for _ in 0..STEPS {
        let at = dice.below(DEVICES.into()) as usize;
        let mut path = || PATHS[dice.below(PATHS.len() as u64) as usize];
        let (a, b) = (path(), path());
        let act = match dice.below(20) {
            0..=5 => Put(a),
            6 | 7 => Mkdir(a),
            8..=10 => Rename(a, b),
            11 | 12 => Remove(a),
            13 | 14 => Fsync,
            15 => Base,
            16 => Unmount,
            _ => {
                let from = dice.below(DEVICES.into()) as usize;
                plan.push((at, Pull(from, 2 + dice.below(3))));
                Mount
            }
        };
        plan.push((at, act));
    }
    plan
}
