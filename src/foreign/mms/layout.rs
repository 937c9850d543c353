//! Where the parts of a library are, its key file, and making one (format page, 1.1 to 1.3).

use std::fs;
use std::path::Path;

use base64_simd::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::cipher::random_iv;
use super::super::stage::{Stage, Step};
use super::{Index, index, parse_iv, password_key};
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
    /// The folder of music, ending in a slash.
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
    /// The folder of the objects, ending in a slash; empty where they lie at the top.
    pub prefix: String,
}

/// The key file.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    data: String,
    iv: String,
}

impl Layout {
    /// Finds key file and index, where they were not named.
    pub fn find(root: &Path, options: &Options) -> Result<Self> {
        let key = match &options.key {
            Some(key) => key.clone(),
            None => one(root, "key file", "mms-key", is_key_file)?,
        };
        let index = match &options.index {
            Some(index) => index.clone(),
            None => one(root, "index", "mms-index", is_index)?,
        };
        for name in [&key, &index] {
            if !super::super::stage::is_confined(Path::new(name)) {
                return Err(Error::usage(format_args!(
                    "{name}: no name of a file in the library"
                )));
            }
        }
        Ok(Self {
            key,
            index,
            prefix: String::new(),
        })
    }

    /// Finds the folder of music, where it was not named: that of the objects in the index, else the one in which
    /// there are objects, else the only one, else the server's usual.
    pub fn with_prefix(mut self, root: &Path, options: &Options, index: &Index) -> Result<Self> {
        if let Some(path) = &options.path {
            let path = path.trim_end_matches('/');
            let valid = path.is_empty() || super::super::stage::is_confined(Path::new(path));
            if !valid {
                return Err(Error::usage(format_args!(
                    "{path}: no folder in the library"
                )));
            }
            self.prefix = if path.is_empty() {
                String::new()
            } else {
                format!("{path}/")
            };
            return Ok(self);
        }
        if let Some(record) = index.records().next() {
            let object = &*record.object;
            self.prefix = object
                .rfind('/')
                .map_or("", |end| &object[..=end])
                .to_string();
            return Ok(self);
        }
        let at = |e| Error::io(e, root);
        let (mut folders, mut with_objects) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(root).map_err(at)? {
            let entry = entry.map_err(at)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name == super::super::stage::STAGE_DIR || !entry.path().is_dir() {
                continue;
            }
            let objects = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            if objects
                .map(|o| o.file_name())
                .any(|o| is_object_name(&o.to_string_lossy()))
            {
                with_objects.push(name.clone());
            }
            folders.push(name);
        }
        self.prefix = match (with_objects.as_slice(), folders.as_slice()) {
            ([one], _) | ([], [one]) => format!("{one}/"),
            ([], []) => "music/".into(),
            _ => {
                let names = folders.join(", ");
                return Err(
                    Error::usage(format_args!("which folder holds the music: {names}?"))
                        .hint("say it with -o mms-path=FOLDER/"),
                );
            }
        };
        Ok(self)
    }

    /// Whether this is an encrypted object, which is shown under its original name or not at all.
    pub fn is_object(&self, path: &Path) -> bool {
        let name = path
            .to_str()
            .and_then(|path| path.strip_prefix(&*self.prefix));
        name.is_some_and(is_object_name)
    }
}

fn is_object_name(name: &str) -> bool {
    let digest = name.strip_suffix(".encrypt").unwrap_or("").as_bytes();
    digest.len() == 32
        && digest
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The one file at the top of the library that is such a one.
fn one(root: &Path, what: &str, option: &str, is: fn(&Path) -> bool) -> Result<String> {
    let at = |e| Error::io(e, root);
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(at)? {
        let entry = entry.map_err(at)?;
        if is(&entry.path())
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(name);
        }
    }
    found.sort();
    match found.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Error::new(Kind::NotLibrary, root.display()).hint(format_args!(
            "no file at its top is the {what} of a Minio Music Server; -o {option}=NAME names one elsewhere"
        ))),
        names => Err(Error::usage(format_args!(
            "{}: more than one file could be its {what}: {}", root.display(), names.join(", ")
        ))
        .hint(format_args!("say it with -o {option}=NAME"))),
    }
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

/// Whether this is an index: its first line says so.
pub fn is_index(path: &Path) -> bool {
    let Ok((file, len)) = super::super::open_file(path) else {
        return false;
    };
    let mut head = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
    if super::super::read_at(&file, 0, &mut head).is_err() {
        return false;
    }
    let end = head.iter().position(|b| *b == b'\n').unwrap_or(head.len());
    serde_json::from_slice::<index::Header>(&head[..end]).is_ok()
}

/// The library's internal key, out of its key file (format page, 1.3).
pub fn read_key(path: &Path, password: &[u8]) -> Result<Zeroizing<[u8; 16]>> {
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

/// Changes the password: the same internal key in a new key file. Objects and index stay as they are.
pub fn passwd(
    root: &Path,
    options: &Options,
    old: &[u8],
    new: impl FnOnce() -> Result<Zeroizing<Vec<u8>>>,
) -> Result<()> {
    let stage = Stage::open(root)?;
    let name = match &options.key {
        Some(name) => name.clone(),
        None => one(root, "key file", "mms-key", is_key_file)?,
    };
    let internal = read_key(&root.join(&name), old)?;
    let temp = stage.create_with(&wrap_key(&internal, &new()?)?)?;
    stage.commit(vec![Step::Place(temp, name.into())])
}

/// Makes an empty library: key file, index, and the folder of music.
pub fn init(root: &Path, options: &Options, password: &[u8]) -> Result<()> {
    fs::create_dir_all(root).map_err(|e| Error::io(e, root))?;
    let stage = Stage::open(root)?;
    let mut internal = Zeroizing::new([0; 16]);
    crate::crypto::random(&mut *internal)?;
    let key = stage.create_with(&wrap_key(&internal, password)?)?;
    let index = stage.create_with(&index::empty())?;
    let name = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.into());
    let folder = root.join(name(&options.path, "music/"));
    fs::create_dir_all(&folder).map_err(|e| Error::io(e, &folder))?;
    stage.commit(vec![
        Step::Place(index, name(&options.index, "music.index").into()),
        Step::Place(key, name(&options.key, "key").into()),
    ])
}
