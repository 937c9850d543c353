//! hushfs: an encrypted library, mounted as a normal folder.
//!
//! The *library* (a directory, or a synced copy of one) holds ciphertext only. Programs see an ordinary POSIX filesystem
//! below the mount point. This page is the map: the words, the parts, the ways through them, and what is promised. The
//! storage format is described in `man/hushfs-format.5`, the formats of other programs in `man/hushfs-foreign.5`, the
//! threat model in `man/hushfs-security.7`: there, and only there.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | *object* | a file of the library: a slot in `key/`, a segment in `index/`, a pack in `data/`; written once, never changed |
//! | *pack* | encrypted file contents, up to 64 MiB, of any number of files |
//! | *run* | consecutive blocks in one pack that were encrypted together |
//! | *extent* | a range of a file, and the part of a run that holds it |
//! | *segment* | a part of a device's journal; *frames* in it are atomic, and hold *records* |
//! | *snapshot* | a segment that holds the whole state of the index; the format page calls it a base |
//! | *head* | the newest segment of one device |
//! | *slot* | the master key, encrypted for one password, key file or recovery code |
//! | *device* | one user on one machine; each writes segments of its own |
//! | *inode*, *link* | a file or directory, and a name of it, each with an id that never changes |
//! | *tree* | the state in memory that the index replays to |
//! | *published* | in `key/`, `index/` or `data/`, where copiers find it; before that a file is in `new/` |
//! | *plain*, *cipher* | `plain_` is an offset or length as programs see it, `cipher_` one in a stored file |
//!
//! # The parts
//!
//! ```text
//! cli      one file per subcommand: what was typed, what is printed
//! mount    a mount from beginning to end: session, signals, unmount; takes whatever gives a Volume
//! library  the one way in: where a library is, its slots, what they open, as which device, and opening
//! fuse     kernel requests to Volume calls, and what the kernel may keep; the only part that knows fuser
//! volume   the trait that everything mountable implements
//! foreign  what three other programs encrypted, over one mirror of a directory
//! vault    the native filesystem: view, log, files, outbox, syncer, upkeep, recovery
//! state    what this machine remembers of a library, outside of it
//! index    records, frames, segments, snapshots, and the tree that they replay to
//! pack     encrypted blocks in packs: writer, reader, catalogue, padding
//! cache    the segmented LRU of decrypted blocks
//! dirty    written ranges of a file, until they are stored
//! report   what verify finds, in native and foreign libraries
//! store    where ciphertext is kept: a directory; for tests memory, with faults and power cuts
//! env      the clock and the source of ids
//! cbor     arrays to which later versions may add members
//! crypto   keys, slots, key derivation, authenticated encryption; no I/O
//! gate     whether the library may be written to, and why not
//! logged   where the log goes, and names of files in it
//! overdue  requests that are answered although the store is not done
//! object   ids of objects, and the areas that they are in
//! error    one error type, one errno table, one table of exit codes
//! dice     numbers from a seed, for tests
//! ```
//!
//! Dependencies point one way: `cli → library → vault, foreign → state → index → pack, mount → cache, dirty, report,
//! store, fuse → env → cbor, crypto, gate, logged, overdue → object, volume → error, dice`. Modules of one floor do not
//! know each other; a test (`layers`) holds that.
//!
//! # The way of a read
//!
//! 1. `fuse`: the kernel's request becomes [`Volume::read`](volume::Volume::read) on an inode number.
//! 2. `vault::files::read`: the file's extents are copied out of the tree under a short lock. Bytes that are still in its
//!    dirty buffer cover what the view returns.
//! 3. `vault::view`: blocks that are in the [`cache`] are copied from there. Sequential readers bypass it: what they will
//!    want next is fetched in large chunks on threads of its own (`view::readahead`).
//! 4. [`pack::Packs`] finds the open [`PackReader`](pack::PackReader). Adjacent blocks that are missing are one read of the
//!    [`Store`](store::Store).
//! 5. [`crypto::SealKey::open`] decrypts each block into the answer. A block that fails to decrypt is EIO, and logged.
//!
//! No lock that a reader takes is held over I/O.
//!
//! # The way of a write
//!
//! 1. `fuse`: [`Volume::write`](volume::Volume::write).
//! 2. `vault::files::write`: into the file's dirty buffer; the buffers of all files together are bounded.
//! 3. `vault::files::flush` (at close, fsync, by age or size, or before a rename that must not overtake its data): the dirty
//!    ranges are encrypted into the device's open pack (`vault::log::new_packs`). During a long write, `files::stream` does
//!    that on another thread.
//! 4. `vault::log`: a transaction appends a [`Frame`](index::record::Frame) that says where the bytes are to the open segment
//!    in `new/`, then changes the tree. Operations on names and attributes (`vault::ops`) begin here.
//! 5. `vault::syncer`, a thread: one sync of packs and segment for all who wait in fsync, and by age (`log::sync`).
//! 6. `vault::outbox`, called by `vault::upkeep`, a second thread: publishes packs, then the segment that names them, by a
//!    rename to `data/` and `index/`.
//!
//! # Where everything else is
//!
//! | what | where |
//! |---|---|
//! | a mount after a crash | `vault::recovery`: scan, judge, adopt; before any thread runs |
//! | removing dead packs, snapshots, defragmentation | the tasks of `vault::upkeep` |
//! | a pack that a write or a sync failed in | `vault::salvage`, before anything is published |
//! | a mount that only reads | `vault::view`; `view::follow` reads the index again when it changes |
//! | closing a library | `Vault::close_writer`, one list |
//! | an older state (a mount as of yesterday) | a `View` of a tree that [`index::replay`] stopped early |
//! | another store (a bucket) | a second implementation of the traits in [`store`]; uploads go through the outbox |
//!
//! # Several devices
//!
//! Each device writes segments of its own; their heads say what its writer had applied. `index::history` says which segments
//! count and in which order, `index::merge` applies those that were written concurrently, in an order that does not depend
//! on their arrival (`index::versions` has the contents). `index::conflicts` settles by ordinary records what these leave:
//! two links of one name, a directory below itself, versions of a file that lost. `vault::conflicts` records that before
//! anything else.
//!
//! # What is promised
//!
//! 1. After close(2), or the answer to any operation on names and attributes, killing the process loses nothing. After
//!    fsync(2), cutting the power loses nothing. The state after a crash is that of one moment after the last fsync.
//!    Where somebody removes, replaces or overwrites files of the library meanwhile, fsync(2) writes again what it can,
//!    or fails.
//! 2. Every byte that comes from the store is authenticated before it is used.
//! 3. Plaintext, of names or contents, is never written to a disk. Names of files are logged where the log is a terminal
//!    or a file of the user's; in the system's log, at the level debug only.
//! 4. A pack is removed only after the record that condemned it is published, so that what is published is whole at any
//!    moment; on a disk that is too full for that, after it is durable.
//! 5. Bad input (a slot, an index, a pack) is an error that names the file and what to do. It never panics, loops, or
//!    takes memory without bound: `fuzz/` and `tests/fuzz_smoke.rs` try.
//! 6. Memory is bounded: the cache, 96 MiB, 300 bytes per file, 32 per extent, and the bytes of extended attributes, link
//!    targets and long names.
//! 7. Every request is answered in bounded time, whether or not the store answers; what was answered with EIO for that is
//!    not done: `overdue`.
//!
//! # Files and tests
//!
//! The module `x` is in `x.rs`, its submodules are in `x/`. Tests of one module are inline below 100 lines, otherwise in
//! `x/tests.rs`; tests of a whole vault, for moments and failures that requests alone do not reach, in `vault/tests/`; tests
//! of the public interface and of the program in `tests/`. A test is named after what it shows.
//!
//! # Where a change belongs
//!
//! A kernel request that is not answered: `fuse`, then [`volume`]. Another store, or a layer over one: an
//! implementation of [`Objects`](store::Objects). Another way to open a library: [`library`]. Another thing to mount: a second [`Volume`](volume::Volume). A new kind of record: `index::record`,
//! its meaning in `index::apply`, and the format page, which `tests/format` holds against both.
//!
//! Tests are inline below a hundred lines, else in `x/tests.rs`; those of a whole vault are in `vault/tests/`, those of
//! the public API in `tests/`, and those with real mounts and programs in `tests/programs/`.

#![deny(clippy::unwrap_used)]

pub mod cache;
mod cbor;
pub mod cli;
pub mod crypto;
#[cfg(any(test, feature = "testing"))]
mod dice;
mod dirty;
pub mod env;
pub mod error;
pub mod foreign;
pub mod fuse;
pub mod gate;
pub mod index;
#[cfg(test)]
mod layers;
pub mod library;
mod logged;
pub mod mount;
pub mod object;
pub mod overdue;
pub mod pack;
pub mod report;
pub mod state;
pub mod store;
pub mod vault;
pub mod volume;

pub use error::{Error, Kind, Result};
