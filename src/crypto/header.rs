//! The header of every object (`man/hushfs-format.5`: HEADER). Each of its bytes is an input of the object's key.

use crate::error::{Error, Kind, Result};
use crate::object::ObjectId;

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;
/// The format version that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Suite 1: AES-256-GCM, HKDF-SHA256, Argon2id.
pub const FORMAT_SUITE: u16 = 1;

/// The hint for an object of a later version.
const UPDATE: &str = "install a newer hushfs";

/// The kind of an object: its first 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// `HUSHSLOT`
    Slot,
    /// `HUSHINDX`
    Segment,
    /// `HUSHPACK`
    Pack,
}

impl Magic {
    /// The kind of an object that starts with `bytes`.
    pub fn from_bytes(bytes: &[u8; 8]) -> Option<Self> {
        [Magic::Slot, Magic::Segment, Magic::Pack]
            .into_iter()
            .find(|m| m.bytes() == bytes)
    }

    /// The first 8 bytes of such an object.
    pub fn bytes(self) -> &'static [u8; 8] {
        match self {
            Magic::Slot => b"HUSHSLOT",
            Magic::Segment => b"HUSHINDX",
            Magic::Pack => b"HUSHPACK",
        }
    }

    /// The name of this kind in messages.
    fn noun(self) -> &'static str {
        match self {
            Magic::Slot => "a slot",
            Magic::Segment => "an index segment",
            Magic::Pack => "a pack",
        }
    }
}

/// Feature bits of later versions. This version knows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Features that may be ignored.
    pub ignore: u32,
    /// A program that does not know one of these features must not write to the library.
    pub read_only: u32,
    /// A program that does not know one of these features must not open the library.
    pub refuse: u32,
}

/// The header of an object of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the object.
    pub magic: Magic,
    /// The number of the master key. This version knows only 0.
    pub epoch: u32,
    /// Feature bits.
    pub features: Features,
    /// The object's id. Because it is part of the key, an object under another name cannot be decrypted.
    pub id: ObjectId,
}

impl Header {
    /// A header of this version, with epoch 0 and no features.
    pub fn new(magic: Magic, id: ObjectId) -> Self {
        Self {
            magic,
            epoch: 0,
            features: Features::default(),
            id,
        }
    }

    /// The header's bytes. [`Header::decode`] returns this header for these bytes, and for no others.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(self.magic.bytes());
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&FORMAT_SUITE.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.features.ignore.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.features.read_only.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.features.refuse.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.id.0);
        bytes
    }

    /// The id in the header of an object of this kind; `None` if the bytes do not begin like one.
    pub fn id_of(bytes: &[u8; HEADER_LEN], magic: Magic) -> Option<ObjectId> {
        let id = bytes
            .last_chunk()
            .filter(|_| bytes.starts_with(magic.bytes()))?;
        Some(ObjectId(*id))
    }

    /// Parses a header; `name` is used in errors. Checks magic and id ([`Kind::Damaged`]), and version, suite, epoch and
    /// refused features ([`Kind::Unsupported`]).
    ///
    /// The header is authentic only once a message of the object has been decrypted under its
    /// [`object_key`](super::MasterKey::object_key).
    pub fn decode(
        bytes: &[u8; HEADER_LEN],
        magic: Magic,
        id: ObjectId,
        name: &str,
    ) -> Result<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[0..8] != *magic.bytes() {
            return Err(Error::damaged(
                name,
                format_args!("it does not begin like {}", magic.noun()),
            ));
        }
        let unsupported =
            |what: String| Err(Error::new(Kind::Unsupported(what.into()), name).hint(UPDATE));
        let (version, suite) = (u16_at(8), u16_at(10));
        if version != FORMAT_VERSION {
            return unsupported(format!("its format is version {version}"));
        }
        if suite != FORMAT_SUITE {
            return unsupported(format!("its cipher suite is number {suite}"));
        }
        if bytes[32..48] != id.0 {
            return Err(Error::damaged(name, "it was written under another name"));
        }
        let features = Features {
            ignore: u32_at(16),
            read_only: u32_at(20),
            refuse: u32_at(24),
        };
        if features.refuse != 0 {
            return unsupported(format!("it has the features {:#x}", features.refuse));
        }
        let epoch = u32_at(12);
        if epoch != 0 {
            return unsupported(format!("its key is of epoch {epoch}"));
        }
        // Otherwise two byte strings would be the same header, and have the same key.
        if u32_at(28) != 0 {
            return Err(Error::damaged(
                name,
                "the reserved bytes of its header are not zero",
            ));
        }
        Ok(Self {
            magic,
            epoch,
            features,
            id,
        })
    }

    /// Whether this version may write to the library: not if the object has an unknown read-only feature.
    pub fn writable(&self) -> bool {
        self.features.read_only == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitStatus;

    fn id() -> ObjectId {
        ObjectId(*b"0123456789abcdef")
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        Header::decode(bytes, Magic::Pack, id(), "data/30")
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let mut header = Header::new(Magic::Pack, id());
        header.features = Features {
            ignore: 0x0102_0304,
            read_only: 0x80,
            refuse: 0,
        };
        let bytes = header.encode();
        assert_eq!(
            &bytes,
            b"HUSHPACK\x01\0\x01\0\0\0\0\0\x04\x03\x02\x01\x80\0\0\0\0\0\0\0\0\0\0\x000123456789abcdef"
        );
        assert_eq!(decode(&bytes).unwrap(), header);
        assert!(!header.writable());
        assert!(Header::new(Magic::Slot, id()).writable());
    }

    #[test]
    fn a_changed_header_is_refused_or_another_header() {
        let bytes = Header::new(Magic::Pack, id()).encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            match decode(&bad) {
                // Only the bits that may be ignored, or that make it read-only, are passed on: with these the key is
                // another one.
                Ok(header) => {
                    assert!((16..24).contains(&(bit / 8)), "bit {bit}");
                    assert_eq!(header.encode(), bad);
                }
                Err(e) => assert!(e.to_string().starts_with("data/30: "), "{e}"),
            }
        }
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let status = |at: usize| {
            let mut bad = Header::new(Magic::Pack, id()).encode();
            bad[at] ^= 0x10;
            decode(&bad).unwrap_err().exit_status()
        };
        for later in [8, 10, 12, 24] {
            assert_eq!(status(later), ExitStatus::NotLibrary, "byte {later}");
        }
        for damaged in [0, 28, 32] {
            assert_eq!(status(damaged), ExitStatus::Damaged, "byte {damaged}");
        }
    }
}
