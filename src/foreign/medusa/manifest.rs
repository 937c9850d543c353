//! Manifests, which list the objects of a backup (`man/hushfs-foreign.5`: Manifests), and JSON as Python writes it.

use std::io;
use std::path::Path;

use base64_simd::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};

/// The longest manifest that is read, in bytes: some million objects.
const MANIFEST_LEN_MAX: u64 = 512 << 20;

/// The entry of an object in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Object {
    /// The full name of the object.
    pub path: String,
    /// The digest of the stored object, in the form of the bucket's driver.
    #[serde(rename = "MD5")]
    pub md5: Option<String>,
    /// Bytes of the stored object.
    pub size: u64,
    /// The digest of the plaintext, in base64; `None` if the object is not encrypted.
    #[serde(rename = "source_MD5", default)]
    pub source_md5: Option<String>,
    /// Bytes of plaintext.
    #[serde(default)]
    pub source_size: Option<u64>,
}

/// A table's part of a manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Section {
    /// The keyspace.
    pub keyspace: String,
    /// The folder of the table.
    pub columnfamily: String,
    /// Its objects.
    pub objects: Vec<Object>,
}

impl Object {
    /// Whether it is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.source_md5.is_some()
    }

    /// Whether its length is that of frames with its contents.
    pub fn is_like_frames(&self) -> bool {
        let expected = self.source_size.map(super::frames::cipher_len);
        expected == Some(self.size)
    }

    /// The digest of the plaintext.
    pub fn source_digest(&self) -> Option<[u8; 16]> {
        digest(self.source_md5.as_deref()?)
    }

    /// The digest of the stored object; `None` for a multipart upload, whose digest cannot be computed here.
    pub fn stored_digest(&self) -> Option<[u8; 16]> {
        digest(self.md5.as_deref()?)
    }
}

/// A digest in hexadecimal or base64.
fn digest(text: &str) -> Option<[u8; 16]> {
    if text.len() == 32 {
        let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..16).map(|n| byte(2 * n)).collect();
        return bytes?.try_into().ok();
    }
    BASE64.decode_to_vec(text).ok()?.try_into().ok()
}

/// How a driver writes the digest of a stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestForm {
    /// Local storage, S3 and compatible ones.
    Hex,
    /// Google and Azure.
    Base64,
}

impl DigestForm {
    /// The form of existing objects.
    pub fn of<'a>(mut objects: impl Iterator<Item = &'a Object>) -> Self {
        let is_base64 = |o: &Object| {
            o.md5
                .as_ref()
                .is_some_and(|md5| md5.len() == 24 && md5.ends_with("=="))
        };
        if objects.any(is_base64) {
            Self::Base64
        } else {
            Self::Hex
        }
    }

    fn write(self, digest: &[u8; 16]) -> String {
        match self {
            Self::Hex => digest.iter().map(|b| format!("{b:02x}")).collect(),
            Self::Base64 => BASE64.encode_to_string(digest),
        }
    }
}

/// Reads a manifest.
pub fn read(path: &Path) -> Result<Vec<Section>> {
    let bytes = super::super::read_file(path, MANIFEST_LEN_MAX)?;
    parse(&bytes).map_err(|e| e.about(path.display()))
}

/// The same, of its bytes.
pub fn parse(bytes: &[u8]) -> Result<Vec<Section>> {
    let parsed = serde_json::from_slice(bytes);
    parsed.map_err(|e| Kind::Damaged(e.to_string().into()).into())
}

/// What Medusa records of an object that it has uploaded.
pub struct NewObject<'a> {
    /// The keyspace, and the folder of the table.
    pub table: (&'a str, &'a str),
    /// The full name.
    pub path: &'a str,
    /// Digest and length of the stored object.
    pub stored: ([u8; 16], u64),
    /// Digest and length of the plaintext.
    pub source: ([u8; 16], u64),
}

/// A manifest that is being changed. Unknown members are kept.
pub struct Draft(Value);

impl Draft {
    /// Reads the manifest at `path`; an empty one if it does not exist.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = match super::super::read_file(path, MANIFEST_LEN_MAX) {
            Err(e) if matches!(e.kind(), Kind::Missing) => {
                return Ok(Self(Value::Array(Vec::new())));
            }
            other => other?,
        };
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|e| Error::damaged(path.display(), e))?;
        if !value.is_array() {
            return Err(Error::damaged(path.display(), "it is no manifest"));
        }
        Ok(Self(value))
    }

    fn sections(&mut self) -> impl Iterator<Item = &mut Value> {
        self.0.as_array_mut().into_iter().flatten()
    }

    /// Removes and returns the entry of this name.
    pub fn take(&mut self, path: &str) -> Option<Value> {
        let is = |object: &Value| object["path"] == path;
        self.sections().find_map(|section| {
            let objects = section.get_mut("objects")?.as_array_mut()?;
            let at = objects.iter().position(is)?;
            Some(objects.remove(at))
        })
    }

    /// Adds an entry, replacing the one of the same name.
    pub fn put(&mut self, new: &NewObject<'_>, form: DigestForm) {
        let object = json!({
            "path": new.path,
            "MD5": form.write(&new.stored.0),
            "size": new.stored.1,
            "source_MD5": BASE64.encode_to_string(new.source.0),
            "source_size": new.source.1,
        });
        self.put_value(new.table, new.path, object);
    }

    /// The same for an existing entry, whose name becomes `path`.
    pub fn put_value(&mut self, table: (&str, &str), path: &str, mut object: Value) {
        object["path"] = path.into();
        let is = |section: &&mut Value| {
            section["keyspace"] == table.0 && section["columnfamily"] == table.1
        };
        if self.sections().all(|mut section| !is(&mut section)) {
            let section = json!({ "keyspace": table.0, "columnfamily": table.1, "objects": [] });
            self.0
                .as_array_mut()
                .into_iter()
                .for_each(|sections| sections.push(section.clone()));
        }
        let objects = self
            .sections()
            .find(is)
            .and_then(|section| section.get_mut("objects"));
        let Some(objects) = objects.and_then(Value::as_array_mut) else {
            return;
        };
        match objects.iter_mut().find(|object| object["path"] == path) {
            Some(old) => *old = object,
            None => objects.push(object),
        }
    }

    /// The bytes of the manifest, as Python's `json.dumps` writes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Python);
        self.0.serialize(&mut serializer).expect("a value is JSON");
        bytes
    }

    /// The tables and their objects.
    pub fn objects(&self) -> Vec<Section> {
        serde_json::from_value(self.0.clone()).unwrap_or_default()
    }
}

/// Formats JSON as Python does: blanks after commas and colons, and ASCII only.
struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if c.is_ascii() && c != '\x7f' {
                writer.write_all(&[c as u8])?;
                continue;
            }
            if c == '\x7f' {
                writer.write_all(b"\x7f")?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}
