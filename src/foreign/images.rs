//! The prompt-nest image store: AES-256-CBC a file, `X.enc`, and its type in clear beside it, `X.enc.meta` (format
//! page, section 3).
//!
//! Nothing is authenticated: changed bytes give changed pictures, in silence. The key is one SHA-256 of a text.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::cipher::{BLOCK_LEN, Key, random_iv};
use super::report::Report;
use super::sealer::{Seal, Sealed};
use super::stage::{Stage, Step};
use super::{Entry, Format, Listed, PlainReader, Reader};
use crate::error::{Error, Kind, Result};

mod names;
mod run;

use names::{ends_in, extname, free_name, mime_by_name, with_suffix};
use run::CIPHER_LEN_MIN;
pub use run::{ImageReader, ImageSeal};

/// What an encrypted file's name ends in.
const ENC: &str = ".enc";
/// What that of its description ends in.
const META: &str = ".enc.meta";
/// The longest description that is read, in bytes.
const META_LEN_MAX: u64 = 64 << 10;
/// The key's text where none is set (format page, 3.1).
pub const DEFAULT_KEY: &str = "your-32-character-secret-key-here!";
/// The attribute that shows a file's type.
const MIME_ATTRIBUTE: &str = "user.mime_type";
/// Files that are tried to tell a wrong key.
const SAMPLE_MAX: usize = 64;

/// The description of an encrypted file (format page, 3.4).
#[derive(Serialize, Deserialize)]
struct Meta {
    #[serde(rename = "originalExtension")]
    original_extension: String,
    #[serde(rename = "mimeType")]
    mime_type: String,
}

/// An open store.
pub struct Images {
    root: PathBuf,
    stage: Option<Stage>,
    key: Key,
    /// The key is known to be right: a picture was found with it.
    trusted: bool,
}

/// The AES key that a text makes (format page, 3.1).
pub fn key_of(text: &[u8]) -> Key {
    let text = if text.is_empty() {
        DEFAULT_KEY.as_bytes()
    } else {
        text
    };
    let hash: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(text).into());
    Key::long(&hash)
}

/// The value of `IMAGE_ENCRYPTION_KEY` in a `.env` file; nothing where it is not set there.
pub fn key_in_env(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let value = text.lines().rev().find_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let value = line.strip_prefix("IMAGE_ENCRYPTION_KEY")?.trim_start();
        value.strip_prefix('=').map(str::trim)
    })?;
    let quote = value
        .chars()
        .next()
        .filter(|c| matches!(c, '"' | '\'' | '`'));
    let value = match quote {
        Some(quote) => {
            let inside = &value[1..];
            inside
                .split_once(quote)
                .map_or(inside, |(inside, _)| inside)
        }
        None => value.split('#').next().unwrap_or("").trim_end(),
    };
    Some(Zeroizing::new(value.as_bytes().to_vec()))
}

impl Images {
    /// Opens a store. [`Kind::WrongKey`] where there are encrypted files, and none opens.
    pub fn open(root: &Path, key: &[u8], read_only: bool) -> Result<Self> {
        let stage = if read_only {
            None
        } else {
            Some(Stage::open(root)?)
        };
        let mut images = Self {
            root: root.to_path_buf(),
            stage,
            key: key_of(key),
            trusted: false,
        };
        images.trusted = images.check_key()?;
        Ok(images)
    }

    /// Tries the key on some files. A wrong one gets past the padding of one file in 256.
    fn check_key(&self) -> Result<bool> {
        let mut sample = Vec::new();
        super::walk(&self.root, &mut |path, is_dir| {
            if !is_dir && sample.len() < SAMPLE_MAX && ends_in(path, ENC) {
                sample.push(path.to_path_buf());
            }
        })?;
        let (mut tried, mut opened) = (0, 0);
        for path in &sample {
            let Ok((file, len)) = super::open_file(&self.root.join(path)) else {
                continue;
            };
            if len < CIPHER_LEN_MIN || !len.is_multiple_of(BLOCK_LEN as u64) {
                continue;
            }
            tried += 1;
            let Ok(reader) = ImageReader::new(Arc::new(file), self.key.clone(), len) else {
                continue;
            };
            opened += 1;
            if is_image(&reader) {
                return Ok(true);
            }
        }
        if tried > 0 && opened * 2 < tried {
            return Err(Error::new(Kind::WrongKey, self.root.display()).hint(format_args!(
                "of {tried} files {opened} could be opened, and none holds a picture: is this its IMAGE_ENCRYPTION_KEY?"
            )));
        }
        Ok(tried == 0 || opened > 1)
    }

    fn writer(&self) -> Result<&Stage> {
        self.stage.as_ref().ok_or_else(|| Kind::ReadOnly.into())
    }

    /// What the description says; nothing where there is none, an error where it cannot be read.
    fn meta(&self, stored: &Path) -> Result<Option<Meta>> {
        let path = self.root.join(with_suffix(stored, ".meta"));
        let bytes = match super::read_file(&path, META_LEN_MAX) {
            Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(None),
            other => other?,
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|e| Error::damaged(path.display(), e))
    }

    fn open_sealed(&self, stored: &Path) -> Result<ImageReader> {
        let path = self.root.join(stored);
        let (file, len) = super::open_file(&path)?;
        ImageReader::new(Arc::new(file), self.key.clone(), len).map_err(|e| e.about(path.display()))
    }

    /// The description of a new file: its type by its content, else by its name.
    fn describe(shown: &Path, head: &[u8]) -> Vec<u8> {
        let original_extension = extname(shown.file_name().unwrap_or_default());
        let found = infer::get(head).map(|kind| kind.mime_type());
        let mime_type = found.unwrap_or_else(|| mime_by_name(shown)).to_string();
        let meta = Meta {
            original_extension,
            mime_type,
        };
        serde_json::to_vec(&meta).expect("two strings are JSON")
    }

    /// Where a file of this name is to be stored; what is there already must be the one that it replaces.
    fn place(&self, shown: &Path, old: Option<&Entry>) -> Result<PathBuf> {
        if let Some(old) = old.filter(|old| old.sealed) {
            return Ok(old.stored.clone());
        }
        let stored = with_suffix(shown, ENC);
        if self.root.join(&stored).symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, stored.display())
                .hint("it is shown under another name, as the name is also that of a file in clear; rename one"));
        }
        Ok(stored)
    }
}

impl Format for Images {
    fn root(&self) -> &Path {
        &self.root
    }

    fn stage(&self) -> Option<&Stage> {
        self.stage.as_ref()
    }

    fn list(&self, add: &mut dyn FnMut(Listed)) -> Result<()> {
        let (mut sealed, mut taken) = (Vec::new(), HashSet::new());
        super::walk(&self.root, &mut |path, is_dir| {
            let stored = path.to_path_buf();
            if is_dir {
                taken.insert(stored.clone());
                add(Listed::Folder(stored));
            } else if ends_in(path, ENC) {
                sealed.push(stored);
            } else if !ends_in(path, META) {
                taken.insert(stored.clone());
                add(Listed::File(
                    stored.clone(),
                    Entry {
                        stored,
                        sealed: false,
                        plain_size: None,
                    },
                ));
            }
        })?;
        // The order of a folder's entries must not decide what a name means.
        sealed.sort_unstable();
        for stored in sealed {
            let shown = free_name(&stored, &taken);
            taken.insert(shown.clone());
            add(Listed::File(
                shown,
                Entry {
                    stored,
                    sealed: true,
                    plain_size: None,
                },
            ));
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        if entry.sealed {
            return self
                .open_sealed(&entry.stored)
                .map(|reader| reader.plain_size());
        }
        super::open_file(&self.root.join(&entry.stored)).map(|(_, len)| len)
    }

    fn open(&self, shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        if !entry.sealed {
            return PlainReader::open(&self.root.join(&entry.stored));
        }
        let reader = self.open_sealed(&entry.stored)?;
        let claims_image = || {
            self.meta(&entry.stored)
                .ok()
                .flatten()
                .is_some_and(|m| m.mime_type.starts_with("image/"))
        };
        if !self.trusted && claims_image() && !is_image(&reader) {
            return Err(Error::damaged(
                shown.display(),
                "there is no picture behind it: another key?",
            ));
        }
        Ok(Arc::new(reader))
    }

    fn xattrs(&self, entry: &Entry) -> Vec<(String, Vec<u8>)> {
        let shown = entry.stored.as_os_str().as_bytes();
        let shown = if entry.sealed {
            shown.strip_suffix(ENC.as_bytes()).unwrap_or(shown)
        } else {
            shown
        };
        let by_name = || mime_by_name(Path::new(OsStr::from_bytes(shown))).to_string();
        let mime = match entry.sealed {
            true => match self.meta(&entry.stored) {
                Ok(meta) => meta.map_or_else(by_name, |meta| meta.mime_type),
                Err(e) => {
                    log::warn!("{e}");
                    by_name()
                }
            },
            false => by_name(),
        };
        vec![(MIME_ATTRIBUTE.into(), mime.into_bytes())]
    }

    fn admit(&self, shown: &Path) -> Result<()> {
        let longest = shown.file_name().map_or(0, |name| name.len() + META.len());
        if longest > crate::volume::NAME_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        if ends_in(shown, ENC) || ends_in(shown, META) {
            return Err(Error::new(Kind::NotPermitted, shown.display())
                .hint("names that end in .enc or .enc.meta are the store's own"));
        }
        Ok(())
    }

    fn seal(&self, _shown: &Path) -> Result<Box<dyn Seal>> {
        let iv = random_iv()?;
        Ok(Box::new(ImageSeal::new(self.key.clone(), iv)))
    }

    fn publish(&self, sealed: Sealed, shown: &Path, old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        let stored = self.place(shown, old)?;
        let meta = stage.create_with(&Self::describe(shown, &sealed.head))?;
        let mut steps = vec![
            Step::Place(sealed.temp, stored.clone()),
            Step::Place(meta, with_suffix(&stored, ".meta")),
        ];
        steps.extend(
            old.filter(|old| !old.sealed)
                .map(|old| Step::Remove(old.stored.clone())),
        );
        stage.commit(steps)?;
        Ok(Entry {
            stored,
            sealed: true,
            plain_size: Some(sealed.plain_size),
        })
    }

    fn rename(&self, entry: &Entry, _from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        self.admit(to)?;
        let gone = |kept: &Path| {
            let old = old.filter(|old| old.stored != kept);
            old.map(|old| Step::Remove(old.stored.clone())).into_iter()
        };
        if !entry.sealed {
            let mut steps = vec![Step::Move(entry.stored.clone(), to.to_path_buf())];
            steps.extend(gone(to));
            if let Some(old) = old.filter(|old| old.sealed) {
                steps.push(Step::Remove(with_suffix(&old.stored, ".meta")));
            }
            stage.commit(steps)?;
            return Ok(Entry {
                stored: to.to_path_buf(),
                ..entry.clone()
            });
        }
        let stored = self.place(to, old)?;
        let mime_type = match self.meta(&entry.stored) {
            Ok(Some(meta)) => meta.mime_type,
            _ => mime_by_name(to).to_string(),
        };
        let original_extension = extname(to.file_name().unwrap_or_default());
        let meta = Meta {
            original_extension,
            mime_type,
        };
        let meta = serde_json::to_vec(&meta).expect("two strings are JSON");
        let mut steps = vec![
            Step::Move(entry.stored.clone(), stored.clone()),
            Step::Place(stage.create_with(&meta)?, with_suffix(&stored, ".meta")),
            Step::Remove(with_suffix(&entry.stored, ".meta")),
        ];
        steps.extend(gone(&stored));
        stage.commit(steps)?;
        Ok(Entry {
            stored,
            ..entry.clone()
        })
    }

    fn rename_dir(&self, from: &Path, to: &Path, files: &[(PathBuf, Entry)]) -> Result<Vec<Entry>> {
        let moved = |(_, entry): &(PathBuf, Entry)| {
            let below = entry
                .stored
                .strip_prefix(from)
                .map_err(|_| Kind::InvalidArgument)?;
            Ok(Entry {
                stored: to.join(below),
                ..entry.clone()
            })
        };
        let entries = files.iter().map(moved).collect::<Result<_>>()?;
        self.writer()?
            .commit(vec![Step::Move(from.to_path_buf(), to.to_path_buf())])?;
        Ok(entries)
    }

    fn remove(&self, _shown: &Path, entry: &Entry) -> Result<()> {
        let mut steps = vec![Step::Remove(entry.stored.clone())];
        if entry.sealed {
            steps.push(Step::Remove(with_suffix(&entry.stored, ".meta")));
        }
        self.writer()?.commit(steps)
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        let (mut sealed, mut metas) = (Vec::new(), Vec::new());
        super::walk(&self.root, &mut |path, is_dir| {
            if !is_dir && ends_in(path, ENC) {
                sealed.push(path.to_path_buf());
            } else if !is_dir && ends_in(path, META) {
                metas.push(path.to_path_buf());
            } else if !is_dir
                && !infer::get_from_path(self.root.join(path)).is_ok_and(|kind| kind.is_none())
            {
                report.note(path.display(), "lies in clear");
            }
        })?;
        sealed.sort_unstable();
        let lens = sealed
            .iter()
            .map(|path| self.root.join(path).metadata().map_or(0, |m| m.len()));
        report.total(lens.sum());
        for stored in &sealed {
            self.verify_file(stored, report);
        }
        let sealed: HashSet<PathBuf> = sealed
            .iter()
            .map(|path| with_suffix(path, ".meta"))
            .collect();
        for meta in metas.iter().filter(|meta| !sealed.contains(*meta)) {
            report.problem(meta.display(), "describes a file that is not there");
        }
        Ok(())
    }
}

impl Images {
    fn verify_file(&self, stored: &Path, report: &mut Report<'_>) {
        report.count_file();
        let mime = match self.meta(stored) {
            Ok(Some(meta)) => meta.mime_type,
            Ok(None) => {
                report.problem(
                    stored.display(),
                    "its .meta is missing: its type is guessed by its name",
                );
                String::new()
            }
            Err(e) => {
                report.problem(stored.display(), e);
                String::new()
            }
        };
        let reader = match self.open_sealed(stored) {
            Ok(reader) => reader,
            Err(e) => {
                report.advance(
                    self.root
                        .join(stored)
                        .metadata()
                        .map_or(0, |meta| meta.len()),
                );
                return report.problem(stored.display(), e);
            }
        };
        if mime.starts_with("image/") && !is_image(&reader) {
            match self.trusted {
                true => report.note(
                    stored.display(),
                    "is no picture that is known, though its .meta says so",
                ),
                false => report.problem(
                    stored.display(),
                    "there is no picture behind it: another key?",
                ),
            }
        }
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < reader.plain_size() {
            let len = (reader.plain_size() - at).min(buffer.len() as u64);
            if let Err(e) = reader.read_exact_at(at, &mut buffer[..len as usize]) {
                return report.problem(stored.display(), e);
            }
            at += len;
            report.advance(len);
        }
    }
}

/// Whether a picture, or anything else that is known, is behind this.
fn is_image(reader: &ImageReader) -> bool {
    let mut head = vec![0; reader.plain_size().min(4096) as usize];
    reader.read_exact_at(0, &mut head).is_ok() && infer::is_image(&head)
}
