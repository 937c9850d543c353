//! Storage of ciphertext.
//!
//! A store holds write-once objects in three areas, and the unfinished (growing) files of this device. An object appears as
//! a whole, by one rename or one call, and is never changed. Unfinished files are used by their own device only. Therefore
//! any program that copies files can sync the areas, in any order.

use std::fmt;

use crate::error::{Error, Kind};

mod absent;
mod descriptors;
mod device_dir;
mod dir;
mod file;
mod folder;
mod make;
mod marks;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod neighbours;
mod objects;
mod owner;
mod probe;
mod staging;
#[cfg(test)]
mod tests;
mod watched;

pub use absent::Absent;
pub use descriptors::Closer;
pub use dir::{Access, DirStore};
pub use make::is_vacant;
#[cfg(any(test, feature = "testing"))]
pub use memory::{Faults, MemoryStore};
pub use neighbours::{Growth, Neighbour};
pub use objects::{Object, Objects, STREAM_ALIGNMENT};
pub use staging::{Growing, Space, Staging};
pub(crate) use watched::LastKnown;
pub use watched::{Calls, Watched};

/// The error for a library that has packs, but no index.
pub fn index_has_not_arrived(subject: impl fmt::Display) -> Error {
    let text =
        "the index has not arrived yet: there are contents, and nothing says what they are of";
    Error::new(Kind::RolledBack(text.into()), subject).hint(
        "wait for the sync to finish, or restore the folder `index`, a real folder of this name, from a copy",
    )
}

/// Where ciphertext lies: all that a mount needs of a store.
pub trait Store: Objects + Staging {}

impl<T: Objects + Staging + ?Sized> Store for T {}
