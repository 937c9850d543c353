//! The names of the files in a library: ids, and the three areas.

use std::fmt;

/// The random 128-bit id of an object. Its file name is the id in lower-case hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectId(pub [u8; 16]);

/// The id of a device that writes to the library.
pub type DeviceId = ObjectId;
impl ObjectId {
    /// Parses a file name of 32 hex digits; `None` for anything else, including upper case.
    pub fn parse(name: &str) -> Option<Self> {
        let mut id = [0; 16];
        let digits = name.as_bytes();
        if digits.len() != 32 {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Some(Self(id))
    }
}

fn hex_digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Defines the id type of one kind of object, so that kinds cannot be confused.
macro_rules! id_of_kind {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub ObjectId);

        impl $name {
            /// The id, independent of its kind, for the store.
            pub fn object(self) -> ObjectId {
                self.0
            }
        }

        impl From<ObjectId> for $name {
            fn from(id: ObjectId) -> Self {
                Self(id)
            }
        }

        impl From<$name> for ObjectId {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id_of_kind!(
    /// The id of a slot, in [`Area::Key`].
    SlotId
);
id_of_kind!(
    /// The id of an index segment or a base, in [`Area::Index`].
    SegmentId
);
id_of_kind!(
    /// The id of a pack, in [`Area::Data`].
    PackId
);

/// One of the three synced parts of a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Area {
    /// Slots: the master key, encrypted.
    Key,
    /// Index segments.
    Index,
    /// Packs.
    Data,
}

impl Area {
    /// All of them.
    pub const ALL: [Area; 3] = [Area::Key, Area::Index, Area::Data];

    /// The folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Area::Key => "key",
            Area::Index => "index",
            Area::Data => "data",
        }
    }
}
