//! `hushfs passwd`: changes the password. No file is encrypted anew: only the slot is another.

use std::path::{Path, PathBuf};

use clap::Args;

use super::foreign::ForeignArgs;
use super::library::Library;
use super::output::print_line;
use super::secret::{NewPasswordArgs, OpenArgs};
use crate::crypto::SlotKind;
use crate::error::{Error, Kind, Result};

/// What was typed.
#[derive(Args, Debug)]
pub struct PasswdArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    new: NewPasswordArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Adds a slot with the new password, then removes the one that the old password opened. A key file or the recovery
/// code takes nothing away: what else opens the library is then said.
pub fn run(args: &PasswdArgs) -> Result<()> {
    if let Some(kind) = args.foreign.kind(&args.dir)? {
        let (old, new) = (&args.open, &args.new);
        return args.foreign.passwd(kind, &args.dir, old, new);
    }
    let library = Library::at(&args.dir)?;
    let unlocked = library.unlock(args.open.ask()?)?;
    check_writable(&args.dir, unlocked.writable)?;
    let added = library.add_slot(&unlocked.master, &args.new.choose()?, "")?;
    if let Some((old, SlotKind::Password)) = unlocked.slot {
        library.remove_slot(old)?;
        print_line("The password is changed.")
    } else {
        print_line(format_args!(
            "The password is added (slot {added}). Older ones still open the library: \
             `hushfs key list` shows them, `hushfs key remove` removes them."
        ))
    }
}

/// Refuses to change a library that a later version marked as read-only for this one.
pub fn check_writable(dir: &Path, writable: bool) -> Result<()> {
    if writable {
        return Ok(());
    }
    let what = "this version may read it, but not write";
    Err(Error::new(Kind::Unsupported(what.into()), dir.display()).hint("install a newer hushfs"))
}
