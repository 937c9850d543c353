//! `hushfs convert`: copies a foreign library, or a plain folder, into a new library of hushfs.
//!
//! Each file is written under a temporary name, made durable, read back and compared; only then does it get its name
//! and times. So a file under its own name is complete, and an interrupted conversion resumes where it stopped: a file
//! that exists with the same length and time is not copied again. The source is only read. Anything in it that cannot
//! be shown is left out and listed, and the conversion then ends with an error. Of a plain folder, everything is copied
//! that a library can hold: hard and symbolic links, special files, owners, permissions, times, extended attributes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::foreign::ForeignArgs;
use super::init;
use super::output::{counted, print_line};
use super::passwd::check_writable;
use super::printable;
use super::recovery::CodeArgs;
use super::secret::{NewPasswordArgs, OpenArgs};
use super::verify::byte_bar;
use crate::error::{Error, Kind, Result};
use crate::foreign::{Mirror, strangers};
use crate::library::{self, How, Location};
use crate::state::canonical;
use crate::store::is_vacant;
use crate::vault::Vault;
use crate::volume::Volume;

mod copy;
mod folder;

use copy::Copy;
use folder::PlainFolder;

/// What was typed.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// Plain folder, or another program's library
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Folder for the new library; an interrupted conversion resumes
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Treat SRC as a plain folder, without detecting its format
    #[arg(long, conflicts_with = "format")]
    plain: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    new: NewPasswordArgs,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Copies everything.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let (from, to) = (canonical(&args.source)?, canonical(&args.target)?);
    if let Err(e) = std::fs::metadata(&from) {
        return Err(match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Kind::NoFolder, args.source.display())
                .hint("this is what is to be converted: check the path"),
            _ => Error::io(e, &from),
        });
    }
    if from.starts_with(&to) || to.starts_with(&from) {
        return Err(Error::usage(format_args!(
            "{} and {} lie in one another",
            from.display(),
            to.display()
        )));
    }
    let (source, left_out) = open_source(args, &from)?;
    let target = open_target(args, &to)?;
    let bar = byte_bar();
    let copied = Copy::new(&*source, &*target, &bar).all();
    bar.finish_and_clear();
    // Close it even if something failed: complete files stay.
    let closed = target.close();
    let (files, failed) = copied?;
    closed?;
    for (name, why) in &left_out {
        print_line(format_args!(
            "left out: {}: {}",
            printable(name),
            printable(why)
        ))?;
    }
    let are = if files == 1 { "is" } else { "are" };
    let copied = counted(files, "file");
    print_line(format_args!("{copied} {are} in {}", to.display()))?;
    let (failed_files, left) = (counted(failed, "file"), left_out.len() as u64);
    let check = match (failed, left) {
        (0, 0) => return Ok(()),
        (_, 0) => format!("{failed_files} could not be copied, as listed"),
        (0, left) => format!("{} left out, as listed", counted(left, "file")),
        (_, left) => {
            format!("{failed_files} could not be copied, and {left} left out, as listed")
        }
    };
    Err(Error::damaged(from.display(), check))
}

/// What is left out of a source: names, and why.
type LeftOut = Vec<(String, String)>;

fn open_source(args: &ConvertArgs, from: &Path) -> Result<(Arc<dyn Volume>, LeftOut)> {
    let kind = if args.plain {
        None
    } else {
        args.foreign.kind(from)?
    };
    let Some(kind) = kind else {
        let slots = Location::at(from)?.slots()?;
        if !args.plain && !slots.good.is_empty() {
            return Err(Error::usage(format_args!(
                "{}: it is a hushfs library already",
                from.display()
            ))
            .hint("mount it, and copy what is in it"));
        }
        print_line(format_args!("{}: this is a plain folder", from.display()))?;
        return Ok((Arc::new(PlainFolder::new(from)), LeftOut::new()));
    };
    print_line(format_args!("{}: this is {kind}", from.display()))?;
    let format = args
        .foreign
        .open_to_read(kind, from, &args.open, 32 << 20)?;
    let mirror = Mirror::new(format)?;
    let mut left_out = strangers(from)?;
    left_out.extend_from_slice(mirror.left_out());
    Ok((mirror, left_out))
}

fn open_target(args: &ConvertArgs, to: &Path) -> Result<Arc<Vault>> {
    let secret = args.new.as_secret();
    let master = if is_vacant(to)? {
        init::make(to, &secret, &args.code)?
    } else {
        let location = Location::at(to)?;
        let slots = location.slots()?;
        if slots.good.is_empty() && slots.bad.is_empty() {
            return Err(init::not_empty(to));
        }
        let open = OpenArgs {
            secret,
            recovery: false,
            accept_cost: false,
        };
        let unlocked = open.unlock(&location)?;
        check_writable(to, unlocked.writable)?;
        unlocked.master
    };
    library::open(Location::at(to)?, master, How::default())
}
