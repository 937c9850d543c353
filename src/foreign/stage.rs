//! Prepares changes, and makes each take effect as a whole.
//!
//! New files are encrypted into the folder `.hushfs-tmp` in the root of the library, and renamed from there. A change of
//! several files (such as an object and the index that refers to it) is first recorded as an *intent*. If a crash interrupts
//! it, the next process that opens the library completes it. Therefore a crash at any moment leaves either the old state or
//! the new one. The folder is locked, so that there is only one writer, and removed when the library is closed.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64_simd::STANDARD as BASE64;
use rustix::fs::{FlockOperation, Mode};
use serde::{Deserialize, Serialize};

use crate::crypto::random;
use crate::error::{Error, Kind, Result};

mod temp;

pub use temp::Temp;

/// The folder of temporary files, in the root of a library.
pub const STAGE_DIR: &str = ".hushfs-tmp";
/// The file in it that records the steps of the current change.
const INTENT: &str = "intent";
/// The lock file in it.
const LOCK: &str = "lock";
/// The most steps of one change.
pub const STEPS_MAX: usize = 10_000;
/// The longest intent that is read, in bytes: [`STEPS_MAX`] steps of two long paths.
const INTENT_LEN_MAX: u64 = 128 << 20;

/// Prepares the changes of one library.
pub struct Stage {
    root: PathBuf,
    _lock: File,
    /// An error interrupted a change, which is completed when the library is opened again.
    failed: AtomicBool,
}

/// A part of a change. Paths are relative to the root of the library.
pub enum Step {
    /// Moves a prepared file to this path, replacing any file there.
    Install(Temp, PathBuf),
    /// Moves a file or folder, replacing any file at the target.
    Move(PathBuf, PathBuf),
    /// Removes a file, if it exists.
    Remove(PathBuf),
}

/// The contents of an intent: renames and removals in order, with paths in base64.
#[derive(Serialize, Deserialize)]
struct Intent {
    version: u32,
    steps: Vec<(String, Option<String>)>,
}

/// A step that is carried out immediately, or after a crash.
struct Action {
    from: PathBuf,
    to: Option<PathBuf>,
}

impl Stage {
    /// Creates and locks the folder, completes a change that a crash interrupted, and removes other leftover files.
    ///
    /// [`Kind::InUse`] where another process writes to this library.
    pub fn open(root: &Path) -> Result<Self> {
        let dir = root.join(STAGE_DIR);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| Error::io(e, &dir))?;
        if fs::symlink_metadata(&dir).is_ok_and(|m| m.is_symlink()) {
            return Err(Error::damaged(dir.display(), "it is a symbolic link").hint("remove it"));
        }
        let stage = Self {
            root: root.to_path_buf(),
            _lock: lock(&dir)?,
            failed: AtomicBool::new(false),
        };
        stage.recover()?;
        for entry in fs::read_dir(&dir).map_err(|e| Error::io(e, &dir))? {
            let entry = entry.map_err(|e| Error::io(e, &dir))?;
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path()).map_err(|e| Error::io(e, entry.path()))?;
            }
        }
        Ok(stage)
    }

    /// Creates an empty file that only this user can read until it is committed.
    pub fn create(&self) -> Result<Temp> {
        let mut name = [0; 12];
        random(&mut name)?;
        let name: String = name.iter().map(|b| format!("{b:02x}")).collect();
        let path = self.root.join(STAGE_DIR).join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io(e, &path))?;
        Ok(Temp {
            file: Arc::new(file),
            path,
            placed: false,
        })
    }

    /// Creates a file with these contents that will replace the file at `old`. If that exists, its owner and permissions
    /// are kept.
    pub fn create_in_place_of(&self, old: &Path, bytes: &[u8]) -> Result<Temp> {
        let temp = self.create_with(bytes)?;
        let Ok(old) = fs::symlink_metadata(self.root.join(old)) else {
            return Ok(temp);
        };
        temp.take_owner(&old)?;
        Ok(temp)
    }

    /// Creates a file with these contents that other users may read.
    pub fn create_with(&self, bytes: &[u8]) -> Result<Temp> {
        let temp = self.create()?;
        let at = |e| Error::io(e, &temp.path);
        (&*temp.file).write_all(bytes).map_err(at)?;
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::fchmod(&temp.file, mode).map_err(|e| at(e.into()))?;
        Ok(temp)
    }

    /// Makes all steps take effect, in order and durably; missing parent folders are created. After an error, either nothing
    /// has taken effect, or all further changes fail until the library is opened again ([`Kind::Poisoned`]).
    pub fn commit(&self, steps: Vec<Step>) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::from(Kind::Poisoned).hint("unmount and mount again to finish it"));
        }
        if steps.len() > STEPS_MAX {
            return Err(Error::new(
                Kind::TooBig,
                "a change of so many files at once",
            ));
        }
        let (actions, mut temps) = prepare(steps)?;
        for to in actions.iter().filter_map(|a| a.to.as_deref()) {
            self.make_parent(to)?;
        }
        if actions.len() > 1 {
            self.write_intent(&actions)?;
        }
        if let Err(e) = actions
            .iter()
            .try_for_each(|action| self.act(action, false))
        {
            if actions.len() > 1 {
                self.failed.store(true, Ordering::Relaxed);
                temps.iter_mut().for_each(|temp| temp.placed = true);
            }
            return Err(e);
        }
        temps.iter_mut().for_each(|temp| temp.placed = true);
        self.finish(&actions)
    }

    /// Makes the renames durable, and removes the intent.
    fn finish(&self, actions: &[Action]) -> Result<()> {
        let mut folders: Vec<&Path> = actions
            .iter()
            .flat_map(|a| [a.to.as_deref(), Some(a.from.as_path())])
            .flatten()
            .filter_map(Path::parent)
            .collect();
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            let folder = self.root.join(folder);
            match sync_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|e| Error::io(e, &folder))?,
            }
        }
        if actions.len() > 1 {
            let path = self.root.join(STAGE_DIR).join(INTENT);
            fs::remove_file(&path).map_err(|e| Error::io(e, &path))?;
        }
        Ok(())
    }

    fn write_intent(&self, actions: &[Action]) -> Result<()> {
        let text = |path: &Path| BASE64.encode_to_string(path.as_os_str().as_bytes());
        let steps = actions
            .iter()
            .map(|a| (text(&a.from), a.to.as_deref().map(text)))
            .collect();
        let json =
            serde_json::to_vec(&Intent { version: 1, steps }).expect("strings are always JSON");
        let mut temp = self.create_with(&json)?;
        temp.sync()?;
        let dir = self.root.join(STAGE_DIR);
        let path = dir.join(INTENT);
        fs::rename(&temp.path, &path).map_err(|e| Error::io(e, &path))?;
        temp.placed = true;
        sync_dir(&dir).map_err(|e| Error::io(e, dir))
    }

    /// Carries out one step. When `again` is set, after a crash, it may already have been done.
    fn act(&self, action: &Action, again: bool) -> Result<()> {
        let from = self.root.join(&action.from);
        let done = match &action.to {
            Some(to) => fs::rename(&from, self.root.join(to)),
            None => fs::remove_file(&from),
        };
        match done {
            Err(e) if e.kind() == io::ErrorKind::NotFound && (again || action.to.is_none()) => {
                Ok(())
            }
            other => other.map_err(|e| Error::io(e, &from)),
        }
    }

    /// Completes a change that a crash interrupted.
    fn recover(&self) -> Result<()> {
        let path = self.root.join(STAGE_DIR).join(INTENT);
        let damaged = |check: &str| {
            Error::damaged(path.display(), check).hint(
                "it records an interrupted change; check the files that it lists, then remove it",
            )
        };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(e, &path)),
            Ok(file) => file
                .take(INTENT_LEN_MAX)
                .read_to_end(&mut bytes)
                .map_err(|e| Error::io(e, &path))?,
        };
        let actions = parse_intent(&bytes).ok_or_else(|| damaged("it does not parse"))?;
        let paths = actions.iter().flat_map(|a| [Some(&a.from), a.to.as_ref()]);
        if paths.flatten().any(|path| has_link(&self.root, path)) {
            return Err(damaged("it leads out of the library"));
        }
        log::warn!(
            "{}: finishing a change that was cut short",
            self.root.display()
        );
        for action in &actions {
            if let Some(to) = &action.to {
                self.make_parent(to)?;
            }
            self.act(action, true)?;
        }
        self.finish(&actions)
    }

    fn make_parent(&self, path: &Path) -> Result<()> {
        let parent = self.root.join(path);
        let parent = parent.parent().unwrap_or(&self.root);
        if parent.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(parent).map_err(|e| Error::io(e, parent))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let dir = self.root.join(STAGE_DIR);
        // If files are left, the next process that opens the library handles them, with or without the lock.
        let _ = fs::remove_file(dir.join(LOCK));
        let _ = fs::remove_dir(dir);
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| Error::io(e, &path))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let root = dir.parent().unwrap_or(dir);
            Err(Error::new(Kind::InUse, root.display())
                .hint("another hushfs is writing to it: unmount it there, or use --read-only"))
        }
        Err(e) => Err(Error::io(e.into(), &path)),
    }
}

/// Converts steps to actions, and makes new files durable. The files are also returned: dropping them would remove them.
fn prepare(steps: Vec<Step>) -> Result<(Vec<Action>, Vec<Temp>)> {
    let mut actions = Vec::with_capacity(steps.len());
    let mut temps = Vec::new();
    for step in steps {
        let (from, to) = match step {
            Step::Install(temp, to) => {
                temp.sync()?;
                let name = temp.path.file_name().unwrap_or_default();
                let from = Path::new(STAGE_DIR).join(name);
                temps.push(temp);
                (from, Some(to))
            }
            Step::Move(from, to) => (from, Some(to)),
            Step::Remove(path) => (path, None),
        };
        actions.push(Action { from, to });
    }
    Ok((actions, temps))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether `path`, relative to `root`, goes through a symbolic link.
pub fn has_link(root: &Path, path: &Path) -> bool {
    let mut at = root.to_path_buf();
    let folders = path.parent().into_iter().flat_map(Path::components);
    folders.into_iter().any(|part| {
        at.push(part);
        fs::symlink_metadata(&at).is_ok_and(|m| m.is_symlink())
    })
}

/// Whether a relative path stays below its start: only names, no `..`, and not empty.
pub fn is_confined(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let is_name = |n: &[u8]| !n.is_empty() && n != b"." && n.len() <= 255;
    // `components` ignores double slashes and dots, which would be another spelling of the same path.
    !bytes.contains(&0)
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        && bytes.split(|b| *b == b'/').all(is_name)
}

fn parse_intent(bytes: &[u8]) -> Option<Vec<Action>> {
    let intent: Intent = serde_json::from_slice(bytes).ok()?;
    if intent.version != 1 || intent.steps.len() > STEPS_MAX {
        return None;
    }
    let path = |text: &str| {
        let path = PathBuf::from(OsString::from_vec(BASE64.decode_to_vec(text).ok()?));
        is_confined(&path).then_some(path)
    };
    let action = |(from, to): (String, Option<String>)| {
        let to = match to {
            Some(to) => Some(path(&to)?),
            None => None,
        };
        let from = path(&from)?;
        Some(Action { from, to })
    };
    intent.steps.into_iter().map(action).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(root: &Path, name: &str) -> Option<String> {
        fs::read_to_string(root.join(name)).ok()
    }

    #[test]
    fn a_change_cut_short_anywhere_is_finished_or_never_was() {
        // The crash comes after `done` of the three steps, each time with the intent written.
        for done in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            fs::write(root.join("a"), "old a").unwrap();
            fs::write(root.join("b"), "old b").unwrap();
            fs::write(root.join("c"), "old c").unwrap();
            let stage = Stage::open(root).unwrap();
            let temp = stage.create_with(b"new a").unwrap();
            let steps = vec![
                Step::Install(temp, "a".into()),
                Step::Move("b".into(), "sub/b".into()),
                Step::Remove("c".into()),
            ];
            let (actions, temps) = prepare(steps).unwrap();
            stage.make_parent(Path::new("sub/b")).unwrap();
            stage.write_intent(&actions).unwrap();
            for action in &actions[..done] {
                stage.act(action, false).unwrap();
            }
            std::mem::forget(temps);
            drop(stage);
            drop(Stage::open(root).unwrap());
            assert_eq!(read(root, "a").as_deref(), Some("new a"), "after {done}");
            assert_eq!(read(root, "sub/b").as_deref(), Some("old b"));
            assert_eq!((read(root, "b"), read(root, "c")), (None, None));
            assert!(!root.join(STAGE_DIR).exists());
        }
    }

    #[test]
    fn an_intent_that_leads_out_of_the_library_is_refused() {
        for (from, to) in [
            ("../x", "y"),
            ("x", "/etc/y"),
            ("x", ""),
            ("x", "a//b"),
            ("link/x", "y"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("lib");
            fs::create_dir_all(root.join(STAGE_DIR)).unwrap();
            std::os::unix::fs::symlink(dir.path(), root.join("link")).unwrap();
            let steps = vec![(
                BASE64.encode_to_string(from),
                Some(BASE64.encode_to_string(to)),
            )];
            let json = serde_json::to_vec(&Intent { version: 1, steps }).unwrap();
            fs::write(root.join(STAGE_DIR).join(INTENT), json).unwrap();
            assert!(Stage::open(&root).is_err(), "{from} to {to}");
        }
    }

    #[test]
    fn there_is_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let first = Stage::open(dir.path()).unwrap();
        let second = Stage::open(dir.path()).err().unwrap();
        assert!(matches!(second.kind(), Kind::InUse));
        drop(first);
        Stage::open(dir.path()).unwrap();
    }
}
