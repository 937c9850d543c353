//! The lines of an index: each is a record, encrypted with its own initialisation vector
//! (`man/hushfs-foreign.5`: Music index, Music records).

use std::borrow::Cow;
use std::path::Path;

use base64_simd::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::index::Record;
use super::{parse_iv, to_json};
use crate::error::{Kind, Result};
use crate::foreign::cipher::Key;
use crate::foreign::{open_file, read_at};

/// The largest integer that JavaScript represents exactly; larger lengths are rejected.
const FILE_SIZE_MAX: u64 = (1 << 53) - 1;

/// A line of the index.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    data: Cow<'a, str>,
    #[serde(borrow)]
    iv: Cow<'a, str>,
}

/// The members of a record that are needed here.
#[derive(Deserialize)]
struct Wire<'a> {
    id: Option<f64>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    filesize: u64,
    #[serde(borrow)]
    iv: Cow<'a, str>,
    #[serde(borrow, rename = "nameEnc")]
    name_enc: Cow<'a, str>,
}

/// Whether `key` decrypts the first records of the index at `path`; `None` if it has none.
pub fn opens(path: &Path, key: &Key) -> Option<bool> {
    /// Most bytes and records that are tried.
    const LOOKED_AT: (u64, usize) = (1 << 16, 8);
    let (file, len) = open_file(path).ok()?;
    let mut head = vec![0; len.min(LOOKED_AT.0) as usize];
    read_at(&file, 0, &mut head).ok()?;
    let whole = head.iter().rposition(|b| *b == b'\n')?;
    let mut lines = head[..whole]
        .split(|b| *b == b'\n')
        .skip(1)
        .take(LOOKED_AT.1)
        .peekable();
    lines.peek()?;
    let mut plain = Vec::new();
    Some(lines.any(|line| parse_record(line, key, &mut plain).is_ok()))
}

/// Decrypts a line to the JSON of its record.
pub(super) fn open_line(line: &[u8], key: &Key, plain: &mut Vec<u8>) -> Result<(), String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let iv = parse_iv(&line.iv).ok_or("its vector is invalid")?;
    plain.clear();
    plain.extend_from_slice(line.data.as_bytes());
    let decoded = BASE64.decode_inplace(plain).map_err(|e| e.to_string())?;
    let len = decoded.len();
    plain.truncate(len);
    let len = key
        .decrypt_padded(&iv, plain)
        .ok_or("it cannot be decrypted with the library's key")?;
    plain.truncate(len);
    Ok(())
}

pub(super) fn parse_record(line: &[u8], key: &Key, plain: &mut Vec<u8>) -> Result<Record, String> {
    open_line(line, key, plain)?;
    let wire: Wire<'_> = serde_json::from_slice(plain).map_err(|e| format!("its record: {e}"))?;
    let iv = parse_iv(&wire.iv).ok_or_else(|| format!("{}: its vector is invalid", wire.path))?;
    if wire.filesize > FILE_SIZE_MAX {
        return Err(format!(
            "{}: no file has {} bytes",
            wire.path, wire.filesize
        ));
    }
    let id = wire.id.filter(|id| (0.0..9e15).contains(id)).unwrap_or(0.0) as u64;
    Ok(Record {
        id,
        path: (&*wire.path).into(),
        plain_size: wire.filesize,
        iv,
        object: (&*wire.name_enc).into(),
        at: 0,
        len: 0,
    })
}

/// Encrypts a record as a line, with the initialisation vector that the record holds.
pub fn seal_record(json: &Map<String, Value>, key: &Key) -> Result<Vec<u8>> {
    let text = json.get("iv").and_then(Value::as_str).unwrap_or_default();
    let iv = parse_iv(text).ok_or(Kind::InvalidArgument)?;
    let mut data = Vec::new();
    key.encrypt_padded(&iv, &to_json(json), &mut data);
    let line = Line {
        data: BASE64.encode_to_string(data).into(),
        iv: text.into(),
    };
    Ok(serde_json::to_vec(&line).expect("a line is JSON"))
}

/// The first line of an index without records.
pub fn empty() -> Vec<u8> {
    b"{\"version\":2,\"registers\":0,\"id\":1}\n".to_vec()
}
