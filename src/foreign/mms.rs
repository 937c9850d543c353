//! Minio Music Server: AES-128-CBC in segments, a key file, and an encrypted index
//! (`man/hushfs-foreign.5`: MINIO MUSIC SERVER).
//!
//! Nothing is authenticated: changed bytes, swapped segments and an older index are not noticed. The key of the password is
//! one SHA-256. Names can be guessed from their MD5 digests, and equal segments of a file are visible.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64_simd::STANDARD as BASE64;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::cipher::{BLOCK_LEN, Iv, Key, random_iv};
use super::mirror::temporary;
use super::sealer::{InClear, Seal, Sealed};
use super::stage::{Stage, Step};
use super::{Entry, Format, ListEntry, PlainReader, Reader};
use crate::error::{Error, Kind, Result};
use crate::report::Report;

mod doubled;
pub mod index;
mod layout;
mod lines;
mod prefix;
mod segments;
mod tags;
mod verify;

use index::{Edit, Index, Record};
use layout::Candidates;
pub use layout::{Layout, Options, check, init, is_key_file, passwd};
pub use segments::{SegmentReader, SegmentSeal, cipher_len};

/// The longest object name in S3, in bytes.
const OBJECT_NAME_LEN_MAX: usize = 1024;

/// Extensions of audio files, whose titles the server records (`man/hushfs-foreign.5`: Media types).
const AUDIO: &[&str] = &[
    "mp3", "aiff", "ape", "wma", "wmv", "asf", "flac", "mp2", "mpc", "mp4", "m4a", "m4v", "ogg",
    "oga", "mogg", "wav", "wv",
];
/// Extensions of the other files that the server encrypts.
const VIDEO: &[&str] = &["avi", "mpg", "vob", "mkv"];

/// An open library.
pub struct Mms {
    root: PathBuf,
    stage: Option<Stage>,
    key: Key,
    layout: Layout,
    allow_plain: bool,
    index: Mutex<Index>,
}

impl Mms {
    /// Opens a library. [`Kind::WrongKey`] if the password does not open its key file.
    pub fn open(root: &Path, password: &[u8], options: &Options, read_only: bool) -> Result<Self> {
        let stage = if read_only {
            None
        } else {
            Some(Stage::open(root)?)
        };
        let (mut layout, key) = Candidates::find(root, options)?.open(root, password)?;
        let index = Index::read(&root.join(&layout.index), &key)?;
        layout.prefix = prefix::find(root, &index, options.path.as_deref(), read_only)?;
        let whole = index.is_whole();
        if stage.is_some() && !whole {
            let root = root.display();
            log::warn!("{root}: mounted read-only, because its index is incomplete");
        }
        let mms = Self {
            root: root.to_path_buf(),
            stage: stage.filter(|_| whole),
            key,
            layout,
            allow_plain: options.allow_plain,
            index: Mutex::new(index),
        };
        mms.keep_path()?;
        Ok(mms)
    }

    /// The prefix of object names.
    fn prefix(&self) -> &str {
        // If it is not known, the library is read-only.
        self.layout.prefix.as_deref().unwrap_or_default()
    }

    fn writer(&self) -> Result<&Stage> {
        self.stage.as_ref().ok_or_else(|| Kind::ReadOnly.into())
    }

    /// The name of the encrypted object of a file (`man/hushfs-foreign.5`: Music names).
    fn object_name(&self, path: &str) -> String {
        let digest: [u8; 16] = Md5::digest(path.as_bytes()).into();
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}{hex}.encrypt", self.prefix())
    }

    /// Whether the server encrypts a file of this name.
    fn is_media(&self, plain_path: &Path) -> bool {
        let below = plain_path
            .as_os_str()
            .as_bytes()
            .starts_with(self.prefix().as_bytes());
        let extension = extension(plain_path);
        below && (AUDIO.contains(&&*extension) || VIDEO.contains(&&*extension))
    }

    /// The steps that change the index, and the changed index.
    fn index_steps(&self, index: &Index, edits: Vec<Edit>) -> Result<(Vec<Step>, Index)> {
        let place = PathBuf::from(&self.layout.index);
        let (bytes, changed) = index.edited(&self.root.join(&place), &self.key, edits)?;
        let temp = self.writer()?.create_in_place_of(&place, &bytes)?;
        // The path comes first: it must be stored if no object name contains it any more.
        let mut steps: Vec<Step> = self.path_step(&changed)?.into_iter().collect();
        steps.push(Step::Install(temp, place));
        Ok((steps, changed))
    }

    /// The step that removes the unencrypted original of an encrypted file, if there is one. It would be shown again once the
    /// file is removed from the index.
    fn original_step(&self, plain_path: &Path) -> Option<Step> {
        let path = self.root.join(plain_path);
        let is_file = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        is_file.then(|| Step::Remove(plain_path.to_path_buf()))
    }

    /// Something in a folder that is not shown there: a key file, an index, or an object of this library or another one.
    fn hidden_below(&self, folder: &Path, files: &[(PathBuf, Entry)]) -> Result<Option<PathBuf>> {
        let top = self.root.join(folder);
        if !top.is_dir() {
            return Ok(None);
        }
        let listed: HashSet<&Path> = files.iter().map(|(path, _)| &**path).collect();
        let mut hidden = super::strangers(&top)?
            .pop()
            .map(|(name, _)| folder.join(name));
        super::walk(&top, &mut |below, is_dir| {
            let path = folder.join(below);
            if !is_dir && !listed.contains(&*path) {
                hidden = Some(path);
            }
        })?;
        Ok(hidden)
    }

    /// The record of a renamed file, with a new path and object, and the object's name.
    fn moved_record(&self, index: &Index, from: &str, to: &Path) -> Result<(Edit, String)> {
        let mut json = index.json(&self.root.join(&self.layout.index), &self.key, from)?;
        let to = text(to)?;
        let object = self.object_name(to);
        json.insert("path".into(), to.into());
        json.insert("extension".into(), (*extension(Path::new(to))).into());
        json.insert("nameEnc".into(), (*object).into());
        Ok((
            Edit::Put {
                old: Some(from.into()),
                json,
            },
            object,
        ))
    }

    /// A reader of the object of a record.
    fn open_object(&self, record: &Record) -> Result<Arc<dyn Reader>> {
        let path = self.root.join(&*record.object);
        let stored = PlainReader::open(&path)?;
        let (len, expected) = (stored.plain_size(), cipher_len(record.plain_size));
        if len != expected {
            let check = format!("it has {len} bytes, and {expected} by the index");
            return Err(Error::damaged(path.display(), check)
                .hint("the copy is incomplete, or the index is from another time"));
        }
        let key = self.key.clone();
        Ok(Arc::new(SegmentReader::new(
            stored,
            key,
            record.iv,
            record.plain_size,
        )))
    }

    fn entry(&self, object: String, plain_size: u64) -> Entry {
        Entry {
            cipher_path: object.into(),
            sealed: true,
            plain_size: Some(plain_size),
        }
    }
}

impl Format for Mms {
    fn root(&self) -> &Path {
        &self.root
    }

    fn stage(&self) -> Option<&Stage> {
        self.stage.as_ref()
    }

    fn list(&self, add: &mut dyn FnMut(ListEntry)) -> Result<()> {
        let index = self.index.lock();
        for record in index.records() {
            let mut entry = self.entry(record.object.to_string(), record.plain_size);
            if doubled::is_doubled(&record.path) {
                entry.plain_size = None;
            }
            add(ListEntry::File(PathBuf::from(&*record.path), entry));
        }
        super::walk(&self.root, &mut |path, is_dir| {
            if is_dir {
                add(ListEntry::Folder(path.to_path_buf()));
                return;
            }
            let text = path.to_str();
            let ours = text.is_some_and(|path| self.layout.own.contains(path));
            let known = || text.is_some_and(|path| index.get(path).is_some());
            if !ours && !prefix::is_object(path) && !known() {
                let cipher_path = path.to_path_buf();
                add(ListEntry::File(
                    path.to_path_buf(),
                    Entry {
                        cipher_path,
                        sealed: false,
                        plain_size: None,
                    },
                ));
            }
        })?;
        drop(index);
        for (name, why) in self.not_shown()? {
            add(ListEntry::NotShown(name, why));
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        if entry.sealed {
            return doubled::plain_size(self, entry);
        }
        super::open_file(&self.root.join(&entry.cipher_path)).map(|(_, len)| len)
    }

    fn open(&self, plain_path: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        let path = self.root.join(&entry.cipher_path);
        if !entry.sealed {
            return PlainReader::open(&path);
        }
        let index = self.index.lock();
        let record = index.get(text(plain_path)?).ok_or(Kind::NotFound)?.clone();
        drop(index);
        if doubled::is_doubled(&record.path) {
            return doubled::open(self, record).map(|(reader, _)| reader);
        }
        self.open_object(&record)
    }

    fn check_name(&self, plain_path: &Path) -> Result<()> {
        let refuse =
            |hint: &str| Err(Error::new(Kind::NotPermitted, plain_path.display()).hint(hint));
        let path = text(plain_path)?;
        if path.len() > OBJECT_NAME_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        if self.layout.own.contains(path) {
            return refuse("this is the name of a key file or index of the server");
        }
        if self.is_media(plain_path) {
            return Ok(());
        }
        if &*extension(plain_path) == "encrypt" {
            return refuse("the server would encrypt it as if it were a song");
        }
        if !self.allow_plain {
            return refuse(
                "the server only encrypts audio and video files in its music folder, so this one would not be encrypted (--allow-plain allows that)",
            );
        }
        let name = plain_path.file_name().unwrap_or_default();
        let is_media = |name| self.is_media(&plain_path.with_file_name(name));
        if temporary::is_nameless(name) || temporary::final_names(name).into_iter().any(is_media) {
            return refuse("unfinished files are not stored unencrypted");
        }
        Ok(())
    }

    fn in_clear(&self, plain_path: &Path) -> bool {
        self.check_name(plain_path).is_ok() && !self.is_media(plain_path)
    }

    fn seal(&self, plain_path: &Path) -> Result<Box<dyn Seal>> {
        if self.in_clear(plain_path) {
            return Ok(Box::new(InClear));
        }
        Ok(Box::new(SegmentSeal {
            key: self.key.clone(),
            iv: random_iv()?,
        }))
    }

    fn publish(&self, sealed: Sealed, plain_path: &Path, _old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        let Some(iv) = sealed.iv else {
            let cipher_path = plain_path.to_path_buf();
            stage.commit(vec![Step::Install(sealed.temp, cipher_path.clone())])?;
            return Ok(Entry {
                cipher_path,
                sealed: false,
                plain_size: Some(sealed.plain_size),
            });
        };
        let path = text(plain_path)?;
        let extension = extension(plain_path);
        let object = self.object_name(path);
        let mut index = self.index.lock();
        let mut json = Map::new();
        json.insert("id".into(), index.id_for(path).into());
        json.insert("path".into(), path.into());
        json.insert("filesize".into(), sealed.plain_size.into());
        json.insert("extension".into(), (*extension).into());
        json.insert("iv".into(), BASE64.encode_to_string(iv).into());
        json.insert("nameEnc".into(), (*object).into());
        if AUDIO.contains(&&*extension) {
            tags::add(&mut json, &extension, &sealed.reader);
        }
        let old = index.get(path).map(|_| path.into());
        let (index_steps, changed) = self.index_steps(&index, vec![Edit::Put { old, json }])?;
        let mut steps = vec![Step::Install(sealed.temp, object.clone().into())];
        steps.extend(index_steps);
        steps.extend(unnamed_step(&index, &changed, path));
        steps.extend(self.original_step(plain_path));
        stage.commit(steps)?;
        *index = changed;
        Ok(self.entry(object, sealed.plain_size))
    }

    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        self.check_name(to)?;
        if entry.sealed != self.is_media(to) || entry.sealed && doubled::is_doubled(text(from)?) {
            // The program then copies the file, which is encrypted (or not) as its new name requires.
            return Err(Kind::CrossDevice.into());
        }
        let mut index = self.index.lock();
        if !entry.sealed {
            stage.commit(vec![Step::Move(from.to_path_buf(), to.to_path_buf())])?;
            return Ok(Entry {
                cipher_path: to.to_path_buf(),
                ..entry.clone()
            });
        }
        let (edit, object) = self.moved_record(&index, text(from)?, to)?;
        let mut edits = vec![edit];
        if old.is_some_and(|old| old.sealed) {
            edits.insert(0, Edit::Remove(text(to)?.into()));
        }
        let (index_steps, changed) = self.index_steps(&index, edits)?;
        let mut steps = vec![Step::Move(entry.cipher_path.clone(), object.clone().into())];
        steps.extend(index_steps);
        steps.extend(unnamed_step(&index, &changed, text(to)?));
        steps.extend(
            [from, to]
                .into_iter()
                .filter_map(|path| self.original_step(path)),
        );
        stage.commit(steps)?;
        *index = changed;
        Ok(self.entry(object, entry.plain_size.unwrap_or(0)))
    }

    fn rename_dir(&self, from: &Path, to: &Path, files: &[(PathBuf, Entry)]) -> Result<Vec<Entry>> {
        let stage = self.writer()?;
        let mut index = self.index.lock();
        let (mut edits, mut steps, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        if files.len() + 2 > super::stage::STEPS_MAX {
            return Err(Kind::CrossDevice.into());
        }
        for (path, entry) in files {
            let below = path.strip_prefix(from).map_err(|_| Kind::InvalidArgument)?;
            let new = to.join(below);
            // A file that was encrypted twice is only recognised by its name.
            let is_doubled = entry.sealed && doubled::is_doubled(text(path)?);
            if entry.sealed != self.is_media(&new) || is_doubled {
                return Err(Kind::CrossDevice.into());
            }
            if !entry.sealed {
                entries.push(Entry {
                    cipher_path: new,
                    ..entry.clone()
                });
                continue;
            }
            let (edit, object) = self.moved_record(&index, text(path)?, &new)?;
            steps.push(Step::Move(entry.cipher_path.clone(), object.clone().into()));
            edits.push(edit);
            entries.push(self.entry(object, entry.plain_size.unwrap_or(0)));
        }
        if self.prefix().starts_with(&format!("{}/", text(from)?)) {
            return Err(Error::new(Kind::NotPermitted, from.display())
                .hint("it is the folder with the library's objects"));
        }
        // The folder itself is moved first, so it must not contain anything that is not shown.
        if let Some(hidden) = self.hidden_below(from, files)? {
            let hint = format!(
                "it holds {}, which is not shown and has to stay",
                hidden.display()
            );
            return Err(Error::new(Kind::NotPermitted, from.display()).hint(hint));
        }
        if self.root.join(from).is_dir() {
            steps.insert(0, Step::Move(from.to_path_buf(), to.to_path_buf()));
        }
        if edits.is_empty() {
            stage.commit(steps)?;
            return Ok(entries);
        }
        let (index_steps, changed) = self.index_steps(&index, edits)?;
        steps.extend(index_steps);
        stage.commit(steps)?;
        *index = changed;
        Ok(entries)
    }

    fn remove(&self, plain_path: &Path, entry: &Entry) -> Result<()> {
        let stage = self.writer()?;
        if !entry.sealed {
            return stage.commit(vec![Step::Remove(plain_path.to_path_buf())]);
        }
        let mut index = self.index.lock();
        let edit = Edit::Remove(text(plain_path)?.into());
        let (mut steps, changed) = self.index_steps(&index, vec![edit])?;
        steps.push(Step::Remove(entry.cipher_path.clone()));
        steps.extend(self.original_step(plain_path));
        stage.commit(steps)?;
        *index = changed;
        Ok(())
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        verify::run(self, report)
    }
}

/// The step that removes the former object of a path, if its object has another name now, as after a change of the
/// library's path: the server would encrypt the former object as if it were a song.
fn unnamed_step(before: &Index, after: &Index, path: &str) -> Option<Step> {
    let object = &before.get(path)?.object;
    let now = after.get(path).map(|record| &record.object);
    let is_named = now == Some(object) || after.objects().any(|named| named == &**object);
    (!is_named).then(|| Step::Remove(PathBuf::from(&**object)))
}

/// The text after the last dot of the name, in lower case (`man/hushfs-foreign.5`: Media types).
fn extension(path: &Path) -> Box<str> {
    let name = path.to_string_lossy();
    match name.rsplit_once('.') {
        Some((_, extension)) => extension.to_lowercase().into(),
        None => name.to_lowercase().into(),
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(Kind::InvalidArgument, path.display()).hint("names in this library are UTF-8")
    })
}

/// The key that is derived from a password, and decrypts only the key file (`man/hushfs-foreign.5`: Music keys).
fn password_key(password: &[u8]) -> Key {
    let hash: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(password).into());
    let (front, _) = hash
        .split_first_chunk()
        .expect("16 bytes are fewer than 32");
    Key::short(front)
}

/// Parses an initialisation vector in base64.
fn parse_iv(text: &str) -> Option<Iv> {
    let bytes = BASE64.decode_to_vec(text).ok()?;
    <[u8; BLOCK_LEN]>::try_from(bytes).ok()
}

/// A record's JSON as the server writes it: compact, without escapes for non-ASCII characters.
fn to_json(record: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is JSON")
}
