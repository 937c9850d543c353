//! Packs that are not published: the open one, to which contents are appended; finished ones; and those that a write or a
//! sync failed in.
//!
//! Owns these files; does not own which bytes in them are live (the tree knows), nor when they are synced or published.

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

/// All packs of this mount that are not published.
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
    /// A write to these failed: nothing is added, and what is live in them has to be copied out.
    failed: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Written to since the last sync.
    unsynced: BTreeMap<PackId, Arc<dyn Growing>>,
    unsynced_bytes: u64,
    /// Long runs among that.
    streamed: Vec<Streamed>,
}

/// A run so long is part of a stream, in bytes.
const STREAMED_LEN_MIN: u64 = 1 << 20;
/// More are not remembered.
const STREAMED_MAX: usize = 256;

/// A long run: its file, and where in it.
struct Streamed {
    file: Arc<dyn Growing>,
    cipher_offset: u64,
    cipher_len: u64,
}

/// What was written and is not synced.
pub struct Unsynced {
    /// The files to be synced.
    pub files: Vec<Arc<dyn Growing>>,
    streamed: Vec<Streamed>,
}

impl Unsynced {
    /// After a sync: what was written in long runs need not stay in the system's memory, which has it opened.
    pub fn uncache(&self) {
        for run in &self.streamed {
            run.file.uncache(run.cipher_offset, run.cipher_len);
        }
    }
}

/// Whose contents are sealed, for the catalogue.
pub struct Subject {
    /// The inode.
    pub inode: Id,
    /// Its path.
    pub path: Vec<u8>,
    /// The counter that the operation will have, or one a little below.
    pub counter: u64,
}

impl NewPacks {
    /// None yet. What grows is readable through the view.
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

    /// Seals the concatenated `parts` at `plain_offset` of the file and notes where they went. As many runs as
    /// packs have room for.
    pub fn seal(
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

    /// The open pack, with room in it.
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

    /// Ends the open pack, whatever is in it.
    pub fn finish_open(&self) -> Result<()> {
        self.finish(&mut self.inner.lock())
    }

    /// Whether anything lies in packs that are not published.
    pub fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.open.is_none() && inner.finished.is_empty() && inner.failed.is_empty()
    }

    /// Bytes written since the last sync.
    pub fn unsynced_bytes(&self) -> u64 {
        self.inner.lock().unsynced_bytes
    }

    /// Packs that failed.
    pub fn failed(&self) -> Vec<PackId> {
        self.inner.lock().failed.keys().copied().collect()
    }

    /// Lets the open and the finished packs of which `is_dead` says so go the way of those that failed.
    pub fn give_up(&self, is_dead: impl Fn(PackId) -> bool) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(open) = inner.open.take_if(|open| is_dead(open.id())) {
            inner.failed.insert(open.id(), open.file());
        }
        for dead in inner.finished.extract_if(.., |pack| is_dead(pack.id)) {
            inner.failed.insert(dead.id, dead.file);
        }
    }

    /// Whether `is_dead` says so of the open or a finished pack.
    pub fn any(&self, is_dead: impl Fn(PackId) -> bool) -> bool {
        let inner = self.inner.lock();
        let open = inner.open.as_ref().map(PackWriter::id);
        let finished = inner.finished.iter().map(|pack| pack.id);
        open.into_iter().chain(finished).any(is_dead)
    }

    /// After an error in adoption: takes away what was sealed, also of packs that are published (`published`).
    /// What cannot be removed now, the next mount takes for what it is: nothing names it.
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

    /// A sync can do without this pack: nothing in it counts any more.
    pub fn forget_unsynced(&self, id: PackId) {
        let mut inner = self.inner.lock();
        let unsynced = inner.unsynced.remove(&id);
        if let Some(file) = unsynced.or_else(|| inner.failed.get(&id).cloned()) {
            file.give_up();
        }
    }

    /// Nothing refers to this failed pack any more.
    pub fn discard_failed(&self, id: PackId) -> Result<()> {
        self.packs.forget(id);
        let mut inner = self.inner.lock();
        inner.failed.remove(&id);
        drop(inner);
        self.store.discard(id.object())
    }

    /// The files that have to be synced for all that was sealed so far to be durable.
    pub fn take_unsynced(&self) -> Unsynced {
        let mut inner = self.inner.lock();
        inner.unsynced_bytes = 0;
        Unsynced {
            files: std::mem::take(&mut inner.unsynced).into_values().collect(),
            streamed: std::mem::take(&mut inner.streamed),
        }
    }

    /// A sync failed: those that cannot be synced never will be, and what is live in them has to be copied out.
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

    /// The lengths of the finished packs that are not published.
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

    /// The files of the packs that are not published and did not fail.
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

/// The first `len` bytes of the concatenated parts, and the others.
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
