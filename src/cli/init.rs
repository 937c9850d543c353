//! `hushfs init`: creates a library.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::foreign::ForeignArgs;
use super::library::{Library, NEW, folders};
use super::output::print_line;
use super::recall::recall;
use super::recovery::{self, CodeArgs};
use super::secret::SecretArgs;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::foreign::FormatKind;

/// What was typed.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Folder for the new library; created if missing, otherwise it must be empty
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Creates a library, and shows its recovery code.
pub fn run(args: &InitArgs) -> Result<()> {
    match args.foreign.format {
        None | Some(FormatKind::Vault) => make(&args.dir, &args.secret, &args.code).map(drop),
        Some(kind) if is_vacant(&args.dir)? => args.foreign.init(kind, &args.dir, &args.secret),
        Some(_) => Err(not_empty(&args.dir)),
    }
}

/// Creates a library in a folder that is missing or empty, and shows its recovery code.
pub fn make(dir: &Path, secret: &SecretArgs, code: &CodeArgs) -> Result<MasterKey> {
    if !is_vacant(dir)? {
        return Err(if Library::at(dir)?.slots()?.good.is_empty() {
            not_empty(dir)
        } else {
            Error::new(Kind::Exists, dir.display())
                .hint("it is a library already: `hushfs mount` mounts it")
        });
    }
    code.check(dir)?;
    let secret = secret.choose()?;
    let file = code.create()?;
    let master = MasterKey::generate()?;
    Library::make(dir, &master, &secret).map_err(|e| match e.kind() {
        Kind::Io(_) if !dir.join("key").exists() => {
            e.hint("no library was created: can the folder's file system be written to?")
        }
        _ => e,
    })?;
    // Not before: a code that opens nothing would be taken for that of a later library.
    recovery::show_new(dir, &master, file)?;
    recall(dir, &master, true, true)?;
    print_line(format_args!("Created the library {}.", dir.display()))?;
    Ok(master)
}

/// What is said of a folder that is no library's, and in which none can be made.
pub fn not_empty(dir: &Path) -> Error {
    Error::new(Kind::NotEmpty, dir.display()).hint("a library needs an empty folder of its own")
}

/// Whether a library can be made here: there is nothing, but for what an `init` leaves that was cut short, and what a
/// new ext4 has.
pub fn is_vacant(dir: &Path) -> Result<bool> {
    let at = |e| Error::io(e, dir);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::new(Kind::NotDirectory, dir.display()));
        }
        Err(e) => return Err(at(e)),
    };
    for entry in entries {
        let entry = entry.map_err(at)?;
        let name = entry.file_name();
        let ours = folders().iter().any(|folder| name == **folder);
        // Nothing, but for slots on their way into `key/`.
        let begun = |e: &fs::DirEntry| name == NEW && e.path().extension() == Some("key".as_ref());
        let empty = || {
            let inside = fs::read_dir(entry.path());
            inside.is_ok_and(|mut inside| inside.all(|e| e.is_ok_and(|e| begun(&e))))
        };
        if name != "lost+found" && !(ours && empty()) {
            return Ok(false);
        }
    }
    Ok(true)
}
