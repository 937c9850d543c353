//! The index: replay, lookups and extents. `cargo bench --bench index`.

use std::ffi::OsStr;
use std::sync::Arc;

use divan::{Bencher, black_box};
use hushfs::crypto::MasterKey;
use hushfs::index::extents::{Extent, ExtentChange, Extents};
use hushfs::object::ObjectId;
use hushfs::store::MemoryStore;
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Caller, FileKind, ROOT, Volume};

const DEVICE: ObjectId = ObjectId([1; 16]);
const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};
const FILES: u64 = 20_000;

fn main() {
    divan::main();
}

struct Library {
    store: MemoryStore,
    code: String,
}

impl Library {
    fn open(&self) -> Arc<Vault> {
        let options = Options {
            read_only: true,
            cache_bytes: 0,
            accept_rollback: false,
            published_only: false,
            uid: 0,
            gid: 0,
        };
        self.open_with(&options)
    }

    fn open_with(&self, options: &Options) -> Arc<Vault> {
        let master = MasterKey::from_recovery_code(&self.code).expect("made below");
        Vault::open(Arc::new(self.store.clone()), master, DEVICE, None, options)
            .expect("a library of our own opens")
    }

    /// Folders of 100 files, one byte each.
    fn new() -> Self {
        let master = MasterKey::generate().expect("getrandom answers");
        let library = Self {
            store: MemoryStore::new(),
            code: master.recovery_code().to_string(),
        };
        let vault = library.open_with(&Options {
            read_only: false,
            cache_bytes: 0,
            accept_rollback: false,
            published_only: false,
            uid: 0,
            gid: 0,
        });
        let mut dir = ROOT;
        for i in 0..FILES {
            if i % 100 == 0 {
                let name = format!("folder {}", i / 100);
                let made = vault.mkdir(ROOT, OsStr::new(&name), 0o755, CALLER);
                dir = made.expect("memory has room").ino;
            }
            let name = format!("{:02} - A Track With A Name.flac", i % 100);
            let made = vault.mknod(dir, OsStr::new(&name), FileKind::Regular, 0o644, 0, CALLER);
            made.expect("memory has room");
        }
        vault.close().expect("memory has room");
        library
    }
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn replay_20_000_files(bencher: Bencher<'_, '_>) {
    let library = Library::new();
    bencher
        .counter(divan::counter::ItemsCount::new(FILES))
        .bench_local(|| library.open());
}

#[divan::bench]
fn lookup(bencher: Bencher<'_, '_>) {
    let vault = Library::new().open();
    let dir = vault
        .lookup(ROOT, OsStr::new("folder 77"))
        .expect("was made")
        .ino;
    let names: Vec<String> = (0..100)
        .map(|i| format!("{i:02} - A Track With A Name.flac"))
        .collect();
    let mut at = 0;
    bencher.bench_local(|| {
        at = (at + 1) % names.len();
        vault
            .lookup(dir, OsStr::new(&names[at]))
            .map(|a| a.plain_size)
    });
}

#[divan::bench]
fn readdir_100(bencher: Bencher<'_, '_>) {
    let vault = Library::new().open();
    let dir = vault
        .lookup(ROOT, OsStr::new("folder 77"))
        .expect("was made")
        .ino;
    bencher.bench_local(|| {
        let mut count = 0;
        let listed = vault.readdir(dir, 0, false, &mut |_| {
            count += 1;
            true
        });
        listed.map(|()| black_box(count))
    });
}

fn change(block: u64) -> ExtentChange {
    let extent = Extent {
        plain_offset: block * 4096,
        plain_len: 4096,
        pack: (block % 7) as u32,
        cipher_offset: 48 + (block % 8000) as u32 * 4124,
        run_len: 4096,
        start: 0,
    };
    ExtentChange {
        plain_offset: extent.plain_offset,
        plain_len: 4096,
        extent: Some(extent),
    }
}

/// A flush of 8192 pieces into a file that already consists of 65,536.
#[divan::bench]
fn splice_8192_into_65536(bencher: Bencher<'_, '_>) {
    let mut extents = Extents::default();
    let all: Vec<ExtentChange> = (0..65_536).map(change).collect();
    extents.splice(&all, &mut |_, _| {});
    let batch: Vec<ExtentChange> = (0..8192).map(|i| change(i * 8)).collect();
    bencher
        .with_inputs(|| extents.clone())
        .bench_local_values(|mut extents| {
            extents.splice(&batch, &mut |_, _| {});
            extents
        });
}

#[divan::bench]
fn overlapping_in_65536(bencher: Bencher<'_, '_>) {
    let mut extents = Extents::default();
    let all: Vec<ExtentChange> = (0..65_536).map(change).collect();
    extents.splice(&all, &mut |_, _| {});
    let mut at = 0;
    bencher.bench_local(|| {
        at = (at + 7919 * 4096) % (65_536 * 4096);
        extents.overlapping(at, at + 131_072).len()
    });
}
