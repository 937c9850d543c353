//! The encrypted index: an unencrypted first line, then one encrypted record per line (`man/hushfs-foreign.5`: Music index).

use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::cipher::{Iv, Key};
use super::super::stage::is_confined;
pub use super::lines::{empty, opens, seal_record};
use super::lines::{open_line, parse_record};
use crate::error::{Error, Kind, Result};

/// The longest index that is read, in bytes: a million records of a kilobyte.
const INDEX_LEN_MAX: u64 = 1 << 30;
/// The first line.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Header {
    /// 1 if nothing is encrypted, otherwise 2.
    pub version: u64,
    /// The number of lines that follow.
    pub registers: u64,
    /// The generation of the index: clients read the index again when this changes.
    pub id: u64,
}

/// The record of a file.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number, which is not always unique.
    pub id: u64,
    /// Its original object name.
    pub path: Box<str>,
    /// Bytes of plaintext.
    pub plain_size: u64,
    /// The initialisation vector of its object, which is stored only here.
    pub iv: Iv,
    /// The name of its object.
    pub object: Box<str>,
    /// Offset of its line in the index.
    pub(super) at: usize,
    pub(super) len: usize,
}

/// A line whose file cannot be shown.
#[derive(Debug, Clone)]
pub struct Odd {
    /// The file's path, if the record can be decrypted.
    pub path: Option<Box<str>>,
    /// The name of its object.
    pub object: Option<Box<str>>,
    /// The reason, with its subject.
    pub why: Box<str>,
    /// Offset of the line in the index.
    at: usize,
}

/// The index in memory.
#[derive(Debug)]
pub struct Index {
    /// The first line.
    pub header: Header,
    records: Vec<Record>,
    by_path: HashMap<Box<str>, u32>,
    /// Created when it is first needed, which is rare.
    by_object: OnceCell<HashMap<Box<str>, u32>>,
    /// Lines whose files cannot be shown. They are kept.
    pub odd: Vec<Odd>,
    /// Faults of the index as a whole.
    pub faults: Vec<String>,
}

/// A change of the index.
pub enum Edit {
    /// Adds a record, or replaces the one of path `old`.
    Put {
        /// The path of the record to replace.
        old: Option<Box<str>>,
        /// The new record, with its members in the server's order.
        json: Map<String, Value>,
    },
    /// Removes the record of this path.
    Remove(Box<str>),
}

impl Index {
    /// Reads an index. Lines that cannot be decrypted are set aside; if no line can be decrypted, the key is wrong.
    pub fn read(path: &Path, key: &Key) -> Result<Self> {
        Self::parse(&super::super::read_file(path, INDEX_LEN_MAX)?, key)
            .map_err(|e| e.about(path.display()))
    }

    /// Parses the bytes of an index.
    pub fn parse(bytes: &[u8], key: &Key) -> Result<Self> {
        let first = bytes
            .iter()
            .position(|b| *b == b'\n')
            .unwrap_or(bytes.len());
        let header: Header = serde_json::from_slice(&bytes[..first])
            .map_err(|e| Kind::Damaged(format!("its first line does not parse: {e}").into()))?;
        match header.version {
            2 => {}
            1 => {
                let what = "this is an index of files that are not encrypted (version 1)";
                return Err(
                    Error::usage(what).hint("with encryption enabled, the server writes version 2")
                );
            }
            other => {
                return Err(
                    Kind::Unsupported(format!("an index of version {other}").into()).into(),
                );
            }
        }
        let mut index = Self {
            header,
            records: Vec::new(),
            by_path: HashMap::new(),
            by_object: OnceCell::new(),
            odd: Vec::new(),
            faults: Vec::new(),
        };
        let mut at = first + 1;
        let mut plain = Vec::new();
        while at < bytes.len() {
            let Some(len) = bytes[at..].iter().position(|b| *b == b'\n') else {
                index.faults.push("its last line is cut short".into());
                break;
            };
            index.take_line(&bytes[at..at + len], at, key, &mut plain);
            at += len + 1;
        }
        index.set_aside_children_of_files();
        let lines = (index.records.len() + index.odd.len()) as u64;
        if lines != header.registers {
            index.faults.push(format!(
                "it has {lines} records instead of {}",
                header.registers
            ));
        }
        let opens = !index.records.is_empty() || index.odd.iter().any(|odd| odd.path.is_some());
        if let Some(odd) = index.odd.first().filter(|_| !opens) {
            let check = format!(
                "no record can be decrypted with the key of this library ({})",
                odd.why
            );
            return Err(Kind::Damaged(check.into()).into());
        }
        for fault in &index.faults {
            log::warn!("the index: {fault}");
        }
        Ok(index)
    }

    fn take_line(&mut self, line: &[u8], at: usize, key: &Key, plain: &mut Vec<u8>) {
        let len = line.len();
        let mut odd = |path: Option<Box<str>>, object, why: String| {
            let why = why.into();
            self.odd.push(Odd {
                path,
                object,
                why,
                at,
            });
        };
        let record = match parse_record(line, key, plain) {
            Ok(record) => record,
            Err(why) => return odd(None, None, format!("the line at {at}: {why}")),
        };
        let why = if self.by_path.contains_key(&record.path) {
            Some(format!(
                "{}: named twice; the first record counts",
                record.path
            ))
        } else if !is_confined(Path::new(&*record.path)) {
            Some(format!("{}: not a possible name in a folder", record.path))
        } else if !is_confined(Path::new(&*record.object)) {
            let object = &record.object;
            Some(format!(
                "{}: the name of its object is not possible in a folder: {object:?}",
                record.path
            ))
        } else {
            None
        };
        if let Some(why) = why {
            return odd(Some(record.path), Some(record.object), why);
        }
        let number = self.records.len() as u32;
        self.by_path.insert(record.path.clone(), number);
        self.records.push(Record { at, len, ..record });
    }

    /// Sets aside files whose path goes through another file, which is possible in a bucket.
    fn set_aside_children_of_files(&mut self) {
        let by_path = &self.by_path;
        let file_above = |record: &Record| {
            let above = record
                .path
                .match_indices('/')
                .map(|(at, _)| &record.path[..at]);
            above
                .into_iter()
                .find(|path| by_path.contains_key(*path))
                .map(str::to_string)
        };
        let found: Vec<Option<String>> = self.records.iter().map(file_above).collect();
        if found.iter().all(Option::is_none) {
            return;
        }
        let records = std::mem::take(&mut self.records);
        self.by_path.clear();
        for (record, file) in records.into_iter().zip(found) {
            let Some(file) = file else {
                self.by_path
                    .insert(record.path.clone(), self.records.len() as u32);
                self.records.push(record);
                continue;
            };
            let why = format!("{}: cannot be shown, because {file} is a file", record.path);
            self.odd.push(Odd {
                path: Some(record.path),
                object: Some(record.object),
                why: why.into(),
                at: record.at,
            });
        }
        self.odd.sort_by_key(|odd| odd.at);
    }

    /// Whether nothing would be lost if the index were written again.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }

    /// All records, in the order of their lines in the index.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// The names of all objects, shown or not.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        let shown = self.records.iter().map(|record| &*record.object);
        shown.chain(self.odd.iter().filter_map(|odd| odd.object.as_deref()))
    }

    /// The record of a path.
    pub fn get(&self, path: &str) -> Option<&Record> {
        self.by_path
            .get(path)
            .and_then(|at| self.records.get(*at as usize))
    }

    /// The record whose object has this name.
    pub fn of_object(&self, object: &str) -> Option<&Record> {
        let by_object = self.by_object.get_or_init(|| {
            let numbered = self.records.iter().zip(0..);
            numbered
                .map(|(record, at)| (record.object.clone(), at))
                .collect()
        });
        by_object
            .get(object)
            .and_then(|at| self.records.get(*at as usize))
    }

    /// The number of the record of a path, or a new number.
    pub fn id_for(&self, path: &str) -> u64 {
        let next = || self.records.iter().map(|r| r.id + 1).max().unwrap_or(0);
        self.get(path).map_or_else(next, |record| record.id)
    }

    /// A record as it is in the index, with all its members.
    pub fn json(&self, file: &Path, key: &Key, path: &str) -> Result<Map<String, Value>> {
        let record = self.get(path).ok_or(Kind::NotFound)?;
        let (opened, _) = super::super::open_file(file)?;
        let mut line = vec![0; record.len];
        super::super::read_at(&opened, record.at as u64, &mut line)?;
        let mut plain = Vec::new();
        open_line(&line, key, &mut plain)
            .and_then(|()| serde_json::from_slice(&plain).map_err(|e| e.to_string()))
            .map_err(|why| Error::damaged(file.display(), why))
    }

    /// Applies `edits`: returns the bytes and the parsed form of the next generation. Other lines do not change.
    pub fn edited(&self, file: &Path, key: &Key, edits: Vec<Edit>) -> Result<(Vec<u8>, Self)> {
        let old = super::super::read_file(file, INDEX_LEN_MAX)?;
        let mut puts: HashMap<usize, Option<Vec<u8>>> = HashMap::new();
        let mut added = Vec::new();
        for edit in edits {
            match edit {
                Edit::Remove(path) => {
                    let record = self.get(&path).ok_or(Kind::NotFound)?;
                    puts.insert(record.at, None);
                }
                Edit::Put { old, json } => {
                    let line = seal_record(&json, key)?;
                    // It replaces a record whose file could not be shown.
                    let path = json.get("path").and_then(Value::as_str);
                    let hidden = self.odd.iter().filter(|odd| odd.path.as_deref() == path);
                    puts.extend(hidden.map(|odd| (odd.at, None)));
                    match old.and_then(|path| self.get(&path)) {
                        Some(record) => {
                            puts.insert(record.at, Some(line));
                        }
                        None => added.push(line),
                    }
                }
            }
        }
        let removed = puts.values().filter(|put| put.is_none()).count();
        let count = self.records.len() + self.odd.len() + added.len() - removed;
        let header = Header {
            registers: count as u64,
            id: self.header.id.saturating_add(1),
            ..self.header
        };
        let mut bytes = serde_json::to_vec(&header).expect("a header is JSON");
        bytes.push(b'\n');
        let mut index = self.emptied(header);
        self.copy_lines(&old, &mut puts, &mut bytes, &mut index, key);
        for line in added {
            index.append(&line, &mut bytes, key);
        }
        // The new index must have every line of the old one.
        let whole = (index.records.len() + index.odd.len()) as u64 == header.registers;
        if !puts.is_empty() || !whole {
            let changed = "was changed by another program while it is mounted";
            return Err(Error::new(Kind::Displaced(changed.into()), file.display())
                .hint("unmount and mount again"));
        }
        Ok((bytes, index))
    }

    fn emptied(&self, header: Header) -> Self {
        Self {
            header,
            records: Vec::with_capacity(self.records.len() + 1),
            by_path: HashMap::with_capacity(self.records.len() + 1),
            by_object: OnceCell::new(),
            odd: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Copies the lines of the old index, and replaces those in `puts`. Copied lines are not parsed again.
    fn copy_lines(
        &self,
        old: &[u8],
        puts: &mut HashMap<usize, Option<Vec<u8>>>,
        bytes: &mut Vec<u8>,
        index: &mut Self,
        key: &Key,
    ) {
        // Both are in the order of their lines, and together they are all lines.
        let (mut records, mut odd) = (self.records.iter().peekable(), self.odd.iter().peekable());
        let mut at = old
            .iter()
            .position(|b| *b == b'\n')
            .map_or(old.len(), |end| end + 1);
        while let Some(len) = old
            .get(at..)
            .and_then(|rest| rest.iter().position(|b| *b == b'\n'))
        {
            let line = &old[at..at + len];
            let record = records.next_if(|record| record.at == at && record.len == len);
            let other = odd.next_if(|odd| odd.at == at);
            match (puts.remove(&at), record, other) {
                (Some(None), ..) => {}
                (Some(Some(line)), ..) => index.append(&line, bytes, key),
                (None, Some(record), _) => {
                    let record = Record {
                        at: bytes.len(),
                        ..record.clone()
                    };
                    index
                        .by_path
                        .insert(record.path.clone(), index.records.len() as u32);
                    index.records.push(record);
                    bytes.extend_from_slice(line);
                    bytes.push(b'\n');
                }
                (None, None, other) => {
                    let unknown = || Odd {
                        path: None,
                        object: None,
                        why: "unknown".into(),
                        at,
                    };
                    let other = other.cloned().unwrap_or_else(unknown);
                    index.odd.push(Odd {
                        at: bytes.len(),
                        ..other
                    });
                    bytes.extend_from_slice(line);
                    bytes.push(b'\n');
                }
            }
            at += len + 1;
        }
    }

    fn append(&mut self, line: &[u8], bytes: &mut Vec<u8>, key: &Key) {
        self.take_line(line, bytes.len(), key, &mut Vec::new());
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
}
