//! The cost of encrypting, packing and caching. `cargo bench --bench sealing`; the packs are written below `TMPDIR`.

use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use hushfs::cache::{BlockCache, BlockKey};
use hushfs::crypto::{Header, Magic, MasterKey, SEAL_OVERHEAD, random_id};
use hushfs::object::{Area, ObjectId, PackId};
use hushfs::pack::{BLOCK_PLAIN_LEN, Note, PackReader, PackWriter, Run};
use hushfs::store::{Access, DirStore, Objects, Store};

const BLOCK: usize = BLOCK_PLAIN_LEN as usize;
const NOTE: Note<'_> = Note {
    inode: 1,
    path: b"music/album/track.flac",
    plain_offset: 0,
    counter: 1,
};

fn main() {
    divan::main();
}

fn master() -> MasterKey {
    MasterKey::generate().expect("the system has random numbers")
}

fn library() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let store =
        DirStore::open(dir.path(), Access::Write(ObjectId([1; 16]))).expect("it can be a library");
    (dir, store)
}

#[divan::bench(args = [4096, BLOCK, 65_536])]
fn seal(bencher: Bencher<'_, '_>, len: usize) {
    let key = master().object_key(&Header::new(Magic::Pack, ObjectId([2; 16])));
    let plain = vec![7; len];
    let mut sealed = vec![0; len + SEAL_OVERHEAD];
    bencher
        .counter(BytesCount::new(len))
        .bench_local(|| key.seal_into(b"aad", &[&plain], &mut sealed).is_ok());
}

#[divan::bench(args = [4096, BLOCK, 65_536])]
fn open(bencher: Bencher<'_, '_>, len: usize) {
    let key = master().object_key(&Header::new(Magic::Pack, ObjectId([2; 16])));
    let mut sealed = Vec::new();
    key.seal(b"aad", &[&vec![7; len]], &mut sealed)
        .expect("sealing needs only random numbers");
    let mut plain = vec![0; len];
    bencher
        .counter(BytesCount::new(len))
        .bench_local(|| assert!(key.open(b"aad", black_box(&sealed), &mut plain)));
}

/// Writes a full pack in runs of `run_len`, syncs and publishes it.
fn write_pack(store: &dyn Store, master: &MasterKey, plain: &[u8]) -> Run {
    let id = PackId(random_id().expect("the system has random numbers"));
    let mut writer =
        PackWriter::create(store, master, id, ObjectId([1; 16])).expect("there is room");
    let mut first = None;
    while writer.room() > 0 {
        let len = plain.len().min(writer.room() as usize);
        let run = writer
            .append(&[&plain[..len]], &NOTE)
            .expect("there is room");
        first.get_or_insert(run);
    }
    let done = writer.finish().expect("there is room");
    done.file.sync().expect("the disk works");
    store
        .publish(done.id.object(), Area::Data)
        .expect("the disk works");
    first.expect("a pack holds a run")
}

#[divan::bench(args = [BLOCK, 1 << 20, 4 << 20], sample_count = 16, sample_size = 1)]
fn write_64_mib_pack_in_runs_of(bencher: Bencher<'_, '_>, run_len: usize) {
    let (_dir, store) = library();
    let (master, plain) = (master(), vec![7; run_len]);
    bencher
        .counter(BytesCount::new(64_usize << 20))
        .bench_local(|| write_pack(&store, &master, &plain));
}

#[divan::bench(args = [1, 8, 64])]
fn read_warm_blocks(bencher: Bencher<'_, '_>, blocks: u32) {
    let (_dir, store) = library();
    let master = master();
    let run = write_pack(&store, &master, &vec![7; 4 << 20]);
    let object = store
        .open(Area::Data, run.pack.object())
        .expect("it was just published");
    let reader = PackReader::open(object, run.pack, &master).expect("it was just written");
    let len = blocks as usize * (BLOCK + SEAL_OVERHEAD);
    let (mut sealed, mut plain) = (vec![0; len], vec![0; BLOCK]);
    bencher
        .counter(BytesCount::new(blocks as usize * BLOCK))
        .bench_local(|| {
            reader
                .read_sealed(run.cipher_offset, &mut sealed)
                .expect("it was just written");
            for (block, bytes) in sealed.chunks(BLOCK + SEAL_OVERHEAD).enumerate() {
                reader
                    .open_block(&run, block as u32, bytes, &mut plain)
                    .expect("it was just written");
            }
        });
}

// Many iterations per sample: a single one takes less time than reading the clock.
#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn cache_hit(bencher: Bencher<'_, '_>) {
    let cache = BlockCache::new(64 << 20);
    let key = |n: u32| BlockKey {
        pack: 3,
        cipher_offset: 48 + n % 2000 * 16_412,
    };
    let plain: Arc<[u8]> = vec![0; BLOCK].into();
    for n in 0..4000 {
        if cache.get(key(n)).is_none() {
            cache.insert(key(n), Arc::clone(&plain));
        }
    }
    let next = std::sync::atomic::AtomicU32::new(0);
    bencher.bench(|| {
        cache
            .get(key(next.fetch_add(7, std::sync::atomic::Ordering::Relaxed)))
            .is_some()
    });
}
