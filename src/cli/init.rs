//! `hushfs init`: creates a library.

use std::path::{Path, PathBuf};

use clap::Args;

use super::foreign::ForeignArgs;
use super::output::print_line;
use super::recovery::{self, CodeArgs};
use super::secret::SecretArgs;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::foreign::FormatKind;
use crate::library::{Location, recall};
use crate::store::is_vacant;

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
        return Err(if Location::at(dir)?.slots()?.good.is_empty() {
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
    Location::make(dir, &master, &secret)?;
    // Not earlier: a code that opens nothing could be mistaken for that of a later library.
    recovery::show_new(dir, &master, file)?;
    recall(dir, &master, true, true)?;
    print_line(format_args!("Created the library {}.", dir.display()))?;
    Ok(master)
}

/// Returns the error for a folder that is not a library, and in which none can be created.
pub fn not_empty(dir: &Path) -> Error {
    Error::new(Kind::NotEmpty, dir.display()).hint("a library needs an empty folder of its own")
}
