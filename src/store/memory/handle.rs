//! An open file of the store in memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::faults::Fate;
use super::{File, Place, State, name_of};
use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;
use crate::store::{Growing, Object};

/// An open file.
pub(super) struct Handle {
    state: Arc<Mutex<State>>,
    file: File,
    place: Place,
    id: ObjectId,
    write_failed: AtomicBool,
    sync_failed: AtomicBool,
}

impl Handle {
    pub fn new(state: Arc<Mutex<State>>, file: File, place: Place, id: ObjectId) -> Self {
        let (write_failed, sync_failed) = Default::default();
        Self {
            state,
            file,
            place,
            id,
            write_failed,
            sync_failed,
        }
    }

    fn poisoned(&self) -> Error {
        Error::new(Kind::Poisoned, self.name())
    }

    fn try_write(&self, data: &[u8], cipher_offset: u64) -> Result<()> {
        let mut state = self.state.lock();
        let fate = state.begin();
        let len = self.file.lock().bytes.len() as u64;
        let growth = (cipher_offset + data.len() as u64).saturating_sub(len);
        let lacking = growth.saturating_sub(state.free_bytes());
        let (part, fate) = match fate {
            Fate::Done if lacking > 0 => {
                let full = io::Error::from_raw_os_error(libc::ENOSPC);
                (
                    data.len().saturating_sub(lacking as usize),
                    Fate::Fails(full, 0),
                )
            }
            Fate::Done => (data.len(), Fate::Done),
            Fate::Fails(..) if state.is_cut => (0, fate),
            Fate::Fails(_, chance) | Fate::Cut(chance) => {
                (chance as usize % (data.len() + 1), fate)
            }
        };
        self.file.lock().write(&data[..part], cipher_offset);
        state.outcome(fate, self.place, self.id)
    }

    fn try_sync(&self) -> Result<()> {
        let (fate, delay, writes) = {
            let mut state = self.state.lock();
            (
                state.begin(),
                state.faults.sync_delay,
                self.file.lock().unsynced.len(),
            )
        };
        // Not under the lock: other threads may write meanwhile, and that is not synced.
        std::thread::sleep(delay);
        let mut state = self.state.lock();
        state.check_power(self.place, self.id)?;
        let mut file = self.file.lock();
        if matches!(fate, Fate::Done) {
            file.sync(writes);
            if !std::mem::replace(&mut file.is_named, true) {
                state.removed.retain(|(place, ..)| place.is_some());
            }
        } else {
            file.is_sync_lost = true;
        }
        drop(file);
        state.outcome(fate, self.place, self.id)
    }
}

impl Object for Handle {
    fn name(&self) -> String {
        name_of(self.place, self.id)
    }

    fn cipher_len(&self) -> Result<u64> {
        self.state.lock().check_power(self.place, self.id)?;
        Ok(self.file.lock().bytes.len() as u64)
    }

    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        self.state.lock().check_power(self.place, self.id)?;
        let file = self.file.lock();
        let start = usize::try_from(cipher_offset).unwrap_or(usize::MAX);
        match file.bytes.get(start..start.saturating_add(out.len())) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => {
                return Err(Error::damaged(
                    self.name(),
                    format_args!("ends after {} bytes", file.bytes.len()),
                ));
            }
        }
        Ok(())
    }

    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        let left = self.cipher_len()?.saturating_sub(cipher_offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        if len > 0 {
            self.read_at(&mut out[..len], cipher_offset)?;
        }
        Ok(len)
    }

    fn prefetch(&self, _cipher_offset: u64, _cipher_len: u64) {}

    fn uncache(&self, _cipher_offset: u64, _cipher_len: u64) {}
}

impl Growing for Handle {
    fn id(&self) -> ObjectId {
        self.id
    }

    fn write_at(&self, data: &[u8], cipher_offset: u64) -> Result<()> {
        if self.write_failed.load(Ordering::Acquire) || self.sync_failed.load(Ordering::Acquire) {
            return Err(self.poisoned());
        }
        self.try_write(data, cipher_offset)
            .inspect_err(|_| self.write_failed.store(true, Ordering::Release))
    }

    fn write_back(&self, _cipher_offset: u64, _cipher_len: u64) {}

    fn sync(&self) -> Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(self.poisoned());
        }
        self.try_sync()
            .inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }
}
