//! The names of a foreign library, in memory. They are read once, when it is opened; no other program may change them
//! meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::error::{Kind, Result};
use crate::foreign::{Entry, ListEntry};
use crate::volume::{FileKind, Ino, NAME_LEN_MAX, ROOT};

/// The first inode number after the root's. Lower numbers are cookies of `.` and `..`.
const INO_FIRST: u64 = 16;

/// A file or folder.
pub struct Node {
    /// Its folder, or its former folder if it has no name any more.
    pub parent: Ino,
    /// Its name there.
    pub name: OsString,
    /// Whether it still has that name.
    pub linked: bool,
    /// References of the kernel and of handles.
    pub references: u64,
    /// The file or folder.
    pub body: Body,
}

/// A file or folder.
pub enum Body {
    /// A folder: its children, and how many of them are folders.
    Folder(BTreeSet<u64>, u32),
    /// A file; `None` if it was never stored.
    File(Option<Entry>),
}

impl Node {
    /// Its file type.
    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::Folder(..) => FileKind::Directory,
            Body::File(_) => FileKind::Regular,
        }
    }
}

/// All nodes.
pub struct Tree {
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, OsString), u64>,
    next: u64,
}

impl Tree {
    /// A tree with only the root.
    pub fn new() -> Self {
        let root = Node {
            parent: ROOT,
            name: OsString::new(),
            linked: true,
            references: 0,
            body: Body::Folder(BTreeSet::new(), 0),
        };
        Self {
            nodes: HashMap::from([(ROOT.0, root)]),
            names: HashMap::new(),
            next: INO_FIRST,
        }
    }

    /// A node; [`Kind::Stale`] if it no longer exists.
    pub fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino.0).ok_or_else(|| Kind::Stale.into())
    }

    /// The same, for changing it.
    pub fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or_else(|| Kind::Stale.into())
    }

    /// The number of nodes.
    pub fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// The children of a folder, and how many of them are folders.
    pub fn children(&self, ino: Ino) -> Result<(&BTreeSet<u64>, u32)> {
        match &self.node(ino)?.body {
            Body::Folder(children, folders) => Ok((children, *folders)),
            Body::File(_) => Err(Kind::NotDirectory.into()),
        }
    }

    /// Finds a name in a folder.
    pub fn child(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        // The lookup needs an owned key. That is acceptable, as the kernel caches names.
        self.names
            .get(&(parent.0, name.to_owned()))
            .copied()
            .map(Ino)
    }

    /// The path of a node from the root; empty for the root.
    pub fn path(&self, ino: Ino) -> Result<PathBuf> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let node = self.node(at)?;
            names.push(node.name.as_os_str());
            at = node.parent;
        }
        Ok(names.iter().rev().collect())
    }

    /// Adds a name to a folder.
    pub fn add(&mut self, parent: Ino, name: &OsStr, body: Body) -> Result<Ino> {
        check_name(name)?;
        if self.child(parent, name).is_some() {
            return Err(Kind::Exists.into());
        }
        if !self.node(parent)?.linked {
            return Err(Kind::NotFound.into());
        }
        let ino = self.next;
        let node = Node {
            parent,
            name: name.to_owned(),
            linked: true,
            references: 0,
            body,
        };
        self.enter(parent, ino, node.kind())?;
        self.names.insert((parent.0, name.to_owned()), ino);
        self.nodes.insert(ino, node);
        self.next += 1;
        Ok(Ino(ino))
    }

    fn enter(&mut self, parent: Ino, ino: u64, kind: FileKind) -> Result<()> {
        let Body::Folder(children, folders) = &mut self.node_mut(parent)?.body else {
            return Err(Kind::NotDirectory.into());
        };
        children.insert(ino);
        *folders += u32::from(kind == FileKind::Directory);
        Ok(())
    }

    /// Removes the name of a node.
    pub fn unlink(&mut self, ino: Ino) -> Result<()> {
        let node = self.node_mut(ino)?;
        node.linked = false;
        let (parent, name, kind) = (node.parent, node.name.clone(), node.kind());
        self.names.remove(&(parent.0, name));
        if let Body::Folder(children, folders) = &mut self.node_mut(parent)?.body {
            children.remove(&ino.0);
            *folders -= u32::from(kind == FileKind::Directory);
        }
        self.drop_if_unused(ino);
        Ok(())
    }

    /// Renames a node. The new name must be free.
    pub fn relink(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        // Keeps the node while it has no name.
        self.node_mut(ino)?.references += 1;
        self.unlink(ino)?;
        let node = self.node_mut(ino)?;
        node.references -= 1;
        node.linked = true;
        node.parent = parent;
        node.name = name.to_owned();
        let kind = node.kind();
        self.names.insert((parent.0, name.to_owned()), ino.0);
        self.enter(parent, ino.0, kind)
    }

    /// Drops `count` references, and forgets a node without name and references.
    pub fn release(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino.0) {
            node.references = node.references.saturating_sub(count);
            self.drop_if_unused(ino);
        }
    }

    fn drop_if_unused(&mut self, ino: Ino) {
        let unused = |node: &Node| !node.linked && node.references == 0;
        if self.nodes.get(&ino.0).is_some_and(unused) {
            self.nodes.remove(&ino.0);
        }
    }

    /// The folder at `path`, which is created if it does not exist.
    pub fn folder_at(&mut self, path: &Path) -> Result<Ino> {
        let mut at = ROOT;
        for name in path {
            at = match self.child(at, name) {
                Some(ino) => ino,
                None => self.add(at, name, Body::Folder(BTreeSet::new(), 0))?,
            };
        }
        self.children(at)?;
        Ok(at)
    }

    /// Adds an entry that a format lists. If it cannot be shown, returns its name and the reason.
    pub fn take(&mut self, listed: ListEntry) -> Option<(String, String)> {
        let (path, added) = match listed {
            ListEntry::Folder(path) => {
                let added = self.folder_at(&path).map(|_| ());
                (path, added)
            }
            ListEntry::File(path, entry) => {
                let added = self.add_file(&path, entry);
                (path, added)
            }
            ListEntry::NotShown(name, why) => return Some((name, why)),
        };
        let why = added.err()?.to_string();
        Some((path.display().to_string(), format!("not shown: {why}")))
    }

    fn add_file(&mut self, path: &Path, entry: Entry) -> Result<()> {
        let name = path.file_name().ok_or(Kind::InvalidArgument)?;
        let parent = self.folder_at(path.parent().unwrap_or(Path::new("")))?;
        self.add(parent, name, Body::File(Some(entry)))?;
        Ok(())
    }

    /// The files below a folder, as paths and numbers.
    pub fn files_below(&self, ino: Ino) -> Result<Vec<(PathBuf, Ino)>> {
        let mut files = Vec::new();
        let mut pending = vec![ino];
        while let Some(folder) = pending.pop() {
            for child in self.children(folder)?.0 {
                match self.node(Ino(*child))?.body {
                    Body::Folder(..) => pending.push(Ino(*child)),
                    Body::File(_) => files.push((self.path(Ino(*child))?, Ino(*child))),
                }
            }
        }
        Ok(files)
    }

    /// Whether `ino` is `ancestor` or below it.
    pub fn is_within(&self, mut ino: Ino, ancestor: Ino) -> bool {
        while ino != ancestor {
            match self.nodes.get(&ino.0) {
                Some(node) if ino != ROOT => ino = node.parent,
                _ => return false,
            }
        }
        true
    }
}

/// Refuses a name that is too long or not valid.
pub fn check_name(name: &OsStr) -> Result<()> {
    match name.len() {
        0 => Err(Kind::InvalidArgument.into()),
        len if len > NAME_LEN_MAX => Err(Kind::NameTooLong.into()),
        _ => Ok(()),
    }
}
