//! Which state file is a library's: by its fingerprint, and of several of these by the place.
//!
//! A library that was moved, renamed, or lies under another mount point is the same one, and this machine the same
//! device. Where the remembered place still holds the library, another place is a copy of it: two places that are
//! written to under one device id would go apart.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Place, Remembered, canonical, state_dir};
use crate::crypto::Fingerprint;
use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;

/// So long a remembered place is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is remembered of the library at a place.
#[derive(Debug)]
pub enum Found {
    /// This machine writes here.
    Own(Place, Remembered),
    /// It writes to the library at another place, which still holds it: this is a copy. The state file is one that may
    /// be made for it.
    Copy {
        /// Where the library is.
        original: PathBuf,
        /// What may be made.
        free: Place,
    },
    /// Nothing. The state file is one that may be made.
    Unknown(Place),
}

/// Looks for the library with this fingerprint, which lies at `library`. `holds` says whether it lies at another place,
/// too. Changes nothing.
///
/// [`Kind::RolledBack`] where another library is remembered at the place, and this one is not; not with `accept`.
pub fn find(
    library: &Path,
    fingerprint: Fingerprint,
    accept: bool,
    holds: &dyn Fn(&Path) -> bool,
) -> Result<Found> {
    let library = canonical(library)?;
    let all = known(&library, fingerprint)?;
    let (mut own, others): (Vec<Known>, Vec<Known>) = all
        .into_iter()
        .partition(|k| k.remembered.fingerprint == fingerprint);
    // Those of the first format are the second choice: they are what an older version made of it.
    own.sort_by_key(|k| k.remembered.place.is_none());
    if let Some(here) = own.iter().position(|k| k.is_at(&library)) {
        let here = own.swap_remove(here);
        return Ok(here.found(library));
    }
    if let Some(other) = others.iter().find(|k| k.is_at(&library))
        && !accept
    {
        let text = "another library than this machine remembers here";
        return Err(Error::new(Kind::RolledBack(text.into()), library.display())
            .hint(format_args!("where that is meant, --accept-rollback remembers it beside the other, which {} is for", other.path.display())));
    }
    let free = Place {
        path: free_name(fingerprint)?,
        library: Some(library.clone()),
    };
    let mut original = None;
    let mut gone = Vec::new();
    for known in own {
        match &known.remembered.place {
            // Until it is known better, another place still holds the library: a copy is not written to.
            Some(place) if !answers(place, PATIENCE) => {
                log::warn!(
                    "{}: does not answer, so the library may still be there",
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
    // A folder that moved has this device's folder in it. Of several that moved, a copy that got a device of its own
    // may have the other's folder, too, and so is the newer one.
    let has_folder = |k: &Known| {
        let folder = library.join("new").join(k.remembered.device.to_string());
        folder.is_dir()
    };
    if let Some(moved) = gone.iter().rposition(has_folder) {
        return Ok(gone.swap_remove(moved).found(library));
    }
    // Without that folder, as a synced copy is: it has come to its new place so, where there is no other.
    gone.retain(|k| k.remembered.place.is_some());
    Ok(match (original, gone.into_iter().next()) {
        (Some(original), _) => Found::Copy { original, free },
        (None, Some(moved)) => moved.found(library),
        (None, None) => Found::Unknown(free),
    })
}

/// The state file of a library that is remembered at `library`, whichever it is.
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

/// Remembers in the second format, and by the fingerprint, what a file of the first format says of the library at
/// `library`. Of two that do it at once, both write the same.
pub fn take_over(old: &Place, remembered: &mut Remembered, library: &Path) -> Result<Place> {
    let place = Place {
        path: free_name(remembered.fingerprint)?,
        library: Some(canonical(library)?),
    };
    remembered.place.clone_from(&place.library);
    place.save(remembered)?;
    fs::remove_file(&old.path)
        .or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })
        .map_err(|e| Error::io(e, &old.path))?;
    Ok(place)
}

/// A state file, read.
struct Known {
    path: PathBuf,
    remembered: Remembered,
}

impl Known {
    /// Whether it is the memory of what lies at `library`.
    fn is_at(&self, library: &Path) -> bool {
        match &self.remembered.place {
            Some(place) => place == library,
            None => self.path.file_name() == Some(name_of_path(library).as_ref()),
        }
    }

    fn found(self, library: PathBuf) -> Found {
        let place = Place {
            path: self.path,
            library: Some(library),
        };
        Found::Own(place, self.remembered)
    }
}

/// All that can be read; an error where that of this place, or of this library, cannot.
fn known(library: &Path, fingerprint: Fingerprint) -> Result<Vec<Known>> {
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

fn read(path: PathBuf) -> Result<Option<Known>> {
    let remembered = Place::at(path.clone()).load()?;
    Ok(remembered.map(|remembered| Known { path, remembered }))
}

/// All state files, the oldest of each library first: their names have numbers.
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

/// As the first format named the file of the library at a path.
fn name_of_path(library: &Path) -> String {
    let hash: [u8; 32] = Sha256::digest(library.as_os_str().as_bytes()).into();
    let (front, _) = hash
        .split_first_chunk()
        .expect("16 bytes are fewer than 32");
    format!("{}.state", ObjectId(*front))
}

/// The first name for this library that no file has.
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

/// Whether the system says within `patience` if there is something at a path: a network filesystem may hang.
fn answers(path: &Path, patience: Duration) -> bool {
    let (path, (send, receive)) = (path.to_path_buf(), mpsc::channel());
    // It only asks the system, so it may be left behind.
    let asking = thread::Builder::new().spawn(move || {
        let _ = fs::metadata(path);
        let _ = send.send(());
    });
    asking.is_err() || receive.recv_timeout(patience).is_ok()
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
