//! What is typed about a foreign library: what it is, its secret, its parts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::library::Library;
use super::output::print_line;
use super::secret::{Line, NewPasswordArgs, OpenArgs, SecretArgs};
use crate::error::{Error, Kind, Result};
use crate::foreign::images::Images;
use crate::foreign::medusa::{BackupsView, Medusa};
use crate::foreign::mms::{self, Mms};
use crate::foreign::{Format, FormatKind, detect, images, medusa};
use crate::store::Area;

/// The longest settings file of another program that is read, in bytes.
const SETTINGS_LEN_MAX: u64 = 1 << 20;

/// What the app does where its settings name no key.
const NO_KEY: &str = "where its surroundings set none either, the app uses its built-in key, \
    your-32-character-secret-key-here!, which everybody knows: an empty --password-file opens the store with that";

/// Slots are counted up to here, to tell one of our libraries.
const SLOTS_LISTED_MAX: usize = 1_000_000;

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
    /// One `-o` option; false where it is none of these.
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

    /// Which foreign format the library has; none for one of ours, or what is none at all: that is then said as ever.
    /// A library of ours with more slots than can be listed is taken for none, too, and its own error tells.
    pub fn kind(&self, dir: &Path) -> Result<Option<FormatKind>> {
        let library = Library::at(dir)?;
        let kind = match self.format {
            Some(kind) => kind,
            None => {
                // In a library of Minio Music Server, `key` is a file.
                let slots = library.objects(Area::Key, SLOTS_LISTED_MAX);
                match detect(dir, slots.is_ok_and(|slots| !slots.is_empty())) {
                    Ok(kind) => kind,
                    Err(e) if matches!(e.kind(), Kind::NotLibrary) => FormatKind::Vault,
                    Err(e) => return Err(e),
                }
            }
        };
        if kind == FormatKind::Mms {
            // Before anybody is asked for a password.
            mms::check(dir, &self.mms())?;
        }
        Ok(Some(kind).filter(|kind| *kind != FormatKind::Vault))
    }

    /// Whether it is only to be read, whatever is wished.
    pub fn only_reads(&self, kind: FormatKind) -> Result<bool> {
        let backups = self.view.as_deref() == Some("backups");
        if backups && kind != FormatKind::Medusa {
            return Err(Error::usage(
                "view=backups is for buckets of Cassandra Medusa",
            ));
        }
        Ok(backups)
    }

    /// Its secret.
    pub fn secret(&self, kind: FormatKind, open: &OpenArgs) -> Result<Line> {
        match kind {
            FormatKind::Medusa if self.medusa_ini.is_some() => from_settings(
                self.medusa_ini.as_deref(),
                "key_secret_base64",
                "",
                medusa::key_in_ini,
            ),
            FormatKind::Images if self.env_file.is_some() => from_settings(
                self.env_file.as_deref(),
                "IMAGE_ENCRYPTION_KEY",
                NO_KEY,
                |text| Ok(images::key_in_env(text)),
            ),
            FormatKind::Medusa => open.ask_text("Key (key_secret_base64): "),
            FormatKind::Images => {
                let key = open.ask_text("Key (IMAGE_ENCRYPTION_KEY): ")?;
                if key.is_empty() {
                    log::warn!("no key is given, so the one is used that everybody knows");
                }
                Ok(key)
            }
            FormatKind::Mms | FormatKind::Vault => open.ask_text("Password: "),
        }
    }

    fn mms(&self) -> mms::Options {
        mms::Options {
            key: self.mms_key.clone(),
            index: self.mms_index.clone(),
            path: self.mms_path.clone(),
            allow_plain: self.allow_plain,
        }
    }

    /// Opens it. A secret out of a file that Windows wrote has a mark before it and a carriage return behind it: it is
    /// tried as it is, and without them.
    pub fn open(
        &self,
        kind: FormatKind,
        dir: &Path,
        secret: &[u8],
        read_only: bool,
        cache_bytes: usize,
    ) -> Result<Box<dyn Format>> {
        let bare = without_marks(secret);
        // Of a store without pictures every key is taken: there, only the likely one may be.
        let (first, second) = match kind {
            FormatKind::Images => (bare, secret),
            _ => (secret, bare),
        };
        let open = |secret| self.open_with(kind, dir, secret, read_only, cache_bytes);
        match open(first) {
            Err(e) if matches!(e.kind(), Kind::WrongKey) && bare != secret => open(second),
            other => other,
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
                match self.only_reads(kind)? {
                    true => Box::new(BackupsView::new(medusa)),
                    false => Box::new(medusa),
                }
            }
            FormatKind::Vault => {
                return Err(Error::usage("a library of hushfs itself is no foreign one"));
            }
        })
    }

    /// `hushfs passwd`.
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
        let old = old.ask_text("Password: ")?;
        let new = || new.choose_text().map(bare_line);
        match mms::passwd(dir, &self.mms(), &old, new) {
            Err(e) if matches!(e.kind(), Kind::WrongKey) && without_marks(&old) != &**old => {
                mms::passwd(dir, &self.mms(), without_marks(&old), new)?;
            }
            other => other?,
        }
        print_line("The password is changed. The server is told the new one in its config.js.")
    }

    /// `hushfs init`.
    pub fn init(&self, kind: FormatKind, dir: &Path, secret: &SecretArgs) -> Result<()> {
        if kind != FormatKind::Mms {
            return Err(Error::usage(format_args!(
                "an empty folder is all that {kind} needs: `hushfs mount --format={} {}` mounts it",
                kind.name(),
                dir.display()
            )));
        }
        mms::init(dir, &self.mms(), &bare_line(secret.choose_text()?))?;
        print_line(format_args!(
            "{} is an empty library of Minio Music Server now.",
            dir.display()
        ))
    }
}

/// A secret without a byte order mark before it and a carriage return behind it.
fn without_marks(secret: &[u8]) -> &[u8] {
    let secret = secret.strip_prefix("\u{feff}".as_bytes()).unwrap_or(secret);
    secret.strip_suffix(b"\r").unwrap_or(secret)
}

/// The same, of a new one.
fn bare_line(line: Line) -> Line {
    Line::new(without_marks(&line).to_vec())
}

/// A secret out of another program's settings, or what to do where it is not there; warns where others can read it.
fn from_settings(
    path: Option<&Path>,
    name: &str,
    hint: &str,
    find: impl Fn(&[u8]) -> Result<Option<Line>>,
) -> Result<Line> {
    let path = path.unwrap_or(Path::new(""));
    let meta = fs::metadata(path).map_err(|e| Error::io(e, path))?;
    if meta.mode() & 0o044 != 0 {
        log::warn!(
            "{}: others on this machine can read this secret (chmod 600 it)",
            path.display()
        );
    }
    let text = zeroize::Zeroizing::new(crate::foreign::read_file(path, SETTINGS_LEN_MAX)?);
    let found = find(&text).map_err(|e| e.about(path.display()))?;
    found.ok_or_else(|| {
        let e = Error::usage(format_args!("{}: {name} is not set in it", path.display()));
        if hint.is_empty() { e } else { e.hint(hint) }
    })
}
