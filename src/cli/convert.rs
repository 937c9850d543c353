//! `hushfs convert`: copies a foreign library, or a plain folder, into a new library of hushfs.
//!
//! Each file is written under a name of its own, made durable, read back and compared; only then does it get its
//! name and times. So what has its name is whole, and a conversion that was cut short goes on where it stopped: a
//! file that is there with the same length and time is not copied again. The source is only read.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use clap::Args;
use indicatif::ProgressBar;

use super::foreign::ForeignArgs;
use super::library::{Library, recall};
use super::passwd::check_writable;
use super::secret::{NewPasswordArgs, OpenArgs, SecretArgs};
use super::verify::{Found, byte_bar, find_all};
use super::{init, printable};
use crate::error::{Error, Kind, Result};
use crate::foreign::{Entry, Format, Listed, Mirror, Reader, report, sealer, stage};
use crate::state::canonical;
use crate::store::{Access, DirStore};
use crate::vault::{self, Vault};
use crate::volume::{Attr, Caller, FileKind, Ino, ROOT, RenameMode, SetAttr, SetTime, Volume};

/// Bytes that are copied at once.
const COPY_LEN: usize = 1 << 20;
/// What the name of a file begins with that is not whole yet.
const PARTIAL: &str = ".hushfs-convert-";

/// What was typed.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// The foreign library, or a plain folder
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The folder of the new library; where one was begun, it goes on
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// The source is a plain folder, whatever it looks like
    #[arg(long, conflicts_with = "format")]
    plain: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    new: NewPasswordArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Copies everything.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let (from, to) = (canonical(&args.source)?, canonical(&args.target)?);
    if from.starts_with(&to) || to.starts_with(&from) {
        return Err(Error::usage(format_args!(
            "{} and {} lie in one another",
            from.display(),
            to.display()
        )));
    }
    let source = open_source(args, &from)?;
    let target = open_target(args, &to)?;
    let bar = byte_bar();
    let copied = Copy {
        source: &*source,
        target: &*target,
        bar: &bar,
    }
    .all();
    bar.finish_and_clear();
    // Also where something failed: what is whole stays.
    let closed = target.close();
    let (files, failed) = copied?;
    closed?;
    println!("{files} files are in {}", to.display());
    if failed == 0 {
        return Ok(());
    }
    Err(Error::damaged(
        from.display(),
        format_args!("{failed} files could not be copied, as listed"),
    ))
}

fn open_source(args: &ConvertArgs, from: &Path) -> Result<Arc<Mirror>> {
    let kind = if args.plain {
        None
    } else {
        args.foreign.kind(from)?
    };
    let Some(kind) = kind else {
        let slots = Library::at(from)?.slots()?;
        if !args.plain && !slots.good.is_empty() {
            return Err(Error::usage(format_args!(
                "{}: it is a hushfs library already",
                from.display()
            ))
            .hint("mount it, and copy what is in it"));
        }
        println!("{}: this is a plain folder", from.display());
        return Mirror::new(Box::new(PlainFolder(from.to_path_buf())));
    };
    println!("{}: this is {kind}", from.display());
    let secret = args.foreign.secret(kind, &args.open)?;
    Mirror::new(args.foreign.open(kind, from, &secret, true, 32 << 20)?)
}

fn open_target(args: &ConvertArgs, to: &Path) -> Result<Arc<Vault>> {
    let secret = SecretArgs {
        password_file: args.new.new_password_file.clone(),
        password_command: args.new.new_password_command.clone(),
        key_file: None,
    };
    let master = if init::is_vacant(to)? {
        init::make(to, &secret)?
    } else {
        let opener = OpenArgs {
            secret,
            recovery: false,
        }
        .ask()?;
        let unlocked = Library::at(to)?.unlock(opener)?;
        check_writable(to, unlocked.writable)?;
        unlocked.master
    };
    let (place, device) = recall(to, &master)?;
    let store = DirStore::open(to, Access::Write(device))?;
    let options = vault::Options {
        read_only: false,
        cache_bytes: 0,
        accept_rollback: false,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    Vault::open(Arc::new(store), master, device, Some(place), &options)
}

struct Copy<'a> {
    source: &'a dyn Volume,
    target: &'a dyn Volume,
    bar: &'a ProgressBar,
}

impl Copy<'_> {
    /// How many files are there, and how many could not be copied.
    fn all(&self) -> Result<(u64, u64)> {
        self.sweep()?;
        let all = find_all(self.source)?;
        self.bar
            .set_length(all.iter().map(|found| found.plain_size).sum());
        let mut folders = std::collections::HashMap::from([(PathBuf::new(), ROOT)]);
        let (mut files, mut failed) = (0, 0);
        for found in &all {
            let parent = found.path.parent().unwrap_or(Path::new(""));
            let parent = *folders.get(parent).ok_or(Kind::NotFound)?;
            if found.kind == FileKind::Directory {
                folders.insert(found.path.clone(), self.folder(parent, found)?);
                continue;
            }
            match self.file(parent, found) {
                Ok(()) => files += 1,
                // A target that cannot be written to fails for each; one bad file of the source is not all of it.
                Err(e) if e.is_no_space() => return Err(e),
                Err(e) => {
                    let path = printable(&found.path.to_string_lossy());
                    self.bar
                        .suspend(|| println!("{path}: {}", printable(&e.to_string())));
                    failed += 1;
                }
            }
        }
        // Times of folders last: what is put into them changes them.
        for found in all
            .iter()
            .rev()
            .filter(|found| found.kind == FileKind::Directory)
        {
            if let Some(ino) = folders.get(&found.path) {
                let attr = self.source.getattr(found.ino)?;
                self.target.setattr(
                    *ino,
                    &SetAttr {
                        mtime: Some(SetTime::At(attr.mtime)),
                        ..perms(&attr)
                    },
                )?;
            }
        }
        Ok((files, failed))
    }

    /// Removes what an interruption left half copied.
    fn sweep(&self) -> Result<()> {
        for found in find_all(self.target)? {
            let name = found.path.file_name().unwrap_or_default();
            let is_partial = name.as_bytes().starts_with(PARTIAL.as_bytes());
            if is_partial && found.kind == FileKind::Regular {
                let parent = self.target_parent(&found.path)?;
                self.target.unlink(parent, name)?;
            }
            self.target.forget(found.ino, 1);
        }
        Ok(())
    }

    fn target_parent(&self, path: &Path) -> Result<Ino> {
        let mut at = ROOT;
        for name in path.parent().into_iter().flatten() {
            let attr = self.target.lookup(at, name)?;
            self.target.forget(attr.ino, 1);
            at = attr.ino;
        }
        Ok(at)
    }

    fn folder(&self, parent: Ino, found: &Found) -> Result<Ino> {
        let name = found.path.file_name().unwrap_or_default();
        match self.target.lookup(parent, name) {
            Ok(attr) => Ok(attr.ino),
            Err(e) if matches!(e.kind(), Kind::NotFound) => {
                let attr = self.source.getattr(found.ino)?;
                let made = self
                    .target
                    .mkdir(parent, name, attr.perm | 0o700, caller(&attr))?;
                Ok(made.ino)
            }
            Err(e) => Err(e),
        }
    }

    fn file(&self, parent: Ino, found: &Found) -> Result<()> {
        let name = found.path.file_name().unwrap_or_default();
        let attr = self.source.getattr(found.ino)?;
        if let Ok(there) = self.target.lookup(parent, name) {
            self.target.forget(there.ino, 1);
            if there.plain_size == attr.plain_size && there.mtime == attr.mtime {
                self.bar.inc(attr.plain_size);
                return Ok(());
            }
        }
        // A name of fixed length: that of the file may be as long as a name can be.
        let partial = format!("{PARTIAL}{}", found.ino.0);
        let partial = OsStr::from_bytes(partial.as_bytes());
        match self.target.unlink(parent, partial) {
            Err(e) if !matches!(e.kind(), Kind::NotFound) => return Err(e),
            _ => {}
        }
        let (made, handle) =
            self.target
                .create(parent, partial, attr.perm, libc::O_RDWR, caller(&attr))?;
        let copied = self.contents(found, made.ino, handle);
        let flushed = self.target.flush(made.ino, handle);
        self.target.release(made.ino, handle);
        let done = copied
            .and(flushed)
            .and_then(|()| sync(self.target, made.ino));
        let done = done.and_then(|()| self.compare(found, made.ino));
        if let Err(e) = done {
            let _ = self.target.unlink(parent, partial);
            self.target.forget(made.ino, 1);
            return Err(e);
        }
        let times = SetAttr {
            atime: Some(SetTime::At(attr.atime)),
            mtime: Some(SetTime::At(attr.mtime)),
            ..perms(&attr)
        };
        self.target.setattr(made.ino, &times)?;
        self.copy_xattrs(found.ino, made.ino);
        self.target
            .rename(parent, partial, parent, name, RenameMode::Replace)?;
        self.target.forget(made.ino, 1);
        Ok(())
    }

    fn contents(&self, found: &Found, to: Ino, to_handle: crate::volume::Handle) -> Result<()> {
        let from_handle = self.source.open(found.ino, libc::O_RDONLY)?;
        let mut buffer = vec![0; COPY_LEN];
        let mut at = 0;
        let copied = loop {
            match self.source.read(found.ino, from_handle, at, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(len) => {
                    if let Err(e) = self.target.write(to, to_handle, at, &buffer[..len]) {
                        break Err(e);
                    }
                    at += len as u64;
                    self.bar.inc(len as u64);
                }
                Err(e) => break Err(e),
            }
        };
        self.source.release(found.ino, from_handle);
        copied
    }

    /// Reads both again: what is in the packs against the source.
    fn compare(&self, found: &Found, copy: Ino) -> Result<()> {
        let handles = (
            self.source.open(found.ino, libc::O_RDONLY)?,
            self.target.open(copy, libc::O_RDONLY)?,
        );
        let mut buffers = (vec![0; COPY_LEN], vec![0; COPY_LEN]);
        let mut at = 0;
        let result = loop {
            let lens = (
                self.source.read(found.ino, handles.0, at, &mut buffers.0),
                self.target.read(copy, handles.1, at, &mut buffers.1),
            );
            let (a, b) = match lens {
                (Ok(a), Ok(b)) => (a, b),
                (Err(e), _) | (_, Err(e)) => break Err(e),
            };
            if buffers.0[..a] != buffers.1[..b] {
                let check =
                    "the copy differs: the source changed meanwhile, or memory or disk is bad";
                break Err(Error::damaged(found.path.display(), check));
            }
            if a == 0 {
                break Ok(());
            }
            at += a as u64;
        };
        self.source.release(found.ino, handles.0);
        self.target.release(copy, handles.1);
        result
    }

    /// What the target does not take is not worth failing for.
    fn copy_xattrs(&self, from: Ino, to: Ino) {
        let names = self.source.listxattr(from).unwrap_or_default();
        for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(name);
            let Ok(value) = self.source.getxattr(from, name) else {
                continue;
            };
            if let Err(e) = self
                .target
                .setxattr(to, name, &value, crate::volume::XattrMode::Any)
            {
                log::debug!("{}: {e}", name.display());
            }
        }
    }
}

fn perms(attr: &Attr) -> SetAttr {
    SetAttr {
        perm: Some(attr.perm),
        ..SetAttr::default()
    }
}

fn caller(attr: &Attr) -> Caller {
    Caller {
        uid: attr.uid,
        gid: attr.gid,
        umask: 0,
    }
}

fn sync(volume: &dyn Volume, ino: Ino) -> Result<()> {
    let (done, synced) = mpsc::channel();
    volume.fsync(ino, Box::new(move |result| drop(done.send(result))));
    synced.recv().unwrap_or_else(|_| Err(Kind::TimedOut.into()))
}

/// A folder as it is, to be read. What is neither file nor folder is named and passed over.
struct PlainFolder(PathBuf);

impl Format for PlainFolder {
    fn root(&self) -> &Path {
        &self.0
    }

    fn stage(&self) -> Option<&stage::Stage> {
        None
    }

    fn list(&self, add: &mut dyn FnMut(Listed)) -> Result<()> {
        crate::foreign::walk(&self.0, &mut |path, is_dir| {
            let stored = path.to_path_buf();
            add(match is_dir {
                true => Listed::Folder(stored),
                false => Listed::File(
                    stored.clone(),
                    Entry {
                        stored,
                        sealed: false,
                        plain_size: None,
                    },
                ),
            });
        })
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        let path = self.0.join(&entry.stored);
        fs::symlink_metadata(&path)
            .map(|meta| meta.len())
            .map_err(|e| Error::io(e, path))
    }

    fn open(&self, _shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        crate::foreign::PlainReader::open(&self.0.join(&entry.stored))
    }

    fn admit(&self, _shown: &Path) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }

    fn seal(&self, _shown: &Path) -> Result<Box<dyn sealer::Seal>> {
        Err(Kind::ReadOnly.into())
    }

    fn publish(&self, _: sealer::Sealed, _: &Path, _: Option<&Entry>) -> Result<Entry> {
        Err(Kind::ReadOnly.into())
    }

    fn rename(&self, _: &Entry, _: &Path, _: &Path, _: Option<&Entry>) -> Result<Entry> {
        Err(Kind::ReadOnly.into())
    }

    fn remove(&self, _: &Path, _: &Entry) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }

    fn verify(&self, _: &mut report::Report<'_>) -> Result<()> {
        Ok(())
    }
}
