//! `hushfs key`: the slots of a library.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::library::{Library, Slots, Unlocked};
use super::output::{print, print_line};
use super::passwd::check_writable;
use super::printable;
use super::secret::{NewPasswordArgs, OpenArgs, read_key_file};
use crate::crypto::{KEY_FILE_LEN_MIN, MasterKey, Slot, SlotKind, random};
use crate::error::{Error, Kind, Result};
use crate::state::sync_dir;
use crate::store::ObjectId;

/// What was typed.
#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand, Debug)]
enum KeyCommand {
    /// List the slots; with a secret given, check them too
    List(ListArgs),
    /// Add a password or a key file
    Add(AddArgs),
    /// Remove a slot; with a secret given, the others are checked first
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
struct ListArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
struct AddArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    new: NewPasswordArgs,
    /// Add this key file in place of a password: 32 bytes to 64 KiB that nobody can guess
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_password_file", "new_password_command"])]
    new_key_file: Option<PathBuf>,
    /// Make the new key file first; it must not exist
    #[arg(long, requires = "new_key_file")]
    generate: bool,
    /// What you call the slot; stored sealed, 63 bytes at most
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The slot's id as `key list` shows it, or enough of its beginning
    #[arg(value_name = "SLOT")]
    slot: String,
    /// Remove the last one, too: only the recovery code opens the library then
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs `key list`, `key add` or `key remove`.
pub fn run(args: &KeyArgs) -> Result<()> {
    match &args.command {
        KeyCommand::List(args) => list(args),
        KeyCommand::Add(args) => add(args),
        KeyCommand::Remove(args) => remove(args),
    }
}

/// The library opened, where a secret is given.
fn unlock_if_given(library: &Library, open: &OpenArgs) -> Result<Option<Unlocked>> {
    if !open.given() {
        return Ok(None);
    }
    library.unlock(open.ask()?).map(Some)
}

fn list(args: &ListArgs) -> Result<()> {
    let library = Library::at(&args.dir)?;
    let unlocked = unlock_if_given(&library, &args.open)?;
    let slots = library.slots()?;
    if slots.good.is_empty() && slots.bad.is_empty() && !library.has_contents() {
        return Err(Error::new(Kind::NotLibrary, args.dir.display()));
    }
    print(table(&slots, unlocked.as_ref().map(|u| &u.master)))
}

fn table(slots: &Slots, master: Option<&MasterKey>) -> String {
    let mut text = format!(
        "{:<32}  {:<8}  {:<20}  {:<13}  LABEL\n",
        "SLOT", "KIND", "MADE", "COST"
    );
    for slot in &slots.good {
        let cost = slot.kdf.map_or("-".to_string(), |kdf| {
            format!("{} KiB*{}/{}", kdf.memory_kib, kdf.passes, kdf.lanes)
        });
        let label = match master.map(|master| slot.label(master)) {
            None => "-".to_string(),
            // A label is whatever the one who added the slot typed: no control characters to a terminal.
            Some(Ok(label)) => printable(&label),
            Some(Err(e)) => e.kind().to_string(),
        };
        text += &format!(
            "{}  {:<8}  {:<20}  {cost:<13}  {label}\n",
            slot.id,
            kind_name(slot.kind),
            utc(slot.created)
        );
    }
    for (id, e) in &slots.bad {
        text += &format!("{id}  {e}\n");
    }
    text
}

/// What messages and `info --json` call a kind of slot.
pub fn kind_name(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Password => "password",
        SlotKind::KeyFile => "keyfile",
    }
}

/// A time as `2025-11-21T09:00:00Z`, from seconds since 1970. Years behind 9999 are shown as their seconds.
pub fn utc(seconds: u64) -> String {
    if seconds > 253_402_300_799 {
        return format!("@{seconds}");
    }
    // Days to a date in the Gregorian calendar: eras of 400 years that begin on a 1 March
    // (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

fn add(args: &AddArgs) -> Result<()> {
    let library = Library::at(&args.dir)?;
    let unlocked = library.unlock(args.open.ask()?)?;
    check_writable(&args.dir, unlocked.writable)?;
    let secret = match &args.new_key_file {
        Some(path) => {
            if args.generate {
                make_key_file(path)?;
            }
            read_key_file(path).map_err(|e| match e.kind() {
                Kind::Io(io) if io.kind() == std::io::ErrorKind::NotFound => {
                    e.hint("--generate makes it")
                }
                _ => e,
            })?
        }
        None => args.new.choose()?,
    };
    let id = library.add_slot(&unlocked.master, &secret, &args.label)?;
    print_line(format_args!(
        "Added slot {id} ({}).",
        kind_name(secret.kind())
    ))
}

/// A new file of random bytes, for this user alone; durable on return, so that no slot outlives it.
fn make_key_file(path: &Path) -> Result<()> {
    let mut bytes = Zeroizing::new([0; KEY_FILE_LEN_MIN]);
    random(&mut *bytes)?;
    let mut options = OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(Kind::Exists, path.display())
                .hint("without --generate it is taken as it is"));
        }
        Err(e) => return Err(Error::io(e, path)),
    };
    file.write_all(&*bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| {
            let _ = fs::remove_file(path);
            Error::io(e, path)
        })?;
    match path.parent() {
        Some(folder) if folder != Path::new("") => sync_dir(folder),
        _ => sync_dir(Path::new(".")),
    }
}

fn remove(args: &RemoveArgs) -> Result<()> {
    let library = Library::at(&args.dir)?;
    let unlocked = unlock_if_given(&library, &args.open)?;
    if let Some(unlocked) = &unlocked {
        check_writable(&args.dir, unlocked.writable)?;
    }
    let slots = library.slots()?;
    let id = find(&slots, &args.slot)?;
    let master = unlocked.as_ref().map(|unlocked| &unlocked.master);
    let opens = |slot: &Slot| master.is_none_or(|master| slot.verify(master).is_ok());
    let last = !slots.good.iter().any(|slot| slot.id != id && opens(slot));
    let is_good = slots.good.iter().any(|slot| slot.id == id);
    if last && is_good && !args.force {
        return Err(Error::usage(format_args!(
            "slot {id} is the last one: without it, only the recovery code opens the library"
        ))
        .hint("add another with `hushfs key add`, or use --force"));
    }
    library.remove_slot(id)?;
    print_line(format_args!("Removed slot {id}."))
}

/// The one slot, readable or not, whose id begins as typed.
fn find(slots: &Slots, typed: &str) -> Result<ObjectId> {
    let all = slots.good.iter().map(|slot| slot.id);
    let all = all.chain(slots.bad.iter().map(|(id, _)| *id));
    let mut found = all.filter(|id| !typed.is_empty() && id.to_string().starts_with(typed));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(
            Error::usage(format_args!("several slots begin with `{typed}`"))
                .hint("type more of the id"),
        ),
        (None, _) => Err(Error::usage(format_args!("no slot begins with `{typed}`"))
            .hint("`hushfs key list` shows them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_763_715_661, "2025-11-21T09:01:01Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (u64::MAX, "@18446744073709551615"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn a_slot_is_found_by_the_beginning_of_its_id() {
        let bad = |byte| (ObjectId([byte; 16]), Error::from(Kind::Missing));
        let slots = Slots {
            good: Vec::new(),
            bad: vec![bad(0xaa), bad(0xab)],
            copies: Vec::new(),
        };
        assert_eq!(find(&slots, "ab").unwrap(), ObjectId([0xab; 16]));
        for typed in ["a", "", "b", "AB", "../"] {
            assert!(find(&slots, typed).is_err(), "{typed}");
        }
    }
}
