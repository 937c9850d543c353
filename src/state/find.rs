//! Finds the state file of a library: by its fingerprint, and of several ones with that, by the library's path.
//!
//! A library that was moved or renamed, or is under another mount point, is still the same library, and this machine is
//! the same device. If the library still exists at the remembered path, another path holds a copy of it. A copy needs a
//! device id of its own: two copies that are written to under one id would diverge.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Remembered, StateFile, canonical, state_dir};
use crate::crypto::Fingerprint;
use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;

/// Maximum time to wait for a remembered path to answer.
const PATH_TIMEOUT: Duration = Duration::from_secs(10);

/// What this machine remembers about the library at a path.
#[derive(Debug)]
pub enum Found {
    /// This machine writes to the library here.
    Own(StateFile, Remembered),
    /// This machine writes to the library at another path, and the library still exists there: this is a copy.
    Copy {
        /// The path of the library.
        original: PathBuf,
        /// A state file that can be created for the copy.
        free: StateFile,
    },
    /// Nothing is remembered. The state file is one that can be created.
    Unknown(StateFile),
}

/// Finds the state file of the library with this fingerprint, which is at the path `library`. `holds` says whether the
/// library also exists at another path. Changes nothing.
///
/// # Errors
/// [`Kind::RolledBack`] if another library is remembered at this path, and this one is not, unless `accept` is set. A
/// state file of this library or path cannot be read.
pub fn find(
    library: &Path,
    fingerprint: Fingerprint,
    accept: bool,
    holds: &dyn Fn(&Path) -> bool,
) -> Result<Found> {
    let library = canonical(library)?;
    let all = known(&library, fingerprint)?;
    let (mut own, others): (Vec<KnownLibrary>, Vec<KnownLibrary>) = all
        .into_iter()
        .partition(|k| k.remembered.fingerprint == fingerprint);
    // State files of the first format come last: an older version wrote them.
    own.sort_by_key(|k| k.remembered.place.is_none());
    if let Some(here) = own.iter().position(|k| k.is_at(&library)) {
        let here = own.swap_remove(here);
        return Ok(here.found(library));
    }
    if let Some(other) = others.iter().find(|k| k.is_at(&library))
        && !accept
    {
        let text = "not the library that this machine remembers at this path";
        let hint = format_args!(
            "if that is intended, --accept-rollback remembers it in addition to the other one, whose state is in {}",
            other.path.display()
        );
        return Err(Error::new(Kind::RolledBack(text.into()), library.display()).hint(hint));
    }
    let free = StateFile {
        path: free_name(fingerprint)?,
        library: Some(library.clone()),
    };
    let mut original = None;
    let mut gone = Vec::new();
    for known in own {
        match &known.remembered.place {
            // If the path does not answer, assume that the library is still there, so that a copy is not written to.
            Some(place) if !answers(place, PATH_TIMEOUT) => {
                log::warn!(
                    "{}: does not respond, so the library may still be there",
                    place.display()
                );
                original = original.or(Some(place.clone()));
            }
            Some(place) if is_same_folder(place, &library) => {
                let place = place.clone();
                return Ok(known.found(place));
            }
            Some(place) if holds(place) => original = original.or(Some(place.clone())),
            _ => gone.push(known),
        }
    }
    // A library that was moved contains this device's folder. If several match, the newest state file is right: a copy
    // that got a device id of its own may contain the folder of the original's device, too.
    let has_folder = |k: &KnownLibrary| {
        let folder = library.join("new").join(k.remembered.device.to_string());
        folder.is_dir()
    };
    if let Some(moved) = gone.iter().rposition(has_folder) {
        return Ok(gone.swap_remove(moved).found(library));
    }
    // A synced copy lacks that folder. If the library exists nowhere else, it was moved by syncing.
    gone.retain(|k| k.remembered.place.is_some());
    Ok(match (original, gone.into_iter().next()) {
        (Some(original), _) => Found::Copy { original, free },
        (None, Some(moved)) => moved.found(library),
        (None, None) => Found::Unknown(free),
    })
}

/// The state file of any library that is remembered at the path `library`, and that library's fingerprint.
pub fn is_taken(library: &Path) -> Result<Option<(PathBuf, Fingerprint)>> {
    let library = canonical(library)?;
    let mut all = files()?
        .into_iter()
        .filter_map(|path| read(path).ok())
        .flatten();
    Ok(all
        .find(|k| k.is_at(&library))
        .map(|k| (k.path, k.remembered.fingerprint)))
}

/// Converts a state file of the first format, for the library at the path `library`, to the second format, in which it
/// is found by the fingerprint. Two processes may do this concurrently: both write the same contents.
pub fn take_over(
    old: &StateFile,
    remembered: &mut Remembered,
    library: &Path,
) -> Result<StateFile> {
    let new = StateFile {
        path: free_name(remembered.fingerprint)?,
        library: Some(canonical(library)?),
    };
    remembered.place.clone_from(&new.library);
    new.save(remembered)?;
    fs::remove_file(&old.path)
        .or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })
        .map_err(|e| Error::io(e, &old.path))?;
    Ok(new)
}

/// A state file and its contents.
struct KnownLibrary {
    path: PathBuf,
    remembered: Remembered,
}

impl KnownLibrary {
    /// Whether it remembers a library at the path `library`.
    fn is_at(&self, library: &Path) -> bool {
        match &self.remembered.place {
            Some(place) => place == library,
            None => self.path.file_name() == Some(name_of_path(library).as_ref()),
        }
    }

    fn found(self, library: PathBuf) -> Found {
        let file = StateFile {
            path: self.path,
            library: Some(library),
        };
        Found::Own(file, self.remembered)
    }
}

/// Reads all state files. Unreadable ones are skipped, except those of this path or this library.
fn known(library: &Path, fingerprint: Fingerprint) -> Result<Vec<KnownLibrary>> {
    let mut all = Vec::new();
    let (of_path, of_library) = (name_of_path(library), fingerprint.to_string());
    for path in files()? {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        match read(path) {
            Ok(known) => all.extend(known),
            Err(e) if name == of_path || name.starts_with(&of_library) => return Err(e),
            Err(e) => log::debug!("{e}"),
        }
    }
    Ok(all)
}

fn read(path: PathBuf) -> Result<Option<KnownLibrary>> {
    let remembered = StateFile::at(path.clone()).load()?;
    Ok(remembered.map(|remembered| KnownLibrary { path, remembered }))
}

/// The paths of all state files. Those of one library are ordered from the oldest to the newest, by the number in the
/// name.
fn files() -> Result<Vec<PathBuf>> {
    let folder = state_dir()?;
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io(e, folder)),
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some("state".as_ref()))
        .collect();
    files.sort_by_cached_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(files)
}

/// The file name that the first format gave the state of the library at a path.
fn name_of_path(library: &Path) -> String {
    let hash: [u8; 32] = Sha256::digest(library.as_os_str().as_bytes()).into();
    let (front, _) = hash
        .split_first_chunk()
        .expect("16 bytes are fewer than 32");
    format!("{}.state", ObjectId(*front))
}

/// The first unused file name for the state of this library.
fn free_name(fingerprint: Fingerprint) -> Result<PathBuf> {
    let folder = state_dir()?;
    let mut path = folder.join(format!("{fingerprint}.state"));
    for number in 2.. {
        if !path.exists() {
            break;
        }
        path.set_file_name(format!("{fingerprint}-{number}.state"));
    }
    Ok(path)
}

/// Whether stat(2) of a path returns within `timeout`: a network filesystem may hang.
fn answers(path: &Path, timeout: Duration) -> bool {
    let (path, (send, receive)) = (path.to_path_buf(), mpsc::channel());
    // The thread changes nothing, so it may be abandoned.
    let asking = thread::Builder::new().spawn(move || {
        let _ = fs::metadata(path);
        let _ = send.send(());
    });
    asking.is_err() || receive.recv_timeout(timeout).is_ok()
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
