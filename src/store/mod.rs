//! Storage of ciphertext.
//!
//! A store holds write-once objects in three areas, and the unfinished (growing) files of this device. An object appears as
//! a whole, by one rename or one call, and is never changed. Unfinished files are used by their own device only. Therefore
//! any program that copies files can sync the areas, in any order.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};

mod absent;
mod descriptors;
mod dir;
mod file;
mod folder;
mod make;
mod marks;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod neighbours;
mod own;
mod owner;
mod probe;
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

/// Disk space of the store, in bytes. A number that the store does not know is as large as possible: it is no limit.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// The size of the disk.
    pub total_bytes: u64,
    /// Unused.
    pub free_bytes: u64,
    /// Unused, and available to ordinary users.
    pub available_bytes: u64,
}

impl Space {
    /// The largest size that is reported. Some stores report a larger one to say that they have no limit; programs that
    /// use signed numbers would take it for a negative one.
    pub const BYTES_MAX: u64 = 1 << 60;

    /// Corrects what the store reports. A FUSE filesystem that does not know its size reports 0 bytes in all; this counts as
    /// no limit.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if self.total_bytes == 0 {
            (self.free_bytes, self.available_bytes) = (u64::MAX, u64::MAX);
            self.total_bytes = u64::MAX;
        }
        self.total_bytes = self.total_bytes.max(self.free_bytes).min(Self::BYTES_MAX);
        self.free_bytes = self.free_bytes.min(self.total_bytes);
        self.available_bytes = self.available_bytes.min(self.free_bytes);
        self
    }
}

/// The alignment that [`Object::read_stream`] requires, in bytes. It suits disk sectors and memory pages.
pub const STREAM_ALIGNMENT: u32 = 4096;

/// An object, or an unfinished file, that is open for reading.
pub trait Object: Send + Sync {
    /// Its name in messages: `data/00ff…`.
    fn name(&self) -> String;
    /// Its current length, in bytes.
    fn cipher_len(&self) -> Result<u64>;
    /// Fills `out` from `cipher_offset`. If the object is too short, it is damaged.
    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()>;
    /// Reads at most `out.len()` bytes from `cipher_offset`, and returns how many it read. The offset, and the length and
    /// address of `out`, must be multiples of [`STREAM_ALIGNMENT`], so that the disk can fill `out` directly, without a copy
    /// in the page cache.
    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize>;
    /// A hint that this range will be read soon. Does not wait and cannot fail.
    fn prefetch(&self, cipher_offset: u64, cipher_len: u64);
    /// A hint that this range will not be read again soon. Does not wait and cannot fail.
    fn uncache(&self, cipher_offset: u64, cipher_len: u64);
}

/// An unfinished file of this device. One thread may write to it at a time, and any number may read it.
pub trait Growing: Object {
    /// Its id, which it keeps when it is published.
    fn id(&self) -> ObjectId;
    /// Writes all of `data`. After an error, further writes fail ([`Kind::Poisoned`]), but earlier ones can still be synced.
    fn write_at(&self, data: &[u8], cipher_offset: u64) -> Result<()>;
    /// A hint to start writing a range to the disk, so that a later sync takes less time.
    fn write_back(&self, cipher_offset: u64, cipher_len: u64);
    /// Makes everything written so far, and the file's name in `new/`, durable. After an error, all further writes and syncs
    /// fail ([`Kind::Poisoned`]).
    fn sync(&self) -> Result<()>;
    /// Called when its contents are no longer needed: [`Store::check_place`] then ignores the file.
    fn give_up(&self) {}
}

/// Storage of ciphertext. All methods may be called from several threads.
pub trait Store: Send + Sync {
    /// Every object of an area with its length in bytes. Files that no object could be called are passed over.
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>>;
    /// What stands for objects of an area that are not there, as far as that can be told.
    fn absent(&self, _area: Area) -> Result<Vec<Absent>> {
        Ok(Vec::new())
    }
    /// Opens an object. One that is not there is [`Kind::Missing`].
    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>>;
    /// Adds a small object, whole and durable on return.
    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()>;
    /// Removes an object; one that is not there is no error. Not durable on return: a removal may come back.
    fn remove(&self, area: Area, id: ObjectId) -> Result<()>;

    /// Makes a growing file.
    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>>;
    /// Moves a growing file (or a leftover), which the caller has synced, into an area; durable on return. After an
    /// error it lies at one of the two places, and the call may be repeated.
    fn publish(&self, id: ObjectId, area: Area) -> Result<()>;
    /// Removes a growing file or a leftover; one that is not there is no error.
    fn discard(&self, id: ObjectId) -> Result<()>;
    /// What lies in this device's `new/` folder: at first, what a crash left. Nothing, where the store is not opened to
    /// see that folder.
    fn leftovers(&self) -> Result<Vec<ObjectId>>;
    /// Opens one of those.
    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>>;
    /// Makes leftovers of this device of what lies in another device's `new/` folder; false, and nothing is touched,
    /// where that device may be at work there. May be repeated after an error.
    fn take_over(&self, device: DeviceId) -> Result<bool>;
    /// Whether another device is at work in the library, or has left something in its `new/` folder: it may use what
    /// nothing published uses. A device whose lock is not seen from here is not noticed.
    fn has_neighbours(&self) -> Result<bool>;

    /// Makes sure that what grows, and the areas, lie where the next mount will look for them: without it, a sync says
    /// that something is durable which nobody finds again. What somebody removed or replaced is written again from what
    /// is open. What cannot be is [`Kind::Displaced`], as is a library that is not at its path
    /// any more. Costs a look at each of them, so that every sync can ask.
    ///
    /// Answers the areas in whose place another folder was found: what lay in them has to be looked for.
    fn check_place(&self) -> Result<Vec<Area>>;

    /// Says who can close files where there are too few file descriptors to open another.
    fn on_too_few_files(&self, _closer: Closer) {}

    /// Room left.
    fn space(&self) -> Result<Space>;
    /// Keeps `bytes` of room back from everybody, or lets them go with 0: the reserve that lets a deletion be
    /// recorded on a full disk.
    fn reserve(&self, bytes: u64) -> Result<()>;

    /// Its calls, where they are watched.
    fn calls(&self) -> Option<&Calls> {
        None
    }
}
