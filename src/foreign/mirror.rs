//! A foreign library as a filesystem: names, inodes, attributes and open files, the same for all formats.
//!
//! Names are read once and kept in memory; times and permissions are those of the stored files. A file that was
//! written is encrypted as a whole into a new one, which takes its place when the file is closed or synced.
//!
//! Lock order, each only while needed: a file's content; `changes`; the tree. Reading a file that nobody writes to
//! holds none of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Entry, Format, Listed};
use crate::error::{Error, Kind, Result};
use crate::overdue;
use crate::store::LastKnown;
use crate::volume::{Handle, Ino, Statfs};

mod attrs;
mod content;
mod names;
pub(super) mod temporary;
mod tree;
mod volume;

use content::{Content, DIRTY_COST_MAX};
use tree::{Body, Tree};

/// Bytes that may wait in memory in all; beyond, each writer writes out what it has.
const DIRTY_TOTAL_MAX: usize = 64 << 20;

/// A foreign library that can be mounted.
pub struct Mirror {
    /// Before the format, so that what was written and never placed goes before the folder that it lies in.
    files: Mutex<HashMap<u64, Arc<Mutex<Content>>>>,
    format: Box<dyn Format>,
    read_only: bool,
    tree: RwLock<Tree>,
    /// What the format has, and cannot be shown: names, and why not.
    left_out: Vec<(String, String)>,
    /// Held by whoever changes names or puts a file in its place.
    changes: Mutex<()>,
    handles: Mutex<HashMap<u64, (Ino, bool)>>,
    next_handle: AtomicU64,
    dirty: AtomicUsize,
    space: LastKnown<Statfs>,
}

impl Mirror {
    /// Reads all names. Without a [`Format::stage`] nothing can be changed.
    pub fn new(format: Box<dyn Format>) -> Result<Arc<Self>> {
        let mut tree = Tree::new();
        let mut left_out = Vec::new();
        format.list(&mut |listed| left_out.extend(tree.take(listed)))?;
        for (name, why) in &left_out {
            log::debug!("{name}: {why}");
        }
        if !left_out.is_empty() {
            let (root, count) = (format.root().display(), left_out.len());
            log::warn!(
                "{root}: {count} of what is in it cannot be shown: `hushfs verify` names it"
            );
        }
        Ok(Arc::new(Self {
            left_out,
            read_only: format.stage().is_none(),
            format,
            tree: RwLock::new(tree),
            files: Mutex::default(),
            changes: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            dirty: AtomicUsize::new(0),
            space: LastKnown::new(),
        }))
    }

    /// What the library has and cannot be shown: names, and why not.
    pub fn left_out(&self) -> &[(String, String)] {
        &self.left_out
    }

    /// What of a library is shown nowhere, because something else has its name, or it is neither file nor folder: names,
    /// and why not.
    pub fn conflicts(format: &dyn Format) -> Result<Vec<(String, String)>> {
        let (mut tree, mut found) = (Tree::new(), super::strangers(format.root())?);
        format.list(&mut |listed| {
            if !matches!(listed, Listed::NotShown(..)) {
                found.extend(tree.take(listed));
            }
        })?;
        Ok(found)
    }

    /// The format.
    pub fn format(&self) -> &dyn Format {
        &*self.format
    }

    fn writable(&self) -> Result<()> {
        if self.read_only {
            Err(Kind::ReadOnly.into())
        } else {
            Ok(())
        }
    }

    /// Where a file is stored; none where it was never written out, an error for a folder.
    fn entry(&self, ino: Ino) -> Result<Option<Entry>> {
        match &self.tree.read().node(ino)?.body {
            Body::File(entry) => Ok(entry.clone()),
            Body::Folder(..) => Err(Kind::IsDirectory.into()),
        }
    }

    /// Whether a file may have a name that the format does not take: that of a file which its program will rename, when
    /// it is whole, to one that the format takes.
    fn may_be_renamed(&self, shown: &Path) -> bool {
        let name = shown.file_name().unwrap_or_default();
        let takes = |name: OsString| self.format.admit(&shown.with_file_name(name)).is_ok();
        temporary::is_nameless(name) || temporary::final_names(name).into_iter().any(takes)
    }

    /// Whether a file has a name; one that has none may be forgotten already.
    fn is_linked(&self, ino: Ino) -> bool {
        self.tree.read().node(ino).is_ok_and(|node| node.linked)
    }

    fn path(&self, ino: Ino) -> Result<PathBuf> {
        self.tree.read().path(ino)
    }

    /// Bytes of plaintext of a stored file. Where that cannot be told, all that is stored is shown as its size:
    /// reading it then says what is wrong.
    fn plain_size(&self, ino: Ino, entry: &Entry) -> u64 {
        if let Some(known) = entry.plain_size {
            return known;
        }
        let path = self.format.root().join(&entry.stored);
        match self.format.plain_size(entry) {
            Ok(plain_size) => {
                if let Ok(node) = self.tree.write().node_mut(ino)
                    && let Body::File(Some(now)) = &mut node.body
                    && now.stored == entry.stored
                {
                    now.plain_size = Some(plain_size);
                }
                plain_size
            }
            Err(e) => {
                log::warn!("{}: {e}", path.display());
                fs::symlink_metadata(path).map_or(0, |meta| meta.len())
            }
        }
    }

    fn opened(&self, ino: Ino) -> Option<Arc<Mutex<Content>>> {
        self.files.lock().get(&ino.0).cloned()
    }

    /// The content of a file, opened where it is not.
    fn content(&self, ino: Ino) -> Result<Arc<Mutex<Content>>> {
        if let Some(content) = self.opened(ino) {
            return Ok(content);
        }
        let content = match self.entry(ino)? {
            None => Content::new(),
            Some(entry) => {
                let plain_size = self.plain_size(ino, &entry);
                Content::of(&*self.format, &self.path(ino)?, &entry, plain_size)
            }
        };
        let mut files = self.files.lock();
        let file = files
            .entry(ino.0)
            .or_insert_with(|| Arc::new(Mutex::new(content)));
        Ok(Arc::clone(file))
    }

    /// Puts what was written into the library. A file without a name has no place there.
    fn publish(&self, ino: Ino, content: &mut Content) -> Result<()> {
        if !content.changed() {
            return Ok(());
        }
        if !self.is_linked(ino) {
            return Ok(());
        }
        let shown = self.path(ino)?;
        if self.format.admit(&shown).is_err() {
            // Held for the name that it will get: see `create`. Who syncs it before it is renamed is told no error, as
            // the rename makes it durable.
            return Ok(());
        }
        self.account(content, |content| content.complete(&*self.format, &shown))?;
        let _changes = overdue::lock(&self.changes)?;
        // The name may have changed meanwhile.
        if !self.is_linked(ino) {
            return Ok(());
        }
        let shown = self.path(ino)?;
        let old = self.entry(ino)?;
        let entry = self.place(content, &shown, old.as_ref())?;
        self.tree.write().node_mut(ino)?.body = Body::File(Some(entry));
        Ok(())
    }

    /// Puts contents at `shown`, with the attributes that are wanted of it. `changes` is held.
    fn place(&self, content: &mut Content, shown: &Path, old: Option<&Entry>) -> Result<Entry> {
        let format = &*self.format;
        self.account(content, |content| {
            content.publish(format, shown, old, |sealed, overrides| {
                let old = old.map(|old| format.root().join(&old.stored));
                attrs::prepare(&sealed.temp, old.as_deref(), overrides)
            })
        })
    }

    /// Keeps count of what waits in memory while `work` changes that.
    fn account<T>(&self, content: &mut Content, work: impl FnOnce(&mut Content) -> T) -> T {
        let before = content.dirty_cost();
        let done = work(content);
        let after = content.dirty_cost();
        if after >= before {
            self.dirty.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.dirty.fetch_sub(before - after, Ordering::Relaxed);
        }
        done
    }

    /// What one more write may leave in memory.
    fn cost_max(&self) -> usize {
        if self.dirty.load(Ordering::Relaxed) > DIRTY_TOTAL_MAX {
            return 0;
        }
        DIRTY_COST_MAX
    }

    fn new_handle(&self, ino: Ino, writes: bool) -> Handle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().insert(number, (ino, writes));
        Handle(number)
    }

    /// Forgets the content of a file that nobody needs any more.
    fn close_content(&self, ino: Ino) {
        let mut files = self.files.lock();
        let Some(file) = files.get(&ino.0) else {
            return;
        };
        // Somebody else at work on it comes by here, too.
        let Some(content) = file.try_lock() else {
            return;
        };
        let linked = self.is_linked(ino);
        let needed = content.handles > 0 || content.changed() && linked;
        if !needed && Arc::strong_count(file) == 1 {
            self.dirty
                .fetch_sub(content.dirty_cost(), Ordering::Relaxed);
            drop(content);
            files.remove(&ino.0);
        }
    }

    /// Puts everything that was written into the library. What was never given a name that its format takes is dropped:
    /// an error that names it.
    fn publish_all(&self) -> Result<()> {
        let open: Vec<_> = {
            let files = self.files.lock();
            files
                .iter()
                .map(|(ino, file)| (Ino(*ino), Arc::clone(file)))
                .collect()
        };
        let mut result = Ok(());
        let mut dropped = Vec::new();
        for (ino, file) in open {
            let mut content = file.lock();
            if let Err(e) = self.publish(ino, &mut content) {
                log::error!("{}: {e}", self.path(ino).unwrap_or_default().display());
                result = Err(e);
            } else if content.changed() && self.is_linked(ino) {
                let path = self.path(ino).unwrap_or_default().display().to_string();
                log::error!(
                    "{path}: not stored: it has the name of an unfinished file, which the library does not take"
                );
                dropped.push(path);
            }
        }
        if !dropped.is_empty() && result.is_ok() {
            dropped.sort();
            result = Err(unstored(&dropped));
        }
        result
    }
}

/// Files were dropped, as they had the names of unfinished ones to the end.
fn unstored(paths: &[String]) -> Error {
    /// Names that are told at once.
    const TOLD: usize = 10;
    let others = match paths.len().saturating_sub(TOLD) {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    let names = paths[..paths.len().min(TOLD)].join(", ");
    Error::new(Kind::NotPermitted, format_args!("{names}{others}")).hint(
        "not stored: unfinished files, which the library does not take under these names, and nothing renamed them",
    )
}
