//! The prompt-nest image store: each file is encrypted with AES-256-CBC as `X.enc`; its type is stored unencrypted in
//! `X.enc.meta` (`man/hushfs-foreign.5`: PROMPT-NEST).
//!
//! Nothing is authenticated: changed bytes are not noticed, and give a changed picture. The key is one SHA-256 of a text.
//!
//! Unencrypted files (pictures from before encryption, and styles) stay unencrypted when they are changed: the app looks for
//! them by their whole names, and would not find them with `.enc` appended.

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
use super::{Entry, Format, ListEntry, PlainReader, Reader};
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

/// The suffix of an encrypted file.
const ENC: &str = ".enc";
/// The suffix of its description.
const META: &str = ".enc.meta";
/// The longest description that is read, in bytes.
const META_LEN_MAX: u64 = 64 << 10;
/// The text of the key if none is set (`man/hushfs-foreign.5`: Store key).
pub const DEFAULT_KEY: &str = "your-32-character-secret-key-here!";
/// The extended attribute with a file's type.
const MIME_ATTRIBUTE: &str = "user.mime_type";
/// Most files that are tried to notice a wrong key.
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
    /// Whether the key is known to be right, because it decrypts a picture. `None` if there is no file to try it on.
    proof: Option<bool>,
    /// All files that are written are encrypted, even if they replace unencrypted ones.
    encrypts_all: bool,
    /// Unencrypted files that were renamed to backups, by their former names: editors do that before they write a new file.
    were_clear: Mutex<HashMap<PathBuf, PathBuf>>,
}

/// The AES key that is derived from a text (`man/hushfs-foreign.5`: Store key).
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
    /// Opens a store. [`Kind::WrongKey`] if there are encrypted files, and none can be decrypted.
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

    /// Whether the key decrypts a stored picture. A store without files accepts every key.
    pub fn is_key_proven(&self) -> bool {
        self.proof == Some(true)
    }

    /// Encrypts all files that are written. The app then finds files that were unencrypted under another URL, and styles not
    /// at all.
    #[must_use]
    pub fn encrypting_all(self, encrypts_all: bool) -> Self {
        Self {
            encrypts_all,
            ..self
        }
    }

    /// Whether a file is a prompt style: a text that the server cannot read encrypted.
    fn is_style(&self, plain_path: &Path) -> bool {
        let folder = plain_path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(&self.root).file_name();
        folder == Some(OsStr::new(STYLES)) && plain_path.extension() == Some(OsStr::new("json"))
    }

    /// Tries the key on some files; `None` if there are none. With a wrong key, one file in 256 has a valid padding.
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

    /// The description of an encrypted file; `None` if it does not exist.
    fn meta(&self, cipher_path: &Path) -> Result<Option<Meta>> {
        let path = self.root.join(with_suffix(cipher_path, ".meta"));
        let bytes = match super::read_file(&path, META_LEN_MAX) {
            Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(None),
            other => other?,
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|e| Error::damaged(path.display(), e))
    }

    fn open_sealed(&self, cipher_path: &Path) -> Result<ImageReader> {
        let path = self.root.join(cipher_path);
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

    fn list(&self, add: &mut dyn FnMut(ListEntry)) -> Result<()> {
        let (mut sealed, mut taken) = (Vec::new(), HashSet::new());
        super::walk(&self.root, &mut |path, is_dir| {
            let cipher_path = path.to_path_buf();
            if is_dir {
                taken.insert(cipher_path.clone());
                add(ListEntry::Folder(cipher_path));
            } else if ends_in(path, ENC) {
                sealed.push(cipher_path);
            } else if !ends_in(path, META) {
                taken.insert(cipher_path.clone());
                add(ListEntry::File(
                    cipher_path.clone(),
                    Entry {
                        cipher_path,
                        sealed: false,
                        plain_size: None,
                    },
                ));
            }
        })?;
        // What a name refers to must not depend on the order of directory entries.
        sealed.sort_unstable();
        for cipher_path in sealed {
            let plain_path = free_name(&cipher_path, &taken);
            taken.insert(plain_path.clone());
            add(ListEntry::File(
                plain_path,
                Entry {
                    cipher_path,
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
                .open_sealed(&entry.cipher_path)
                .map(|reader| reader.plain_size());
        }
        super::open_file(&self.root.join(&entry.cipher_path)).map(|(_, len)| len)
    }

    fn open(&self, plain_path: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        if !entry.sealed {
            return PlainReader::open(&self.root.join(&entry.cipher_path));
        }
        let reader = self.open_sealed(&entry.cipher_path)?;
        let claims_image = || {
            self.meta(&entry.cipher_path)
                .ok()
                .flatten()
                .is_some_and(|m| m.mime_type.starts_with("image/"))
        };
        if self.proof == Some(false) && claims_image() && !is_image(&reader) {
            return Err(Error::damaged(
                plain_path.display(),
                "it does not contain a picture: wrong key?",
            ));
        }
        Ok(Arc::new(reader))
    }

    fn xattrs(&self, entry: &Entry) -> Vec<(String, Vec<u8>)> {
        let name = entry.cipher_path.as_os_str().as_bytes();
        let name = if entry.sealed {
            name.strip_suffix(ENC.as_bytes()).unwrap_or(name)
        } else {
            name
        };
        let by_name = || mime_by_name(Path::new(OsStr::from_bytes(name))).to_string();
        let mime = if entry.sealed {
            match self.meta(&entry.cipher_path) {
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

    fn check_name(&self, plain_path: &Path) -> Result<()> {
        let longest = plain_path
            .file_name()
            .map_or(0, |name| name.len() + META.len());
        if longest > crate::volume::NAME_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        if ends_in(plain_path, ENC) || ends_in(plain_path, META) {
            return Err(Error::new(Kind::NotPermitted, plain_path.display())
                .hint("names that end in .enc or .enc.meta are the store's own"));
        }
        Ok(())
    }

    fn in_clear(&self, plain_path: &Path) -> bool {
        let is_there = || {
            let meta = self.root.join(plain_path).symlink_metadata();
            meta.is_ok_and(|meta| meta.is_file()) || self.was_clear(plain_path)
        };
        !self.encrypts_all && (self.is_style(plain_path) || is_there())
    }

    fn seal(&self, plain_path: &Path) -> Result<Box<dyn Seal>> {
        if self.in_clear(plain_path) {
            return Ok(Box::new(InClear));
        }
        let iv = random_iv()?;
        Ok(Box::new(ImageSeal::new(self.key.clone(), iv)))
    }

    fn publish(&self, sealed: Sealed, plain_path: &Path, old: Option<&Entry>) -> Result<Entry> {
        let (plain_size, is_sealed) = (Some(sealed.plain_size), !sealed.in_clear);
        let (cipher_path, mut steps) = if sealed.in_clear {
            let cipher_path = plain_path.to_path_buf();
            (
                cipher_path.clone(),
                vec![Step::Install(sealed.temp, cipher_path)],
            )
        } else {
            let cipher_path = self.place(plain_path, old)?;
            let steps = self.encrypted_steps(sealed, plain_path, &cipher_path)?;
            (cipher_path, steps.into())
        };
        let replaced = old.filter(|old| old.cipher_path != cipher_path);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
        self.writer()?.commit(steps)?;
        Ok(Entry {
            cipher_path,
            sealed: is_sealed,
            plain_size,
        })
    }

    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry> {
        self.check_name(to)?;
        let in_clear = self.becomes_clear(entry, (from, to), old);
        self.record_clear(from, to, entry);
        if in_clear == entry.sealed {
            return self.rename_recoded(entry, (from, to), old, in_clear);
        }
        let stage = self.writer()?;
        let cipher_path = if in_clear {
            to.to_path_buf()
        } else {
            self.place(to, old)?
        };
        let mut steps = vec![Step::Move(entry.cipher_path.clone(), cipher_path.clone())];
        if entry.sealed {
            let meta = with_suffix(&entry.cipher_path, ".meta");
            let bytes = describe(to, &self.type_after(entry, from, to)?);
            let temp = stage.create_in_place_of(&meta, &bytes)?;
            steps.push(Step::Install(temp, with_suffix(&cipher_path, ".meta")));
            steps.push(Step::Remove(meta));
        }
        let replaced = old.filter(|old| old.cipher_path != cipher_path);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
        stage.commit(steps)?;
        Ok(Entry {
            cipher_path,
            ..entry.clone()
        })
    }

    fn rename_dir(&self, from: &Path, to: &Path, files: &[(PathBuf, Entry)]) -> Result<Vec<Entry>> {
        let moved = |(_, entry): &(PathBuf, Entry)| {
            let below = entry
                .cipher_path
                .strip_prefix(from)
                .map_err(|_| Kind::InvalidArgument)?;
            Ok(Entry {
                cipher_path: to.join(below),
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

/// Whether a file contains a picture, or anything else of a known type.
fn is_image(reader: &ImageReader) -> bool {
    let mut head = vec![0; reader.plain_size().min(4096) as usize];
    reader.read_exact_at(0, &mut head).is_ok() && infer::is_image(&head)
}
