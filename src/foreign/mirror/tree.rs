//! The names of a foreign library, in memory: read once when it is opened. Nobody else writes to it meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::error::{Kind, Result};
use crate::foreign::{Entry, Listed};
use crate::volume::{FileKind, Ino, NAME_LEN_MAX, ROOT};

/// The first number after the root's; below are cookies of `.` and `..`.
const INO_FIRST: u64 = 16;

/// A file or folder.
pub struct Node {
    /// The folder that it is in; of what has no name, the one that it was in.
    pub parent: Ino,
    /// Its name there.
    pub name: OsString,
    /// Whether it still has that name.
    pub linked: bool,
    /// References of the kernel and of handles.
    pub references: u64,
    /// What it is.
    pub body: Body,
}

/// What a node is.
pub enum Body {
    /// A folder, and what is in it; how many of that are folders.
    Folder(BTreeSet<u64>, u32),
    /// A file, and where it is, unless it was never written out.
    File(Option<Entry>),
}

impl Node {
    /// What stat(2) calls it.
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
    /// The root alone.
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

    /// A node; ESTALE where it is gone.
    pub fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino.0).ok_or_else(|| Kind::Stale.into())
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or_else(|| Kind::Stale.into())
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// What a folder holds, by number, and how many folders that are.
    pub fn children(&self, ino: Ino) -> Result<(&BTreeSet<u64>, u32)> {
        match &self.node(ino)?.body {
            Body::Folder(children, folders) => Ok((children, *folders)),
            Body::File(_) => Err(Kind::NotDirectory.into()),
        }
    }

    /// Finds a name in a folder.
    pub fn child(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        // The table is asked with an owned key: lookups are rare, as the kernel remembers them.
        self.names
            .get(&(parent.0, name.to_owned()))
            .copied()
            .map(Ino)
    }

    /// Where it is, from the root on; empty for the root.
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

    /// Takes the name of a node away.
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

    /// Gives a node another name, which is free.
    pub fn relink(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        // Held for the moment in which it has no name.
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

    /// Gives references back, and forgets what has neither name nor reference.
    pub fn let_go(&mut self, ino: Ino, count: u64) {
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

    /// The folder at `path`, made where it is missing.
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

    /// Takes in what a format lists. What cannot be shown is said: its name, and why not.
    pub fn take(&mut self, listed: Listed) -> Option<(String, String)> {
        let (path, added) = match listed {
            Listed::Folder(path) => {
                let added = self.folder_at(&path).map(|_| ());
                (path, added)
            }
            Listed::File(path, entry) => {
                let added = self.add_file(&path, entry);
                (path, added)
            }
            Listed::NotShown(name, why) => return Some((name, why)),
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

    /// Whether `ino` is `ancestor` or lies below it.
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

/// Refuses a name that is too long or none.
pub fn check_name(name: &OsStr) -> Result<()> {
    match name.len() {
        0 => Err(Kind::InvalidArgument.into()),
        len if len > NAME_LEN_MAX => Err(Kind::NameTooLong.into()),
        _ => Ok(()),
    }
}
