//! Ids of new inodes and links. Owns the last id assigned; does not own the tree, which knows the numbers in use.

use parking_lot::Mutex;

use crate::env::Env;
use crate::error::Result;
use crate::index::Tree;
use crate::index::record::Id;

/// The low half of the last id assigned: the time in seconds, and a counter.
#[derive(Default)]
pub struct Ids(Mutex<u64>);

impl Ids {
    /// Returns an id for a new inode or link. The low half is the time in seconds and a counter with a random start, so
    /// that directories are listed, and packs are read, in order of creation. The high half is random. It is chosen so
    /// that the inode number that programs see is not in use.
    pub fn next(&self, env: &Env, tree: &Tree) -> Result<Id> {
        let mut random = [[0; 8]; 2];
        env.random(random.as_flattened_mut())?;
        let start = u64::from_le_bytes(random[0]) & ((1 << 29) - 1);
        let seconds = u64::try_from(env.wall().sec).unwrap_or(0) & ((1 << 33) - 1);
        let mut last = self.0.lock();
        *last = if seconds > *last >> 30 {
            seconds << 30 | start
        } else {
            *last + 1
        };
        loop {
            let high = u128::from(u64::from_le_bytes(random[1]));
            let id = Id(high << 64 | u128::from(*last));
            if tree.is_free(id.number().into()) {
                return Ok(id);
            }
            env.random(&mut random[1])?;
        }
    }
}
