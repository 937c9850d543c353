//! `hushfs mount`: what was typed, and what it means.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::foreign::ForeignArgs;
use super::info;
use super::init;
use super::library::Library;
use super::output::print_line;
use super::passwd::check_writable;
use super::recall::{Recalled, recall, recall_to_read};
use super::recovery::CodeArgs;
use super::secret::OpenArgs;
use crate::crypto::MasterKey;
use crate::error::{Error, Kind, Result};
use crate::foreign::{FormatKind, Mirror};
use crate::mount::Plan;
use crate::state::{self, canonical};

/// Bytes of decrypted blocks to keep, where nothing else is said.
const CACHE_BYTES: usize = 32 << 20;

/// The longest time that a store may be waited for, in seconds: a day.
const TIMEOUT_MAX: u64 = 24 * 60 * 60;

/// What mount(8) and fstab(5) have that changes nothing here: who may mount and when is theirs, and access times are
/// never written by reading.
const WITHOUT_MEANING: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodiratime",
    "nofail",
    "noiversion",
    "nolazytime",
    "nomand",
    "nonempty",
    "norelatime",
    "nostrictatime",
    "nouser",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "user",
    "users",
];

/// What was typed.
#[derive(Args, Debug)]
pub struct MountArgs {
    /// The library's folder
    #[arg(value_name = "DIR")]
    library: PathBuf,
    /// The folder in which the library's files are to be seen
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Stay in the foreground until it is unmounted
    #[arg(long)]
    foreground: bool,
    /// Make the library and the mount point where they are missing
    #[arg(long)]
    create: bool,
    /// Write nothing, neither below the mount point nor to the library
    #[arg(long)]
    read_only: bool,
    /// Let other users in, as far as the files' permissions do
    #[arg(long)]
    allow_other: bool,
    /// Memory for decrypted blocks: bytes, or with K, M or G; beside it a mount takes 96 MiB at most, 300 bytes a file,
    /// 32 for each piece of one, and what extended attributes, link targets and long names are long [default: 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<usize>,
    /// Accept an index that is older than this machine has seen, as after restoring a backup
    #[arg(long)]
    accept_rollback: bool,
    /// Write to a copy of a library that this machine uses at another place, as a device of its own
    #[arg(long)]
    new_device: bool,
    /// Mount it also where another device, as another user's, has it mounted on this machine
    #[arg(long)]
    force: bool,
    /// Options as mount(8) gives them: ro, allow_other, suid, dev, noexec, fsname=NAME, subtype=TYPE, timeout=SECONDS (how
    /// long a store that does not answer is waited for; 30), cache-size=SIZE, password-file=FILE, password-command=CMD,
    /// key-file=FILE, foreground, accept-rollback, accept-cost, new-device, force, and those that change nothing here
    #[arg(short = 'o', value_name = "OPTION,...")]
    options: Vec<OsString>,
    /// Accepted from mount(8), and without meaning.
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Accepted from mount(8): unknown options are passed over.
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    /// Accepted from mount(8), and without meaning.
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// From mount(8): nothing is mounted, and only the options are looked at.
    #[arg(short = 'f', hide = true)]
    fake: bool,
    /// Accepted from mount(8), and without meaning.
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    fs_type: Option<OsString>,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// What it means, after the `-o` options.
#[derive(Debug)]
struct Wish {
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    cache_bytes: usize,
    accept_rollback: bool,
    new_device: bool,
    force: bool,
    nosuid: bool,
    nodev: bool,
    noexec: bool,
    source: Option<OsString>,
    subtype: Option<OsString>,
    timeout: Option<Duration>,
    open: OpenArgs,
    foreign: ForeignArgs,
}

impl MountArgs {
    fn wish(&self) -> Result<Wish> {
        let mut wish = Wish {
            foreground: self.foreground,
            read_only: false,
            allow_other: self.allow_other,
            cache_bytes: self.cache_size.unwrap_or(CACHE_BYTES),
            accept_rollback: self.accept_rollback,
            new_device: self.new_device,
            force: self.force,
            // As with other FUSE filesystems: who wants these of a library says so.
            nosuid: true,
            nodev: true,
            noexec: false,
            source: None,
            subtype: None,
            timeout: None,
            open: self.open.clone(),
            foreign: self.foreign.clone(),
        };
        let options = self
            .options
            .iter()
            .flat_map(|o| o.as_bytes().split(|b| *b == b','));
        for option in options.filter(|option| !option.is_empty()) {
            match wish.apply(option) {
                Err(e) if self.sloppy => log::warn!("{e}"),
                other => other?,
            }
        }
        wish.read_only |= self.read_only;
        wish.open.check()?;
        Ok(wish)
    }
}

impl Wish {
    /// One `-o` option. Dashes and underscores are one.
    fn apply(&mut self, option: &[u8]) -> Result<()> {
        let (name, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (
                &option[..at],
                Some(OsString::from_vec(option[at + 1..].to_vec())),
            ),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).replace('-', "_");
        match (name.as_str(), value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = true,
            ("foreground", None) => self.foreground = true,
            ("accept_rollback", None) => self.accept_rollback = true,
            ("new_device", None) => self.new_device = true,
            ("force", None) => self.force = true,
            ("accept_cost", None) => self.open.accept_cost = true,
            ("suid", None) => self.nosuid = false,
            ("nosuid", None) => self.nosuid = true,
            ("dev", None) => self.nodev = false,
            ("nodev", None) => self.nodev = true,
            ("exec", None) => self.noexec = false,
            ("noexec", None) => self.noexec = true,
            ("cache_size", Some(size)) => {
                let size = size.to_string_lossy();
                self.cache_bytes = parse_size(&size)
                    .map_err(|e| Error::usage(format_args!("-o cache-size={size}: {e}")))?;
            }
            ("password_file", Some(file)) => self.open.secret.password_file = Some(file.into()),
            ("password_command", Some(command)) => {
                self.open.secret.password_command = Some(command);
            }
            ("key_file", Some(file)) => self.open.secret.key_file = Some(file.into()),
            (name, value) if self.foreign.option(name, value.as_deref())? => {}
            ("fsname", Some(source)) if !source.is_empty() => self.source = Some(source),
            ("subtype", Some(subtype)) if !subtype.is_empty() => self.subtype = Some(subtype),
            ("timeout", Some(seconds)) => {
                let number = seconds.to_str().and_then(|s| s.parse().ok());
                let number = number.filter(|s| (1..=TIMEOUT_MAX).contains(s));
                let wrong = || {
                    let given = seconds.display();
                    Error::usage(format_args!(
                        "-o timeout={given}: a number of seconds, 1 to {TIMEOUT_MAX}"
                    ))
                };
                self.timeout = Some(Duration::from_secs(number.ok_or_else(wrong)?));
            }
            ("comment" | "user" | "helper" | "uhelper", Some(_)) => {}
            ("comment", None) => {}
            (name, _) if name.starts_with("x_") || name.starts_with("X_") => {}
            (name, None) if WITHOUT_MEANING.contains(&name) => {}
            (name @ ("sync" | "dirsync" | "remount" | "nosymfollow"), None) => {
                return Err(Error::usage(format_args!(
                    "-o {name}: a library cannot be mounted so"
                ))
                .hint(match name {
                    "remount" => "unmount it, and mount it anew",
                    "nosymfollow" => "mount -o bind,nosymfollow can, of what is mounted",
                    _ => "what is to be durable at once is written with O_SYNC or fsync(2)",
                }));
            }
            // The value is not shown: it could be a password that somebody thought could be given here.
            _ => {
                return Err(
                    Error::usage(format_args!("-o {name}: there is no such option"))
                        .hint("`hushfs mount --help` lists them"),
                );
            }
        }
        Ok(())
    }
}

/// Bytes: digits, then nothing, K, M or G (of 1024).
fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let wrong = || "a size is a number, or one with K, M or G".to_string();
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: usize = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Opens the library, or makes it, and mounts it.
pub fn run(args: &MountArgs) -> Result<()> {
    let wish = args.wish()?;
    if args.fake {
        return Ok(());
    }
    args.code.check_create(args.create)?;
    let library = canonical(&args.library)?;
    let mountpoint = check_mountpoint(args, &library)?;
    let made = args.create && init::is_vacant(&library)?;
    if !made && let Some(kind) = wish.foreign.kind(&library)? {
        return run_foreign(&wish, kind, &library, &mountpoint);
    }
    let master = if made {
        make(&library, &wish, &args.code)?
    } else {
        let unlocked = Library::at(&library)?.unlock(&wish.open)?;
        check_writable(&library, unlocked.writable || wish.read_only)?;
        unlocked.master
    };
    let (recalled, read_only) = recall_as(&wish, &library, &master)?;
    info::warn_of_leftovers(&library, &recalled, true);
    if args.create {
        fs::create_dir_all(&mountpoint).map_err(|e| Error::io(e, &mountpoint))?;
    }
    crate::mount::run(Plan {
        library,
        mountpoint,
        master: Arc::new(master),
        device: recalled.device,
        place: recalled.place,
        foreground: wish.foreground,
        read_only,
        force: wish.force,
        allow_other: wish.allow_other,
        cache_bytes: wish.cache_bytes,
        accept_rollback: wish.accept_rollback,
        nosuid: wish.nosuid,
        nodev: wish.nodev,
        noexec: wish.noexec,
        source: wish.source,
        subtype: wish.subtype,
        timeout: wish.timeout,
    })
}

/// What is remembered of the library, and whether nothing is written to it.
fn recall_as(wish: &Wish, library: &Path, master: &MasterKey) -> Result<(Recalled, bool)> {
    if wish.read_only {
        return Ok((recall_to_read(library, master, wish.accept_rollback)?, true));
    }
    let recalled = recall(library, master, wish.accept_rollback, wish.new_device)?;
    let Some(original) = &recalled.copy_of else {
        return Ok((recalled, false));
    };
    log::warn!(
        "{}: this machine uses the library at {}, which is still there, so this is a copy, perhaps an older one, and is \
         mounted read-only. --new-device writes to it, as a device of its own. Where it took the other's place, move that \
         away",
        library.display(),
        original.display()
    );
    Ok((recalled, true))
}

/// Mounts what another program encrypted.
fn run_foreign(wish: &Wish, kind: FormatKind, library: &Path, mountpoint: &Path) -> Result<()> {
    print_line(format_args!("{}: this is {kind}", library.display()))?;
    let secret = wish.foreign.secret(kind, library, &wish.open)?;
    let options = crate::mount::Options {
        read_only: wish.read_only || wish.foreign.only_reads(kind)?,
        allow_other: wish.allow_other,
        nosuid: wish.nosuid,
        nodev: wish.nodev,
        noexec: wish.noexec,
        source: wish.source.clone(),
        subtype: wish.subtype.clone(),
        store: None,
        timeout: wish.timeout,
    };
    let foreground = wish.foreground;
    crate::mount::run_volume(library, mountpoint, &options, foreground, |library| {
        let format =
            wish.foreign
                .open(kind, library, &secret, options.read_only, wish.cache_bytes)?;
        let mirror: Arc<dyn crate::volume::Volume> = Mirror::new(format)?;
        Ok(mirror)
    })
}

/// A folder that is there (or will be made), outside of the library, with the library outside of it.
fn check_mountpoint(args: &MountArgs, library: &Path) -> Result<PathBuf> {
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
    if mountpoint.starts_with(library) || library.starts_with(&mountpoint) {
        return Err(Error::usage(format_args!(
            "{}: the mount point and the library lie in one another",
            mountpoint.display()
        ))
        .hint("choose a folder beside it"));
    }
    match fs::metadata(&mountpoint) {
        Ok(meta) if meta.is_dir() => Ok(mountpoint),
        Ok(_) => Err(Error::new(Kind::NotDirectory, mountpoint.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound && args.create => Ok(mountpoint),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::new(Kind::NotFound, mountpoint.display()).hint("--create makes it"))
        }
        Err(e) => Err(Error::io(e, &mountpoint)),
    }
}

/// Makes a library for `--create`; not where one is known to be: its disk may be unmounted, and a new library in its
/// place would be synced over it.
fn make(library: &Path, wish: &Wish, code: &CodeArgs) -> Result<MasterKey> {
    if wish.open.recovery || wish.read_only {
        return Err(Error::new(Kind::NotLibrary, library.display())
            .hint("a new library is not made with --recovery or --read-only"));
    }
    if let Some((state, _)) = state::is_taken(library)? {
        return Err(Error::new(Kind::NotLibrary, library.display()).hint(format_args!(
            "one was here: is its disk mounted, its folder synced? To make a new one all the same, remove {}",
            state.display()
        )));
    }
    init::make(library, &wish.open.secret, code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MountArgs,
    }

    fn wish(typed: &str) -> Result<Wish> {
        let words = ["hushfs", "lib", "mnt"].into_iter().chain(typed.split(' '));
        let line = Line::try_parse_from(words.filter(|word| !word.is_empty()));
        line.map_err(Error::usage)?.args.wish()
    }

    #[test]
    fn options_of_mount_mean_what_they_say() {
        let plain = wish("").unwrap();
        assert!(!plain.read_only && !plain.allow_other && !plain.foreground && !plain.noexec);
        assert!(plain.nosuid && plain.nodev);
        assert_eq!(plain.cache_bytes, 32 << 20);
        let given = wish("-o ro,allow_other,suid -o dev,noexec,cache-size=64M,password-file=/a=b");
        let given = given.unwrap();
        assert!(given.read_only && given.allow_other && given.noexec);
        assert!(!given.nosuid && !given.nodev);
        assert_eq!(given.cache_bytes, 64 << 20);
        assert_eq!(given.open.secret.password_file, Some("/a=b".into()));
        assert!(!wish("-o ro,rw").unwrap().read_only);
        assert!(wish("--read-only -o rw").unwrap().read_only);
    }

    #[test]
    fn what_means_nothing_is_accepted_and_what_is_unknown_is_named() {
        wish("-n -v -f -t fuse.hushfs -o defaults,noatime,nofail,x-systemd.automount,comment=a,x-gvfs-show").unwrap();
        let of_fstab =
            "auto,noauto,nofail,_netdev,user,users,owner,group,nouser,defaults,comment=a";
        let of_mount = "user=joe,fsname=/a b,subtype=hushfs,X-mount.mkdir,X-mount.owner=joe,x-systemd.requires=a.mount,silent,loud,mand,nomand,iversion,noiversion";
        for option in of_fstab.split(',').chain(of_mount.split(',')) {
            let args = Line::try_parse_from(["hushfs", "lib", "mnt", "-o", option]).unwrap();
            args.args.wish().unwrap();
        }
        for (typed, named) in [
            ("-o uid=5", "-o uid"),
            ("-o sync", "written with O_SYNC"),
            ("-o remount", "mount it anew"),
            ("-o nosymfollow", "bind,nosymfollow"),
            ("-o ro=1", "-o ro"),
            ("-o fsname", "-o fsname"),
            ("-o noauto=1", "-o noauto"),
            ("-o uhelper", "-o uhelper"),
            ("-o password=hunter2", "-o password"),
            ("-o cache-size=lots", "cache-size=lots"),
        ] {
            let message = wish(typed).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert!(wish("-s -o uid=5").is_ok());
        assert!(wish("--password-file a -o key-file=b").is_err());
        assert!(wish("--recovery -o key-file=b").is_err());
    }

    #[test]
    fn sizes_have_units() {
        for (text, size) in [
            ("0", 0),
            ("12", 12),
            ("3K", 3072),
            ("2m", 2 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5M",
            "1T",
            "1 M",
            "99999999999G",
            "é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
