//! The decoder and the encoder, written from the page alone: lengths, offsets and derivations are what its tables say.

use aes::{Aes128, Aes256};
use base64_simd::{STANDARD, URL_SAFE};
use cbc::cipher::array::Array;
use cbc::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use hmac::{Hmac, Mac};
use md5::Md5;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::page::*;

pub type Json = Map<String, Value>;

/// AES, block for block.
enum Aes {
    Short(Box<Aes128>),
    Long(Box<Aes256>),
}

impl Aes {
    fn new(key: &[u8]) -> Self {
        match key.len() {
            16 => Self::Short(Box::new(Aes128::new_from_slice(key).unwrap())),
            _ => Self::Long(Box::new(Aes256::new_from_slice(key).unwrap())),
        }
    }

    fn decrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut block = Array::from(block);
        match self {
            Self::Short(aes) => aes.decrypt_block(&mut block),
            Self::Long(aes) => aes.decrypt_block(&mut block),
        }
        block.into()
    }

    fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut block = Array::from(block);
        match self {
            Self::Short(aes) => aes.encrypt_block(&mut block),
            Self::Long(aes) => aes.encrypt_block(&mut block),
        }
        block.into()
    }
}

fn xor(a: [u8; 16], b: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

/// CBC and PKCS#7.
pub fn decrypt(key: &[u8], vector: &[u8], cipher: &[u8]) -> Vec<u8> {
    let (aes, mut chain) = (Aes::new(key), vector.try_into().unwrap());
    let (blocks, rest) = cipher.as_chunks::<16>();
    assert!(rest.is_empty() && !blocks.is_empty(), "no whole blocks");
    let mut plain = Vec::new();
    for block in blocks {
        plain.extend(xor(aes.decrypt(*block), chain));
        chain = *block;
    }
    let pad = usize::from(*plain.last().unwrap());
    assert!((1..=16).contains(&pad), "no padding");
    let padding = plain.split_off(plain.len() - pad);
    assert!(padding.iter().all(|b| usize::from(*b) == pad), "no padding");
    plain
}

pub fn encrypt(key: &[u8], vector: &[u8], plain: &[u8]) -> Vec<u8> {
    let (aes, mut chain) = (Aes::new(key), vector.try_into().unwrap());
    let mut padded_plain = plain.to_vec();
    let pad = padded(plain.len()) - plain.len();
    padded_plain.extend(std::iter::repeat_n(pad as u8, pad));
    let mut cipher = Vec::new();
    for block in padded_plain.as_chunks::<16>().0 {
        chain = aes.encrypt(xor(*block, chain));
        cipher.extend(chain);
    }
    cipher
}

pub fn padded(n: usize) -> usize {
    assert_formula("padded(n) = 16 (floor(n / 16) + 1)");
    16 * (n / 16 + 1)
}

/// The key that a row of a table derives from a secret: hash, bytes of that, cipher.
fn derived(row: &[String], secret: &[u8]) -> Vec<u8> {
    assert!(row[1].starts_with("SHA-256 of the "), "{row:?}");
    let hash = Sha256::digest(secret);
    let (first, last) = row[2]
        .strip_prefix("bytes ")
        .unwrap()
        .split_once(" to ")
        .unwrap();
    let key = &hash[first.parse().unwrap()..=last.parse().unwrap()];
    assert_eq!(row[3], format!("AES-{}", 8 * key.len()));
    key.to_vec()
}

/// Compact JSON, and its members in the order of the page.
fn json(text: &[u8], members: &[String]) -> Json {
    let object: Json = serde_json::from_slice(text).unwrap();
    let compact = serde_json::to_vec(&object).unwrap();
    assert_eq!(
        std::str::from_utf8(text),
        std::str::from_utf8(&compact),
        "compact"
    );
    assert!(object.keys().eq(members), "{:?}", object.keys());
    object
}

pub fn text<'a>(object: &'a Json, name: &str) -> &'a str {
    object[name].as_str().unwrap()
}

fn base64(object: &Json, name: &str) -> Vec<u8> {
    STANDARD.decode_to_vec(text(object, name)).unwrap()
}

pub fn md5_hex(bytes: &[u8]) -> String {
    crate::page::hex(&Md5::digest(bytes))
}

// Minio Music Server.

pub fn music_password_key(password: &[u8]) -> Vec<u8> {
    derived(&row("music keys", "password key"), password)
}

pub fn music_internal_key(password: &[u8], key_file: &[u8]) -> Vec<u8> {
    let len = |name: &str| number("music numbers", name);
    assert_eq!(key_file.len(), len("key_file_len"));
    let members = json(key_file, &column("music key file", 0));
    let data = base64(&members, "data");
    assert_eq!(data.len(), len("key_data_len"));
    let inner = decrypt(
        &music_password_key(password),
        &base64(&members, "iv"),
        &data,
    );
    assert_eq!(inner.len(), len("key_text_len"));
    STANDARD.decode_to_vec(&inner).unwrap()
}

/// The bytes of an object by the page's formula.
pub fn music_object_len(n: usize) -> usize {
    assert_formula("1024 floor(n / 1008) + (padded(r), or 0 if r = 0)");
    let r = n % 1008;
    1024 * (n / 1008) + if r == 0 { 0 } else { padded(r) }
}

pub fn music_object(key: &[u8], vector: &[u8], stored: &[u8]) -> Vec<u8> {
    let segments = stored.chunks(number("music numbers", "segment_cipher_len"));
    segments
        .flat_map(|segment| decrypt(key, vector, segment))
        .collect()
}

pub fn music_object_of(key: &[u8], vector: &[u8], plain: &[u8]) -> Vec<u8> {
    let segments = plain.chunks(number("music numbers", "segment_plain_len"));
    segments
        .flat_map(|segment| encrypt(key, vector, segment))
        .collect()
}

/// The generation of an index, and its records in the order of their lines.
pub fn music_index(key: &[u8], index: &[u8]) -> (u64, Vec<Json>) {
    let index = std::str::from_utf8(index).unwrap();
    assert!(index.is_ascii() && index.ends_with('\n'));
    let mut lines = index.lines();
    let header = json(lines.next().unwrap().as_bytes(), &column("music header", 0));
    assert!(row("music header", "version")[1].starts_with(&header["version"].to_string()));
    let records: Vec<Json> = lines
        .map(|line| music_record(key, line.as_bytes()))
        .collect();
    assert_eq!(header["registers"], records.len());
    (header["id"].as_u64().unwrap(), records)
}

fn music_record(key: &[u8], line: &[u8]) -> Json {
    let line = json(line, &column("music key file", 0));
    let plain = decrypt(key, &base64(&line, "iv"), &base64(&line, "data"));
    let (always, titles) = (column("music record", 0), column("music titles", 0));
    let found: Json = serde_json::from_slice(&plain).unwrap();
    let told = titles.iter().filter(|name| found.contains_key(*name));
    let order: Vec<String> = always.iter().chain(told).cloned().collect();
    let record = json(&plain, &order);
    assert_eq!(record["iv"], line["iv"]);
    let is_audio = music_extensions("audio").contains(&text(&record, "extension").to_string());
    for (name, kind) in table("music titles")
        .iter()
        .map(|row| (&row[0], row[1].as_str()))
    {
        let is_told = record.contains_key(name);
        assert!(is_audio || !is_told, "{record:?}");
        let may_be_null = kind == "number or null";
        assert!(!may_be_null || is_told == is_audio, "{name}");
        let value = record.get(name).unwrap_or(&Value::Null);
        assert!(!is_told || may_be_null || !value.is_null(), "{name}");
        let fits = match kind.split([' ', ':']).next().unwrap() {
            "text" => value.is_string(),
            "true" => value.is_boolean(),
            _ => value.is_number(),
        };
        assert!(fits || value.is_null(), "{name}: {value}");
    }
    let path = text(&record, "path");
    let extension = path.rsplit('.').next().unwrap().to_lowercase();
    assert_eq!(text(&record, "extension"), extension);
    record
}

pub fn music_extensions(kind: &str) -> Vec<String> {
    let row = row("music extensions", kind);
    row[1].split(' ').map(Into::into).collect()
}

/// The vector of a record's object.
pub fn music_vector(record: &Json) -> Vec<u8> {
    base64(record, "iv")
}

// Cassandra Medusa.

/// The signing key and the encryption key.
pub struct MedusaKey(pub Vec<u8>, pub Vec<u8>);

impl MedusaKey {
    pub fn new(key_secret_base64: &str) -> Self {
        let bytes = STANDARD.decode_to_vec(key_secret_base64).unwrap();
        let part = |what: &str| bytes[range("medusa key", what)].to_vec();
        assert_eq!(bytes.len(), 32);
        Self(part("signing key"), part("encryption key"))
    }

    fn mac(&self, signed: &[u8]) -> Vec<u8> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).unwrap();
        mac.update(signed);
        mac.finalize().into_bytes().to_vec()
    }

    /// A token, opened: its time, its vector, its chunk.
    pub fn open(&self, token: &[u8]) -> (u64, Vec<u8>, Vec<u8>) {
        let bytes = URL_SAFE.decode_to_vec(token).unwrap();
        assert_eq!(
            URL_SAFE.encode_to_string(&bytes).as_bytes(),
            token,
            "canonical"
        );
        let version = &bytes[range("medusa token", "version")];
        assert_eq!(
            format!("version: 0x{}", crate::page::hex(version)),
            table("medusa token")[0][2]
        );
        let (at, mac_len) = place("medusa token", "HMAC");
        assert_eq!(at, format!("{}+c", place("medusa token", "ciphertext").0));
        let (signed, mac) = bytes.split_at(bytes.len() - mac_len.parse::<usize>().unwrap());
        assert_eq!(self.mac(signed), mac, "authentic");
        let time = &bytes[range("medusa token", "time")];
        let time = time.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let vector = &bytes[range("medusa token", "vector")];
        let cipher = &signed[place("medusa token", "ciphertext").0.parse().unwrap()..];
        (time, vector.to_vec(), decrypt(&self.1, vector, cipher))
    }

    /// A frame of a chunk.
    pub fn frame(&self, time: u64, vector: &[u8], chunk: &[u8]) -> Vec<u8> {
        let head_len = place("medusa token", "ciphertext").0.parse().unwrap();
        let mut token = vec![0; head_len];
        token[range("medusa token", "version")].copy_from_slice(&[0x80]);
        token[range("medusa token", "time")].copy_from_slice(&time.to_be_bytes());
        token[range("medusa token", "vector")].copy_from_slice(vector);
        token.extend(encrypt(&self.1, vector, chunk));
        token.extend(self.mac(&token));
        let token = URL_SAFE.encode_to_string(&token);
        let mut frame = (token.len() as u32).to_be_bytes().to_vec();
        frame.extend(token.as_bytes());
        frame
    }

    /// A file of frames: its plaintext, and the time and the vector of each frame.
    pub fn file(&self, mut stored: &[u8]) -> (Vec<u8>, Vec<(u64, Vec<u8>)>) {
        let (mut plain, mut heads, mut is_full) = (Vec::new(), Vec::new(), true);
        while !stored.is_empty() {
            let (length, rest) = stored.split_at(range("medusa frame", "length").end);
            let len = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
            let (token, rest) = rest.split_at(len);
            let (time, vector, chunk) = self.open(token);
            assert_eq!(4 + len, medusa_frame_len(chunk.len()));
            assert!(is_full && !chunk.is_empty(), "a short chunk inside");
            is_full = chunk.len() == number("medusa numbers", "chunk_len");
            plain.extend(chunk);
            heads.push((time, vector));
            stored = rest;
        }
        (plain, heads)
    }

    pub fn file_of(&self, time: u64, vector: &[u8], plain: &[u8]) -> Vec<u8> {
        let chunks = plain.chunks(number("medusa numbers", "chunk_len"));
        chunks
            .flat_map(|chunk| self.frame(time, vector, chunk))
            .collect()
    }
}

/// The bytes of a frame by the page's formula.
pub fn medusa_frame_len(n: usize) -> usize {
    assert_formula("4 + 4 ceil((57 + padded(n)) / 3)");
    4 + 4 * (57 + padded(n)).div_ceil(3)
}

/// The objects that a manifest names, members as the page lists them.
pub fn medusa_manifest(bytes: &[u8]) -> Vec<Json> {
    let manifest: Vec<Json> = serde_json::from_slice(bytes).unwrap();
    let mut objects = Vec::new();
    for part in &manifest {
        assert!(part.keys().eq(column("medusa table", 0).iter()), "{part:?}");
        for object in part["objects"].as_array().unwrap() {
            let object = object.as_object().unwrap().clone();
            assert!(
                object.keys().eq(column("medusa object", 0).iter()),
                "{object:?}"
            );
            let table = format!("{}/{}/", text(part, "keyspace"), text(part, "columnfamily"));
            assert!(text(&object, "path").contains(&table), "{object:?}");
            objects.push(object);
        }
    }
    let spaced = serde_json::to_string(&manifest).unwrap();
    let spaced = spaced.replace("\":", "\": ").replace(",\"", ", \"");
    let spaced = spaced.replace("},{", "}, {");
    assert_eq!(
        std::str::from_utf8(bytes).unwrap(),
        spaced,
        "as Python writes it"
    );
    objects
}

// The prompt-nest image store.

pub fn store_key(text: &[u8]) -> Vec<u8> {
    derived(&row("store key", "key"), text)
}

pub fn store_image(key: &[u8], stored: &[u8]) -> Vec<u8> {
    let cipher = &stored[place("image", "ciphertext").0.parse().unwrap()..];
    decrypt(key, &stored[range("image", "vector")], cipher)
}

pub fn store_image_of(key: &[u8], vector: &[u8], plain: &[u8]) -> Vec<u8> {
    assert_eq!(place("image", "ciphertext").0, vector.len().to_string());
    [vector, &encrypt(key, vector, plain)].concat()
}

pub fn store_description(bytes: &[u8]) -> Json {
    json(bytes, &column("image meta", 0))
}
