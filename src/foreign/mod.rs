//! Foreign libraries: what three other programs encrypted, as [`Volume`](crate::volume::Volume)s, to read and to
//! write; what is written is read by the original program as if it had written it itself.
//!
//! - [`mms`]: Minio Music Server. AES-128-CBC in segments, names and vectors in an encrypted index. *Not
//!   authenticated*: changed bytes and swapped segments are not noticed, names can be guessed, equal segments show.
//! - [`medusa`]: Cassandra Medusa's client-side encryption. Fernet frames, which are authenticated each; what binds
//!   them to a file and an order is a digest in a manifest, which is in clear and not authenticated.
//! - [`images`]: the prompt-nest image store. AES-256-CBC a file, its type beside it in clear. *Not authenticated.*
//!
//! Each is a [`Format`]: what there is, how a file is read, how one is encrypted, and what else has to change with
//! it. [`mirror`] makes a filesystem of it. Changes take effect whole, by way of [`stage`].

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

/// A file of the library as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies, relative to the top of the library.
    pub stored: PathBuf,
    /// It is encrypted.
    pub sealed: bool,
    /// Bytes of plaintext, where that is known without looking.
    pub plain_size: Option<u64>,
}

/// What a library holds, by the path at which it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// A folder.
    Folder(PathBuf),
    /// A file.
    File(PathBuf, Entry),
    /// Something that cannot be shown: its name, and why not.
    NotShown(String, String),
}

/// Reads a file.
pub trait Reader: Send + Sync {
    /// Bytes of plaintext.
    fn plain_size(&self) -> u64;
    /// Fills `out` from `plain_offset`; the range ends at or before the end of the file.
    fn read_exact_at(&self, plain_offset: u64, out: &mut [u8]) -> Result<()>;
}

/// One of the foreign formats, over one library. Paths given are those shown; they are confined.
pub trait Format: Send + Sync {
    /// The top of the library.
    fn root(&self) -> &Path;
    /// Where changes are prepared; none where it is only read.
    fn stage(&self) -> Option<&Stage>;
    /// Everything that is shown. A folder may come before or after what is in it, or not at all.
    fn list(&self, add: &mut dyn FnMut(Listed)) -> Result<()>;
    /// Bytes of plaintext, found by looking.
    fn plain_size(&self, entry: &Entry) -> Result<u64>;
    /// Opens a file for reading.
    fn open(&self, shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>>;
    /// Its extended attributes: names and values.
    fn xattrs(&self, _entry: &Entry) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
    /// Whether a file of this name can be written; if not, why.
    fn admit(&self, shown: &Path) -> Result<()>;
    /// How a new file of this name is encrypted.
    fn seal(&self, shown: &Path) -> Result<Box<dyn Seal>>;
    /// Whether a file of this name is stored in clear.
    fn in_clear(&self, _shown: &Path) -> bool {
        false
    }
    /// Whether [`Sealed::digests`] are needed.
    fn wants_digests(&self) -> bool {
        false
    }
    /// Puts a file in its place, in that of `old` where there is one; as a whole and durably.
    fn publish(&self, sealed: Sealed, shown: &Path, old: Option<&Entry>) -> Result<Entry>;
    /// Gives a file another name, in place of `old` where there is one.
    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry>;
    /// Gives a folder another name; `files` are those below it. The target is not there, or an empty folder. Answers
    /// where the files are now. [`Kind::CrossDevice`] where that is not done: programs then copy.
    fn rename_dir(
        &self,
        _from: &Path,
        _to: &Path,
        _files: &[(PathBuf, Entry)],
    ) -> Result<Vec<Entry>> {
        Err(Kind::CrossDevice.into())
    }
    /// Removes a file.
    fn remove(&self, shown: &Path, entry: &Entry) -> Result<()>;
    /// Looks at everything, and reports what is wrong.
    fn verify(&self, report: &mut Report<'_>) -> Result<()>;
}

/// Reads a file in clear.
pub struct PlainReader {
    /// The file.
    pub file: Arc<File>,
    /// Its length.
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

/// Opens a regular file of a library; its length. What is no file is not followed or waited for.
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

/// Fills `out`; a file that ended is damaged.
pub(crate) fn read_at(file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
    file.read_exact_at(out, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Kind::Damaged("it became shorter while it was read".into()).into()
        }
        _ => Kind::Io(e).into(),
    })
}

/// Lends a buffer of `len` bytes that the thread keeps, so that none is made and faulted in for each read. What is
/// in it means nothing. Within `work` another one is lent.
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

/// A reader as `std::io` has them.
pub struct Cursor {
    reader: Arc<dyn Reader>,
    at: u64,
}

impl Cursor {
    /// At the start of the file.
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

/// Walks the folders of a library without following links: `visit` gets each path, relative to `root`, and whether
/// it is a folder. What is neither file nor folder is passed over: see [`strangers`].
pub(crate) fn walk(root: &Path, visit: &mut dyn FnMut(&Path, bool)) -> Result<()> {
    walk_all(root, &mut |path, found| match found {
        Found::Folder => visit(path, true),
        Found::File => visit(path, false),
        Found::Stranger => log::debug!("{}: not shown", root.join(path).display()),
    })
}

/// What of a library is neither a file nor a folder that can be shown: names, and why not.
pub fn strangers(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    walk_all(root, &mut |path, what| {
        if what == Found::Stranger {
            let why = "not a file or a folder, or one that lies too deep: not shown";
            found.push((path.display().to_string(), why.to_string()));
        }
    })?;
    Ok(found)
}

/// What a walk comes by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Folder,
    File,
    Stranger,
}

fn walk_all(root: &Path, visit: &mut dyn FnMut(&Path, Found)) -> Result<()> {
    /// Deeper folders than these are no library's.
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
            let shown = folder.join(name);
            if kind.is_dir() && depth < DEPTH_MAX {
                visit(&shown, Found::Folder);
                pending.push((shown, depth + 1));
            } else if kind.is_file() {
                visit(&shown, Found::File);
            } else {
                visit(&shown, Found::Stranger);
            }
        }
    }
    Ok(())
}
