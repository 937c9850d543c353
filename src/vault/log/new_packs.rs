//! Unpublished packs: the open one, to which contents are appended; finished ones; and those in which a write or a sync
//! failed.
//!
//! Owns these files. Does not own the account of live bytes (the tree), or the decision when to sync or publish.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::crypto::MasterKey;
use crate::env::Env;
use crate::error::{Kind, Result};
use crate::index::record::{Id, PackLen, Splices};
use crate::object::{Area, DeviceId, PackId};
use crate::overdue;
use crate::pack::{FinishedPack, Note, PackWriter, Packs};
use crate::store::{Growing, Store};
use crate::vault::view::View;

/// All unpublished packs of this mount.
pub struct NewPacks {
    env: Arc<Env>,
    store: Arc<dyn Store>,
    master: Arc<MasterKey>,
    device: DeviceId,
    packs: Arc<Packs>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    open: Option<PackWriter>,
    finished: Vec<FinishedPack>,
    /// Packs in which a write or a sync failed: nothing is appended, and live data has to be copied out.
    failed: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Packs written to since the last sync.
    unsynced: BTreeMap<PackId, Arc<dyn Growing>>,
    unsynced_bytes: u64,
    /// Long runs written since the last sync.
    streamed: Vec<Streamed>,
}

/// Minimum length of a run that counts as part of a stream, in bytes.
const STREAMED_LEN_MIN: u64 = 1 << 20;
/// Maximum number of streamed runs that are remembered between two syncs.
const STREAMED_MAX: usize = 256;

/// A long run: its file and position.
struct Streamed {
    file: Arc<dyn Growing>,
    cipher_offset: u64,
    cipher_len: u64,
}

/// Data that was written but is not synced.
pub struct Unsynced {
    /// The files to be synced.
    pub files: Vec<Arc<dyn Growing>>,
    streamed: Vec<Streamed>,
}

impl Unsynced {
    /// Called after a sync: drops long runs from the system's page cache. The kernel caches their plaintext already.
    pub fn uncache(&self) {
        for run in &self.streamed {
            run.file.uncache(run.cipher_offset, run.cipher_len);
        }
    }
}

/// The file whose contents are appended, for the catalogue of the pack.
pub struct Subject {
    /// The inode.
    pub inode: Id,
    /// Its path.
    pub path: Vec<u8>,
    /// The counter that the operation will have, or one slightly lower.
    pub counter: u64,
}

impl NewPacks {
    /// Creates it without packs. Packs that are being written are readable through the view.
    pub fn new(view: &View, device: DeviceId) -> Self {
        Self {
            env: view.env().clone(),
            store: view.store().clone(),
            master: view.master().clone(),
            device,
            packs: view.packs().clone(),
            inner: Mutex::default(),
        }
    }

    /// Encrypts the concatenated `parts`, which are at `plain_offset` of the file, into the open pack, and adds their
    /// location to `out`. Begins another run if a pack is full.
    pub fn append(
        &self,
        subject: &Subject,
        plain_offset: u64,
        parts: &[&[u8]],
        out: &mut Splices,
    ) -> Result<()> {
        let mut inner = overdue::lock(&self.inner)?;
        let mut parts: Vec<&[u8]> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
        let mut at = plain_offset;
        while !parts.is_empty() {
            let writer = self.writer(&mut inner)?;
            let (now, later) = split(&parts, writer.room() as usize);
            let len: usize = now.iter().map(|p| p.len()).sum();
            let note = Note {
                inode: subject.inode.0,
                path: &subject.path,
                plain_offset: at,
                counter: subject.counter,
            };
            let (id, file) = (writer.id(), writer.file());
            let run = writer.append(&now, &note);
            if run.is_err() {
                inner.open = None;
                inner.failed.insert(id, file.clone());
            }
            inner.unsynced.insert(id, file.clone());
            inner.unsynced_bytes += len as u64;
            let run = run?;
            if len as u64 >= STREAMED_LEN_MIN && inner.streamed.len() < STREAMED_MAX {
                inner.streamed.push(Streamed {
                    file,
                    cipher_offset: u64::from(run.cipher_offset),
                    cipher_len: u64::from(run.cipher_len()),
                });
            }
            out.data(at, len as u64, run, 0);
            at += len as u64;
            parts = later;
        }
        Ok(())
    }

    /// Returns the open pack, or a new one if there is none or it is full.
    fn writer<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut PackWriter> {
        if inner.open.as_ref().is_some_and(|w| w.room() == 0) {
            self.finish(inner)?;
        }
        if inner.open.is_none() {
            let writer = {
                let id = PackId(self.env.id()?);
                PackWriter::create(&*self.store, &self.master, id, self.device)?
            };
            self.packs.pin(writer.id(), writer.file())?;
            inner.open = Some(writer);
        }
        inner.open.as_mut().ok_or_else(|| Kind::Poisoned.into())
    }

    fn finish(&self, inner: &mut Inner) -> Result<()> {
        let Some(writer) = inner.open.take() else {
            return Ok(());
        };
        let (id, file) = (writer.id(), writer.file());
        if writer.is_empty() {
            self.packs.forget(id);
            return self.store.discard(id.object());
        }
        match writer.finish() {
            Ok(pack) => {
                inner.unsynced.insert(id, pack.file.clone());
                inner.finished.push(pack);
                Ok(())
            }
            Err(e) => {
                inner.failed.insert(id, file);
                Err(e)
            }
        }
    }

    /// Finishes the open pack, however little is in it.
    pub fn finish_open(&self) -> Result<()> {
        self.finish(&mut self.inner.lock())
    }

    /// Whether there are no unpublished packs.
    pub fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.open.is_none() && inner.finished.is_empty() && inner.failed.is_empty()
    }

    /// Bytes written since the last sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.inner.lock().unsynced_bytes
    }

    /// The packs in which a write or a sync failed.
    pub fn failed(&self) -> Vec<PackId> {
        self.inner.lock().failed.keys().copied().collect()
    }

    /// Treats the open and finished packs for which `is_dead` returns true as failed, so that they are never published.
    pub fn fail_dead(&self, is_dead: impl Fn(PackId) -> bool) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(open) = inner.open.take_if(|open| is_dead(open.id())) {
            inner.failed.insert(open.id(), open.file());
        }
        for dead in inner.finished.extract_if(.., |pack| is_dead(pack.id)) {
            inner.failed.insert(dead.id, dead.file);
        }
    }

    /// Whether `is_dead` returns true for the open or a finished pack.
    pub fn any(&self, is_dead: impl Fn(PackId) -> bool) -> bool {
        let inner = self.inner.lock();
        let open = inner.open.as_ref().map(PackWriter::id);
        let finished = inner.finished.iter().map(|pack| pack.id);
        open.into_iter().chain(finished).any(is_dead)
    }

    /// Called after an error in adoption: removes all packs that were written, including those published already
    /// (`published`). Packs that cannot be removed now are unreferenced, and the next mount handles them as such.
    pub fn discard_all(&self, published: &[PackLen]) {
        let inner = std::mem::take(&mut *self.inner.lock());
        let open = inner.open.iter().map(PackWriter::id);
        let finished = inner.finished.iter().map(|pack| pack.id);
        let failed = inner.failed.keys().copied();
        for id in open.chain(finished).chain(failed) {
            self.packs.forget(id);
            let _ = self.store.discard(id.object());
        }
        for pack in published {
            self.packs.forget(pack.pack);
            let _ = self.store.remove(Area::Data, pack.pack.object());
        }
    }

    /// Excludes a pack from the next sync, because nothing in it is live.
    pub fn forget_unsynced(&self, id: PackId) {
        let mut inner = self.inner.lock();
        let unsynced = inner.unsynced.remove(&id);
        if let Some(file) = unsynced.or_else(|| inner.failed.get(&id).cloned()) {
            file.give_up();
        }
    }

    /// Removes a failed pack that nothing refers to any more.
    pub fn discard_failed(&self, id: PackId) -> Result<()> {
        self.packs.forget(id);
        let mut inner = self.inner.lock();
        inner.failed.remove(&id);
        drop(inner);
        self.store.discard(id.object())
    }

    /// Takes the files that have to be synced to make everything appended so far durable.
    pub fn take_unsynced(&self) -> Unsynced {
        let mut inner = self.inner.lock();
        inner.unsynced_bytes = 0;
        Unsynced {
            files: std::mem::take(&mut inner.unsynced).into_values().collect(),
            streamed: std::mem::take(&mut inner.streamed),
        }
    }

    /// Called after a failed sync. Packs that still cannot be synced are marked as failed, so that their live data is
    /// copied out.
    pub fn put_back_unsynced(&self, files: Vec<Arc<dyn Growing>>) {
        for file in files {
            if file.sync().is_ok() {
                continue;
            }
            let (mut inner, id) = (self.inner.lock(), PackId(file.id()));
            if inner.open.as_ref().is_some_and(|w| w.id() == id) {
                inner.open = None;
            }
            inner.finished.retain(|f| f.id != id);
            inner.failed.insert(id, file.clone());
            inner.unsynced.insert(id, file);
        }
    }

    /// The lengths of the finished packs.
    pub fn finished(&self) -> Vec<PackLen> {
        let inner = self.inner.lock();
        inner
            .finished
            .iter()
            .map(|p| PackLen {
                pack: p.id,
                cipher_len: p.cipher_len,
            })
            .collect()
    }

    /// The files of the open and the finished packs.
    pub fn growing(&self) -> Vec<Arc<dyn Growing>> {
        let inner = self.inner.lock();
        let open = inner.open.as_ref().map(PackWriter::file);
        let finished = inner.finished.iter().map(|pack| pack.file.clone());
        open.into_iter().chain(finished).collect()
    }

    /// Publishes the finished packs among `packs`, which are synced.
    pub fn publish(&self, packs: &[PackLen]) -> Result<()> {
        for pack in packs {
            self.store.publish(pack.pack.object(), Area::Data)?;
            self.packs.unpin(pack.pack);
            self.inner.lock().finished.retain(|f| f.id != pack.pack);
        }
        Ok(())
    }
}

/// Splits the concatenated parts after `len` bytes.
pub fn split<'a>(parts: &[&'a [u8]], mut len: usize) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let (mut now, mut later) = (Vec::new(), Vec::new());
    for part in parts {
        let (a, b) = part.split_at(part.len().min(len));
        len -= a.len();
        now.extend(Some(a).filter(|a| !a.is_empty()));
        later.extend(Some(b).filter(|b| !b.is_empty()));
    }
    (now, later)
}
