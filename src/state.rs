//! What this machine remembers of a library, outside of it: the device's id, the library's fingerprint, and the
//! newest index segment seen of every device. So another library in its place, and an index that went back, are
//! noticed. Nothing here is secret. Without it nothing that is published is lost; what a crash left in `new/` waits
//! under the old device's id.
//!
//! One text file a place, named by a hash of the library's path:
//!
//! ```text
//! hushfs-state 1
//! fingerprint <32 hex digits>
//! device <32 hex digits>
//! head <device> <number> <64 hex digits>
//! ```

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::crypto::{Fingerprint, random};
use crate::error::{Error, Kind, Result};
use crate::store::{DeviceId, ObjectId};

/// First line of a state file.
const FIRST_LINE: &str = "hushfs-state 1";
/// The longest state file, in bytes: heads of some 8,000 devices.
const STATE_LEN_MAX: u64 = 1 << 20;

/// The newest published segment of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose segment.
    pub device: DeviceId,
    /// Its number in the writer's order, from 1.
    pub number: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// What is remembered of the library at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Which library was there.
    pub fingerprint: Fingerprint,
    /// This device's id in that library.
    pub device: DeviceId,
    /// The newest segments seen.
    pub heads: Vec<Head>,
}

/// The state file of a library at one place.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    /// Of the library at `library` (which need not be there now: a disk may be unmounted), below
    /// `$XDG_STATE_HOME/hushfs` or `~/.local/state/hushfs`. Makes nothing.
    ///
    /// Errors: [`Kind::Usage`] where there is no home directory; [`Kind::Io`] where the path cannot be resolved.
    pub fn of(library: &Path) -> Result<Self> {
        let mut hash = Sha256::new();
        hash.update(canonical(library)?.as_os_str().as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let (front, _) = hash
            .split_first_chunk()
            .expect("16 bytes are fewer than 32");
        let name = format!("{}.state", ObjectId(*front));
        Ok(Self {
            path: state_dir()?.join(name),
        })
    }

    /// In a file of one's own choice.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The state file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is remembered; `None` where nothing is. A file that does not parse is an error that says to remove it.
    pub fn load(&self) -> Result<Option<Remembered>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(e, &self.path)),
        };
        let mut text = Vec::new();
        file.take(STATE_LEN_MAX + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::io(e, &self.path))?;
        let parsed = if text.len() as u64 > STATE_LEN_MAX {
            Err("it is longer than a state file may be".to_string())
        } else {
            parse(&text)
        };
        parsed.map(Some).map_err(|check| {
            Error::damaged(self.path.display(), check).hint(
                "move it away: it says which library and index were here, and in `device` the folder of new/ that is \
                 this machine's",
            )
        })
    }

    /// Replaces what is remembered, atomically and durably. Makes the folders, for this user alone.
    pub fn save(&self, remembered: &Remembered) -> Result<()> {
        let text = encode(remembered);
        if text.len() as u64 > STATE_LEN_MAX {
            return Err(Error::new(Kind::TooBig, self.path.display()));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| Error::io(e, folder))?;
        let mut suffix = [0; 16];
        random(&mut suffix)?;
        let temporary = self
            .path
            .with_extension(format!("{}.tmp", ObjectId(suffix)));
        replace_durably(&temporary, &self.path, text.as_bytes())
    }
}

/// Writes `bytes` to `temporary`, which must not exist, then moves it to `path`; durable on return, and readable by
/// this user alone. After an error `temporary` is gone, and `path` is as it was or as it shall be.
pub(crate) fn replace_durably(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(temporary);
        Error::io(e, path)
    })?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(e, folder))
}

/// Where state files are: `$XDG_STATE_HOME` where it is absolute, as the XDG base directory specification has it.
fn state_dir() -> Result<PathBuf> {
    let given = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let base = match given.filter(|path| path.is_absolute()) {
        Some(base) => base,
        // Asks the user database where $HOME is not set, as below mount(8) at boot.
        None => std::env::home_dir()
            .filter(|home| home.is_absolute())
            .ok_or_else(|| {
                Error::usage("there is no place to remember the library in")
                    .hint("set XDG_STATE_HOME or HOME to a folder")
            })?
            .join(".local/state"),
    };
    Ok(base.join("hushfs"))
}

/// The absolute path without symbolic links, `.` and `..`, as far as it exists; what does not is appended as it is.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(|e| Error::io(e, path))?;
    let mut known = path.as_path();
    let mut missing = Vec::new();
    loop {
        match fs::canonicalize(known) {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |p, name| p.join(name))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match (known.parent(), known.components().next_back()) {
                    (Some(parent), Some(Component::Normal(name))) => {
                        missing.push(name);
                        known = parent;
                    }
                    _ => return Err(Error::io(e, &path)),
                }
            }
            Err(e) => return Err(Error::io(e, &path)),
        }
    }
}

fn encode(remembered: &Remembered) -> String {
    let mut text = format!(
        "{FIRST_LINE}\nfingerprint {}\ndevice {}\n",
        remembered.fingerprint, remembered.device
    );
    for head in &remembered.heads {
        let _ = write!(text, "head {} {} ", head.device, head.number);
        for byte in head.sha256 {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// Reads a state file; the error says which line is wrong.
fn parse(text: &[u8]) -> Result<Remembered, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_string())?;
    // Every line ends, so that a file that was cut is not taken for a shorter one.
    let body = text
        .strip_suffix('\n')
        .ok_or_else(|| "its last line does not end".to_string())?;
    let mut lines = body.split('\n').zip(1..);
    let mut next = |what: &str| match lines.next() {
        Some((line, number)) => Ok((line, number)),
        None => Err(format!("it has no line for the {what}")),
    };
    let wrong = |number: i32| format!("line {number} does not parse");

    if next("format")?.0 != FIRST_LINE {
        return Err(format!("its first line is not `{FIRST_LINE}`"));
    }
    let mut field = |name: &str| {
        let (line, number) = next(name)?;
        let value = line.strip_prefix(name).and_then(|v| v.strip_prefix(' '));
        value.and_then(ObjectId::parse).ok_or_else(|| wrong(number))
    };
    let fingerprint = Fingerprint(field("fingerprint")?.0);
    let device = field("device")?;
    let heads = lines
        .map(|(line, number)| parse_head(line).ok_or_else(|| wrong(number)))
        .collect::<Result<_, _>>()?;
    Ok(Remembered {
        fingerprint,
        device,
        heads,
    })
}

fn parse_head(line: &str) -> Option<Head> {
    let mut words = line.strip_prefix("head ")?.split(' ');
    let device = ObjectId::parse(words.next()?)?;
    let digits = words.next()?;
    let number: u64 = digits.parse().ok()?;
    let (front, back) = words.next()?.split_at_checked(32)?;
    let mut sha256 = [0; 32];
    sha256[..16].copy_from_slice(&ObjectId::parse(front)?.0);
    sha256[16..].copy_from_slice(&ObjectId::parse(back)?.0);
    // One way to write it: no sign, no leading zero, nothing behind.
    (words.next().is_none() && number > 0 && number.to_string() == digits).then_some(Head {
        device,
        number,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(heads: usize) -> Remembered {
        Remembered {
            fingerprint: Fingerprint([0xf1; 16]),
            device: ObjectId([0xd0; 16]),
            heads: (0..heads)
                .map(|i| Head {
                    device: ObjectId([i as u8; 16]),
                    number: (i as u64 + 1) * 1000,
                    sha256: [0xa5; 32],
                })
                .collect(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path().join("made/on/the/way.state"));
        assert_eq!(place.load().unwrap(), None);
        for heads in [0, 1, 300] {
            place.save(&remembered(heads)).unwrap();
            assert_eq!(place.load().unwrap(), Some(remembered(heads)));
        }
        let folder = dir.path().join("made/on/the");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_does_not_parse_says_to_move_it_away() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path().join("s"));
        let good = encode(&remembered(2));
        let refused = |text: &[u8]| {
            fs::write(place.path(), text).unwrap();
            let message = place.load().unwrap_err().to_string();
            assert!(message.contains("move it away"), "{message}");
        };
        let shortest = encode(&remembered(0)).len();
        for len in 0..good.len() {
            let cut = &good.as_bytes()[..len];
            // A cut behind a head is a state with fewer heads: the atomic replacement is what prevents it.
            if len < shortest || !cut.ends_with(b"\n") {
                refused(cut);
            }
        }
        refused(good.replace("-state 1", "-state 2").as_bytes());
        refused(good.replace(" 1000 ", " +1000 ").as_bytes());
        refused(good.replace(" 1000 ", " 01000 ").as_bytes());
        refused(good.replace(" 1000 ", " 99999999999999999999 ").as_bytes());
        refused(good.replace(" 1000 ", " 0 ").as_bytes());
        refused(good.replace("device", "devise").as_bytes());
        refused(good.to_uppercase().as_bytes());
        refused(format!("{good}\n").as_bytes());
        refused(b"\xff\n");
        refused(&vec![b'\n'; STATE_LEN_MAX as usize + 1]);
    }

    #[test]
    fn too_many_heads_leave_what_was_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::at(dir.path().join("s"));
        place.save(&remembered(1)).unwrap();
        assert!(place.save(&remembered(20_000)).is_err());
        assert_eq!(place.load().unwrap(), Some(remembered(1)));
    }

    #[test]
    fn one_place_has_one_name_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let canonical = |path: &str| canonical(&dir.path().join(path)).unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(canonical("link/./."), root.join("real"));
        assert_eq!(canonical("link/../real"), root.join("real"));
        assert_eq!(canonical("link/not/there/"), root.join("real/not/there"));
        let before = canonical("later");
        fs::create_dir(dir.path().join("later")).unwrap();
        assert_eq!(canonical("later"), before);
    }
}
