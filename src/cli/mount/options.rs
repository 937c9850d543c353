//! What was typed for a mount, and what it means, including the options of mount(8).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::MountArgs;
use crate::cli::foreign::ForeignArgs;
use crate::cli::secret::OpenArgs;
use crate::error::{Error, Result};
use crate::fuse::ShownAs;
use crate::library::{How, Others};
use crate::mount::{Options, mount_of};

/// Default size of the cache of decrypted blocks, in bytes.
const CACHE_BYTES: usize = 32 << 20;

/// Maximum time to wait for a store, in seconds: a day.
const TIMEOUT_MAX: u64 = 24 * 60 * 60;

/// Options of mount(8) and fstab(5) that change nothing here: mount(8) itself decides who may mount and when, and
/// reading never updates access times.
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

/// What was typed, with the `-o` options applied.
#[derive(Debug)]
pub(super) struct Wish {
    pub foreground: bool,
    pub quiet: bool,
    pub log_file: Option<PathBuf>,
    pub cache_bytes: usize,
    pub accept_rollback: bool,
    pub new_device: bool,
    pub force: bool,
    pub mount: Options,
    pub open: OpenArgs,
    pub foreign: ForeignArgs,
}

impl Wish {
    /// Evaluates everything that was typed. With `sloppy`, an `-o` option that is refused is only a warning.
    pub fn of(args: &MountArgs, sloppy: bool) -> Result<Self> {
        let mut wish = Self {
            foreground: args.foreground,
            quiet: args.quiet,
            log_file: args.log_file.clone(),
            cache_bytes: args.cache_size.unwrap_or(CACHE_BYTES),
            accept_rollback: args.accept_rollback,
            new_device: args.new_device,
            force: args.force,
            mount: Options {
                allow_other: args.allow_other,
                // As with other FUSE filesystems, these have to be asked for.
                nosuid: true,
                nodev: true,
                shown_as: ShownAs {
                    uid: args.uid,
                    gid: args.gid,
                    umask: args.umask.unwrap_or(0),
                },
                ..Options::default()
            },
            open: args.open.clone(),
            foreign: args.foreign.clone(),
        };
        let options = args
            .options
            .iter()
            .flat_map(|o| o.as_bytes().split(|b| *b == b','));
        for option in options.filter(|option| !option.is_empty()) {
            match wish.apply(option) {
                Err(e) if sloppy => log::warn!("{e}"),
                other => other?,
            }
        }
        wish.mount.read_only |= args.read_only;
        wish.open.check()?;
        Ok(wish)
    }

    /// Returns how to open a library of ours.
    pub fn how(&self) -> How {
        How {
            read_only: self.mount.read_only,
            published_only: false,
            accept_rollback: self.accept_rollback,
            new_device: self.new_device,
            others: match self.mount.read_only || self.force {
                true => Others::Told,
                false => Others::Refused,
            },
            cache_bytes: self.cache_bytes,
            watched: true,
            mounted_at: Some(mount_of),
        }
    }

    /// Applies one `-o` option. Dashes and underscores are equivalent.
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
            ("nonempty", None) => self.mount.nonempty = true,
            ("quiet", None) => self.quiet = true,
            ("log_file", Some(file)) if !file.is_empty() => self.log_file = Some(file.into()),
            ("uid", Some(id)) => self.mount.shown_as.uid = Some(parsed("uid", &id, parse_id)?),
            ("gid", Some(id)) => self.mount.shown_as.gid = Some(parsed("gid", &id, parse_id)?),
            ("umask", Some(bits)) => {
                self.mount.shown_as.umask = parsed("umask", &bits, parse_umask)?;
            }
            ("ro", None) => self.mount.read_only = true,
            ("rw", None) => self.mount.read_only = false,
            ("allow_other", None) => self.mount.allow_other = true,
            ("foreground", None) => self.foreground = true,
            ("accept_rollback", None) => self.accept_rollback = true,
            ("new_device", None) => self.new_device = true,
            ("force", None) => self.force = true,
            ("accept_cost", None) => self.open.accept_cost = true,
            ("suid", None) => self.mount.nosuid = false,
            ("nosuid", None) => self.mount.nosuid = true,
            ("dev", None) => self.mount.nodev = false,
            ("nodev", None) => self.mount.nodev = true,
            ("exec", None) => self.mount.noexec = false,
            ("noexec", None) => self.mount.noexec = true,
            ("cache_size", Some(size)) => {
                self.cache_bytes = parsed("cache-size", &size, parse_size)?;
            }
            ("password_file", Some(file)) => self.open.secret.password_file = Some(file.into()),
            ("password_command", Some(command)) => {
                self.open.secret.password_command = Some(command);
            }
            ("key_file", Some(file)) => self.open.secret.key_file = Some(file.into()),
            (name, value) if self.foreign.option(name, value.as_deref())? => {}
            ("fsname", Some(source)) if !source.is_empty() => self.mount.source = Some(source),
            ("subtype", Some(subtype)) if !subtype.is_empty() => {
                self.mount.subtype = Some(subtype);
            }
            ("timeout", Some(seconds)) => {
                let seconds = parsed("timeout", &seconds, parse_timeout)?;
                self.mount.timeout = Some(seconds);
            }
            ("comment" | "user" | "helper" | "uhelper", Some(_)) => {}
            ("comment", None) => {}
            (name, _) if name.starts_with("x_") || name.starts_with("X_") => {}
            (name, None) if WITHOUT_MEANING.contains(&name) => {}
            (name @ ("sync" | "dirsync" | "remount" | "nosymfollow"), None) => {
                return Err(Error::usage(format_args!("-o {name}: not supported")).hint(
                    match name {
                        "remount" => "unmount it and mount it again",
                        "nosymfollow" => "mount -o bind,nosymfollow can, of what is mounted",
                        _ => "use O_SYNC or fsync(2) for data that must be durable immediately",
                    },
                ));
            }
            // The value is not shown: it could be a password that was given here by mistake.
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

/// Parses the value of an `-o` option.
fn parsed<T>(
    name: &str,
    given: &OsStr,
    parse: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<T> {
    let given = given.to_string_lossy();
    parse(&given).map_err(|e| Error::usage(format_args!("-o {name}={given}: {e}")))
}

/// Parses a number of bytes: digits, then nothing, K, M or G (of 1024).
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
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

/// Parses the number of a user or group. The highest number means none, and is refused.
pub(super) fn parse_id(text: &str) -> Result<u32, String> {
    let number = digits(text).and_then(|text| text.parse().ok());
    let number = number.filter(|id| *id != u32::MAX);
    number.ok_or_else(|| "it is a number, as id(1) prints it".into())
}

/// Parses permission bits, as umask(1) takes them.
pub(super) fn parse_umask(text: &str) -> Result<u16, String> {
    let bits = digits(text).and_then(|text| u16::from_str_radix(text, 8).ok());
    let bits = bits.filter(|bits| *bits <= 0o777);
    bits.ok_or_else(|| "it is an octal number, 0 to 777".into())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds = digits(text).and_then(|text| text.parse().ok());
    let seconds = seconds.filter(|s| (1..=TIMEOUT_MAX).contains(s));
    let wrong = || format!("it is a number of seconds, 1 to {TIMEOUT_MAX}");
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

/// Returns the text if it consists of digits: Rust would also accept a sign.
fn digits(text: &str) -> Option<&str> {
    Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::super::HelperArgs;
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
        Wish::of(&line.map_err(Error::usage)?.args, false)
    }

    #[test]
    fn options_of_mount_mean_what_they_say() {
        let plain = wish("").unwrap();
        assert!(
            !plain.mount.read_only
                && !plain.mount.allow_other
                && !plain.foreground
                && !plain.mount.noexec
        );
        assert!(plain.mount.nosuid && plain.mount.nodev);
        assert_eq!(plain.cache_bytes, 32 << 20);
        let given = wish("-o ro,allow_other,suid -o dev,noexec,cache-size=64M,password-file=/a=b");
        let given = given.unwrap();
        assert!(given.mount.read_only && given.mount.allow_other && given.mount.noexec);
        assert!(!given.mount.nosuid && !given.mount.nodev);
        assert_eq!(given.cache_bytes, 64 << 20);
        assert_eq!(given.open.secret.password_file, Some("/a=b".into()));
        assert!(!wish("-o ro,rw").unwrap().mount.read_only);
        assert!(wish("--read-only -o rw").unwrap().mount.read_only);
    }

    #[test]
    fn what_means_nothing_is_accepted_and_what_is_unknown_is_named() {
        wish("-o defaults,noatime,nofail,x-systemd.automount,comment=a,x-gvfs-show").unwrap();
        let of_fstab =
            "auto,noauto,nofail,_netdev,user,users,owner,group,nouser,defaults,comment=a";
        let of_mount = "user=joe,fsname=/a b,subtype=hushfs,X-mount.mkdir,X-mount.owner=joe,x-systemd.requires=a.mount,silent,loud,mand,nomand,iversion,noiversion";
        for option in of_fstab.split(',').chain(of_mount.split(',')) {
            let args = Line::try_parse_from(["hushfs", "lib", "mnt", "-o", option]).unwrap();
            Wish::of(&args.args, false).unwrap();
        }
        for (typed, named) in [
            ("-o uids=5", "-o uids"),
            ("-o uid=joe", "-o uid=joe"),
            ("-o gid", "-o gid"),
            ("-o umask=8", "octal"),
            ("-o timeout=+5", "seconds"),
            ("-o sync", "use O_SYNC"),
            ("-o remount", "mount it again"),
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
        for typed in ["-n", "-s", "-v", "-f", "-t hushfs", "-o nonempty=1"] {
            assert!(wish(typed).is_err(), "{typed} is for mount(8) only");
        }
        assert!(wish("--password-file a -o key-file=b").is_err());
        assert!(wish("--recovery -o key-file=b").is_err());
    }

    #[test]
    fn mount_8_may_say_more() {
        #[derive(Parser)]
        struct Helper {
            #[command(flatten)]
            args: HelperArgs,
        }
        let parse = |typed: &str| {
            Helper::try_parse_from(typed.split(' '))
                .map(|line| line.args.wish())
                .unwrap()
        };
        let quiet = parse("x lib mnt -n -f -t fuse.hushfs -o rw,noatime").unwrap();
        assert!(quiet.quiet);
        assert!(!parse("x lib mnt -v").unwrap().quiet);
        assert!(parse("x lib mnt -o strange=5").is_err());
        assert!(
            parse("x lib mnt -s -o strange=5,ro")
                .unwrap()
                .mount
                .read_only
        );
    }

    #[test]
    fn files_are_shown_as_whose_is_said() {
        assert_eq!(wish("").unwrap().mount.shown_as, ShownAs::default());
        let expected = ShownAs {
            uid: Some(1000),
            gid: Some(0),
            umask: 0o027,
        };
        for typed in [
            "--uid 1000 --gid 0 --umask 027",
            "-o uid=1000,gid=0,umask=27",
            "--uid 7 --gid 0 -o uid=1000,umask=0027",
        ] {
            assert_eq!(wish(typed).unwrap().mount.shown_as, expected, "{typed}");
        }
        for text in ["", "-1", "+1", "joe", "4294967295", "4294967296"] {
            assert!(parse_id(text).is_err(), "{text}");
        }
        for text in ["", "8", "1000", "+7", "u=rwx"] {
            assert!(parse_umask(text).is_err(), "{text}");
        }
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
