//! A store that was changed behind the program's back: every byte, cut, swapped, removed, replaced or added
//! objects. Opening or reading says which object it is; nothing that was not written is ever shown.

mod support;

use std::ffi::OsStr;
use std::sync::Arc;

use hushfs::error::{Error, Result};
use hushfs::object::{Area, ObjectId};
use hushfs::store::{Faults, MemoryStore};
use hushfs::vault::Vault;
use hushfs::volume::*;
use support::{CALLER, Library, Tree, walk};

/// A small library: two segments, two packs, a file whose contents are in the first and the second pack.
struct Sample {
    library: Library,
    store: MemoryStore,
    tree: Tree,
    /// As it was after the first segment.
    older: Tree,
}

fn put(vault: &Vault, name: &str, at: u64, data: &[u8]) {
    let attr = match vault.lookup(ROOT, OsStr::new(name)) {
        Ok(attr) => attr,
        Err(_) => vault
            .mknod(ROOT, OsStr::new(name), FileKind::Regular, 0o644, 0, CALLER)
            .unwrap(),
    };
    let handle = vault.open(attr.ino, libc::O_RDWR).unwrap();
    vault.write(attr.ino, handle, at, data).unwrap();
    vault.flush(attr.ino, handle).unwrap();
    vault.release(attr.ino, handle);
    vault.forget(attr.ino, 1);
}

fn sample() -> Sample {
    let (library, store) = (Library::new(), MemoryStore::new());
    let vault = library.open(&store).unwrap();
    put(&vault, "first", 0, &[1; 700]);
    put(&vault, "both", 0, &[2; 20_000]);
    vault.close().unwrap();
    let vault = library.open(&store).unwrap();
    let older = walk(&*vault).unwrap();
    put(&vault, "second", 0, &[3; 900]);
    put(&vault, "both", 18_000, &[4; 4000]);
    vault.close().unwrap();
    let tree = walk(&*library.open(&store).unwrap()).unwrap();
    Sample {
        library,
        store,
        tree,
        older,
    }
}

impl Sample {
    /// The library again, in a store of its own.
    fn copy(&self) -> MemoryStore {
        self.store.after_kill()
    }

    /// Opens and reads everything. What is shown is what was written, and what is not shown is an error that names
    /// an object. Where a part of the index does not count, what came before it is shown, and `hushfs verify` names it.
    /// Answers whether something was found, and how many files were read nevertheless.
    fn check(&self, store: &MemoryStore, what: &str) -> (bool, usize) {
        let vault = match self.open(store) {
            Ok(vault) => vault,
            Err(e) => {
                assert_named(&e, what);
                return (true, 0);
            }
        };
        let (mut found, mut read) = (false, 0);
        for (path, shown) in &self.tree {
            let name = OsStr::new(std::str::from_utf8(&path[1..]).unwrap());
            let bytes = vault
                .lookup(ROOT, name)
                .and_then(|attr| support::contents(&*vault, &attr));
            let is_older = |bytes: &[u8]| self.older.get(path).is_some_and(|o| o.bytes == bytes);
            match bytes {
                Ok(bytes) if bytes == shown.bytes => read += 1,
                Ok(bytes) if is_older(&bytes) => found |= names_index(&vault),
                Ok(_) => panic!("{what}: {name:?} shows something else"),
                Err(e) if e.errno() == libc::ENOENT => found |= names_index(&vault),
                Err(e) => {
                    assert_named(&e, what);
                    found = true;
                }
            }
        }
        (found, read)
    }

    fn open(&self, store: &MemoryStore) -> Result<Arc<Vault>> {
        self.library.open_with(store, 0, true)
    }

    fn objects(&self) -> Vec<(Area, ObjectId)> {
        let of = |area| {
            self.store
                .objects(area)
                .into_iter()
                .map(move |id| (area, id))
        };
        of(Area::Index).chain(of(Area::Data)).collect()
    }
}

/// What `hushfs verify` says of the objects beside the files.
fn problems(sample: &Sample, store: &MemoryStore) -> Vec<String> {
    told_by(&sample.open(store).unwrap())
}

fn told_by(vault: &Vault) -> Vec<String> {
    let mut told = Vec::new();
    vault
        .check_objects(&mut |e| told.push(e.to_string()))
        .unwrap();
    told
}

/// Whether `hushfs verify` says that something of the index is damaged or missing.
fn names_index(vault: &Vault) -> bool {
    let told = told_by(vault);
    told.iter()
        .any(|t| t.contains("index/") || t.contains("the index is incomplete"))
}

#[test]
fn verify_checks_the_parts_of_a_pack_that_reads_do_not() {
    let sample = sample();
    assert_eq!(problems(&sample, &sample.copy()), Vec::<String>::new());
    for id in sample.store.objects(Area::Data) {
        let len = sample.store.object(Area::Data, id).unwrap().len();
        // After every run of these packs.
        let kept = 30_000;
        type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
        let changes: [(&str, Change<'_>); 4] = [
            ("cut", &|bytes| bytes.truncate(kept)),
            ("longer", &|bytes| bytes.push(0)),
            ("trailer", &|bytes| bytes[len - 10] ^= 1),
            ("header", &|bytes| bytes[40] ^= 1),
        ];
        for (what, change) in changes {
            let store = sample.copy();
            store.with_object(Area::Data, id, change);
            let told = problems(&sample, &store);
            assert_eq!(told.len(), 1, "{what}: {told:?}");
            assert!(
                told[0].starts_with(&format!("data/{id}: ")),
                "{what}: {told:?}"
            );
        }
        // The catalogue lies somewhere behind the blocks: some byte in this range is its.
        let hit = (48..kept).step_by(20).filter(|at| {
            let store = sample.copy();
            store.with_object(Area::Data, id, |bytes| bytes[*at] ^= 1);
            !problems(&sample, &store).is_empty()
        });
        assert!(hit.count() > 0, "the catalogue of data/{id}");
    }
}

fn assert_named(e: &Error, what: &str) {
    let text = e.to_string();
    let named = ["index/", "data/", "segment ", "base "]
        .iter()
        .any(|name| text.contains(name));
    assert!(named, "{what}: names no object: {text}");
}

#[test]
fn no_changed_byte_goes_unnoticed_where_it_matters() {
    let sample = sample();
    for (area, id) in sample.objects() {
        let len = sample.store.object(area, id).unwrap().len();
        let is_tried = |at: &usize| area == Area::Index || *at < 2500 || at.is_multiple_of(97);
        let mut unnoticed = Vec::new();
        let tried: Vec<usize> = (0..len).filter(is_tried).collect();
        for at in &tried {
            let store = sample.copy();
            store.with_object(area, id, |bytes| bytes[*at] ^= 1 << (at % 8));
            let (found, read) = sample.check(&store, &format!("byte {at} of {area:?} {id}"));
            if area == Area::Data {
                assert!(read > 0, "a hurt pack took all files along");
            }
            if !found {
                unnoticed.push(*at);
            }
        }
        // Only random padding is not looked at (and a pack's catalogue and trailer are not by who reads): one range
        // behind all that was sealed. Of a segment that a later one has seen, every byte is.
        let (Some(first), Some(last)) = (unnoticed.first(), unnoticed.last()) else {
            continue;
        };
        let between = tried
            .iter()
            .filter(|at| (first..=last).contains(at))
            .count();
        assert_eq!(
            between,
            unnoticed.len(),
            "gaps in what is noticed of {area:?} {id}"
        );
        assert!(*first > 48 + 500, "byte {first} of {area:?} {id}");
        assert!(
            area == Area::Data || *last < len - 60,
            "the trailer of index/{id}"
        );
    }
}

#[test]
fn no_cut_goes_unnoticed() {
    let sample = sample();
    for (area, id) in sample.objects() {
        let len = sample.store.object(area, id).unwrap().len();
        for left in [0, 1, 47, 48, 500, len / 2, len - 1] {
            let store = sample.copy();
            store.with_object(area, id, |bytes| bytes.truncate(left));
            let (found, _) = sample.check(&store, &format!("{left} of {len} of {area:?} {id}"));
            assert!(found || area == Area::Data, "{left} of {len} of index/{id}");
            assert!(found || left > 700, "{left} of {len} of data/{id}");
        }
        for behind in [1, 100_000] {
            let store = sample.copy();
            store.with_object(area, id, |bytes| bytes.resize(len + behind, 7));
            let (found, _) = sample.check(&store, &format!("{behind} behind {area:?} {id}"));
            assert!(found || area == Area::Data);
        }
    }
}

#[test]
fn objects_that_are_gone_or_change_places_are_named() {
    let sample = sample();
    for (area, id) in sample.objects() {
        let store = sample.copy();
        store.take_object(area, id).unwrap();
        let what = format!("without {area:?} {id}");
        // The newest segment of all is missed only by who remembers it: the state before it is shown.
        let shown = sample.open(&store).and_then(|vault| walk(&*vault));
        match shown {
            Ok(tree) => {
                let is_told = || !problems(&sample, &store).is_empty();
                assert!(
                    area == Area::Index && (tree == sample.older || is_told()),
                    "{what}"
                );
            }
            Err(e) => assert_named(&e, &what),
        }
        for (other_area, other) in sample.objects() {
            if (other_area, other) == (area, id) {
                continue;
            }
            let store = sample.copy();
            store.insert_object(area, id, store.object(other_area, other).unwrap());
            let what = format!("{other_area:?} {other} in the place of {area:?} {id}");
            // A copy of what is there takes nothing away: it is as if the other one had not arrived.
            let is_older = || walk(&*sample.open(&store).unwrap()).unwrap() == sample.older;
            assert!(sample.check(&store, &what).0 || is_older(), "{what}");
        }
    }
}

#[test]
fn objects_of_another_library_show_nothing() {
    let (sample, stranger) = (sample(), sample());
    for (area, id) in stranger.objects() {
        let bytes = stranger.store.object(area, id).unwrap();
        let store = sample.copy();
        store.insert_object(area, id, bytes.clone());
        // It is passed over, and of the index also named.
        let (found, read) = sample.check(&store, &format!("a stranger's {area:?} {id}"));
        assert!(!found && read == sample.tree.len());
        let told = problems(&sample, &store);
        let is_named = told.iter().any(|t| t.contains(&format!("index/{id}")));
        assert_eq!(is_named, area == Area::Index, "{told:?}");
        // Under a name that the library knows.
        for (own_area, own) in sample.objects().into_iter().filter(|(a, _)| *a == area) {
            let store = sample.copy();
            store.insert_object(own_area, own, bytes.clone());
            let what = format!("a stranger's {area:?} as {own}");
            assert!(sample.check(&store, &what).0, "{what}");
        }
    }
}

#[test]
fn an_older_whole_is_a_state_that_was() {
    // Without a memory of what was seen, an older whole is shown, as it was: never a mixture.
    let (library, store) = (Library::new(), MemoryStore::new());
    let mut states = Vec::new();
    for round in 0..3u8 {
        let vault = library.open(&store).unwrap();
        put(&vault, "f", u64::from(round) * 100, &[round + 1; 5000]);
        vault.close().unwrap();
        let now = store.after_kill();
        states.push((now, walk(&*library.open(&store).unwrap()).unwrap()));
    }
    let newest = states.last().unwrap().0.objects(Area::Index);
    for (older, tree) in &states {
        older.set_faults(Faults::default());
        assert!(walk(&*library.open_with(older, 0, true).unwrap()).unwrap() == *tree);
        // Some of the older index with some of the newer one.
        for id in &newest {
            let mixed = older.after_kill();
            mixed.insert_object(
                Area::Index,
                *id,
                states[2].0.object(Area::Index, *id).unwrap(),
            );
            match library.open_with(&mixed, 0, true) {
                Err(e) => assert_named(&e, "a mixture"),
                Ok(vault) => match walk(&*vault) {
                    Err(e) => assert_named(&e, "a mixture"),
                    Ok(shown) => assert!(states.iter().any(|(_, tree)| *tree == shown)),
                },
            }
        }
    }
}
