//! What is typed about a foreign library: its format, its secret, its parts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::print_line;
use super::secret::{Line, NewPasswordArgs, OpenArgs, SecretArgs, without_marks};
use crate::error::{Error, ExitStatus, Kind, Result, io_text};
use crate::foreign::images::Images;
use crate::foreign::medusa::{BackupsView, Medusa};
use crate::foreign::mms::{self, Mms};
use crate::foreign::{Format, FormatKind, detect, images, medusa};
use crate::library::Location;

/// Maximum length of another program's settings file, in bytes.
const SETTINGS_LEN_MAX: u64 = 1 << 20;

/// What the app does if its settings contain no key.
const NO_KEY: &str = "where its surroundings set none either, the app uses its built-in key, \
    your-32-character-secret-key-here!, which everybody knows: an empty --password-file opens the store with that";

/// What was typed.
#[derive(Args, Debug, Clone, Default)]
pub struct ForeignArgs {
    /// What the library is: vault, mms, medusa or images [default: what it looks like]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub format: Option<FormatKind>,
    /// medusa: read the key from key_secret_base64 in FILE
    #[arg(long, value_name = "FILE")]
    medusa_ini: Option<PathBuf>,
    /// images: read the key from IMAGE_ENCRYPTION_KEY in FILE
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// images: encrypt also what takes the place of a file in clear, and prompt styles, which the app then does not find
    #[arg(long)]
    encrypt_all: bool,
    /// mms: let through files that the server does not encrypt; they lie in clear
    #[arg(long)]
    allow_plain: bool,
    /// mms: the name of the key file, where it is not found by itself
    #[arg(long, value_name = "NAME")]
    mms_key: Option<String>,
    /// mms: the name of the index, where it is not found by itself
    #[arg(long, value_name = "NAME")]
    mms_index: Option<String>,
    /// mms: what the names of objects begin with, as pathMusic in config.js, where no object tells [default: music/ for a new library]
    #[arg(long, value_name = "PATH")]
    mms_path: Option<String>,
    /// medusa: `backups` shows each backup with its own files, to be read only
    #[arg(long, value_name = "VIEW", value_parser = ["bucket", "backups"])]
    view: Option<String>,
}

fn parse_format(name: &str) -> Result<FormatKind, String> {
    FormatKind::parse(name).ok_or_else(|| "it is vault, mms, medusa or images".into())
}

impl ForeignArgs {
    /// Applies one `-o` option; returns false if it is none of these.
    pub fn option(&mut self, name: &str, value: Option<&OsStr>) -> Result<bool> {
        let text = value.map(|value| value.to_string_lossy().into_owned());
        match (name, text) {
            ("format", Some(name)) => {
                let format = parse_format(&name);
                self.format =
                    Some(format.map_err(|e| Error::usage(format_args!("-o format={name}: {e}")))?);
            }
            ("medusa_ini", Some(_)) => self.medusa_ini = value.map(Into::into),
            ("env_file", Some(_)) => self.env_file = value.map(Into::into),
            ("allow_plain", None) => self.allow_plain = true,
            ("encrypt_all", None) => self.encrypt_all = true,
            ("mms_key", name @ Some(_)) => self.mms_key = name,
            ("mms_index", name @ Some(_)) => self.mms_index = name,
            ("mms_path", name @ Some(_)) => self.mms_path = name,
            ("view", Some(view)) if view == "bucket" || view == "backups" => self.view = Some(view),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the format of a foreign library. `None` for a library of ours, and for a folder that is no library,
    /// which the caller reports as usual. A library of ours with too many slots to list is `None`, too, and its own
    /// error explains it.
    pub fn kind(&self, dir: &Path) -> Result<Option<FormatKind>> {
        let library = Location::at(dir)?;
        let kind = match self.format {
            Some(kind) => kind,
            None => match detect(dir, library.has_slots().unwrap_or(false)) {
                Ok(kind) => kind,
                Err(e) if matches!(e.kind(), Kind::NotLibrary) => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        self.check_fit(kind)?;
        if kind == FormatKind::Mms {
            // Before anyone is asked for a password.
            mms::check(dir, &self.mms())?;
        }
        Ok(Some(kind).filter(|kind| *kind != FormatKind::Vault))
    }

    /// Refuses options that are for another format, and would have no effect.
    fn check_fit(&self, kind: FormatKind) -> Result<()> {
        use FormatKind::{Images, Medusa, Mms};
        let given = [
            (Medusa, "--medusa-ini", self.medusa_ini.is_some()),
            (Medusa, "--view", self.view.is_some()),
            (Images, "--env-file", self.env_file.is_some()),
            (Images, "--encrypt-all", self.encrypt_all),
            (Mms, "--mms-key", self.mms_key.is_some()),
            (Mms, "--mms-index", self.mms_index.is_some()),
            (Mms, "--mms-path", self.mms_path.is_some()),
            (Mms, "--allow-plain", self.allow_plain),
        ];
        let misfit = |(of, _, is_given): &(FormatKind, &str, bool)| *is_given && *of != kind;
        match given.into_iter().find(misfit) {
            None => Ok(()),
            Some((of, name, _)) => Err(Error::usage(format_args!(
                "{name}: is for {of}, and this is {kind}"
            ))),
        }
    }

    /// Whether the library can only be read, whatever was asked for.
    pub fn only_reads(&self) -> bool {
        self.view.as_deref() == Some("backups")
    }

    /// Passes the library's secret to `open`, and asks for one if none is given: again, if it is wrong. The second
    /// argument of `open` says whether it was typed at a terminal.
    fn each_secret<T>(
        &self,
        kind: FormatKind,
        args: &OpenArgs,
        mut open: impl FnMut(&Line, bool) -> Result<T>,
    ) -> Result<T> {
        match kind {
            FormatKind::Medusa if self.medusa_ini.is_some() => {
                let file = self.medusa_ini.as_deref();
                let key = from_settings(file, "key_secret_base64", "", medusa::key_in_ini)?;
                open(&key, false)
            }
            FormatKind::Images if self.env_file.is_some() => {
                let find = |text: &[u8]| Ok(images::key_in_env(text));
                let file = self.env_file.as_deref();
                open(
                    &from_settings(file, "IMAGE_ENCRYPTION_KEY", NO_KEY, find)?,
                    false,
                )
            }
            FormatKind::Medusa => args.each_text("Key (key_secret_base64): ", open),
            FormatKind::Images => {
                args.each_text("Key (IMAGE_ENCRYPTION_KEY): ", |key, is_typed| {
                    if key.is_empty() {
                        log::warn!("no key given: using the well-known default key");
                    }
                    open(key, is_typed)
                })
            }
            FormatKind::Mms | FormatKind::Vault => args.each_text("Password: ", open),
        }
    }

    /// Returns the library's secret, for a caller that opens the library where nobody can be asked again: one that was
    /// typed is tried first.
    pub fn secret(&self, kind: FormatKind, dir: &Path, args: &OpenArgs) -> Result<Line> {
        self.each_secret(kind, args, |secret, is_typed| {
            if is_typed {
                match self.open(kind, dir, secret, true, 0) {
                    Err(e) if e.exit_status() == ExitStatus::WrongKey => return Err(e),
                    // Any other error is reported when the caller opens the library.
                    _ => {}
                }
            }
            Ok(secret.clone())
        })
    }

    /// Opens the library for reading.
    pub fn open_to_read(
        &self,
        kind: FormatKind,
        dir: &Path,
        args: &OpenArgs,
        cache_bytes: usize,
    ) -> Result<Box<dyn Format>> {
        self.each_secret(kind, args, |secret, _| {
            self.open(kind, dir, secret, true, cache_bytes)
        })
    }

    fn mms(&self) -> mms::Options {
        mms::Options {
            key: self.mms_key.clone(),
            index: self.mms_index.clone(),
            path: self.mms_path.clone(),
            allow_plain: self.allow_plain,
        }
    }

    /// Opens the library. A secret from a Windows text file has a byte order mark before it and a carriage return after
    /// it: it is tried as it is, and without these.
    pub fn open(
        &self,
        kind: FormatKind,
        dir: &Path,
        secret: &[u8],
        read_only: bool,
        cache_bytes: usize,
    ) -> Result<Box<dyn Format>> {
        let bare = without_marks(secret);
        let open = |secret| self.open_with(kind, dir, secret, read_only, cache_bytes);
        if bare == secret {
            return open(secret);
        }
        // A store without pictures accepts every key: use only the likely one there.
        if kind == FormatKind::Images
            && Images::open(dir, secret, true).is_ok_and(|images| !images.is_key_proven())
        {
            return open(bare);
        }
        match open(secret) {
            Err(e) if e.exit_status() == ExitStatus::WrongKey => open(bare),
            opened => opened,
        }
    }

    fn open_with(
        &self,
        kind: FormatKind,
        dir: &Path,
        secret: &[u8],
        read_only: bool,
        cache_bytes: usize,
    ) -> Result<Box<dyn Format>> {
        Ok(match kind {
            FormatKind::Mms => Box::new(Mms::open(dir, secret, &self.mms(), read_only)?),
            FormatKind::Images => {
                let images = Images::open(dir, secret, read_only)?;
                Box::new(images.encrypting_all(self.encrypt_all))
            }
            FormatKind::Medusa => {
                let medusa = Medusa::open(dir, secret, cache_bytes, read_only)?;
                match self.only_reads() {
                    true => Box::new(BackupsView::new(medusa)),
                    false => Box::new(medusa),
                }
            }
            FormatKind::Vault => {
                return Err(Error::usage("a library of hushfs itself is no foreign one"));
            }
        })
    }

    /// `hushfs passwd` for a foreign library.
    pub fn passwd(
        &self,
        kind: FormatKind,
        dir: &Path,
        old: &OpenArgs,
        new: &NewPasswordArgs,
    ) -> Result<()> {
        if kind != FormatKind::Mms {
            return Err(Error::usage(format_args!(
                "{}: {kind} has a key, and no password that could be changed",
                dir.display()
            )));
        }
        old.each_text("Password: ", |old, _| {
            let bare = without_marks(old);
            match self.passwd_with(dir, old, new) {
                Err(e) if e.exit_status() == ExitStatus::WrongKey && *bare != **old => {
                    self.passwd_with(dir, bare, new)
                }
                done => done,
            }
        })??;
        print_line("The password is changed. The server is told the new one in its config.js.")
    }

    /// Changes the password. The outer error concerns the old one, the inner error everything after it.
    fn passwd_with(&self, dir: &Path, old: &[u8], new: &NewPasswordArgs) -> Result<Result<()>> {
        let mut is_opened = false;
        let new = || {
            is_opened = true;
            new.choose_text()
        };
        match mms::passwd(dir, &self.mms(), old, new) {
            Err(e) if !is_opened => Err(e),
            done => Ok(done),
        }
    }

    /// `hushfs init` for a foreign library.
    pub fn init(&self, kind: FormatKind, dir: &Path, secret: &SecretArgs) -> Result<()> {
        if kind != FormatKind::Mms {
            return Err(Error::usage(format_args!(
                "an empty folder is all that {kind} needs: `hushfs mount --format={} {}` mounts it",
                kind.name(),
                dir.display()
            )));
        }
        mms::init(dir, &self.mms(), &secret.choose_text()?)?;
        print_line(format_args!(
            "{} is an empty library of Minio Music Server now.",
            dir.display()
        ))
    }
}

/// Whether it has slots, or too many to list.
fn is_ours(library: &Location) -> bool {
    let slots = library.has_slots();
    slots.unwrap_or_else(|e| !matches!(e.kind(), Kind::Io(_)))
}

/// Returns the location of the hushfs library at `dir`, for commands that support no other.
pub fn library_of_ours(dir: &Path) -> Result<Location> {
    let library = Location::at(dir)?;
    if is_ours(&library) {
        return Ok(library);
    }
    match detect(dir, false) {
        Ok(kind) => Err(
            Error::new(Kind::Foreign(kind.to_string().into()), dir.display())
                .hint("`hushfs mount`, `verify` and `convert` work on it"),
        ),
        Err(_) => Ok(library),
    }
}

/// Reads a secret from another program's settings, with a hint if it is not there; warns if others can read them.
fn from_settings(
    path: Option<&Path>,
    name: &str,
    hint: &str,
    find: impl Fn(&[u8]) -> Result<Option<Line>>,
) -> Result<Line> {
    let path = path.unwrap_or(Path::new(""));
    let failed = |e: Error| match e.kind() {
        Kind::Missing => Error::secret(path.display(), "not found"),
        Kind::Io(io) => Error::secret(path.display(), io_text(io)),
        _ => e,
    };
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => failed(Kind::Missing.into()),
        _ => failed(Error::io(e, path)),
    })?;
    if meta.mode() & 0o044 != 0 {
        log::warn!(
            "{}: others on this machine can read this secret (chmod 600 it)",
            path.display()
        );
    }
    let text = crate::foreign::read_file(path, SETTINGS_LEN_MAX).map_err(failed)?;
    let text = zeroize::Zeroizing::new(text);
    let found = find(&text).map_err(|e| e.about(path.display()))?;
    found.ok_or_else(|| {
        let e = Error::secret(path.display(), format_args!("{name} is not set in it"));
        if hint.is_empty() { e } else { e.hint(hint) }
    })
}
