//! Slots: the master key, encrypted under a password or a key file (`man/hushfs-format.5`: SLOTS).

use std::time::{SystemTime, UNIX_EPOCH};

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::aead::{SEAL_OVERHEAD, SealKey};
use super::kdf::stretch;
use super::{HEADER_LEN, Header, KdfParams, Magic, MasterKey, random};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, SlotId};

#[cfg(test)]
mod tests;

/// Bytes of a slot file.
pub const SLOT_LEN: usize = CHECKSUM.end;
/// The shortest key file, in bytes: as long as the master key.
pub const KEY_FILE_LEN_MIN: usize = 32;
/// The longest key file, in bytes.
pub const KEY_FILE_LEN_MAX: usize = 64 * 1024;
/// The longest label, in bytes of UTF-8.
pub const LABEL_LEN_MAX: usize = 63;

const KIND: std::ops::Range<usize> = HEADER_LEN..HEADER_LEN + 4;
const MEMORY: std::ops::Range<usize> = KIND.end..KIND.end + 4;
const PASSES: std::ops::Range<usize> = MEMORY.end..MEMORY.end + 4;
const LANES: std::ops::Range<usize> = PASSES.end..PASSES.end + 4;
const CREATED: std::ops::Range<usize> = LANES.end..LANES.end + 8;
const SALT: std::ops::Range<usize> = CREATED.end..CREATED.end + 32;
const WRAPPED: std::ops::Range<usize> = SALT.end..SALT.end + 32 + SEAL_OVERHEAD;
const LABEL: std::ops::Range<usize> = WRAPPED.end..WRAPPED.end + 1 + LABEL_LEN_MAX + SEAL_OVERHEAD;
const MAC: std::ops::Range<usize> = LABEL.end..LABEL.end + 32;
const CHECKSUM: std::ops::Range<usize> = MAC.end..MAC.end + 32;

/// A password or key, given by the user to open a library.
pub enum Secret {
    /// A password: bytes of UTF-8, or whatever a password file holds.
    Password(Zeroizing<Vec<u8>>),
    /// The contents of a key file: [`KEY_FILE_LEN_MIN`] to [`KEY_FILE_LEN_MAX`] bytes.
    KeyFile(Zeroizing<Vec<u8>>),
}

impl Secret {
    /// The kind of slot that it can open.
    pub fn kind(&self) -> SlotKind {
        match self {
            Secret::Password(_) => SlotKind::Password,
            Secret::KeyFile(_) => SlotKind::KeyFile,
        }
    }
}

/// The kind of secret that opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// A password.
    Password,
    /// A key file.
    KeyFile,
}

/// A parsed slot that is not opened. Its contents are authentic only after [`Slot::verify`] or [`Slot::open`] succeeds.
pub struct Slot {
    /// Its id, which is also its file's name.
    pub id: SlotId,
    /// The kind of secret that opens it.
    pub kind: SlotKind,
    /// The costs of Argon2id; `None` for a key file.
    pub kdf: Option<KdfParams>,
    /// When it was created, in seconds since 1970, by the clock of the machine that created it.
    pub created: u64,
    header: Header,
    bytes: Box<[u8; SLOT_LEN]>,
}

impl Slot {
    /// Creates a slot, and returns the contents of its file. `kdf` is used for passwords only. The label, at most
    /// [`LABEL_LEN_MAX`] bytes, is the user's name for the slot; it is encrypted.
    ///
    /// Fails with [`Kind::Usage`] if the costs are out of bounds, the label is too long, or the key file has a wrong length.
    pub fn seal(
        id: SlotId,
        master: &MasterKey,
        secret: &Secret,
        kdf: KdfParams,
        label: &str,
    ) -> Result<Vec<u8>> {
        if label.len() > LABEL_LEN_MAX {
            return Err(Error::usage(format_args!(
                "the label has {} bytes; {LABEL_LEN_MAX} are allowed",
                label.len()
            )));
        }
        let header = Header::new(Magic::Slot, id.object());
        let kdf = (secret.kind() == SlotKind::Password).then_some(kdf);
        let mut salt = [0; 32];
        random(&mut salt)?;
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let KdfParams {
            memory_kib,
            passes,
            lanes,
        } = kdf.unwrap_or(KdfParams {
            memory_kib: 0,
            passes: 0,
            lanes: 0,
        });

        let mut bytes = Vec::with_capacity(SLOT_LEN);
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&kind_number(secret.kind()).to_le_bytes());
        for cost in [memory_kib, passes, lanes] {
            bytes.extend_from_slice(&cost.to_le_bytes());
        }
        bytes.extend_from_slice(&created.to_le_bytes());
        bytes.extend_from_slice(&salt);
        wrapping_key(&header, secret, kdf, &salt)?.seal(b"", &[master.bytes()], &mut bytes)?;
        let mut padded = [0; 1 + LABEL_LEN_MAX];
        padded[0] = label.len() as u8;
        padded[1..=label.len()].copy_from_slice(label.as_bytes());
        master
            .object_key(&header)
            .seal(b"", &[&padded], &mut bytes)?;
        let mac = mac_of(master, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        debug_assert_eq!(bytes.len(), SLOT_LEN);
        Ok(bytes)
    }

    /// Parses the contents of a slot's file. Fails with [`Kind::Damaged`] if it was changed, or if its Argon2id costs
    /// exceed the fixed bounds (1 GiB, 64 passes, 64 lanes, 8 GiB times passes), and with [`Kind::Unsupported`] if it is of
    /// a later version.
    pub fn parse(id: SlotId, bytes: &[u8]) -> Result<Self> {
        let name = name_of(id);
        let damaged = |check: &str| Err(Error::damaged(&name, check));
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return damaged("it is too short for a slot");
        };
        let header = Header::decode(header, Magic::Slot, id.object(), &name)?;
        let Ok(bytes) = <&[u8; SLOT_LEN]>::try_from(bytes) else {
            return damaged(&format!(
                "it has {} bytes, where a slot has {SLOT_LEN}",
                bytes.len()
            ));
        };
        if Sha256::digest(&bytes[..CHECKSUM.start])[..] != bytes[CHECKSUM] {
            return damaged("its checksum does not match");
        }
        let costs = KdfParams {
            memory_kib: u32_at(bytes, MEMORY),
            passes: u32_at(bytes, PASSES),
            lanes: u32_at(bytes, LANES),
        };
        let (kind, kdf) = match u32_at(bytes, KIND) {
            1 => (SlotKind::Password, Some(costs)),
            2 => (SlotKind::KeyFile, None),
            other => return damaged(&format!("its kind is number {other}")),
        };
        if let Some(Err(check)) = kdf.map(|costs| costs.check()) {
            return damaged(&check);
        }
        let created = u64::from(u32_at(bytes, CREATED.start..CREATED.start + 4))
            | u64::from(u32_at(bytes, CREATED.start + 4..CREATED.end)) << 32;
        Ok(Self {
            id,
            kind,
            kdf,
            created,
            header,
            bytes: Box::new(*bytes),
        })
    }

    /// The id in the header of a complete slot, whatever the name of its file.
    pub fn named(bytes: &[u8]) -> Option<SlotId> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let id = SlotId(Header::id_of(header, Magic::Slot)?);
        Self::parse(id, bytes).is_ok().then_some(id)
    }

    /// Whether the slot's header allows this version to write to the library.
    pub fn writable(&self) -> bool {
        self.header.writable()
    }

    /// Decrypts the master key. Fails with [`Kind::WrongKey`] if the secret is not this slot's, and with [`Kind::Damaged`]
    /// if it is, but the slot was changed. With a password and the default costs, this takes 0.1 s and 64 MiB.
    pub fn open(&self, secret: &Secret) -> Result<MasterKey> {
        let wrong = || Error::new(Kind::WrongKey, name_of(self.id));
        if secret.kind() != self.kind {
            return Err(wrong());
        }
        let key = wrapping_key(&self.header, secret, self.kdf, &self.bytes[SALT])?;
        let master = MasterKey::with(|master| {
            if key.open(b"", &self.bytes[WRAPPED], master) {
                Ok(())
            } else {
                Err(wrong())
            }
        })?;
        self.verify(&master)?;
        Ok(master)
    }

    /// Checks the slot's MAC with the library's master key. Fails with [`Kind::Damaged`] if the slot was changed, or is
    /// another library's.
    pub fn verify(&self, master: &MasterKey) -> Result<()> {
        mac_of(master, &self.bytes[..MAC.start])
            .verify_slice(&self.bytes[MAC])
            .map_err(|_| {
                Error::damaged(
                    name_of(self.id),
                    "it was not written with this library's key",
                )
                .hint("remove the file, unless you know where it comes from")
            })
    }

    /// The slot's label, which may be empty. Verifies the slot.
    pub fn label(&self, master: &MasterKey) -> Result<String> {
        self.verify(master)?;
        let mut padded = [0; 1 + LABEL_LEN_MAX];
        let label = master
            .object_key(&self.header)
            .open(b"", &self.bytes[LABEL], &mut padded)
            .then(|| padded[1..].get(..usize::from(padded[0])))
            .flatten();
        let text = label.and_then(|label| std::str::from_utf8(label).ok());
        text.map(str::to_string)
            .ok_or_else(|| Error::damaged(name_of(self.id), "its label cannot be decrypted"))
    }
}

/// The name of a slot in messages.
fn name_of(id: SlotId) -> String {
    format!("{}/{id}", Area::Key.name())
}

fn kind_number(kind: SlotKind) -> u32 {
    match kind {
        SlotKind::Password => 1,
        SlotKind::KeyFile => 2,
    }
}

fn u32_at(bytes: &[u8; SLOT_LEN], range: std::ops::Range<usize>) -> u32 {
    u32::from_le_bytes(bytes[range].try_into().expect("a field of 4 bytes"))
}

fn mac_of(master: &MasterKey, message: &[u8]) -> Hmac<Sha256> {
    let key = master.derive("hushfs slot mac", &[]);
    let mut mac = Hmac::<Sha256>::new_from_slice(&*key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac
}

/// The key that encrypts the master key. A password, which could be guessed, is first stretched with Argon2id. HKDF makes
/// the result depend on the header.
fn wrapping_key(
    header: &Header,
    secret: &Secret,
    kdf: Option<KdfParams>,
    salt: &[u8],
) -> Result<SealKey> {
    let stretched;
    let input: &[u8] = match (secret, kdf) {
        (Secret::Password(password), Some(kdf)) => {
            stretched = stretch(password, kdf, salt)?;
            &*stretched
        }
        (Secret::KeyFile(file), None) => {
            if !(KEY_FILE_LEN_MIN..=KEY_FILE_LEN_MAX).contains(&file.len()) {
                return Err(Error::usage(format_args!(
                    "a key file has {KEY_FILE_LEN_MIN} to {KEY_FILE_LEN_MAX} bytes; this one has {}",
                    file.len()
                )));
            }
            file
        }
        _ => return Err(Kind::WrongKey.into()),
    };
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(salt), input)
        .expand_multi_info(&[b"hushfs slot wrap", &[0], &header.encode()], &mut *key)
        .expect("32 bytes are below HKDF's limit of 8160");
    Ok(SealKey::new(&key))
}
