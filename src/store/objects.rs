//! Objects: what a store holds for all devices.

use std::sync::Arc;

use super::{Absent, Calls, Closer};
use crate::error::Result;
use crate::object::{Area, ObjectId};

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

/// The objects of a store. All methods may be called from several threads.
///
/// A layer over objects (a cache, retries, counting) needs this trait alone.
pub trait Objects: Send + Sync {
    /// Lists the objects of an area with their lengths in bytes. Ignores files whose names no object can have.
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>>;
    /// Placeholders for objects of an area that are not there, as far as that can be seen.
    fn absent(&self, _area: Area) -> Result<Vec<Absent>> {
        Ok(Vec::new())
    }
    /// Opens an object. A missing one is [`Kind::Missing`](crate::Kind::Missing).
    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>>;
    /// Adds a small object, which is whole and durable on return.
    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()>;
    /// Removes an object; a missing one is no error. Not durable on return: the object may come back after a power cut.
    fn remove(&self, area: Area, id: ObjectId) -> Result<()>;

    /// Sets what closes files when there are too few file descriptors to open another.
    fn on_too_few_files(&self, _closer: Closer) {}

    /// Its calls, if they are watched.
    fn calls(&self) -> Option<&Calls> {
        None
    }
}
