//! hushfs: an encrypted library, mounted as a normal folder.
//!
//! What is stored (the *library*: a directory, or a synced copy of one) is ciphertext only. What programs
//! see below the mount point is an ordinary POSIX filesystem. This page is the map: the parts, the ways through
//! them, and what is promised. The storage format is in `man/hushfs-format.5`, the formats of other programs in
//! `man/hushfs-foreign.5`, the threat model in `man/hushfs-security.7`: there, and only there.
//!
//! # The parts
//!
//! ```text
//! cli      one file a verb: what was typed, what is printed
//! mount    builds everything top-down; session, signals, unmount
//! library  the one way in: where a library lies, its slots, what they open, as which device, and opening
//! fuse     kernel requests to Volume calls, and what the kernel is told to keep; all that knows fuser
//! volume   the trait that everything mountable implements
//! foreign  what three other programs encrypted, over one mirror of a directory
//! vault    the native filesystem: open files, write buffers, commits, adoption after a crash
//! index    records, frames, segments, bases, and the tree that they replay to
//! pack     sealed blocks in packs: writer, reader, catalogue, padding
//! cache    the segmented LRU of decrypted blocks
//! dirty    written ranges of a file, until they are stored
//! report   what verify finds, of native and foreign libraries
//! cbor     arrays to which later versions may add members
//! state    what this machine remembers of a library, outside of it
//! store    where ciphertext lies: a directory; for tests memory, and one that crashes
//! crypto   keys, slots, derivation, sealing; no I/O
//! gate     whether the library may be written to, and why not
//! overdue  requests that are answered although the store is not done
//! object   ids of objects, and the areas that they lie in
//! logged   where the log goes, and names of files in it
//! error    one error type, one errno table, one table of exit codes
//! dice     numbers from a seed, for tests
//! ```
//!
//! Dependencies point one way: `cli → mount → library → fuse, vault, foreign → state → index → pack → cache, dirty,
//! report, store → cbor, crypto, gate, logged, overdue → object, volume → error, dice`. Modules of one floor do not know each
//! other.
//!
//! Names say which world a number is of: `plain_` is what programs see, `cipher_` what is stored.
//!
//! # The way of a read
//!
//! 1. `fuse`: the kernel's request becomes [`Volume::read`](volume::Volume::read) on an inode number.
//! 2. `vault::read`: the inode's extents, copied out of the [`Tree`](index::Tree) under a short lock; what is still in
//!    the file's dirty buffer lies over them. `vault::blocks` fills them:
//! 3. [`cache`]: blocks that are there are copied; sequential readers pass it by. What these will want next,
//!    `vault::ahead` fetches in large pieces, beside them.
//! 4. [`pack::Packs`] finds the open [`PackReader`](pack::PackReader); adjacent blocks that are missing are one read of
//!    the [`Store`](store::Store), or lie in a piece that was fetched ahead.
//! 5. [`crypto::SealKey::open`] opens each block straight into the answer. What does not open is EIO, and named in the log.
//!
//! No lock that a reader takes is held over I/O.
//!
//! # The way of a write
//!
//! 1. `fuse`: [`Volume::write`](volume::Volume::write).
//! 2. `vault::write`: into the file's dirty buffer (`vault::file`), which is bounded for all files together.
//! 3. A flush (close, fsync, age, size, or a rename that must not get ahead of its data) seals the dirty ranges into the
//!    device's open pack: `vault::flush`, `vault::contents`, [`pack::PackWriter`]. Of a long write, `vault::stream` has
//!    that done beside the writer.
//! 4. `vault::journal`: a [`Frame`](index::record::Frame) that says where the bytes lie is appended to the open segment in
//!    `new/`, and then changes the tree. Operations on names and attributes begin here: look, frame, change.
//! 5. `vault::commit`, one thread: syncs packs and segment for all who wait in fsync; publishes both, packs first, by a
//!    rename to `data/` and `index/`.
//!
//! What a crash leaves in `new/` is recovered by `vault::adopt` at the next mount. After a publication, `vault::base` writes
//! a base when one is due, and `vault::collect` removes what nothing needs any more; `vault::defragment` rewrites files
//! that are in too many pieces, and `vault::salvage` empties packs that a write failed in.
//!
//! # Several devices
//!
//! Each device writes segments of its own, and what its writer had applied is in their heads. `index::history` says which
//! segments count and in which order; `index::merge` applies those that were written beside each other, in an order that
//! no arrival changes (`index::versions` has the contents); `index::conflicts` settles by ordinary records what these
//! leave: two links of one name, a folder below itself, versions of a file that lost. `vault::conflicts` frames them
//! before anything else.
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
//! 6. Memory is bounded: the cache, 96 MiB, 300 bytes a file, 32 an extent, and the bytes of extended attributes, link
//!    targets and long names.
//! 7. Every request is answered in bounded time, whether or not the store answers; what was answered with EIO for that is
//!    not done: `overdue`.
//!
//! # Where a change belongs
//!
//! A request of the kernel that is not answered: `fuse`, then [`volume`]. Another store: a second [`Store`](store::Store).
//! Another thing to mount: a second [`Volume`](volume::Volume). A new kind of record: `index::record`, its meaning in
//! `index::apply`, and the format page, which `tests/format` holds against both.

#![deny(clippy::unwrap_used)]

pub mod cache;
mod cbor;
pub mod cli;
pub mod crypto;
mod dice;
mod dirty;
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
