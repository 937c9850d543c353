//! The prompt-nest image store: AES-256-CBC a file, `X.enc`, and its type in clear beside it, `X.enc.meta`
//! (`man/hushfs-foreign.5`: PROMPT-NEST).
//!
//! Nothing is authenticated: changed bytes give changed pictures, in silence. The key is one SHA-256 of a text.
//!
//! What lies in clear (pictures from before encryption, styles) stays so when it is changed: the app finds it by its
//! whole name, and with `.enc` behind that no more.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::cipher::{BLOCK_LEN, Key, random_iv};
use super::sealer::{InClear, Seal, Sealed};
use super::stage::{Stage, Step};
use super::{Entry, Format, Listed, PlainReader, Reader};
use crate::error::{Error, Kind, Result};
use crate::report::Report;

mod change;
mod env;
mod names;
mod run;
mod types;
mod verify;

use change::describe;
pub use env::key_in_env;
use names::{ends_in, free_name, mime_by_name, with_suffix};
use run::CIPHER_LEN_MIN;
pub use run::{ImageReader, ImageSeal};

/// What an encrypted file's name ends in.
const ENC: &str = ".enc";
/// What that of its description ends in.
const META: &str = ".enc.meta";
/// The longest description that is read, in bytes.
const META_LEN_MAX: u64 = 64 << 10;
/// The key's text where none is set (`man/hushfs-foreign.5`: Store key).
pub const DEFAULT_KEY: &str = "your-32-character-secret-key-here!";
/// The attribute that shows a file's type.
const MIME_ATTRIBUTE: &str = "user.mime_type";
/// Files that are tried to tell a wrong key.
const SAMPLE_MAX: usize = 64;
/// The folder of prompt styles.
const STYLES: &str = "prompt-styles";

/// The description of an encrypted file (`man/hushfs-foreign.5`: Descriptions).
#[derive(Serialize, Deserialize)]
struct Meta {
    #[serde(rename = "originalExtension", default)]
    original_extension: String,
    #[serde(rename = "mimeType")]
    mime_type: String,
}

/// An open store.
pub struct Images {
    root: PathBuf,
    stage: Option<Stage>,
    key: Key,
    /// Whether the key is known to be right: a picture was found with it. None if there is nothing to try it on.
    proof: Option<bool>,
    /// Everything that is written is encrypted, also where it takes the place of something in clear.
    encrypts_all: bool,
    /// Names of files in clear that were renamed to those of backups: editors do so before they write the file anew.
    were_clear: Mutex<HashMap<PathBuf, PathBuf>>,
}

/// The AES key that a text makes (`man/hushfs-foreign.5`: Store key).
pub fn key_of(text: &[u8]) -> Key {
    let text = if text.is_empty() {
        DEFAULT_KEY.as_bytes()
    } else {
        text
    };
    let hash: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(text).into());
    Key::long(&hash)
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
            proof: None,
            encrypts_all: false,
            were_clear: Mutex::default(),
        };
        images.proof = images.check_key()?;
        Ok(images)
    }

    /// Whether what is stored opens with the key. Without anything stored, every key is taken.
    pub fn is_key_proven(&self) -> bool {
        self.proof == Some(true)
    }

    /// Encrypts whatever is written: what was in clear is then found under another URL, and styles not at all.
    #[must_use]
    pub fn encrypting_all(self, encrypts_all: bool) -> Self {
        Self {
            encrypts_all,
            ..self
        }
    }

    /// Whether a file is one of the texts of prompt styles, which the server reads in clear only.
    fn is_style(&self, shown: &Path) -> bool {
        let folder = shown
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(&self.root).file_name();
        folder == Some(OsStr::new(STYLES)) && shown.extension() == Some(OsStr::new("json"))
    }

    /// Tries the key on some files; none if there are none. A wrong one gets past the padding of one file in 256.
    fn check_key(&self) -> Result<Option<bool>> {
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
                return Ok(Some(true));
            }
        }
        if tried > 0 && opened * 2 < tried {
            return Err(Error::new(Kind::WrongKey, self.root.display()).hint(format_args!(
                "of {tried} files {opened} could be opened, and none holds a picture: is this its IMAGE_ENCRYPTION_KEY?"
            )));
        }
        Ok((tried > 0).then_some(opened > 1))
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
        if self.proof == Some(false) && claims_image() && !is_image(&reader) {
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
        let mime = if entry.sealed {
            match self.meta(&entry.stored) {
                Ok(meta) => meta.map_or_else(by_name, |meta| meta.mime_type),
                Err(e) => {
                    log::warn!("{e}");
                    by_name()
                }
            }
        } else {
            by_name()
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

    fn in_clear(&self, shown: &Path) -> bool {
        let is_there = || {
            let meta = self.root.join(shown).symlink_metadata();
            meta.is_ok_and(|meta| meta.is_file()) || self.was_clear(shown)
        };
        !self.encrypts_all && (self.is_style(shown) || is_there())
    }

    fn seal(&self, shown: &Path) -> Result<Box<dyn Seal>> {
        if self.in_clear(shown) {
            return Ok(Box::new(InClear));
        }
        let iv = random_iv()?;
        Ok(Box::new(ImageSeal::new(self.key.clone(), iv)))
    }

    fn publish(&self, sealed: Sealed, shown: &Path, old: Option<&Entry>) -> Result<Entry> {
        let (plain_size, is_sealed) = (Some(sealed.plain_size), !sealed.in_clear);
        let (stored, mut steps) = if sealed.in_clear {
            let stored = shown.to_path_buf();
            (stored.clone(), vec![Step::Place(sealed.temp, stored)])
        } else {
            let stored = self.place(shown, old)?;
            let steps = self.encrypted_steps(sealed, shown, &stored)?;
            (stored, steps.into())
        };
        let replaced = old.filter(|old| old.stored != stored);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
        self.writer()?.commit(steps)?;
        Ok(Entry {
            stored,
            sealed: is_sealed,
            plain_size,
        })
    }

    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry> {
        self.admit(to)?;
        let in_clear = self.becomes_clear(entry, (from, to), old);
        self.note_clear(from, to, entry);
        if in_clear == entry.sealed {
            return self.rename_recoded(entry, (from, to), old, in_clear);
        }
        let stage = self.writer()?;
        let stored = if in_clear {
            to.to_path_buf()
        } else {
            self.place(to, old)?
        };
        let mut steps = vec![Step::Move(entry.stored.clone(), stored.clone())];
        if entry.sealed {
            let meta = with_suffix(&entry.stored, ".meta");
            let bytes = describe(to, &self.type_after(entry, from, to)?);
            let temp = stage.create_in_place_of(&meta, &bytes)?;
            steps.push(Step::Place(temp, with_suffix(&stored, ".meta")));
            steps.push(Step::Remove(meta));
        }
        let replaced = old.filter(|old| old.stored != stored);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
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
        self.writer()?.commit(Self::removal(entry).collect())
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        verify::run(self, report)
    }
}

/// Whether a picture, or anything else that is known, is behind this.
fn is_image(reader: &ImageReader) -> bool {
    let mut head = vec![0; reader.plain_size().min(4096) as usize];
    reader.read_exact_at(0, &mut head).is_ok() && infer::is_image(&head)
}
