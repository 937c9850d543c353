use std::collections::BTreeSet;
use std::time::Instant;

use super::*;
use std::time::Duration;

fn id(n: u8) -> ObjectId {
    ObjectId([n; 16])
}

/// All that a power cut may make of one thing, over many seeds.
fn outcomes<T: Ord>(store: &MemoryStore, look: impl Fn(&MemoryStore) -> T) -> BTreeSet<T> {
    (0..3000)
        .map(|seed| look(&store.after_power_cut(seed)))
        .collect()
}

fn leftover(store: &MemoryStore, id: ObjectId) -> Option<Vec<u8>> {
    store.with_leftover(id, |bytes| bytes.clone())
}

/// A little life of a store, with every kind of operation.
fn life(store: &MemoryStore) -> Result<()> {
    store.put(Area::Key, id(1), b"slot")?;
    let file = store.create(id(2))?;
    file.write_at(b"head", 0)?;
    file.sync()?;
    file.write_at(b"tail", 4)?;
    file.sync()?;
    store.publish(id(2), Area::Data)?;
    store.remove(Area::Key, id(1))?;
    store.create(id(3))?;
    store.discard(id(3))
}

#[test]
fn every_operation_can_be_the_last() {
    let whole = MemoryStore::new();
    life(&whole).unwrap();
    let operations = whole.operations();
    assert_eq!(operations, 10);
    for n in 0..operations {
        let store = MemoryStore::with_faults(Faults::default().cut_after(n));
        assert!(life(&store).is_err(), "operation {n}");
        assert_eq!(store.operations(), n + 1);
        // Nobody writes or reads after that.
        assert!(
            life(&store).is_err() && store.list(Area::Key).is_err() && store.leftovers().is_err()
        );
        assert_eq!(store.operations(), n + 1);
        for seed in 0..20 {
            life(&store.after_power_cut(seed)).ok();
        }
        let failing = MemoryStore::with_faults(Faults::default().fail_once(n, libc::EIO));
        assert!(life(&failing).is_err(), "operation {n}");
        assert!(failing.create(id(9)).is_ok(), "only one fails");
    }
    assert!(
        life(&MemoryStore::with_faults(
            Faults::default().cut_after(operations)
        ))
        .is_ok()
    );
}

#[test]
fn a_cut_keeps_what_was_synced_and_decides_over_the_rest() {
    let store = MemoryStore::new();
    let file = store.create(id(1)).unwrap();
    file.write_at(b"synced", 0).unwrap();
    file.sync().unwrap();
    file.write_at(b"ABCDEF", 6).unwrap();
    file.write_at(b"ghijkl", 12).unwrap();
    let seen = outcomes(&store, |after| {
        leftover(after, id(1)).expect("its name was synced")
    });
    assert!(seen.iter().all(|bytes| bytes.starts_with(b"synced")));
    for expected in [
        &b"synced"[..],
        b"syncedABCDEFghijkl",
        b"syncedABCDEF",
        b"synced\0\0\0\0\0\0ghijkl",
        b"synced\0\0\0\0\0\0",
        b"syncedABC",
        b"synced\0\0\0DEF",
    ] {
        assert!(
            seen.contains(expected),
            "{:?}",
            String::from_utf8_lossy(expected)
        );
    }
    assert_eq!(
        leftover(&store.after_kill(), id(1)).unwrap(),
        b"syncedABCDEFghijkl"
    );
    // A kill is no sync: the cut may still come.
    assert!(outcomes(&store.after_kill(), |after| leftover(after, id(1))).len() > 10);
    // The same seed, the same world; and the first is not changed by what befalls its copies.
    assert_eq!(
        leftover(&store.after_power_cut(7), id(1)),
        leftover(&store.after_power_cut(7), id(1))
    );
    assert_eq!(leftover(&store, id(1)).unwrap(), b"syncedABCDEFghijkl");
}

#[test]
fn overwriting_is_undone_to_what_was_there() {
    let store = MemoryStore::new();
    let file = store.create(id(1)).unwrap();
    file.write_at(b"aaaa", 0).unwrap();
    file.sync().unwrap();
    file.write_at(b"bb", 1).unwrap();
    file.write_at(b"cccc", 2).unwrap();
    let seen = outcomes(&store, |after| leftover(after, id(1)).unwrap());
    for expected in [&b"aaaa"[..], b"abba", b"aacccc", b"abcccc"] {
        assert!(
            seen.contains(expected),
            "{:?}",
            String::from_utf8_lossy(expected)
        );
    }
}

#[test]
fn names_that_were_not_synced_may_go_or_come_back() {
    let store = MemoryStore::new();
    store.put(Area::Data, id(1), b"removed").unwrap();
    store.put(Area::Data, id(2), b"stays").unwrap();
    store.create(id(3)).unwrap();
    store.remove(Area::Data, id(1)).unwrap();
    let both = BTreeSet::from([false, true]);
    assert_eq!(
        outcomes(&store, |after| leftover(after, id(3)).is_some()),
        both
    );
    assert_eq!(
        outcomes(&store, |after| after.object(Area::Data, id(1)).is_some()),
        both
    );
    assert_eq!(
        outcomes(&store, |after| after.object(Area::Data, id(2)).is_some()),
        BTreeSet::from([true])
    );
    assert_eq!(store.after_kill().objects(Area::Data), [id(2)]);
    // Another name in the folder made durable takes the removal along.
    store.put(Area::Data, id(4), b"x").unwrap();
    assert_eq!(
        outcomes(&store, |after| after.object(Area::Data, id(1)).is_some()),
        BTreeSet::from([false])
    );
    store.remove(Area::Data, id(4)).unwrap();
    store.publish(id(3), Area::Data).unwrap();
    assert_eq!(
        outcomes(&store, |after| after.object(Area::Data, id(4)).is_some()),
        BTreeSet::from([false])
    );
}

#[test]
fn publishing_is_durable_and_in_a_cut_one_or_the_other() {
    let store = MemoryStore::new();
    let file = store.create(id(1)).unwrap();
    file.write_at(b"x", 0).unwrap();
    file.sync().unwrap();
    store.set_faults(Faults::default().cut_after(store.operations()));
    assert!(store.publish(id(1), Area::Index).is_err());
    let places = |after: &MemoryStore| {
        (
            leftover(after, id(1)).is_some(),
            after.object(Area::Index, id(1)).is_some(),
        )
    };
    assert_eq!(
        outcomes(&store, places),
        BTreeSet::from([(false, true), (true, false)])
    );
    let after = store.after_kill();
    let _ = after.publish(id(1), Area::Index);
    assert_eq!(outcomes(&after, places), BTreeSet::from([(false, true)]));
}

#[test]
fn a_power_cut_during_put_is_atomic() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let store = MemoryStore::with_faults(Faults::default().cut_after(0).seed(seed));
        assert!(store.put(Area::Key, id(1), b"slot").is_err());
        seen.extend(outcomes(&store, |after| {
            (leftover(after, id(1)), after.object(Area::Key, id(1)))
        }));
    }
    assert!(
        seen.iter()
            .all(|(_, object)| object.as_ref().is_none_or(|bytes| bytes == b"slot")),
        "an object is whole"
    );
    let whole = Some(b"slot".to_vec());
    for expected in [
        (None, None),
        (None, whole.clone()),
        (whole, None),
        (Some(b"sl".to_vec()), None),
    ] {
        assert!(seen.contains(&expected), "{expected:?}");
    }
}

#[test]
fn a_write_that_fails_may_be_done_in_part_and_is_the_last() {
    let mut lens = BTreeSet::new();
    for seed in 0..100 {
        let store = MemoryStore::with_faults(Faults::default().fail_once(1, libc::EIO).seed(seed));
        let file = store.create(id(1)).unwrap();
        assert!(file.write_at(b"abcd", 0).is_err());
        assert!(matches!(
            file.write_at(b"abcd", 0).unwrap_err().kind(),
            Kind::Poisoned
        ));
        lens.insert(file.cipher_len().unwrap());
    }
    assert_eq!(lens, BTreeSet::from([0, 1, 2, 3, 4]));
}

#[test]
fn after_a_sync_that_failed_no_other_says_yes() {
    let store = MemoryStore::with_faults(Faults::default().fail_once(2, libc::EIO));
    let file = store.create(id(1)).unwrap();
    file.write_at(b"x", 0).unwrap();
    assert!(file.sync().is_err());
    assert!(matches!(file.sync().unwrap_err().kind(), Kind::Poisoned));
    // Who opens it anew hears yes, and has nothing, as with Linux.
    store.open_leftover(id(1)).unwrap().sync().unwrap();
    assert!(outcomes(&store, |after| leftover(after, id(1))).contains(&Some(vec![])));
}

#[test]
fn writes_during_a_sync_are_not_synced() {
    let delay = Duration::from_millis(200);
    let store = MemoryStore::with_faults(Faults::default().sync_delay(delay));
    let file = store.create(id(1)).unwrap();
    file.write_at(b"before", 0).unwrap();
    let start = Instant::now();
    std::thread::scope(|threads| {
        threads.spawn(|| file.sync().unwrap());
        while store.operations() < 3 {
            std::thread::yield_now();
        }
        file.write_at(b"during", 6).unwrap();
        assert!(start.elapsed() < delay, "a sync holds up no write");
    });
    assert!(start.elapsed() >= delay);
    let seen = outcomes(&store, |after| leftover(after, id(1)).unwrap());
    assert!(seen.contains(&b"before"[..]) && seen.contains(&b"beforeduring"[..]));
    assert!(seen.iter().all(|bytes| bytes.starts_with(b"before")));
}

#[test]
fn a_full_disk_says_so() {
    let store = MemoryStore::with_faults(Faults::default().space(100));
    store.reserve(20).unwrap();
    let file = store.create(id(1)).unwrap();
    file.write_at(&[1; 70], 0).unwrap();
    assert_eq!(store.space().unwrap().available_bytes, 10);
    assert!(
        store
            .put(Area::Key, id(2), &[0; 11])
            .unwrap_err()
            .is_no_space()
    );
    assert!(store.reserve(31).unwrap_err().is_no_space());
    assert!(file.write_at(&[2; 30], 70).unwrap_err().is_no_space());
    assert_eq!(
        file.cipher_len().unwrap(),
        80,
        "what fits is written, as the system does"
    );
    store.reserve(0).unwrap();
    store.put(Area::Key, id(2), &[0; 20]).unwrap();
    store.discard(id(1)).unwrap();
    assert_eq!(store.space().unwrap().available_bytes, 80);
}
