//! `hushfs key`: the slots of a library.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::foreign::library_of_ours;
use super::output::{print, print_line};
use super::passwd::check_writable;
use super::printable;
use super::recovery::{self, CodeArgs, NewFile};
use super::secret::{NewPasswordArgs, OpenArgs, confirm, read_key_file};
use crate::crypto::{KEY_FILE_LEN_MIN, MasterKey, Secret, Slot, SlotKind, random};
use crate::error::{Error, Kind, Result};
use crate::library::{Location, Slots, opened_by};
use crate::object::SlotId;

/// What was typed.
#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand, Debug)]
enum KeyCommand {
    /// List the slots (also checks them if a password or key is given)
    List(ListArgs),
    /// Add a password or a key file
    Add(AddArgs),
    /// Remove a slot (checks the others first if a password or key is given)
    Remove(RemoveArgs),
    /// Show the recovery code again
    Recovery(RecoveryArgs),
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
    /// Add this key file instead of a password (32 bytes to 64 KiB of random data)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_password_file", "new_password_command"])]
    new_key_file: Option<PathBuf>,
    /// Create the key file first; it must not exist
    #[arg(long, requires = "new_key_file")]
    generate: bool,
    /// Label for the slot, stored encrypted (at most 63 bytes)
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Slot id as shown by `key list`, or an unambiguous prefix
    #[arg(value_name = "SLOT")]
    slot: String,
    /// Remove even the last slot; only the recovery code will open the library
    #[arg(long)]
    force: bool,
    /// Do not ask whether to remove it
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Args, Debug)]
struct RecoveryArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the command below `key`.
pub fn run(args: &KeyArgs) -> Result<()> {
    match &args.command {
        KeyCommand::List(args) => list(args),
        KeyCommand::Add(args) => add(args),
        KeyCommand::Remove(args) => remove(args),
        KeyCommand::Recovery(args) => recovery(args),
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let library = library_of_ours(&args.dir)?;
    let slots = library.slots()?;
    if slots.good.is_empty() && slots.bad.is_empty() && !library.has_contents() {
        return Err(Error::new(Kind::NotLibrary, args.dir.display()));
    }
    let unlocked = args.open.unlock_if_asked(&library, true)?;
    print(table(&slots, unlocked.as_ref().map(|u| &u.master)))
}

fn recovery(args: &RecoveryArgs) -> Result<()> {
    let library = library_of_ours(&args.dir)?;
    args.code.check_shown()?;
    args.code.check(&args.dir)?;
    let unlocked = args.open.unlock(&library)?;
    recovery::show(&args.dir, &unlocked.master, args.code.create()?)
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
            // Labels are typed by whoever adds a slot: keep control characters from the terminal.
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

/// Returns the name of a kind of slot in tables and in `info --json`.
pub fn kind_name(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Password => "password",
        SlotKind::KeyFile => "keyfile",
    }
}

/// Returns the name of a kind of slot in messages for people.
fn name_of(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Password => "password",
        SlotKind::KeyFile => "key file",
    }
}

/// Returns a time, in seconds since 1970, as `2025-11-21T09:00:00Z`. Years after 9999 are shown as their seconds.
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
    let library = library_of_ours(&args.dir)?;
    let unlocked = args.open.unlock(&library)?;
    check_writable(&args.dir, unlocked.writable)?;
    let secret = match &args.new_key_file {
        Some(path) => {
            if args.generate {
                make_key_file(path)?;
            }
            read_key_file(path).map_err(|e| match path.exists() {
                true => e,
                false => e.hint("--generate creates it"),
            })?
        }
        None => args.new.choose()?,
    };
    refuse_known(&library, &unlocked.master, &secret)?;
    let id = library.add_slot(&unlocked.master, &secret, &args.label)?;
    print_line(format_args!(
        "Added slot {id} ({}).",
        name_of(secret.kind())
    ))
}

/// Refuses a secret that already opens a slot: removing one of the two slots would not shut it out.
fn refuse_known(library: &Location, master: &MasterKey, secret: &Secret) -> Result<()> {
    let slots = library.slots()?;
    match opened_by(&slots, master, secret).first() {
        None => Ok(()),
        Some(slot) => Err(Error::new(
            Kind::Exists,
            format_args!("the new {}", name_of(secret.kind())),
        )
        .hint(format_args!("it opens {}", describe(slot, Some(master))))),
    }
}

/// Creates a file of random bytes, readable by this user only; durable on return, so that no slot exists without its
/// key file.
fn make_key_file(path: &Path) -> Result<()> {
    let mut bytes = Zeroizing::new([0; KEY_FILE_LEN_MIN]);
    random(&mut *bytes)?;
    let file = NewFile::create(path).map_err(|e| match e.kind() {
        Kind::Exists => e.hint("without --generate it is used as it is"),
        _ => e,
    })?;
    file.write(&*bytes)
}

fn remove(args: &RemoveArgs) -> Result<()> {
    let library = library_of_ours(&args.dir)?;
    let unlocked = args.open.unlock_if_asked(&library, false)?;
    if let Some(unlocked) = &unlocked {
        check_writable(&args.dir, unlocked.writable)?;
    }
    let slots = library.slots()?;
    let id = find(&slots, &args.slot)?;
    let master = unlocked.as_ref().map(|unlocked| &unlocked.master);
    let opens =
        |slot: &&Slot| slot.id != id && master.is_none_or(|master| slot.verify(master).is_ok());
    let others = || slots.good.iter().filter(opens);
    let slot = slots.good.iter().find(|slot| slot.id == id);
    if others().next().is_none() && slot.is_some() && !args.force {
        return Err(Error::usage(format_args!(
            "slot {id} is the last one: without it, only the recovery code opens the library"
        ))
        .hint("add another with `hushfs key add`, or use --force"));
    }
    if !args.yes {
        let name = slot.map_or_else(|| format!("slot {id}"), |slot| describe(slot, master));
        let left = still_open(others(), master);
        if confirm(format_args!("Remove {name}?\n{left}")) == Some(false) {
            return Err(Error::new(Kind::Declined, args.dir.display()));
        }
    }
    library.remove_slot(id)?;
    print_line(format_args!(
        "Removed slot {id}.\n{}",
        still_open(others(), master)
    ))
}

/// Returns the description of a slot in messages: `slot ID (password, "label")`.
fn describe(slot: &Slot, master: Option<&MasterKey>) -> String {
    let label = master.and_then(|master| slot.label(master).ok());
    let label = label.filter(|label| !label.is_empty());
    let label = label.map_or_else(String::new, |label| format!(", \"{}\"", printable(&label)));
    format!("slot {} ({}{label})", slot.id, name_of(slot.kind))
}

/// Returns the descriptions of several slots.
pub fn describe_all<'a>(
    slots: impl Iterator<Item = &'a Slot>,
    master: Option<&MasterKey>,
) -> String {
    let all: Vec<String> = slots.map(|slot| describe(slot, master)).collect();
    all.join(", ")
}

/// Says which of the remaining slots open the library. Without the key, that is not certain of any of them.
pub fn still_open<'a>(left: impl Iterator<Item = &'a Slot>, master: Option<&MasterKey>) -> String {
    let left = left.filter(|slot| master.is_none_or(|master| slot.verify(master).is_ok()));
    let slots = describe_all(left, master);
    match (slots.as_str(), master) {
        ("", _) => "The library can be opened with the recovery code only.".into(),
        (slots, Some(_)) => format!("The library can be opened with: {slots}, the recovery code."),
        (slots, None) => format!("The library has these slots left (not checked): {slots}."),
    }
}

/// Returns the one slot, readable or not, whose id begins with what was typed.
fn find(slots: &Slots, typed: &str) -> Result<SlotId> {
    let all = slots.good.iter().map(|slot| slot.id);
    let all = all.chain(slots.bad.iter().map(|(id, _)| *id));
    let mut found = all.filter(|id| !typed.is_empty() && id.to_string().starts_with(typed));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => Err(
            Error::usage(format_args!("several slots begin with `{typed}`"))
                .hint("give more digits of the id"),
        ),
        (None, _) => Err(Error::usage(format_args!("no slot begins with `{typed}`"))
            .hint("`hushfs key list` shows them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectId;

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
        let bad = |byte| (SlotId(ObjectId([byte; 16])), Error::from(Kind::Missing));
        let slots = Slots {
            good: Vec::new(),
            bad: vec![bad(0xaa), bad(0xab)],
            copies: Vec::new(),
        };
        assert_eq!(find(&slots, "ab").unwrap(), SlotId(ObjectId([0xab; 16])));
        for typed in ["a", "", "b", "AB", "../"] {
            assert!(find(&slots, typed).is_err(), "{typed}");
        }
    }
}
