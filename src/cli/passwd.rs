//! `hushfs passwd`: changes the password. No file is re-encrypted: only the slot is replaced.

use std::path::{Path, PathBuf};

use clap::Args;

use super::foreign::ForeignArgs;
use super::key::{describe_all, still_open};
use super::output::print_line;
use super::secret::{NewPasswordArgs, OpenArgs};
use crate::crypto::SlotKind;
use crate::error::{Error, Kind, Result};
use crate::library::{Location, opened_by};
use crate::object::SlotId;

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

/// Adds a slot with the new password, then removes all slots that the old password opens. With a key file or the
/// recovery code, none is removed. Says what else opens the library.
pub fn run(args: &PasswdArgs) -> Result<()> {
    if let Some(kind) = args.foreign.kind(&args.dir)? {
        let (old, new) = (&args.open, &args.new);
        return args.foreign.passwd(kind, &args.dir, old, new);
    }
    let library = Location::at(&args.dir)?;
    let unlocked = args.open.unlock(&library)?;
    check_writable(&args.dir, unlocked.writable)?;
    let new = args.new.choose()?;
    let master = &unlocked.master;
    let before = library.slots()?;
    let old: Vec<SlotId> = match &unlocked.slot {
        Some((first, secret)) if secret.kind() == SlotKind::Password => {
            let others = opened_by(&before, master, secret).into_iter();
            let others = others.map(|slot| slot.id).filter(|id| id != first);
            std::iter::once(*first).chain(others).collect()
        }
        _ => Vec::new(),
    };
    let mut kept = opened_by(&before, master, &new).into_iter();
    let added = match kept.find(|slot| !old.contains(&slot.id)) {
        Some(slot) => slot.id,
        None => library.add_slot(master, &new, "")?,
    };
    for id in &old {
        library.remove_slot(*id)?;
    }
    print_line(match old.is_empty() {
        true => format!("The password is added (slot {added})."),
        false => "The password is changed.".into(),
    })?;
    if old.len() > 1 {
        let removed = before.good.iter().filter(|slot| old.contains(&slot.id));
        print_line(format_args!(
            "The old password opened several slots, and all are removed: {}.",
            describe_all(removed, Some(master))
        ))?;
    }
    let after = library.slots()?;
    print_line(still_open(after.good.iter(), Some(master)))
}

/// Refuses to change a library that a later version has marked as read-only for this one.
pub fn check_writable(dir: &Path, writable: bool) -> Result<()> {
    if writable {
        return Ok(());
    }
    let what = "this version may read it, but not write";
    Err(Error::new(Kind::Unsupported(what.into()), dir.display()).hint("install a newer hushfs"))
}
