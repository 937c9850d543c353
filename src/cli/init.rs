//! `hushfs init`: makes a library.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::foreign::ForeignArgs;
use super::library::{Library, NEW, folders, recall};
use super::output::print_line;
use super::secret::SecretArgs;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::foreign::FormatKind;

/// What was typed.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// The folder; made where it is missing, else it must be empty
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Makes a library, and shows its recovery code.
pub fn run(args: &InitArgs) -> Result<()> {
    match args.foreign.format {
        None | Some(FormatKind::Vault) => make(&args.dir, &args.secret).map(drop),
        Some(kind) if is_vacant(&args.dir)? => args.foreign.init(kind, &args.dir, &args.secret),
        Some(_) => Err(Error::new(Kind::NotEmpty, args.dir.display())
            .hint("a library needs an empty folder of its own")),
    }
}

/// Makes a library in a folder that is missing or empty, and shows its recovery code.
pub fn make(dir: &Path, secret: &SecretArgs) -> Result<MasterKey> {
    if !is_vacant(dir)? {
        return Err(if Library::at(dir)?.slots()?.good.is_empty() {
            Error::new(Kind::NotEmpty, dir.display())
                .hint("a library needs an empty folder of its own")
        } else {
            Error::new(Kind::Exists, dir.display())
                .hint("it is a library already: `hushfs mount` mounts it")
        });
    }
    let secret = secret.choose()?;
    let master = MasterKey::generate()?;
    // First the code: no library may be there whose code nobody has seen.
    print_line(format_args!(
        "The recovery code of {}, which is not shown again:\n\n    {}\n\n\
         Whoever has this code can read and change the library; without it, a lost password\n\
         is a lost library. Write it down, and keep it away from the library.\n",
        dir.display(),
        *master.recovery_code()
    ))?;
    Library::make(dir, &master, &secret).map_err(|e| match e.kind() {
        Kind::Io(_) if !dir.join("key").exists() => e.hint(
            "no library was made, and the recovery code shown above opens nothing: where the folder lies, the store cannot \
             be written to as it has to be",
        ),
        _ => e,
    })?;
    recall(dir, &master, true, true)?;
    print_line(format_args!("{} is a library now.", dir.display()))?;
    Ok(master)
}

/// Whether a library can be made here: there is nothing, but for what an `init` leaves that was cut short, and what a
/// new ext4 has.
pub fn is_vacant(dir: &Path) -> Result<bool> {
    let at = |e| Error::io(e, dir);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
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
