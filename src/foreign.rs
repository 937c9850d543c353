//! Foreign libraries: the encrypted data of three other programs as [`Volume`](crate::volume::Volume)s, for reading and
//! writing. The original program can read what is written here as if it had written it itself.
//!
//! - [`mms`]: Minio Music Server. AES-128-CBC in segments; names and initialisation vectors are in an encrypted index. *Not
//!   authenticated*: changed bytes and swapped segments are not noticed, names can be guessed, and equal segments are
//!   visible.
//! - [`medusa`]: Cassandra Medusa's client-side encryption. Each Fernet frame is authenticated. Only a digest in a manifest,
//!   which is neither encrypted nor authenticated, binds the frames to a file and an order.
//! - [`images`]: the prompt-nest image store. AES-256-CBC for each file, whose type is stored unencrypted in another file.
//!   *Not authenticated.*
//!
//! Each is a [`Format`], which lists the files, decrypts and encrypts them, and changes the metadata that goes with them.
//! [`mirror`] turns a format into a filesystem. [`stage`] makes each change take effect as a whole.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::report::Report;

pub mod cipher;
pub mod detect;
pub mod images;
pub mod medusa;
pub mod mirror;
pub mod mms;
pub mod sealer;
pub mod stage;

pub use detect::{FormatKind, detect};
pub use mirror::Mirror;
use sealer::{Seal, Sealed};
use stage::Stage;

/// A file of the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path of the stored file, relative to the root of the library.
    pub cipher_path: PathBuf,
    /// It is encrypted.
    pub sealed: bool,
    /// Bytes of plaintext, if known without opening the file.
    pub plain_size: Option<u64>,
}

/// An entry of a library, with the path at which it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListEntry {
    /// A folder.
    Folder(PathBuf),
    /// A file.
    File(PathBuf, Entry),
    /// Something that cannot be shown: its name, and why not.
    NotShown(String, String),
}

/// Reads the plaintext of a file.
pub trait Reader: Send + Sync {
    /// Bytes of plaintext.
    fn plain_size(&self) -> u64;
    /// Fills `out` from `plain_offset`. The range must not exceed the end of the file.
    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()>;
}

/// An open library in one of the foreign formats. A `plain_path` is the path at which a file is shown. All paths are
/// relative to the root of the library, and stay below it.
pub trait Format: Send + Sync {
    /// The root of the library.
    fn root(&self) -> &Path;
    /// Where changes are prepared; `None` if the library is read-only.
    fn stage(&self) -> Option<&Stage>;
    /// Lists everything that is shown. A folder may come before or after its contents, or be left out.
    fn list(&self, add: &mut dyn FnMut(ListEntry)) -> Result<()>;
    /// Bytes of plaintext; opens the file if necessary.
    fn plain_size(&self, entry: &Entry) -> Result<u64>;
    /// Opens a file for reading.
    fn open(&self, plain_path: &Path, entry: &Entry) -> Result<Arc<dyn Reader>>;
    /// The extended attributes of a file: names and values.
    fn xattrs(&self, _entry: &Entry) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
    /// Checks whether a file of this name can be written.
    fn check_name(&self, plain_path: &Path) -> Result<()>;
    /// Starts to encrypt a new file of this name.
    fn seal(&self, plain_path: &Path) -> Result<Box<dyn Seal>>;
    /// Whether a file of this name is stored unencrypted.
    fn in_clear(&self, _shown: &Path) -> bool {
        false
    }
    /// Whether [`Sealed::digests`] are needed.
    fn wants_digests(&self) -> bool {
        false
    }
    /// Moves a finished file into the library, where it replaces `old` if that exists. Takes effect as a whole, and is
    /// durable on return.
    fn publish(&self, sealed: Sealed, plain_path: &Path, old: Option<&Entry>) -> Result<Entry>;
    /// Renames a file, which replaces `old` if that exists.
    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry>;
    /// Renames a folder; `files` are those below it. The target must not exist, or be an empty folder. Returns the new
    /// entries of the files. [`Kind::CrossDevice`] if that is not possible; programs then copy the files.
    fn rename_dir(
        &self,
        _from: &Path,
        _to: &Path,
        _files: &[(PathBuf, Entry)],
    ) -> Result<Vec<Entry>> {
        Err(Kind::CrossDevice.into())
    }
    /// Removes a file.
    fn remove(&self, plain_path: &Path, entry: &Entry) -> Result<()>;
    /// Checks everything, and reports problems.
    fn verify(&self, report: &mut Report<'_>) -> Result<()>;
}

/// Reads an unencrypted file.
pub struct PlainReader {
    /// The file.
    pub file: Arc<File>,
    /// Its length in bytes.
    pub plain_size: u64,
}

impl PlainReader {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Arc<dyn Reader>> {
        let (file, plain_size) = open_file(path)?;
        let file = Arc::new(file);
        Ok(Arc::new(Self { file, plain_size }))
    }
}

impl Reader for PlainReader {
    fn plain_size(&self) -> u64 {
        self.plain_size
    }

    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()> {
        read_at(&self.file, plain_offset, out)
    }
}

/// Opens a regular file of a library, and returns its length in bytes. Symbolic links are not followed, and opening a pipe
/// does not block.
pub fn open_file(path: &Path) -> Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt;
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::new(Kind::Missing, path.display()),
        _ => Error::io(e, path),
    })?;
    let meta = file.metadata().map_err(|e| Error::io(e, path))?;
    if !meta.is_file() {
        return Err(Error::damaged(path.display(), "it is not a regular file"));
    }
    Ok((file, meta.len()))
}

/// Reads a whole file of at most `len_max` bytes.
pub fn read_file(path: &Path, len_max: u64) -> Result<Vec<u8>> {
    let (file, len) = open_file(path)?;
    if len > len_max {
        let check = format!("it has {len} bytes, more than the {len_max} that one can have");
        return Err(Error::damaged(path.display(), check));
    }
    let mut bytes = vec![0; len as usize];
    read_at(&file, 0, &mut bytes).map_err(|e| e.about(path.display()))?;
    Ok(bytes)
}

/// Fills `out` from `offset`. If the file is too short, it is damaged.
pub(crate) fn read_at(file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
    file.read_exact_at(out, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Kind::Damaged("it became shorter while it was read".into()).into()
        }
        _ => Kind::Io(e).into(),
    })
}

/// Calls `work` with a buffer of `len` bytes and undefined contents. Each thread keeps its buffer, so that none is allocated
/// for each read. Nested calls get another buffer.
pub(crate) fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let done = work(&mut buffer[..len]);
    BUFFER.set(buffer);
    done
}

/// A reader as [`std::io::Read`] and [`std::io::Seek`].
pub struct Cursor {
    reader: Arc<dyn Reader>,
    at: u64,
}

impl Cursor {
    /// Starts at the beginning of the file.
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self { reader, at: 0 }
    }
}

impl std::io::Read for Cursor {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let left = self.reader.plain_size().saturating_sub(self.at);
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.reader.read_exact_at(self.at, &mut out[..len]);
        read.map_err(std::io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl std::io::Seek for Cursor {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let to = match to {
            std::io::SeekFrom::Start(at) => Some(at),
            std::io::SeekFrom::End(by) => self.reader.plain_size().checked_add_signed(by),
            std::io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Walks the folders of a library without following symbolic links. `visit` gets each path, relative to `root`, and whether
/// it is a folder. Anything else than files and folders is skipped: see [`strangers`].
pub(crate) fn walk(root: &Path, visit: &mut dyn FnMut(&Path, bool)) -> Result<()> {
    walk_all(root, &mut |path, found| match found {
        WalkEntry::Folder => visit(path, true),
        WalkEntry::File => visit(path, false),
        WalkEntry::Other => log::debug!("{}: not shown", root.join(path).display()),
    })
}

/// Everything in a library that is not shown because it is neither a file nor a folder, or too deep: names and reasons.
pub fn strangers(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    walk_all(root, &mut |path, what| {
        if what == WalkEntry::Other {
            let why = "not a file or a folder, or too deep: not shown";
            found.push((path.display().to_string(), why.to_string()));
        }
    })?;
    Ok(found)
}

/// What a walk finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WalkEntry {
    Folder,
    File,
    Other,
}

fn walk_all(root: &Path, visit: &mut dyn FnMut(&Path, WalkEntry)) -> Result<()> {
    /// No library has deeper folders.
    const DEPTH_MAX: usize = 64;
    let mut pending = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = pending.pop() {
        let path = root.join(&folder);
        let at = |e| Error::io(e, &path);
        for entry in std::fs::read_dir(&path).map_err(at)? {
            let entry = entry.map_err(at)?;
            let name = entry.file_name();
            if depth == 0 && name == stage::STAGE_DIR {
                continue;
            }
            let kind = entry.file_type().map_err(at)?;
            let path = folder.join(name);
            if kind.is_dir() && depth < DEPTH_MAX {
                visit(&path, WalkEntry::Folder);
                pending.push((path, depth + 1));
            } else if kind.is_file() {
                visit(&path, WalkEntry::File);
            } else {
                visit(&path, WalkEntry::Other);
            }
        }
    }
    Ok(())
}
