//! Where the parts of a library are, its key file, and making one (`man/hushfs-foreign.5`: Music names, Music keys).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use base64_simd::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::cipher::{Key, random_iv};
use super::super::stage::{Stage, Step, is_confined};
use super::{index, parse_iv, password_key, prefix};
use crate::error::{Error, Kind, Result};

/// The longest key file that is read, in bytes; one of the server's has 87.
const KEY_FILE_LEN_MAX: u64 = 1024;
/// How much of a file is looked at to tell whether it is an index.
const HEAD_LEN: usize = 200;

/// What was said of a library.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name of the key file.
    pub key: Option<String>,
    /// The name of the index.
    pub index: Option<String>,
    /// What the names of objects begin with, as `pathMusic` in the server's config.js.
    pub path: Option<String>,
    /// Files that the server does not encrypt may be written, in clear.
    pub allow_plain: bool,
}

/// Where the parts of a library are, relative to its top.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The key file.
    pub key: String,
    /// The index.
    pub index: String,
    /// What the names of objects begin with; none where nothing tells, in a library that is only read.
    pub prefix: Option<String>,
    /// These two and what else at the top is a key file or an index, of this library or another one; and what hushfs
    /// keeps there. None of it is shown.
    pub own: BTreeSet<String>,
    /// Other encrypted indexes at the top.
    pub others: Vec<String>,
}

/// The files that may be a library's key file and index.
pub struct Candidates {
    keys: Vec<String>,
    indexes: Vec<String>,
    own: BTreeSet<String>,
}

/// What is in a key file.
type InternalKey = Zeroizing<[u8; 16]>;

/// The key file.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    data: String,
    iv: String,
}

impl Candidates {
    /// Those at the top, or those that were named. [`Kind::NotLibrary`] where there is none of one of them.
    pub fn find(root: &Path, options: &Options) -> Result<Self> {
        let at = |e| Error::io(e, root);
        let (mut keys, mut indexes, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for entry in fs::read_dir(root).map_err(at)? {
            let entry = entry.map_err(at)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if is_key_file(&entry.path()) {
                keys.push(name);
            } else {
                match index_version(&entry.path()) {
                    // From before the library was encrypted: nothing in it is.
                    Some(1) => plain.push(name),
                    Some(_) => indexes.push(name),
                    None => {}
                }
            }
        }
        keys.sort();
        indexes.sort();
        let names = keys.iter().chain(&indexes).chain(&plain);
        let mut own: BTreeSet<String> = names.cloned().collect();
        own.insert(prefix::KEPT.into());
        let named = [(&options.key, &mut keys), (&options.index, &mut indexes)];
        for (name, found) in named {
            let Some(name) = name else { continue };
            if !is_confined(Path::new(name)) {
                return Err(Error::usage(format_args!(
                    "{name}: no name of a file in the library"
                )));
            }
            own.insert(name.clone());
            *found = vec![name.clone()];
        }
        if indexes.is_empty() {
            indexes = plain;
        }
        let none = |text| Err(Error::new(Kind::NotLibrary, root.display()).hint(text));
        if keys.is_empty() {
            return none(
                "no file at its top is the key file of a Minio Music Server; --mms-key NAME names one elsewhere",
            );
        }
        if indexes.is_empty() {
            return none(
                "it has the key file of a Minio Music Server, and no index: the server's first run was broken off, or the index is lost. \
                 Without the index the songs cannot be read: bring it back from a copy before the server runs, as it would encrypt all of them once more. \
                 --mms-index NAME names one elsewhere",
            );
        }
        Ok(Self { keys, indexes, own })
    }

    /// The key files that a password opens, and what is in them.
    fn opened(&self, root: &Path, password: &[u8]) -> Result<Vec<(&String, InternalKey)>> {
        let (mut opened, mut wrong) = (Vec::new(), None);
        for name in &self.keys {
            match read_key(&root.join(name), password) {
                Ok(internal) => opened.push((name, internal)),
                Err(e) => wrong = Some(e),
            }
        }
        match wrong {
            Some(e) if opened.is_empty() => Err(e),
            _ => Ok(opened),
        }
    }

    /// The key file that the password opens, and the index that opens with what is in it. Of several, those that go
    /// together; [`Kind::Usage`] where more than one index does.
    pub fn open(self, root: &Path, password: &[u8]) -> Result<(Layout, Key)> {
        let opened = self.opened(root, password)?;
        let mut fitting: Vec<(&String, &String, Key)> = Vec::new();
        for index in &self.indexes {
            let keys = opened.iter().map(|(name, key)| (name, Key::short(key)));
            let mut fits =
                keys.map(|(name, key)| (index::opens(&root.join(index), &key), name, key));
            if let Some((_, name, key)) = fits.find(|(fits, ..)| *fits != Some(false)) {
                fitting.push((name, index, key));
            }
        }
        if fitting.len() > 1 {
            let names: Vec<&str> = fitting.iter().map(|(_, index, _)| index.as_str()).collect();
            let text = format!(
                "more than one file could be its index: {}",
                names.join(", ")
            );
            return Err(Error::usage(text)
                .about(root.display())
                .hint("say it with --mms-index NAME"));
        }
        let (name, index, key) = match fitting.pop() {
            Some(found) => found,
            // What is wrong with it is told by who reads it.
            None => {
                let (name, key) = opened.first().ok_or(Kind::WrongKey)?;
                (*name, &self.indexes[0], Key::short(key))
            }
        };
        let is_other = |other: &&String| {
            *other != index && index_version(&root.join(other)).is_some_and(|version| version > 1)
        };
        let layout = Layout {
            key: name.clone(),
            index: index.clone(),
            prefix: None,
            others: self.own.iter().filter(is_other).cloned().collect(),
            own: self.own.clone(),
        };
        Ok((layout, key))
    }
}

/// Whether there is a library: [`Kind::NotLibrary`], or what else is wrong with it, before a password is asked for.
pub fn check(root: &Path, options: &Options) -> Result<()> {
    Candidates::find(root, options)?;
    Ok(())
}

fn parse_key_file(path: &Path) -> Result<KeyFile> {
    let bytes = super::super::read_file(path, KEY_FILE_LEN_MAX)?;
    let file: Option<KeyFile> = serde_json::from_slice(&bytes).ok();
    let fits = |file: &KeyFile| {
        BASE64
            .decode_to_vec(&file.data)
            .is_ok_and(|d| d.len() == 32)
            && parse_iv(&file.iv).is_some()
    };
    file.filter(fits)
        .ok_or_else(|| Error::damaged(path.display(), "it is no key file"))
}

/// Whether this is a key file.
pub fn is_key_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= KEY_FILE_LEN_MAX)
        && parse_key_file(path).is_ok()
}

/// The version of an index, which its first line says; none of what is no index.
fn index_version(path: &Path) -> Option<u64> {
    let (file, len) = super::super::open_file(path).ok()?;
    let mut head = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
    super::super::read_at(&file, 0, &mut head).ok()?;
    let end = head.iter().position(|b| *b == b'\n').unwrap_or(head.len());
    let header: index::Header = serde_json::from_slice(&head[..end]).ok()?;
    Some(header.version)
}

/// The library's internal key, out of its key file (`man/hushfs-foreign.5`: Music keys).
fn read_key(path: &Path, password: &[u8]) -> Result<InternalKey> {
    let file = parse_key_file(path)?;
    let wrong = || {
        Error::new(Kind::WrongKey, path.display())
            .hint("the password of config.js opens it, or the newest that was set")
    };
    let mut data = Zeroizing::new(BASE64.decode_to_vec(&file.data).map_err(|_| wrong())?);
    let iv = parse_iv(&file.iv).ok_or_else(wrong)?;
    let len = password_key(password)
        .decrypt_padded(&iv, &mut data)
        .ok_or_else(wrong)?;
    // One wrong password of 256 gets as far as this: what it opens is then no text of 24 letters.
    let key = Zeroizing::new(BASE64.decode_to_vec(&data[..len]).map_err(|_| wrong())?);
    let key = <[u8; 16]>::try_from(key.as_slice()).map_err(|_| wrong())?;
    Ok(Zeroizing::new(key))
}

/// A key file for an internal key under a password: a new vector, compact JSON without a line feed.
fn wrap_key(internal: &[u8; 16], password: &[u8]) -> Result<Vec<u8>> {
    let iv = random_iv()?;
    let text = Zeroizing::new(BASE64.encode_to_string(internal));
    let mut data = Vec::new();
    password_key(password).encrypt_padded(&iv, text.as_bytes(), &mut data);
    let file = KeyFile {
        data: BASE64.encode_to_string(data),
        iv: BASE64.encode_to_string(iv),
    };
    Ok(serde_json::to_vec(&file).expect("two strings are JSON"))
}

/// Changes the password: the same internal key in a new key file, in place of each that the old password opens. Objects
/// and index stay as they are.
pub fn passwd(
    root: &Path,
    options: &Options,
    old: &[u8],
    new: impl FnOnce() -> Result<Zeroizing<Vec<u8>>>,
) -> Result<()> {
    let stage = Stage::open(root)?;
    let found = Candidates::find(root, options)?;
    let opened = found.opened(root, old)?;
    let new = new()?;
    let place = |(name, internal): (&String, InternalKey)| {
        let place = PathBuf::from(name);
        let temp = stage.create_in_place_of(&place, &wrap_key(&internal, &new)?)?;
        Ok(Step::Place(temp, place))
    };
    stage.commit(opened.into_iter().map(place).collect::<Result<_>>()?)
}

/// Makes an empty library: key file, index, the folder of music, and the path of that, which nothing else tells yet.
pub fn init(root: &Path, options: &Options, password: &[u8]) -> Result<()> {
    let path = prefix::check(options.path.as_deref().unwrap_or("music/"))?;
    fs::create_dir_all(root).map_err(|e| Error::io(e, root))?;
    let stage = Stage::open(root)?;
    let mut internal = Zeroizing::new([0; 16]);
    crate::crypto::random(&mut *internal)?;
    let key = stage.create_with(&wrap_key(&internal, password)?)?;
    let index = stage.create_with(&index::empty())?;
    let kept = stage.create_with(format!("{path}\n").as_bytes())?;
    let name = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.into());
    let folder = root.join(path.rsplit_once('/').map_or("", |(folder, _)| folder));
    fs::create_dir_all(&folder).map_err(|e| Error::io(e, &folder))?;
    stage.commit(vec![
        Step::Place(kept, prefix::KEPT.into()),
        Step::Place(index, name(&options.index, "music.index").into()),
        Step::Place(key, name(&options.key, "key").into()),
    ])
}
