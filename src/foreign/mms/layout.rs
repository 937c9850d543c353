//! The parts of a library, its key file, and creating a library (`man/hushfs-foreign.5`: Music names, Music keys).

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

/// The longest key file that is read, in bytes. The server's have 87.
const KEY_FILE_LEN_MAX: u64 = 1024;
/// Bytes of a file that are read to detect an index.
const HEAD_LEN: usize = 200;

/// What the user specified about a library.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name of the key file.
    pub key: Option<String>,
    /// The name of the index.
    pub index: Option<String>,
    /// The prefix of object names, as `pathMusic` in the server's config.js.
    pub path: Option<String>,
    /// Allow writing files that the server does not encrypt; they are stored unencrypted.
    pub allow_plain: bool,
}

/// The parts of a library, relative to its root.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The index.
    pub index: String,
    /// The prefix of object names; `None` if it is unknown, in a library that is opened read-only.
    pub prefix: Option<String>,
    /// Names in the root that are not shown: all key files and indexes, of this library and of others, and the files of
    /// hushfs.
    pub own: BTreeSet<String>,
    /// Other encrypted indexes in the root.
    pub others: Vec<String>,
}

/// The files that may be the key file and the index of a library.
pub struct Candidates {
    keys: Vec<String>,
    indexes: Vec<String>,
    own: BTreeSet<String>,
}

/// The key in a key file.
type InternalKey = Zeroizing<[u8; 16]>;

/// The key file.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    data: String,
    iv: String,
}

impl Candidates {
    /// Finds the candidates in the root, or those that the user named. [`Kind::NotLibrary`] if there is no key file, or no
    /// index.
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
                    // An index without encryption, from before the library was encrypted.
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
                    "{name}: not the name of a file in the library"
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

    /// The key files that a password opens, and their keys.
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

    /// Opens the key file with the password, and finds the index that its key decrypts. If there are several, this finds
    /// those that match; [`Kind::Usage`] if more than one index does.
    pub fn open(self, root: &Path, password: &[u8]) -> Result<(Layout, Key)> {
        let opened = self.opened(root, password)?;
        let mut fitting: Vec<(&String, Key)> = Vec::new();
        for index in &self.indexes {
            let mut keys = opened.iter().map(|(_, key)| Key::short(key));
            let fits = |key: &Key| index::opens(&root.join(index), key) != Some(false);
            if let Some(key) = keys.find(fits) {
                fitting.push((index, key));
            }
        }
        if fitting.len() > 1 {
            let names: Vec<&str> = fitting.iter().map(|(index, _)| index.as_str()).collect();
            let text = format!(
                "more than one file could be its index: {}",
                names.join(", ")
            );
            return Err(Error::usage(text)
                .about(root.display())
                .hint("choose one with --mms-index NAME"));
        }
        let (index, key) = match fitting.pop() {
            Some(found) => found,
            // Reading the index will report what is wrong with it.
            None => {
                let (_, key) = opened.first().ok_or(Kind::WrongKey)?;
                (&self.indexes[0], Key::short(key))
            }
        };
        let is_other = |other: &&String| {
            *other != index && index_version(&root.join(other)).is_some_and(|version| version > 1)
        };
        let layout = Layout {
            index: index.clone(),
            prefix: None,
            others: self.own.iter().filter(is_other).cloned().collect(),
            own: self.own.clone(),
        };
        Ok((layout, key))
    }
}

/// Checks that there is a library ([`Kind::NotLibrary`] otherwise), before the user is asked for a password.
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
        .ok_or_else(|| Error::damaged(path.display(), "it is not a key file"))
}

/// Whether this is a key file.
pub fn is_key_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= KEY_FILE_LEN_MAX)
        && parse_key_file(path).is_ok()
}

/// The version in the first line of an index; `None` if the file is not an index.
fn index_version(path: &Path) -> Option<u64> {
    let (file, len) = super::super::open_file(path).ok()?;
    let mut head = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
    super::super::read_at(&file, 0, &mut head).ok()?;
    let end = head.iter().position(|b| *b == b'\n').unwrap_or(head.len());
    let header: index::Header = serde_json::from_slice(&head[..end]).ok()?;
    Some(header.version)
}

/// Decrypts the library's internal key from its key file (`man/hushfs-foreign.5`: Music keys).
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
    // One in 256 wrong passwords gets this far; the decrypted bytes are then not 24 characters of base64.
    let key = Zeroizing::new(BASE64.decode_to_vec(&data[..len]).map_err(|_| wrong())?);
    let key = <[u8; 16]>::try_from(key.as_slice()).map_err(|_| wrong())?;
    Ok(Zeroizing::new(key))
}

/// Creates a key file: the internal key encrypted under a password, with a new vector, as compact JSON without a line feed.
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

/// Changes the password: replaces each key file that the old password opens with a new one that has the same internal key.
/// Objects and index do not change.
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
        Ok(Step::Install(temp, place))
    };
    stage.commit(opened.into_iter().map(place).collect::<Result<_>>()?)
}

/// Creates an empty library: key file, index, the music folder, and the file that records its path.
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
        Step::Install(kept, prefix::KEPT.into()),
        Step::Install(index, name(&options.index, "music.index").into()),
        Step::Install(key, name(&options.key, "key").into()),
    ])
}
