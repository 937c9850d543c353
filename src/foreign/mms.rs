//! Minio Music Server: AES-128-CBC in segments, a key file, an encrypted index
//! (`man/hushfs-foreign.5`: MINIO MUSIC SERVER).
//!
//! Nothing is authenticated: changed bytes, swapped segments and a rolled-back index are not noticed. The password
//! goes through one SHA-256. Names can be guessed from their MD5; equal segments of a file show.

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
use super::{Entry, Format, Listed, PlainReader, Reader};
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

/// The longest object name that S3 takes, in bytes.
const OBJECT_NAME_LEN_MAX: usize = 1024;

/// What the server encrypts, by extension; of the audio files it also keeps titles
/// (`man/hushfs-foreign.5`: Media types).
const AUDIO: &[&str] = &[
    "mp3", "aiff", "ape", "wma", "wmv", "asf", "flac", "mp2", "mpc", "mp4", "m4a", "m4v", "ogg",
    "oga", "mogg", "wav", "wv",
];
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
    /// Opens a library. [`Kind::WrongKey`] where the password does not open its key file.
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
            log::warn!("{root}: mounted read-only: its index is not whole");
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

    /// What the names of objects begin with.
    fn prefix(&self) -> &str {
        // Where it is not known, nothing is written.
        self.layout.prefix.as_deref().unwrap_or_default()
    }

    fn writer(&self) -> Result<&Stage> {
        self.stage.as_ref().ok_or_else(|| Kind::ReadOnly.into())
    }

    /// Where the encrypted object of a file lies (`man/hushfs-foreign.5`: Music names).
    fn object_name(&self, path: &str) -> String {
        let digest: [u8; 16] = Md5::digest(path.as_bytes()).into();
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}{hex}.encrypt", self.prefix())
    }

    /// Whether the server encrypts a file of this name.
    fn is_media(&self, shown: &Path) -> bool {
        let below = shown
            .as_os_str()
            .as_bytes()
            .starts_with(self.prefix().as_bytes());
        let extension = extension(shown);
        below && (AUDIO.contains(&&*extension) || VIDEO.contains(&&*extension))
    }

    /// The steps of a change of the index, and what it then is.
    fn index_steps(&self, index: &Index, edits: Vec<Edit>) -> Result<(Vec<Step>, Index)> {
        let place = PathBuf::from(&self.layout.index);
        let (bytes, changed) = index.edited(&self.root.join(&place), &self.key, edits)?;
        let temp = self.writer()?.create_in_place_of(&place, &bytes)?;
        // The path first: it must be there where no object tells it.
        let mut steps: Vec<Step> = self.path_step(&changed)?.into_iter().collect();
        steps.push(Step::Place(temp, place));
        Ok((steps, changed))
    }

    /// The original in clear that may lie beside an encrypted file: it would come back when the index lets it go.
    fn original_step(&self, shown: &Path) -> Option<Step> {
        let path = self.root.join(shown);
        let is_file = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        is_file.then(|| Step::Remove(shown.to_path_buf()))
    }

    /// Something in a folder that is none of the files shown there: a key file, an index, an object of this library or
    /// another one.
    fn hidden_below(&self, folder: &Path, files: &[(PathBuf, Entry)]) -> Result<Option<PathBuf>> {
        let top = self.root.join(folder);
        if !top.is_dir() {
            return Ok(None);
        }
        let shown: HashSet<&Path> = files.iter().map(|(path, _)| &**path).collect();
        let mut hidden = super::strangers(&top)?
            .pop()
            .map(|(name, _)| folder.join(name));
        super::walk(&top, &mut |below, is_dir| {
            let path = folder.join(below);
            if !is_dir && !shown.contains(&*path) {
                hidden = Some(path);
            }
        })?;
        Ok(hidden)
    }

    /// A record with another path, and so another object.
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

    /// What is encrypted in the object of a record.
    fn open_object(&self, record: &Record) -> Result<Arc<dyn Reader>> {
        let path = self.root.join(&*record.object);
        let stored = PlainReader::open(&path)?;
        let (len, expected) = (stored.plain_size(), cipher_len(record.plain_size));
        if len != expected {
            let check = format!("it has {len} bytes, and {expected} by the index");
            return Err(Error::damaged(path.display(), check)
                .hint("the copy is not complete, or the index is of another time"));
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
            stored: object.into(),
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

    fn list(&self, add: &mut dyn FnMut(Listed)) -> Result<()> {
        let index = self.index.lock();
        for record in index.records() {
            let mut entry = self.entry(record.object.to_string(), record.plain_size);
            if doubled::is_doubled(&record.path) {
                entry.plain_size = None;
            }
            add(Listed::File(PathBuf::from(&*record.path), entry));
        }
        super::walk(&self.root, &mut |path, is_dir| {
            if is_dir {
                add(Listed::Folder(path.to_path_buf()));
                return;
            }
            let text = path.to_str();
            let ours = text.is_some_and(|path| self.layout.own.contains(path));
            let known = || text.is_some_and(|path| index.get(path).is_some());
            if !ours && !prefix::is_object(path) && !known() {
                let stored = path.to_path_buf();
                add(Listed::File(
                    path.to_path_buf(),
                    Entry {
                        stored,
                        sealed: false,
                        plain_size: None,
                    },
                ));
            }
        })?;
        drop(index);
        for (name, why) in self.not_shown()? {
            add(Listed::NotShown(name, why));
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        if entry.sealed {
            return doubled::plain_size(self, entry);
        }
        super::open_file(&self.root.join(&entry.stored)).map(|(_, len)| len)
    }

    fn open(&self, shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        let path = self.root.join(&entry.stored);
        if !entry.sealed {
            return PlainReader::open(&path);
        }
        let index = self.index.lock();
        let record = index.get(text(shown)?).ok_or(Kind::NotFound)?.clone();
        drop(index);
        if doubled::is_doubled(&record.path) {
            return doubled::open(self, record).map(|(reader, _)| reader);
        }
        self.open_object(&record)
    }

    fn admit(&self, shown: &Path) -> Result<()> {
        let refuse = |hint: &str| Err(Error::new(Kind::NotPermitted, shown.display()).hint(hint));
        let path = text(shown)?;
        if path.len() > OBJECT_NAME_LEN_MAX {
            return Err(Kind::NameTooLong.into());
        }
        if self.layout.own.contains(path) {
            return refuse("this is the name of a key file or index of the server");
        }
        if self.is_media(shown) {
            return Ok(());
        }
        if &*extension(shown) == "encrypt" {
            return refuse("the server would take it for a song and encrypt it");
        }
        if !self.allow_plain {
            return refuse(
                "the server encrypts audio and video files in its music folder alone, so this one would lie in clear: --allow-plain lets it",
            );
        }
        let name = shown.file_name().unwrap_or_default();
        let is_media = |name| self.is_media(&shown.with_file_name(name));
        if temporary::is_nameless(name) || temporary::final_names(name).into_iter().any(is_media) {
            return refuse("what is not whole yet does not lie in clear");
        }
        Ok(())
    }

    fn in_clear(&self, shown: &Path) -> bool {
        self.admit(shown).is_ok() && !self.is_media(shown)
    }

    fn seal(&self, shown: &Path) -> Result<Box<dyn Seal>> {
        if self.in_clear(shown) {
            return Ok(Box::new(InClear));
        }
        Ok(Box::new(SegmentSeal {
            key: self.key.clone(),
            iv: random_iv()?,
        }))
    }

    fn publish(&self, sealed: Sealed, shown: &Path, _old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        let Some(iv) = sealed.iv else {
            let stored = shown.to_path_buf();
            stage.commit(vec![Step::Place(sealed.temp, stored.clone())])?;
            return Ok(Entry {
                stored,
                sealed: false,
                plain_size: Some(sealed.plain_size),
            });
        };
        let path = text(shown)?;
        let extension = extension(shown);
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
        let mut steps = vec![Step::Place(sealed.temp, object.clone().into())];
        steps.extend(index_steps);
        steps.extend(unnamed_step(&index, &changed, path));
        steps.extend(self.original_step(shown));
        stage.commit(steps)?;
        *index = changed;
        Ok(self.entry(object, sealed.plain_size))
    }

    fn rename(&self, entry: &Entry, from: &Path, to: &Path, old: Option<&Entry>) -> Result<Entry> {
        let stage = self.writer()?;
        self.admit(to)?;
        if entry.sealed != self.is_media(to) || entry.sealed && doubled::is_doubled(text(from)?) {
            // Who renames then copies, and what is copied is encrypted, once, or let through, as it should be.
            return Err(Kind::CrossDevice.into());
        }
        let mut index = self.index.lock();
        if !entry.sealed {
            stage.commit(vec![Step::Move(from.to_path_buf(), to.to_path_buf())])?;
            return Ok(Entry {
                stored: to.to_path_buf(),
                ..entry.clone()
            });
        }
        let (edit, object) = self.moved_record(&index, text(from)?, to)?;
        let mut edits = vec![edit];
        if old.is_some_and(|old| old.sealed) {
            edits.insert(0, Edit::Remove(text(to)?.into()));
        }
        let (index_steps, changed) = self.index_steps(&index, edits)?;
        let mut steps = vec![Step::Move(entry.stored.clone(), object.clone().into())];
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
            // A file that was encrypted twice would not be read through under a name of its own.
            let is_doubled = entry.sealed && doubled::is_doubled(text(path)?);
            if entry.sealed != self.is_media(&new) || is_doubled {
                return Err(Kind::CrossDevice.into());
            }
            if !entry.sealed {
                entries.push(Entry {
                    stored: new,
                    ..entry.clone()
                });
                continue;
            }
            let (edit, object) = self.moved_record(&index, text(path)?, &new)?;
            steps.push(Step::Move(entry.stored.clone(), object.clone().into()));
            edits.push(edit);
            entries.push(self.entry(object, entry.plain_size.unwrap_or(0)));
        }
        if self.prefix().starts_with(&format!("{}/", text(from)?)) {
            return Err(Error::new(Kind::NotPermitted, from.display())
                .hint("it is the folder of the library's objects"));
        }
        // The folder itself moves first, so nothing may lie in it but what is shown.
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

    fn remove(&self, shown: &Path, entry: &Entry) -> Result<()> {
        let stage = self.writer()?;
        if !entry.sealed {
            return stage.commit(vec![Step::Remove(shown.to_path_buf())]);
        }
        let mut index = self.index.lock();
        let edit = Edit::Remove(text(shown)?.into());
        let (mut steps, changed) = self.index_steps(&index, vec![edit])?;
        steps.push(Step::Remove(entry.stored.clone()));
        steps.extend(self.original_step(shown));
        stage.commit(steps)?;
        *index = changed;
        Ok(())
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        verify::run(self, report)
    }
}

/// The step that removes the object which the record of a path named, where it has another name now, as after a change
/// of the library's path: the server would take it for a song, and encrypt it.
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

/// The key that a password makes, which opens the key file alone (`man/hushfs-foreign.5`: Music keys).
fn password_key(password: &[u8]) -> Key {
    let hash: Zeroizing<[u8; 32]> = Zeroizing::new(Sha256::digest(password).into());
    let (front, _) = hash
        .split_first_chunk()
        .expect("16 bytes are fewer than 32");
    Key::short(front)
}

/// A vector in base64, as key file and index have it.
fn parse_iv(text: &str) -> Option<Iv> {
    let bytes = BASE64.decode_to_vec(text).ok()?;
    <[u8; BLOCK_LEN]>::try_from(bytes).ok()
}

/// A record's JSON as the server writes it: compact, other letters as they are.
fn to_json(record: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(record).expect("a record is JSON")
}
