//! Staging: this device's unfinished files, until they are published as objects.

use std::sync::Arc;

use super::Object;
use crate::error::Result;
use crate::object::{Area, DeviceId, ObjectId};

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

/// An unfinished file of this device. One thread may write to it at a time, and any number may read it.
pub trait Growing: Object {
    /// Its id, which it keeps when it is published.
    fn id(&self) -> ObjectId;
    /// Writes all of `data`. After an error, further writes fail ([`Kind::Poisoned`](crate::Kind::Poisoned)), but earlier ones can still be synced.
    fn write_at(&self, data: &[u8], cipher_offset: u64) -> Result<()>;
    /// A hint to start writing a range to the disk, so that a later sync takes less time.
    fn write_back(&self, cipher_offset: u64, cipher_len: u64);
    /// Makes everything written so far, and the file's name in `new/`, durable. After an error, all further writes and syncs
    /// fail ([`Kind::Poisoned`](crate::Kind::Poisoned)).
    fn sync(&self) -> Result<()>;
    /// Called when its contents are no longer needed: [`Staging::check_place`] then ignores the file.
    fn give_up(&self) {}
}

/// This device's unfinished files, and the disk space for them. All methods may be called from several threads.
pub trait Staging: Send + Sync {
    /// Creates an unfinished file.
    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>>;
    /// Moves an unfinished file, which the caller has synced, into an area; durable on return. After an error it is at one
    /// of the two places, and the call may be repeated.
    fn publish(&self, id: ObjectId, area: Area) -> Result<()>;
    /// Removes an unfinished file; a missing one is no error.
    fn discard(&self, id: ObjectId) -> Result<()>;
    /// Lists this device's `new/` folder: at first, what an earlier mount left. Empty if the store was not opened to see
    /// that folder.
    fn leftovers(&self) -> Result<Vec<ObjectId>>;
    /// Opens one of those.
    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>>;
    /// Moves the files of another device's `new/` folder into this device's. Returns false, and changes nothing, if that
    /// device may be in use. May be repeated after an error.
    fn take_over(&self, device: DeviceId) -> Result<bool>;
    /// Whether another device is using the library, or has left files in its `new/` folder: it may refer to objects that
    /// no published segment refers to. A device whose lock cannot be seen from here is not noticed.
    fn has_neighbours(&self) -> Result<bool>;

    /// Makes sure that unfinished files and areas are where the next mount will look for them. Without it, a sync could
    /// report as durable what nobody finds again. Files that somebody removed or replaced are written again from the open
    /// ones; where that is impossible, or the library is no longer at its path, this is
    /// [`Kind::Displaced`](crate::Kind::Displaced). Costs one look at each, so every sync can call it.
    ///
    /// Returns the areas that were replaced by another folder: the caller has to check what is in them.
    fn check_place(&self) -> Result<Vec<Area>>;

    /// Free disk space.
    fn space(&self) -> Result<Space>;
    /// Allocates a reserve of `bytes`, or frees it with 0. On a full disk it lets a deletion be recorded.
    fn reserve(&self, bytes: u64) -> Result<()>;
}
