//! `hushfs mount`, also as mount(8) calls it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::foreign::ForeignArgs;
use super::init;
use super::output::print_line;
use super::passwd::check_writable;
use super::printable;
use super::recovery::CodeArgs;
use super::secret::OpenArgs;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::foreign::{FormatKind, Mirror, detect};
use crate::library::{Location, prepare};
use crate::logged;
use crate::mount::Plan;
use crate::state::{self, canonical};
use crate::store::is_vacant;
use crate::volume::Volume;

mod options;

use options::{Wish, parse_id, parse_size, parse_umask};

/// What the man page and `--help` say after the options.
const AFTER_HELP: &str = "\
Owners:
  With --uid, --gid or --umask, files are shown and checked with that owner, group
  and permission bits, whatever is stored: a library that root wrote on a NAS is
  yours on a laptop. What is stored stays as it is. New files are stored as owned by
  the user who mounts. chown to the owner shown changes nothing; to anyone else it
  fails. chmod changes what is stored, except for bits that are not shown: those of
  the umask and, with --uid or --gid, set-user-ID and set-group-ID. ACLs are not
  shown or checked and cannot be set; the group bits of a file with an ACL are its
  mask. Other users need --allow-other.

Log:
  In the foreground the log goes to standard error. In the background it goes there
  only if that is a file, otherwise to syslog. --log-file appends it to a file with
  the time of each line; warnings are also printed until the library is mounted.
  The file stays open: rotate it with copytruncate.

mount(8) and fstab(5):
  As /sbin/mount.hushfs, a link to this program, mount(8) finds it for the type
  hushfs. It then also accepts -f, -n, -s, -t and -v, reports success only with -v,
  and ends with the exit codes of mount(8): 1 wrong usage, 2 read or write error,
  32 mount failure.";

/// What was typed.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct MountArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// Folder to mount it on; it must be empty
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Run in the foreground
    #[arg(long)]
    foreground: bool,
    /// Print nothing on success
    #[arg(short, long)]
    quiet: bool,
    /// Append the log to FILE
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Create the library and the mount point if missing
    #[arg(long)]
    create: bool,
    /// Mount read-only
    #[arg(long, visible_alias = "ro")]
    read_only: bool,
    /// Allow other users access, subject to file permissions
    #[arg(long)]
    allow_other: bool,
    /// Show all files as owned by this user
    #[arg(long, value_name = "NUMBER", value_parser = parse_id)]
    uid: Option<u32>,
    /// Show all files as of this group
    #[arg(long, value_name = "NUMBER", value_parser = parse_id)]
    gid: Option<u32>,
    /// Take these permission bits from all files, for example 077
    #[arg(long, value_name = "BITS", value_parser = parse_umask)]
    umask: Option<u16>,
    /// Memory for decrypted blocks: bytes, or with K, M or G; beside it a mount takes 96 MiB at most, 300 bytes a file,
    /// 32 for each piece of one, and what extended attributes, link targets and long names are long [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<usize>,
    /// Accept an older state of the library than this machine has seen (for example after restoring a backup)
    #[arg(long)]
    accept_rollback: bool,
    /// Write to a copy of a library that this machine uses at another place, as a device of its own
    #[arg(long)]
    new_device: bool,
    /// Mount it also where another device, as another user's, has it mounted on this machine
    #[arg(long)]
    force: bool,
    /// Options as given by mount(8): ro, allow_other, nonempty (mount on a folder that is not empty), suid, dev, noexec,
    /// uid=NUMBER, gid=NUMBER, umask=BITS, fsname=NAME, subtype=TYPE, timeout=SECONDS (how long a store that does not
    /// answer is waited for; 30), cache-size=SIZE, password-file=FILE, password-command=CMD, key-file=FILE,
    /// log-file=FILE, foreground, quiet, accept-rollback, accept-cost, new-device, force; common mount(8) options are
    /// accepted and ignored
    #[arg(short = 'o', value_name = "OPTION,...")]
    options: Vec<OsString>,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// What mount(8) may say besides.
#[derive(Args, Debug)]
pub struct HelperArgs {
    #[command(flatten)]
    mount: MountArgs,
    /// Accepted, and without meaning: there is no mtab.
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Unknown options are passed over.
    #[arg(short = 's')]
    sloppy: bool,
    /// Success is said.
    #[arg(short = 'v')]
    verbose: bool,
    /// Nothing is mounted, and only the options are looked at.
    #[arg(short = 'f')]
    fake: bool,
    /// Accepted, and without meaning: it is how this program was found.
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<OsString>,
}

impl HelperArgs {
    fn wish(&self) -> Result<Wish> {
        let mut wish = Wish::of(&self.mount, self.sloppy)?;
        wish.quiet |= !self.verbose;
        Ok(wish)
    }
}

/// Opens or creates the library, and mounts it.
pub fn run(args: &MountArgs) -> Result<()> {
    start(args, Wish::of(args, false)?)
}

/// The same, as called by mount(8).
pub fn run_for_mount_8(args: &HelperArgs) -> Result<()> {
    let wish = args.wish()?;
    match args.fake {
        true => Ok(()),
        false => start(&args.mount, wish),
    }
}

fn start(args: &MountArgs, wish: Wish) -> Result<()> {
    args.code.check_create(args.create)?;
    refuse_remote(&args.library)?;
    mount(args, wish).map_err(|e| explain(e, args))
}

fn mount(args: &MountArgs, mut wish: Wish) -> Result<()> {
    let library = canonical(&args.library)?;
    let mountpoint = check_mountpoint(args, &wish, &library)?;
    if let Some(path) = &wish.log_file {
        start_log_file(path, &library, &mountpoint)?;
    }
    warn_of_shut_out(&wish);
    let made = args.create && is_vacant(&library)?;
    if !made && let Some(kind) = wish.foreign.kind(&library)? {
        return mount_foreign(wish, kind, library, mountpoint);
    }
    let master = if made {
        make(&library, &wish, &args.code)?
    } else {
        let unlocked = wish.open.unlock(&Location::at(&library)?)?;
        check_writable(&library, unlocked.writable || wish.mount.read_only)?;
        unlocked.master
    };
    let mut opening = prepare(Location::at(&library)?, master, wish.how())?;
    if let Some(original) = opening.read_if_copy() {
        log::warn!(
            "{}: this machine uses the library at {}, which is still there, so this is a copy, perhaps an older one, and \
             is mounted read-only. --new-device writes to it, as a device of its own. Where it took the other's place, \
             move that away",
            library.display(),
            original.display()
        );
        wish.mount.read_only = true;
    }
    if args.create {
        fs::create_dir_all(&mountpoint).map_err(|e| Error::io(e, &mountpoint))?;
    }
    let foreground = wish.foreground;
    run_mount(wish, library, mountpoint, || {
        if !foreground {
            opening.lock_key();
        }
        let vault: Arc<dyn Volume> = opening.open()?;
        Ok(vault)
    })
}

/// Mounts what `open` opens, and announces it.
fn run_mount(
    wish: Wish,
    library: PathBuf,
    mountpoint: PathBuf,
    open: impl FnOnce() -> Result<Arc<dyn Volume>>,
) -> Result<()> {
    let announce = announcement(&wish);
    let plan = Plan {
        library,
        mountpoint,
        options: wish.mount,
        foreground: wish.foreground,
    };
    crate::mount::run(plan, open, announce)
}

/// Mounts another program's library.
fn mount_foreign(
    mut wish: Wish,
    kind: FormatKind,
    library: PathBuf,
    mountpoint: PathBuf,
) -> Result<()> {
    if !wish.quiet {
        print_line(format_args!("{}: this is {kind}", library.display()))?;
    }
    let secret = wish.foreign.secret(kind, &library, &wish.open)?;
    wish.mount.read_only |= wish.foreign.only_reads();
    let (read_only, cache_bytes) = (wish.mount.read_only, wish.cache_bytes);
    let (foreign, dir) = (wish.foreign.clone(), library.clone());
    run_mount(wish, library, mountpoint, move || {
        let format = foreign.open(kind, &dir, &secret, read_only, cache_bytes)?;
        let mirror: Arc<dyn Volume> = Mirror::new(format)?;
        Ok(mirror)
    })
}

/// Returns the function that prints what is mounted where, and how to unmount it. It ignores errors: the mount is
/// there, whether or not that can be printed.
fn announcement(wish: &Wish) -> impl FnOnce(&Path, &Path) + use<> {
    let quiet = wish.quiet;
    let keeps_log = wish.foreground || wish.log_file.is_some();
    move |library, mountpoint| {
        if quiet {
            return;
        }
        let point = printable(&mountpoint.to_string_lossy());
        let _ = print_line(format_args!(
            "{} mounted on {point} (end with: hushfs umount {})",
            printable(&library.to_string_lossy()),
            quoted(&point)
        ));
        if !keeps_log && !crate::mount::keeps_log() {
            log::warn!("no syslog here: give --log-file to keep a log");
        }
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match word.chars().all(is_plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Appends the log to a file. This contains names of files, so it must not be in the library, which is synced, nor
/// below the mount point, where the mount hides it.
fn start_log_file(path: &Path, library: &Path, mountpoint: &Path) -> Result<()> {
    let full = canonical(path)?;
    let named = format!("log file {}", path.display());
    for (folder, what) in [(library, "library"), (mountpoint, "mount point")] {
        if full.starts_with(folder) {
            return Err(Error::usage(format_args!("{named}: is inside the {what}"))
                .hint("choose a file somewhere else"));
        }
    }
    logged::to_file(&full).map_err(|e| Error::new(Kind::Io(e), named))
}

/// Warns that the kernel gives access only to the user who mounts, whoever owns the files.
fn warn_of_shut_out(wish: &Wish) {
    let own = rustix::process::getuid().as_raw();
    if let Some(uid) = wish.mount.shown_as.uid
        && uid != own
        && !wish.mount.allow_other
    {
        log::warn!("--uid {uid}: without --allow-other only user {own} has access to the mount");
    }
}

/// Returns the mount point: a folder that exists, or will be created, neither inside the library nor around it.
fn check_mountpoint(args: &MountArgs, wish: &Wish, library: &Path) -> Result<PathBuf> {
    match crate::mount::clear_dead(&args.mountpoint) {
        Err(e) if !matches!(e.kind(), Kind::NotFound) => return Err(e),
        _ => {}
    }
    let mountpoint = canonical(&args.mountpoint).map_err(|e| match e.kind() {
        Kind::Io(io) if io.raw_os_error() == Some(libc::ENOTCONN) => {
            e.hint("a mount whose process died: `hushfs umount` clears it away")
        }
        _ => e,
    })?;
    if args.create && !mountpoint.exists() {
        crate::mount::check_apart(&mountpoint, library)?;
        return Ok(mountpoint);
    }
    crate::mount::check(&mountpoint, library, wish.mount.nonempty)
}

/// Refuses `s3://bucket/library` and `remote:library`, which `--create` would create as folders.
fn refuse_remote(library: &Path) -> Result<()> {
    let first = library.components().next();
    let first = first.map(|name| name.as_os_str().as_encoded_bytes());
    let has_scheme = first.is_some_and(|name| name.iter().position(|b| *b == b':') > Some(0));
    if !has_scheme || library.exists() {
        return Ok(());
    }
    Err(Error::new(Kind::NotLibrary, library.display())
        .hint("hushfs opens folders only: sync or `rclone mount` the bucket first"))
}

/// Explains what was probably meant, if what exists at the two paths shows that.
fn explain(e: Error, args: &MountArgs) -> Error {
    if !matches!(e.kind(), Kind::NotLibrary | Kind::NoFolder | Kind::NotEmpty)
        || is_library(&args.library)
    {
        return e;
    }
    let no_library = Error::new(Kind::NotLibrary, args.library.display());
    if let Some(folder) = crate::mount::library_at(&args.library) {
        no_library.hint(format_args!(
            "a library is mounted here; give its folder, {}",
            folder.display()
        ))
    } else if args.library.is_dir() && is_library(&args.mountpoint) {
        let other = args.mountpoint.display();
        no_library.hint(format_args!("{other} is one: swap the two arguments"))
    } else {
        e
    }
}

fn is_library(dir: &Path) -> bool {
    let slots = Location::at(dir).and_then(|library| library.slots());
    slots.is_ok_and(|slots| !slots.good.is_empty()) || detect(dir, false).is_ok()
}

/// Creates a library for `--create`, unless one is known to be there: its disk may not be mounted, and a new library in
/// its place would be synced over it.
fn make(library: &Path, wish: &Wish, code: &CodeArgs) -> Result<MasterKey> {
    if wish.open.recovery || wish.mount.read_only {
        return Err(Error::new(Kind::NotLibrary, library.display())
            .hint("a new library is not made with --recovery or --read-only"));
    }
    if let Some((state, _)) = state::is_taken(library)? {
        return Err(Error::new(Kind::NotLibrary, library.display()).hint(format_args!(
            "a library used to be here: is its disk mounted and its folder synced? To create a new one anyway, remove {}",
            state.display()
        )));
    }
    init::make(library, &wish.open.secret, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_other_programs_are_no_folders() {
        for remote in ["s3://bucket/lib", "remote:", "remote:lib", "b2:x/y"] {
            let refused = refuse_remote(Path::new(remote)).unwrap_err();
            assert!(refused.to_string().contains("folders only"), "{refused}");
        }
        for folder in ["lib", "a/b:c", ":c", "./remote:lib", "/", "."] {
            refuse_remote(Path::new(folder)).unwrap();
        }
    }

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_is() {
        assert_eq!(quoted("/srv/music-1.é"), "/srv/music-1.é");
        assert_eq!(quoted("/my music"), "'/my music'");
        assert_eq!(quoted("/it's"), "'/it'\\''s'");
    }
}
