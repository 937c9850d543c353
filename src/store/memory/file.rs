//! A file of the store in memory, and what a power cut leaves of it.

use crate::dice::Dice;

/// A write that was not synced, and how to undo it.
#[derive(Clone)]
pub(super) struct Unsynced {
    offset: usize,
    len: usize,
    overwritten: Vec<u8>,
    file_len_before: usize,
}

/// The contents of a file, and how much of them is durable.
#[derive(Clone, Default)]
pub(super) struct MemoryFile {
    pub bytes: Vec<u8>,
    pub unsynced: Vec<Unsynced>,
    /// Its name is durable.
    pub is_named: bool,
    /// A sync failed. As on Linux, no later sync makes up for it.
    pub is_sync_lost: bool,
}

impl MemoryFile {
    pub fn durable(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            is_named: true,
            ..Self::default()
        }
    }

    pub fn write(&mut self, data: &[u8], offset: u64) {
        if data.is_empty() {
            return;
        }
        let (start, len) = (offset as usize, self.bytes.len());
        let overwritten = self.bytes[start.min(len)..(start + data.len()).min(len)].to_vec();
        self.unsynced.push(Unsynced {
            offset: start,
            len: data.len(),
            overwritten,
            file_len_before: len,
        });
        place(&mut self.bytes, start, data);
    }

    /// Makes the first `writes` of the unsynced writes durable.
    pub fn sync(&mut self, writes: usize) {
        if !self.is_sync_lost {
            // Meanwhile, tampering may have made all of them durable.
            self.unsynced.drain(..writes.min(self.unsynced.len()));
        }
    }

    pub fn tamper<R>(&mut self, change: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.unsynced.clear();
        self.is_named = true;
        change(&mut self.bytes)
    }

    /// The file after a power cut.
    pub fn after_power_cut(&self, dice: &mut Dice) -> Self {
        let mut bytes = self.bytes.clone();
        let mut writes = Vec::new();
        // Undoes all writes, the latest first. The data of a write are complete once all later ones are undone.
        for write in self.unsynced.iter().rev() {
            writes.push((
                write.offset,
                bytes[write.offset..write.offset + write.len].to_vec(),
            ));
            bytes[write.offset..write.offset + write.overwritten.len()]
                .copy_from_slice(&write.overwritten);
            bytes.truncate(write.file_len_before);
        }
        for (offset, data) in writes.into_iter().rev() {
            let torn_at = dice.below(data.len() as u64 + 1) as usize;
            let end = offset + data.len();
            match dice.below(6) {
                0 | 1 => place(&mut bytes, offset, &data),
                2 => {}
                // The length was written, but not the data, which read as zeros.
                3 => bytes.resize(bytes.len().max(end), 0),
                4 => place(&mut bytes, offset, &data[..torn_at]),
                _ => place(&mut bytes, offset + torn_at, &data[torn_at..]),
            }
        }
        Self::durable(bytes)
    }
}

/// Writes `data` at `offset`; a gap before it is filled with zeros, as in a sparse file.
fn place(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}
