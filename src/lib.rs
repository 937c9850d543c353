//! hushfs: an encrypted library, mounted as a normal folder.
//!
//! What is stored (the *library*: a directory, or a synced copy of one) is ciphertext only. What programs
//! see below the mount point is an ordinary POSIX filesystem.
//!
//! # The parts
//!
//! ```text
//! cli      one file a verb: what was typed, what is printed
//! mount    builds everything top-down; session, signals, unmount
//! fuse     kernel requests to Volume calls; the one file that knows fuser
//! volume   the trait that everything mountable implements
//! foreign  what three other programs encrypted, over one mirror of a directory
//! vault    the native filesystem: open files, write buffers, commits, adoption after a crash
//! index    records, frames, segments, bases, and the tree that they replay to
//! pack     sealed blocks in packs: writer, reader, catalogue, padding
//! cache    the segmented LRU of decrypted blocks
//! store    where ciphertext lies: a directory; for tests memory, and one that crashes
//! crypto   keys, slots, derivation, sealing; no I/O
//! error    one error type, one errno table, one table of exit codes
//! ```
//!
//! Dependencies point one way: `cli → mount → fuse → volume ← vault, foreign → index, pack, cache → store, crypto`.
//!
//! The storage format is in `man/hushfs-format.5`, the threat model in `man/hushfs-security.7`: there, and
//! only there.

#![deny(clippy::unwrap_used)]

pub mod cache;
pub mod cli;
pub mod crypto;
pub mod error;
pub mod foreign;
pub mod fuse;
pub mod index;
pub mod mount;
pub mod pack;
pub mod state;
pub mod store;
pub mod vault;
pub mod volume;

pub use error::{Error, Kind, Result};
