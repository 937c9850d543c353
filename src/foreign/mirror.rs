//! A foreign library as a filesystem: names, inodes, attributes and open files, the same for all formats.
//!
//! Names are read once and kept in memory. Times and permissions are those of the stored files. A changed file is encrypted
//! as a whole into a new one, which replaces the old one when the file is closed or synced.
//!
//! Lock order, each held only while needed: the content of a file; `changes`; the tree. Reading a file that is not being
//! written holds none of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Entry, Format, ListEntry};
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

/// Bytes of unwritten changes in memory, for all files together. Above that, each writer writes its own changes out.
const DIRTY_TOTAL_MAX: usize = 64 << 20;

/// A foreign library that can be mounted.
pub struct Mirror {
    /// Declared before `format`: temporary files must be dropped before the folder that holds them.
    files: Mutex<HashMap<u64, Arc<Mutex<Content>>>>,
    format: Box<dyn Format>,
    read_only: bool,
    tree: RwLock<Tree>,
    /// Entries of the format that cannot be shown: names and reasons.
    left_out: Vec<(String, String)>,
    /// Held while names change, or a file is moved into the library.
    changes: Mutex<()>,
    handles: Mutex<HashMap<u64, (Ino, bool)>>,
    next_handle: AtomicU64,
    dirty: AtomicUsize,
    space: LastKnown<Statfs>,
}

impl Mirror {
    /// Reads all names. Without a [`Format::stage`], it is read-only.
    pub fn new(format: Box<dyn Format>) -> Result<Arc<Self>> {
        let mut tree = Tree::new();
        let mut left_out = Vec::new();
        format.list(&mut |listed| left_out.extend(tree.take(listed)))?;
        for (name, why) in &left_out {
            log::debug!("{name}: {why}");
        }
        if !left_out.is_empty() {
            let (root, count) = (format.root().display(), left_out.len());
            log::warn!("{root}: {count} entries cannot be shown (`hushfs verify` lists them)");
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

    /// Entries of the library that cannot be shown: names and reasons.
    pub fn left_out(&self) -> &[(String, String)] {
        &self.left_out
    }

    /// Entries that a mount of this format would not show, because another one has the same name, or because they are
    /// neither files nor folders: names and reasons.
    pub fn conflicts(format: &dyn Format) -> Result<Vec<(String, String)>> {
        let (mut tree, mut found) = (Tree::new(), super::strangers(format.root())?);
        format.list(&mut |listed| {
            if !matches!(listed, ListEntry::NotShown(..)) {
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

    /// The stored file of an inode; `None` if it was never written out. An error for a folder.
    fn entry(&self, ino: Ino) -> Result<Option<Entry>> {
        match &self.tree.read().node(ino)?.body {
            Body::File(entry) => Ok(entry.clone()),
            Body::Folder(..) => Err(Kind::IsDirectory.into()),
        }
    }

    /// Whether a name that the format refuses is a temporary one: programs write to such a file, and then rename it to a
    /// name that the format accepts.
    fn may_be_renamed(&self, plain_path: &Path) -> bool {
        let name = plain_path.file_name().unwrap_or_default();
        let takes = |name: OsString| {
            self.format
                .check_name(&plain_path.with_file_name(name))
                .is_ok()
        };
        temporary::is_nameless(name) || temporary::final_names(name).into_iter().any(takes)
    }

    /// Whether a file has a name. A file without one may already be forgotten.
    fn is_linked(&self, ino: Ino) -> bool {
        self.tree.read().node(ino).is_ok_and(|node| node.linked)
    }

    fn path(&self, ino: Ino) -> Result<PathBuf> {
        self.tree.read().path(ino)
    }

    /// Bytes of plaintext of a stored file. If that cannot be determined, it is the length of the stored file; reading it
    /// then fails with the reason.
    fn plain_size(&self, ino: Ino, entry: &Entry) -> u64 {
        if let Some(known) = entry.plain_size {
            return known;
        }
        let path = self.format.root().join(&entry.cipher_path);
        match self.format.plain_size(entry) {
            Ok(plain_size) => {
                if let Ok(node) = self.tree.write().node_mut(ino)
                    && let Body::File(Some(now)) = &mut node.body
                    && now.cipher_path == entry.cipher_path
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

    /// The content of a file, which is opened if necessary.
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

    /// Moves the changes of a file into the library, unless it has no name any more.
    fn publish(&self, ino: Ino, content: &mut Content) -> Result<()> {
        if !content.changed() {
            return Ok(());
        }
        if !self.is_linked(ino) {
            return Ok(());
        }
        let plain_path = self.path(ino)?;
        if self.format.check_name(&plain_path).is_err() {
            // Kept until it gets its final name: see `create_file`. A sync before that returns no error, because the rename
            // makes the file durable.
            return Ok(());
        }
        self.account(content, |content| {
            content.complete(&*self.format, &plain_path)
        })?;
        let _changes = overdue::lock(&self.changes)?;
        // It may have been removed meanwhile.
        if !self.is_linked(ino) {
            return Ok(());
        }
        let plain_path = self.path(ino)?;
        let old = self.entry(ino)?;
        let entry = self.place(content, &plain_path, old.as_ref())?;
        self.tree.write().node_mut(ino)?.body = Body::File(Some(entry));
        Ok(())
    }

    /// Moves contents to `plain_path`, with the attributes that were set. The caller holds `changes`.
    fn place(
        &self,
        content: &mut Content,
        plain_path: &Path,
        old: Option<&Entry>,
    ) -> Result<Entry> {
        let format = &*self.format;
        self.account(content, |content| {
            content.publish(format, plain_path, old, |sealed, overrides| {
                let old = old.map(|old| format.root().join(&old.cipher_path));
                attrs::prepare(&sealed.temp, old.as_deref(), overrides)
            })
        })
    }

    /// Calls `work`, and updates the count of unwritten changes in memory.
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

    /// How much unwritten data, in bytes of memory, a file may keep after a write.
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

    /// Drops the content of a file that is no longer needed.
    fn close_content(&self, ino: Ino) {
        let mut files = self.files.lock();
        let Some(file) = files.get(&ino.0) else {
            return;
        };
        // A thread that holds the lock will also call this.
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

    /// Moves all changes into the library. Files that were never renamed to a name that the format accepts are dropped; the
    /// error lists them.
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
                    "{path}: not stored: it still has a temporary name, which the library does not accept"
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

/// The error for files that were dropped because they still had temporary names.
fn unstored(paths: &[String]) -> Error {
    /// How many names are listed.
    const LISTED_MAX: usize = 10;
    let others = match paths.len().saturating_sub(LISTED_MAX) {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    let names = paths[..paths.len().min(LISTED_MAX)].join(", ");
    Error::new(Kind::NotPermitted, format_args!("{names}{others}")).hint(
        "not stored: the library does not accept these temporary names, and the files were never renamed",
    )
}
