//! Where the recovery code is shown: at a terminal, or in a new file. It is the key of the library, and must not get into
//! a log, a pipe or a file by accident.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{print_line, tell};
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::state::{canonical, sync_dir};

/// Where the recovery code is written, as typed.
#[derive(Args, Debug, Clone, Default)]
pub struct CodeArgs {
    /// Write the recovery code to the new file FILE instead of the terminal
    #[arg(long, value_name = "FILE")]
    new_recovery_file: Option<PathBuf>,
}

impl CodeArgs {
    /// Refuses a file that already exists, or that is in the library at `dir`.
    pub fn check(&self, dir: &Path) -> Result<()> {
        let Some(path) = &self.new_recovery_file else {
            return Ok(());
        };
        if fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
        if canonical(path)?.starts_with(canonical(dir)?) {
            return Err(Error::usage(format_args!(
                "{}: the recovery code must not be kept in the library",
                path.display()
            )));
        }
        Ok(())
    }

    /// Refuses a file for the code if no library is to be created.
    pub fn check_create(&self, create: bool) -> Result<()> {
        match create || self.new_recovery_file.is_none() {
            true => Ok(()),
            false => Err(Error::usage("--new-recovery-file needs --create")
                .hint("`hushfs key recovery` writes the code of a library that exists")),
        }
    }

    /// Refuses to show the code if there is neither a file nor a terminal.
    pub fn check_shown(&self) -> Result<()> {
        if self.new_recovery_file.is_some() || io::stdout().is_terminal() {
            return Ok(());
        }
        Err(Error::usage(
            "the recovery code is shown only at a terminal, and standard output is none",
        )
        .hint("--new-recovery-file FILE writes it to a file"))
    }

    /// Creates the new file, still empty.
    pub fn create(&self) -> Result<Option<NewFile>> {
        let path = self.new_recovery_file.as_deref();
        path.map(NewFile::create).transpose()
    }
}

/// Shows the code of the library at `dir`, or writes it to the file.
pub fn show(dir: &Path, master: &MasterKey, file: Option<NewFile>) -> Result<()> {
    let code = master.recovery_code();
    let Some(file) = file else {
        return print_line(format_args!(
            "The recovery code of {}:\n\n    {}\n\n\
             Anyone who has this code can read and change the library. Without it, the library is\n\
             lost if you lose the password. Write it down, and keep it away from the library.\n",
            dir.display(),
            *code
        ));
    };
    let path = file.path.clone();
    let mut line = zeroize::Zeroizing::new(Vec::with_capacity(code.len() + 1));
    line.extend_from_slice(code.as_bytes());
    line.push(b'\n');
    file.write(&line)?;
    print_line(format_args!(
        "Wrote the recovery code of {} to {}.",
        dir.display(),
        path.display()
    ))
}

/// The same for a library that was just created. If there is nowhere to show the code, says how to see it later.
pub fn show_new(dir: &Path, master: &MasterKey, file: Option<NewFile>) -> Result<()> {
    let later = format!("`hushfs key recovery {}`", dir.display());
    if file.is_none() && !io::stdout().is_terminal() {
        tell(format_args!(
            "{}: the recovery code is not shown, as standard output is no terminal ({later} shows it at one)",
            dir.display()
        ));
        return Ok(());
    }
    show(dir, master, file).map_err(|e| {
        e.hint(format_args!(
            "the library is created; {later} shows its recovery code"
        ))
    })
}

/// A new file, readable by this user only, which is removed again unless it is written.
pub struct NewFile {
    path: PathBuf,
    file: File,
    is_written: bool,
}

impl NewFile {
    /// Creates an empty file; [`Kind::Exists`] if its name is taken.
    pub fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => Ok(Self {
                path: path.to_path_buf(),
                file,
                is_written: false,
            }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(exists(path)),
            Err(e) => Err(Error::io(e, path)),
        }
    }

    /// Writes the whole file; durable on return.
    pub fn write(mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|e| Error::io(e, &self.path))?;
        self.is_written = true;
        match self.path.parent() {
            Some(folder) if folder != Path::new("") => sync_dir(folder),
            _ => sync_dir(Path::new(".")),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn exists(path: &Path) -> Error {
    Error::new(Kind::Exists, path.display())
}
