//! `hushfs verify`: reads everything in a library, and reports what is damaged. Changes nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::foreign::ForeignArgs;
use super::output::{counted, print_line, report};
use super::printable;
use super::secret::OpenArgs;
use crate::error::{Error, Kind, Result};
use crate::foreign::Mirror;
use crate::library::{self, How, Location};
use crate::report::{Report, Watch};
use crate::state::canonical;
use crate::vault::Vault;
use crate::volume::{FileKind, Ino, ROOT, Volume};

/// Number of bytes read in one step.
const READ_LEN: usize = 1 << 20;
/// Size of the cache of decrypted frames, in bytes.
const CACHE_BYTES: usize = 8 << 20;

/// What was typed.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Accept an index that is older than this machine has seen
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Shows what is found, with a progress bar if there is a terminal.
struct Screen {
    bar: ProgressBar,
}

/// Returns a progress bar that counts bytes.
pub fn byte_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3} %  {bytes} of {total_bytes}, {eta} left",
    );
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

impl Screen {
    /// Prints a line. If that fails, ends the program: nothing is open for writing, and there is no reader to continue
    /// for.
    fn tell(&self, line: std::fmt::Arguments<'_>) {
        if let Err(e) = self.bar.suspend(|| print_line(line)) {
            self.bar.finish_and_clear();
            std::process::exit(report(&e).into());
        }
    }
}

impl Watch for Screen {
    fn problem(&mut self, subject: &str, text: &str) {
        self.tell(format_args!("{}: {}", printable(subject), printable(text)));
    }

    fn note(&mut self, subject: &str, text: &str) {
        self.tell(format_args!(
            "note: {}: {}",
            printable(subject),
            printable(text)
        ));
    }

    fn total(&mut self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

/// Verifies everything; [`Kind::Damaged`] if something is wrong.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let dir = canonical(&args.dir)?;
    let mut screen = Screen { bar: byte_bar() };
    let mut report = Report::new(&mut screen);
    match args.foreign.kind(&dir)? {
        Some(kind) => {
            print_line(format_args!("{}: this is {kind}", dir.display()))?;
            let format = args
                .foreign
                .open_to_read(kind, &dir, &args.open, CACHE_BYTES)?;
            format.verify(&mut report)?;
            for (name, why) in Mirror::conflicts(&*format)? {
                report.problem(name, why);
            }
        }
        None => {
            let vault = open_vault(&dir, args, &mut report)?;
            verify_volume(&*vault, &mut report)?;
            vault.check_objects(&mut |e| report.problem(dir.display(), e))?;
            vault.close()?;
        }
    }
    let (files, problems) = (report.files(), report.problems());
    screen.bar.finish_and_clear();
    let problems_found = counted(problems, "problem");
    print_line(format_args!("{}, {problems_found}", counted(files, "file")))?;
    if problems == 0 {
        return Ok(());
    }
    Err(Error::damaged(
        dir.display(),
        format_args!("{problems_found}, as listed"),
    ))
}

/// Opens the library, and checks all its slots, of which only one was needed for that.
fn open_vault(dir: &Path, args: &VerifyArgs, report: &mut Report<'_>) -> Result<Arc<Vault>> {
    let location = Location::at(dir)?;
    let master = args.open.unlock(&location)?.master;
    let slots = location.slots()?;
    let good = slots.good.iter().map(|slot| slot.verify(&master));
    let bad = slots.bad.into_iter().map(|(_, e)| e);
    for e in good.filter_map(Result::err).chain(bad) {
        report.problem(dir.display(), e);
    }
    let how = How {
        read_only: true,
        published_only: true,
        accept_rollback: args.accept_rollback,
        ..How::default()
    };
    library::open(location, master, how).map_err(|e| e.about(dir.display()))
}

/// A file of a volume.
pub struct Found {
    /// Its path, from the root.
    pub path: PathBuf,
    /// Its inode number, with a reference held.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// Bytes of plaintext.
    pub plain_size: u64,
}

/// Returns everything in a volume; folders precede their contents.
pub fn find_all(volume: &dyn Volume) -> Result<Vec<Found>> {
    let mut all: Vec<Found> = Vec::new();
    let mut pending = vec![(PathBuf::new(), ROOT)];
    while let Some((folder, ino)) = pending.pop() {
        for name in names(volume, ino)? {
            let attr = volume.lookup(ino, &name)?;
            let path = folder.join(&name);
            if attr.kind == FileKind::Directory {
                pending.push((path.clone(), attr.ino));
            }
            all.push(Found {
                path,
                ino: attr.ino,
                kind: attr.kind,
                plain_size: attr.plain_size,
            });
        }
    }
    Ok(all)
}

fn names(volume: &dyn Volume, ino: Ino) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    volume.readdir(ino, 0, false, &mut |entry| {
        if entry.name != OsStr::new(".") && entry.name != OsStr::new("..") {
            names.push(entry.name.to_owned());
        }
        true
    })?;
    Ok(names)
}

/// Decrypts every block of every file, by reading it.
fn verify_volume(volume: &dyn Volume, report: &mut Report<'_>) -> Result<()> {
    let all = find_all(volume)?;
    let files = || all.iter().filter(|found| found.kind == FileKind::Regular);
    report.total(files().map(|found| found.plain_size).sum());
    let mut buffer = vec![0; READ_LEN];
    for found in files() {
        report.count_file();
        if let Err(e) = read_all(volume, found, &mut buffer, report) {
            report.problem(found.path.display(), e);
        }
    }
    Ok(())
}

/// Reads a whole file. Continues after a part that cannot be decrypted, so that all damage is reported; parts that
/// follow one another with the same error are reported once.
fn read_all(
    volume: &dyn Volume,
    found: &Found,
    buffer: &mut [u8],
    report: &mut Report<'_>,
) -> Result<()> {
    let handle = volume.open(found.ino, libc::O_RDONLY)?;
    let mut at = 0;
    let mut last = String::new();
    // If the lookup fails, read anyway, so that the error is reported with its offset.
    while let Some(data) = volume.next_data(found.ino, at).unwrap_or(Some(at)) {
        report.advance(data - at);
        at = data;
        if at >= found.plain_size {
            break;
        }
        let len = (found.plain_size - at).min(buffer.len() as u64);
        match volume.read(found.ino, handle, at, &mut buffer[..len as usize]) {
            Ok(read) if read as u64 == len => {}
            Ok(_) => {
                let e = Error::from(Kind::Damaged("it ends before its end".into()));
                report.problem(found.path.display(), e);
                break;
            }
            Err(e) => {
                let text = e.to_string();
                if text != last {
                    report.problem(found.path.display(), format_args!("at {at}: {text}"));
                }
                last = text;
            }
        }
        report.advance(len);
        at += len;
    }
    report.advance(found.plain_size.saturating_sub(at));
    volume.release(found.ino, handle);
    Ok(())
}
