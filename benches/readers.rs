//! Readers concurrent with a slow fsync, which should cost them next to nothing. `cargo bench --bench readers`.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use divan::{Bencher, black_box};
use hushfs::crypto::MasterKey;
use hushfs::object::ObjectId;
use hushfs::store::{Faults, MemoryStore};
use hushfs::vault::{Options, Vault};
use hushfs::volume::{Caller, FileKind, Handle, Ino, ROOT, Volume};

const SYNC: Duration = Duration::from_millis(50);
const FILE_LEN: u64 = 1 << 20;

fn main() {
    divan::main();
}

/// Writes to a file and syncs it, repeatedly.
fn sync_until(done: &AtomicBool, vault: &Vault, ino: Ino, handle: Handle) {
    while !done.load(Ordering::Relaxed) {
        vault
            .write(ino, handle, 0, &[1; 100])
            .expect("memory has room");
        let (send, receive) = channel();
        let synced = Box::new(move |synced| drop(send.send(synced)));
        vault.fsync(ino, handle, synced);
        let synced = receive.recv().expect("an fsync is answered");
        synced.expect("memory has room");
    }
}

/// A lookup and a read of 4 KiB, with or without concurrent fsyncs.
#[divan::bench(args = [false, true])]
fn lookup_and_read_beside_fsyncs(bencher: Bencher<'_, '_>, has_fsyncs: bool) {
    let store = MemoryStore::with_faults(Faults::default().sync_delay(SYNC));
    let options = Options {
        read_only: false,
        cache_bytes: 4 << 20,
        accept_rollback: false,
        published_only: false,
        uid: 0,
        gid: 0,
    };
    let master = MasterKey::generate().expect("getrandom answers");
    let vault = Vault::open(Arc::new(store), master, ObjectId([1; 16]), None, &options);
    let vault = vault.expect("an empty library opens");
    let caller = Caller {
        uid: 0,
        gid: 0,
        umask: 0o022,
    };
    let [read, written] = ["read", "written"].map(|name| {
        let made = vault.mknod(ROOT, OsStr::new(name), FileKind::Regular, 0o644, 0, caller);
        let ino = made.expect("memory has room").ino;
        let handle = vault.open(ino, libc::O_RDWR).expect("was made");
        let data = vec![7; FILE_LEN as usize];
        vault.write(ino, handle, 0, &data).expect("memory has room");
        vault.flush(ino, handle).expect("memory has room");
        (ino, handle)
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if has_fsyncs {
            scope.spawn(|| sync_until(&done, &vault, written.0, written.1));
        }
        let (mut at, mut out) = (0, vec![0; 4096]);
        bencher.bench_local(|| {
            at = (at + 7919 * 4096) % FILE_LEN;
            let found = vault.lookup(ROOT, OsStr::new("read"));
            black_box(found).expect("was made");
            vault.read(read.0, read.1, at, &mut out)
        });
        done.store(true, Ordering::Relaxed);
    });
    vault.close().expect("memory has room");
}
