//! What this machine remembers about a library, outside of it: the id of this device, the library's fingerprint, and
//! the newest index segment of every device that was seen. With it, a replaced library and a rollback of the index are
//! detected. Nothing in it is secret. If it is deleted, no published data is lost, but files that a crash left in
//! `new/` stay there, because they belong to the old device id.
//!
//! There is one text file for each library, found by the library's fingerprint ([`find`]), and another one for each
//! copy of the library that is written to under a device id of its own:
//!
//! ```text
//! hushfs-state 2
//! fingerprint <32 hex digits>
//! device <32 hex digits>
//! place <path, with % and two hex digits for what is not a graphic ASCII character, and for %>
//! former <32 hex digits>                       at most one
//! wrote <32 hex digits>                        any number
//! head <device> <number> <64 hex digits>       any number
//! ```

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::crypto::{Fingerprint, random_id};
use crate::error::{Error, Kind, Result};
use crate::index::record::Head;
use crate::object::{DeviceId, ObjectId, SegmentId};

mod find;

pub use find::{Found, find, is_taken, take_over};

/// First line of a state file.
const FIRST_LINE: &str = "hushfs-state 2";
/// First line of a state file in the first format: it has no place, and its name is a hash of the library's path.
const FIRST_LINE_1: &str = "hushfs-state 1";
/// Maximum length of a state file, in bytes: enough for the heads of about 8,000 devices.
const STATE_LEN_MAX: u64 = 1 << 20;

/// The contents of a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The fingerprint of the library.
    pub fingerprint: Fingerprint,
    /// This device's id in the library.
    pub device: DeviceId,
    /// The path of the library when it was last mounted for writing, without symbolic links; `None` in the first
    /// format.
    pub place: Option<PathBuf>,
    /// A former id of this device: the files in its folder of `new/` are to be taken over.
    pub former: Option<DeviceId>,
    /// The ids of this device's newest segments. The last one is about to be published, or was.
    pub wrote: Vec<SegmentId>,
    /// The newest segments that were seen.
    pub heads: Vec<Head>,
}

/// The state file of a library, and the path of the library that is saved in it.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
    library: Option<PathBuf>,
}

impl StateFile {
    /// A state file at `path`, in which no path of a library is saved.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            library: None,
        }
    }

    /// The path of the library, without symbolic links; `None` for the first format.
    pub fn library(&self) -> Option<&Path> {
        self.library.as_deref()
    }

    /// The path of the state file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file; `None` if it does not exist.
    ///
    /// # Errors
    /// It cannot be read, or not be parsed: then the hint says to move it away.
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
            Err("it is too long for a state file".to_string())
        } else {
            parse(&text)
        };
        parsed.map(Some).map_err(|check| {
            Error::damaged(self.path.display(), check).hint(
                "move it away: it records which library and index were here, and its `device` line is the name of this \
                 machine's folder in new/",
            )
        })
    }

    /// Replaces the file, atomically and durably. Creates its folders, accessible only to this user.
    pub fn save(&self, remembered: &Remembered) -> Result<()> {
        let (temporary, text) = self.prepare(remembered)?;
        replace_durably(&temporary, &self.path, text.as_bytes())
    }

    /// Creates the file, atomically and durably. Returns false and changes nothing if it exists.
    pub fn create(&self, remembered: &Remembered) -> Result<bool> {
        let (temporary, text) = self.prepare(remembered)?;
        match write_durably(&temporary, &self.path, text.as_bytes(), move_new) {
            Ok(()) => Ok(true),
            Err(e) if is_exists(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn prepare(&self, remembered: &Remembered) -> Result<(PathBuf, String)> {
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
        let temporary = self.path.with_extension(format!("{}.tmp", random_id()?));
        Ok((temporary, text))
    }
}

fn is_exists(e: &Error) -> bool {
    matches!(e.kind(), Kind::Io(e) if e.kind() == io::ErrorKind::AlreadyExists)
}

/// Renames a file to an unused name. If two processes do this concurrently, one gets `AlreadyExists`.
fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some filesystems do not support NOREPLACE (NFS).
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_new(from, to),
        moved => moved.map_err(io::Error::from),
    }
}

fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

/// Writes `bytes` to `temporary`, which must not exist, then renames it to `path`. On return the file is durable, and
/// readable only by this user. After an error `temporary` is removed, and `path` has either the old or the new
/// contents.
pub(crate) fn replace_durably(temporary: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    write_durably(temporary, path, bytes, |from, to| fs::rename(from, to))
}

fn write_durably(
    temporary: &Path,
    path: &Path,
    bytes: &[u8],
    install: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        install(temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(temporary);
        Error::io(e, path)
    })?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_dir(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(e, folder))
}

/// The folder of state files: below `$XDG_STATE_HOME` if that is absolute, as in the XDG base directory specification,
/// otherwise below `~/.local/state`.
fn state_dir() -> Result<PathBuf> {
    let given = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let base = match given.filter(|path| path.is_absolute()) {
        Some(base) => base,
        // This asks the user database if $HOME is not set, as under mount(8) at boot.
        None => std::env::home_dir()
            .filter(|home| home.is_absolute())
            .ok_or_else(|| {
                Error::usage("there is no folder for the state of the library")
                    .hint("set XDG_STATE_HOME or HOME to a folder")
            })?
            .join(".local/state"),
    };
    Ok(base.join("hushfs"))
}

/// The absolute path without symbolic links, `.` and `..`. The part of it that does not exist is appended unchanged.
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
    let first_line = match remembered.place {
        Some(_) => FIRST_LINE,
        None => FIRST_LINE_1,
    };
    let mut text = format!(
        "{first_line}\nfingerprint {}\ndevice {}\n",
        remembered.fingerprint, remembered.device
    );
    if let Some(place) = &remembered.place {
        let _ = writeln!(text, "place {}", escape(place));
        if let Some(former) = &remembered.former {
            let _ = writeln!(text, "former {former}");
        }
        for id in &remembered.wrote {
            let _ = writeln!(text, "wrote {id}");
        }
    }
    for head in &remembered.heads {
        let _ = write!(text, "head {} {} ", head.device, head.number);
        for byte in head.sha256 {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// A path as one word of graphic ASCII characters: `%` and two hex digits stand for `%` and for every other byte.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            byte if byte.is_ascii_graphic() => text.push(char::from(*byte)),
            byte => drop(write!(text, "%{byte:02x}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('%');
    let mut path = parts.next()?.as_bytes().to_vec();
    for part in parts {
        path.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        path.extend_from_slice(part.get(2..)?.as_bytes());
    }
    let path = PathBuf::from(OsString::from_vec(path));
    // Only the canonical encoding is accepted.
    (path.is_absolute() && escape(&path) == text).then_some(path)
}

/// Parses a state file. The error says which line is wrong.
fn parse(text: &[u8]) -> Result<Remembered, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_string())?;
    // The last line must be complete, so that a truncated file is detected.
    let body = text
        .strip_suffix('\n')
        .ok_or_else(|| "its last line is incomplete".to_string())?;
    let mut lines = body.split('\n').zip(1..).peekable();
    let wrong = |number: i32| format!("line {number} does not parse");
    let has_place = match lines.next() {
        Some((FIRST_LINE, _)) => true,
        Some((FIRST_LINE_1, _)) => false,
        _ => return Err(format!("its first line is not `{FIRST_LINE}`")),
    };
    let mut field = |name: &str| {
        let Some((line, number)) = lines.next() else {
            return Err(format!("it has no line for the {name}"));
        };
        let value = line.strip_prefix(name).and_then(|v| v.strip_prefix(' '));
        value.map(|v| (v, number)).ok_or_else(|| wrong(number))
    };
    let id = |(value, number): (&str, i32)| ObjectId::parse(value).ok_or_else(|| wrong(number));
    let fingerprint = Fingerprint(id(field("fingerprint")?)?.0);
    let device = id(field("device")?)?;
    let mut remembered = Remembered {
        fingerprint,
        device,
        place: None,
        former: None,
        wrote: Vec::new(),
        heads: Vec::new(),
    };
    if has_place {
        let (place, number) = field("place")?;
        remembered.place = Some(unescape(place).ok_or_else(|| wrong(number))?);
        let mut optional = |name: &str| {
            let line = lines.next_if(|(line, _)| line.starts_with(name))?;
            Some(id((&line.0[name.len()..], line.1)))
        };
        remembered.former = optional("former ").transpose()?;
        while let Some(wrote) = optional("wrote ") {
            remembered.wrote.push(SegmentId(wrote?));
        }
    }
    remembered.heads = lines
        .map(|(line, number)| parse_head(line).ok_or_else(|| wrong(number)))
        .collect::<Result<_, _>>()?;
    Ok(remembered)
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
    // Only the canonical form is accepted: no sign, no leading zero, nothing after it.
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
            place: Some("/of/a library%".into()),
            former: (heads > 0).then_some(ObjectId([0xf0; 16])),
            wrote: vec![SegmentId(ObjectId([0x33; 16])); heads.min(2)],
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
        let file = StateFile::at(dir.path().join("made/on/the/way.state"));
        assert_eq!(file.load().unwrap(), None);
        for heads in [0, 1, 300] {
            file.save(&remembered(heads)).unwrap();
            assert_eq!(file.load().unwrap(), Some(remembered(heads)));
        }
        let old = Remembered {
            place: None,
            former: None,
            wrote: Vec::new(),
            ..remembered(3)
        };
        file.save(&old).unwrap();
        assert_eq!(file.load().unwrap(), Some(old));
        let folder = dir.path().join("made/on/the");
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }

    #[test]
    fn of_two_concurrent_creations_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::at(dir.path().join("made/s"));
        assert!(file.create(&remembered(1)).unwrap());
        assert!(!file.create(&remembered(2)).unwrap());
        assert_eq!(file.load().unwrap(), Some(remembered(1)));
        // The same on a filesystem without NOREPLACE.
        let (temporary, path) = (dir.path().join("t"), dir.path().join("linked"));
        write_durably(&temporary, &path, b"first", link_new).unwrap();
        let e = write_durably(&temporary, &path, b"second", link_new).unwrap_err();
        assert!(is_exists(&e), "{e}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert!(!temporary.exists());
        assert_eq!(fs::read_dir(dir.path().join("made")).unwrap().count(), 1);
    }

    #[test]
    fn a_path_of_any_bytes_is_remembered() {
        let odd = OsString::from_vec((1..=255).collect());
        for path in [Path::new("/").join(&odd), "/".into(), "/a b/%/\n".into()] {
            let text = escape(&path);
            assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
            assert_eq!(unescape(&text), Some(path));
        }
        for text in [
            "", "a", "/%", "/%4", "/%zz", "/%41", "/%2F", "/ ", "/é", "/%+f", "/%é",
        ] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_does_not_parse_says_to_move_it_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::at(dir.path().join("s"));
        let good = encode(&remembered(2));
        let refused = |text: &[u8]| {
            fs::write(file.path(), text).unwrap();
            let message = file.load().unwrap_err().to_string();
            assert!(message.contains("move it away"), "{message}");
        };
        let shortest = encode(&remembered(0)).len();
        for len in 0..good.len() {
            let cut = &good.as_bytes()[..len];
            // A file that is truncated after a line parses, with fewer heads: atomic replacement prevents that.
            if len < shortest || !cut.ends_with(b"\n") {
                refused(cut);
            }
        }
        refused(good.replace("-state 2", "-state 1").as_bytes());
        refused(good.replace("-state 2", "-state 3").as_bytes());
        refused(good.replace("place /", "place ").as_bytes());
        refused(good.replace("former", "wrote f").as_bytes());
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
        let file = StateFile::at(dir.path().join("s"));
        file.save(&remembered(1)).unwrap();
        assert!(file.save(&remembered(20_000)).is_err());
        assert_eq!(file.load().unwrap(), Some(remembered(1)));
    }

    #[test]
    fn a_canonical_path_is_the_same_whether_or_not_it_exists() {
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
