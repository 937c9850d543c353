//! Creating, renaming and removing files and folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::Mirror;
use super::content::{Content, Overrides};
use super::tree::{Body, check_name};
use crate::error::{Error, Kind, Result};
use crate::overdue;
use crate::volume::{Caller, FileKind, Ino, RenameMode, SetAttr};

/// A checked rename.
struct Move {
    ino: Ino,
    from: PathBuf,
    to: PathBuf,
    new_parent: Ino,
    /// What the new name refers to now.
    target: Option<Ino>,
}

impl Mirror {
    /// Creates a file. A name that the format does not accept is refused, unless it is a temporary one: such a file is kept
    /// encrypted in the stage until it is renamed to its final name.
    pub(super) fn create_file(
        &self,
        parent: Ino,
        name: &OsStr,
        perm: u16,
        caller: Caller,
    ) -> Result<(Ino, Arc<Mutex<Content>>)> {
        self.writable()?;
        check_name(name)?;
        let plain_path = self.path(parent)?.join(name);
        if let Err(e) = self.format.check_name(&plain_path)
            && !self.may_be_renamed(&plain_path)
        {
            log::warn!("{}: refused: {e}", plain_path.display());
            return Err(e);
        }
        let mut content = Content::new();
        content.overrides = Overrides {
            perm: Some(perm & !caller.umask),
            uid: Some(caller.uid),
            gid: Some(caller.gid),
            ..Overrides::default()
        };
        let content = Arc::new(Mutex::new(content));
        let _changes = overdue::lock(&self.changes)?;
        let mut tree = self.tree.write();
        let ino = tree.add(parent, name, Body::File(None))?;
        self.files.lock().insert(ino.0, Arc::clone(&content));
        Ok((ino, content))
    }

    /// Refuses to change a stored file that the format would not accept as a new one.
    pub(super) fn check_change(&self, ino: Ino, plain_path: &Path) -> Result<()> {
        if self.entry(ino)?.is_some() {
            self.format
                .check_name(plain_path)
                .inspect_err(|e| log::warn!("{}: refused: {e}", plain_path.display()))?;
        }
        Ok(())
    }

    pub(super) fn make_dir(
        &self,
        parent: Ino,
        name: &OsStr,
        perm: u16,
        caller: Caller,
    ) -> Result<Ino> {
        self.writable()?;
        check_name(name)?;
        let _changes = overdue::lock(&self.changes)?;
        if self.tree.read().child(parent, name).is_some() {
            return Err(Kind::Exists.into());
        }
        let path = self.format.root().join(self.path(parent)?.join(name));
        match fs::create_dir_all(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // Something with this name exists, but is not shown.
                return Err(Kind::Exists.into());
            }
            other => other.map_err(|e| Error::io(e, &path))?,
        }
        let set = SetAttr {
            perm: Some(perm & !caller.umask),
            uid: Some(caller.uid),
            gid: Some(caller.gid),
            ..SetAttr::default()
        };
        let ino = self
            .tree
            .write()
            .add(parent, name, Body::Folder(BTreeSet::new(), 0))?;
        if let Err(e) = self.set_attr(ino, &set) {
            log::debug!("{}: {e}", path.display());
        }
        Ok(ino)
    }

    pub(super) fn remove_file(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.writable()?;
        let _changes = overdue::lock(&self.changes)?;
        let (ino, plain_path) = {
            let tree = self.tree.read();
            let ino = tree.child(parent, name).ok_or(Kind::NotFound)?;
            (ino, tree.path(ino)?)
        };
        if let Some(entry) = self.entry(ino)? {
            self.format.remove(&plain_path, &entry)?;
        }
        self.tree.write().unlink(ino)?;
        self.close_content(ino);
        Ok(())
    }

    pub(super) fn remove_dir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.writable()?;
        let _changes = overdue::lock(&self.changes)?;
        let (ino, plain_path) = {
            let tree = self.tree.read();
            let ino = tree.child(parent, name).ok_or(Kind::NotFound)?;
            if !tree.children(ino)?.0.is_empty() {
                return Err(Kind::NotEmpty.into());
            }
            (ino, tree.path(ino)?)
        };
        remove_stored_dir(&self.format.root().join(plain_path))?;
        self.tree.write().unlink(ino)
    }

    pub(super) fn move_name(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.writable()?;
        check_name(new_name)?;
        if !matches!(mode, RenameMode::Replace | RenameMode::NoReplace) {
            return Err(Kind::InvalidArgument.into());
        }
        let ino = self.tree.read().child(parent, name).ok_or(Kind::NotFound)?;
        let file = self.opened(ino);
        let mut content = file.as_ref().map(|file| file.lock());
        let _changes = overdue::lock(&self.changes)?;
        let Some(plan) = self.plan_move(ino, (parent, name), (new_parent, new_name), mode)? else {
            return Ok(());
        };
        if matches!(self.tree.read().node(ino)?.body, Body::Folder(..)) {
            self.move_dir(&plan)?;
        } else {
            self.move_file(&plan, content.as_mut())?;
        }
        let mut tree = self.tree.write();
        if let Some(target) = plan.target {
            tree.unlink(target)?;
        }
        tree.relink(ino, plan.new_parent, new_name)?;
        drop(tree);
        plan.target
            .into_iter()
            .for_each(|target| self.close_content(target));
        Ok(())
    }

    /// Checks a rename against the rules of rename(2). `None` if both names refer to the same file.
    fn plan_move(
        &self,
        ino: Ino,
        old: (Ino, &OsStr),
        new: (Ino, &OsStr),
        mode: RenameMode,
    ) -> Result<Option<Move>> {
        let tree = self.tree.read();
        if tree.child(old.0, old.1) != Some(ino) {
            return Err(Kind::NotFound.into());
        }
        let is_dir = tree.node(ino)?.kind() == FileKind::Directory;
        tree.children(new.0)?;
        if is_dir && tree.is_within(new.0, ino) {
            return Err(Kind::InvalidArgument.into());
        }
        let target = tree.child(new.0, new.1);
        if let Some(target) = target {
            if target == ino {
                return Ok(None);
            }
            if mode == RenameMode::NoReplace {
                return Err(Kind::Exists.into());
            }
            match (is_dir, &tree.node(target)?.body) {
                (true, Body::File(_)) => return Err(Kind::NotDirectory.into()),
                (false, Body::Folder(..)) => return Err(Kind::IsDirectory.into()),
                (true, Body::Folder(children, _)) if !children.is_empty() => {
                    return Err(Kind::NotEmpty.into());
                }
                _ => {}
            }
        }
        Ok(Some(Move {
            ino,
            from: tree.path(ino)?,
            to: tree.path(new.0)?.join(new.1),
            new_parent: new.0,
            target,
        }))
    }

    fn move_file(&self, plan: &Move, content: Option<&mut MutexGuard<'_, Content>>) -> Result<()> {
        let old = match plan.target {
            Some(target) => self.entry(target)?,
            None => None,
        };
        let refused = |e: &Error| log::warn!("{}: refused: {e}", plan.to.display());
        let entry = match (self.entry(plan.ino)?, content) {
            // It was not stored yet, and is now stored under its new name.
            (None, Some(content)) => {
                if self
                    .format
                    .check_name(&plan.to)
                    .inspect_err(refused)
                    .is_err()
                {
                    if self.may_be_renamed(&plan.to) && old.is_none() {
                        return Ok(());
                    }
                    self.format.check_name(&plan.to)?;
                }
                self.place(content, &plan.to, old.as_ref())?
            }
            (Some(entry), content) => {
                let entry = match content {
                    Some(content) if content.changed() => {
                        self.place(content, &plan.from, Some(&entry))?
                    }
                    _ => entry,
                };
                // The file is there now, whatever happens next.
                self.tree.write().node_mut(plan.ino)?.body = Body::File(Some(entry.clone()));
                let moved = self
                    .format
                    .rename(&entry, &plan.from, &plan.to, old.as_ref());
                moved.inspect_err(refused)?
            }
            (None, None) => return Err(Kind::Stale.into()),
        };
        self.tree.write().node_mut(plan.ino)?.body = Body::File(Some(entry));
        Ok(())
    }

    fn move_dir(&self, plan: &Move) -> Result<()> {
        let below = self.tree.read().files_below(plan.ino)?;
        let mut files = Vec::with_capacity(below.len());
        let mut inos = Vec::with_capacity(below.len());
        for (path, ino) in below {
            if let Some(entry) = self.entry(ino)? {
                files.push((path, entry));
                inos.push(ino);
            }
        }
        let moved = self.format.rename_dir(&plan.from, &plan.to, &files)?;
        let mut tree = self.tree.write();
        for (ino, entry) in inos.into_iter().zip(moved) {
            tree.node_mut(ino)?.body = Body::File(Some(entry));
        }
        Ok(())
    }
}

/// Removes a stored folder. One that exists only in an index has none.
fn remove_stored_dir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            let hint =
                "it contains something that is not shown: objects, or neither files nor folders";
            Err(Error::new(Kind::NotEmpty, path.display()).hint(hint))
        }
        other => other.map_err(|e| Error::io(e, path)),
    }
}
