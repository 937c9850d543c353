//! Failures of the store, publications, removals and crashes in any order: what an fsync promised is there, and what
//! was removed before one stays away.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::object::Area;

#[derive(Debug, Clone)]
enum Step {
    /// The operation so many from now on fails.
    Fail(u64, bool),
    Put(usize),
    Unlink(usize),
    Fsync,
    Publish,
    EmptySpoiled,
    Collect,
    Kill,
    PowerCut(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u64..8, any::<bool>()).prop_map(|(ahead, full)| Step::Fail(ahead, full)),
        6 => (1usize..40_000).prop_map(Step::Put),
        2 => (0usize..8).prop_map(Step::Unlink),
        4 => Just(Step::Fsync),
        2 => Just(Step::Publish),
        2 => Just(Step::EmptySpoiled),
        1 => Just(Step::Collect),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(Step::PowerCut),
    ]
}

/// What a file holds; `None` where it was removed.
type Held = Option<Vec<u8>>;

struct Storm {
    bench: Bench,
    /// By an fsync.
    promised: BTreeMap<String, Held>,
    /// Done since.
    pending: BTreeMap<String, Held>,
    files: usize,
}

impl Storm {
    fn new() -> Self {
        let bench = Bench::new();
        bench.halt_threads();
        Self {
            bench,
            promised: BTreeMap::new(),
            pending: BTreeMap::new(),
            files: 0,
        }
    }

    fn apply(&mut self, step: &Step) {
        let vault = self.bench.vault.clone();
        match *step {
            Step::Fail(ahead, full) => {
                let errno = if full { libc::ENOSPC } else { libc::EIO };
                self.bench.fail(ahead, errno);
            }
            Step::Put(len) => self.put(len),
            Step::Unlink(which) => {
                let all = self.promised.iter().chain(&self.pending);
                let there: Vec<&String> = all.filter(|f| f.1.is_some()).map(|f| f.0).collect();
                let Some(name) = there.get(which).map(|name| (*name).clone()) else {
                    return;
                };
                // One that fails may have been done: nothing is said of that file any more.
                let removed = self.bench.vault.unlink(ROOT, OsStr::new(&name));
                self.promised.remove(&name);
                self.pending.remove(&name);
                if removed.is_ok() {
                    self.pending.insert(name, None);
                }
            }
            Step::Fsync => {
                if vault
                    .files
                    .flush_all()
                    .and_then(|()| vault.log.sync())
                    .is_ok()
                {
                    self.promised.append(&mut self.pending);
                }
            }
            // These may fail: what they were to do is done later.
            Step::Publish => drop(vault.outbox.publish()),
            Step::EmptySpoiled => drop(vault.outbox.salvage()),
            Step::Collect => drop(vault.upkeep.collector.collect()),
            Step::Kill => {
                self.bench.kill().unwrap();
                self.crashed();
            }
            Step::PowerCut(seed) => {
                self.bench.power_cut(seed).unwrap();
                self.crashed();
            }
        }
    }

    fn put(&mut self, len: usize) {
        self.files += 1;
        let name = format!("f{}", self.files);
        let vault = self.bench.vault.clone();
        let made = vault.mknod(ROOT, OsStr::new(&name), FileKind::Regular, 0o644, 0, CALLER);
        let Ok(made) = made else { return };
        vault.forget(made.ino, 1);
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + self.files) as u8).collect();
        if self.bench.try_write(made.ino, 0, &data).is_ok() {
            self.pending.insert(name, Some(data));
        }
    }

    fn crashed(&mut self) {
        self.bench.halt_threads();
        self.pending.clear();
        check_packs(&self.bench);
    }

    fn check(&self, bench: &Bench, moment: &str) {
        for (name, held) in &self.promised {
            // What was done to it since may be there or not.
            if self.pending.contains_key(name) {
                continue;
            }
            match held {
                Some(data) => assert!(bench.read(name).unwrap() == *data, "{name}, {moment}"),
                None => assert!(bench.stat(name).is_none(), "{name} is back, {moment}"),
            }
        }
    }
}

/// Of every published pack that the index names it says how long it is; only such a pack is ever collected.
fn check_packs(bench: &Bench) {
    let tree = bench.vault.view.tree();
    for id in bench.store.objects(Area::Data) {
        let known = tree
            .find_pack(PackId(id))
            .is_none_or(|p| p.cipher_len.is_some());
        assert!(known, "nothing says how long data/{id} is");
    }
}

/// What is published is whole by itself: so it can be copied and verified at any time. And with what lies in `new/`, it
/// can be mounted read-only.
fn check_published(code: &str, store: &MemoryStore) {
    let options = Options {
        read_only: true,
        ..OPTIONS
    };
    open_with(code, store, &options).unwrap();
    let master = Arc::new(MasterKey::from_recovery_code(code).unwrap());
    let device = crate::object::ObjectId([0xde; 16]);
    let store: Arc<dyn Store> = Arc::new(store.clone());
    let source = Source {
        env: Arc::default(),
        store: store.clone(),
        master,
    };
    let (vault, _) = Vault::load(&source, device, None, &options).unwrap();
    let there: Vec<PackId> = store
        .list(Area::Data)
        .unwrap()
        .iter()
        .map(|o| PackId(o.0))
        .collect();
    let tree = vault.view.tree();
    for pack in tree.packs().iter().filter(|p| p.live_plain_bytes > 0) {
        assert!(there.contains(&pack.id), "data/{} is gone", pack.id);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_was_promised_outlives_failures_and_crashes(
        steps in proptest::collection::vec(step(), 1..30),
        seed in any::<u64>(),
    ) {
        let mut storm = Storm::new();
        for (i, step) in steps.iter().enumerate() {
            storm.apply(step);
            storm.check(&storm.bench, "in the mount");
            for cut in 0..3 {
                let seed = seed ^ (i as u64) << 8 ^ cut;
                check_published(&storm.bench.code, &storm.bench.store.after_power_cut(seed));
                let after = storm.bench.after_power_cut(seed).unwrap();
                check_packs(&after);
                storm.check(&after, "after a power cut");
            }
        }
    }
}

#[test]
fn wherever_collection_is_cut_short_what_is_published_is_whole() {
    for ahead in 0..30 {
        let bench = Bench::new();
        bench.halt_threads();
        let ino = bench.put("f", &[1; 5000]);
        bench.vault.outbox.publish().unwrap();
        bench.write(ino, 0, &[2; 5000]);
        let cut = Faults::default().cut_after(bench.store.operations() + ahead);
        bench.store.set_faults(cut);
        let is_cut = bench.vault.upkeep.collector.collect().is_err();
        let store = bench.store.after_kill();
        check_published(&bench.code, &store);
        assert!(is_cut || store.objects(Area::Data).len() == 1, "at {ahead}");
        assert!(is_cut || ahead > 5, "nothing was cut at {ahead}");
    }
}

#[test]
fn a_copy_of_a_segment_that_a_power_cut_tears_hides_nothing() {
    use Step::{Fail, Fsync, Put};
    for ahead in 0..10 {
        let mut storm = Storm::new();
        // A frame fails, so the next one goes into a copy; of that the sync fails.
        let steps = [
            Put(1),
            Fail(5, false),
            Fsync,
            Put(1),
            Put(1),
            Fail(ahead, false),
            Put(1),
        ];
        for step in &steps {
            storm.apply(step);
        }
        for cut in 0..50 {
            let after = storm.bench.after_power_cut(cut).unwrap();
            storm.check(&after, "after a power cut");
        }
    }
}
