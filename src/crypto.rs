//! Keys, key slots, key derivation and authenticated encryption; no I/O.
//!
//! Everything is derived from one [`MasterKey`]: the [`SealKey`] of each object, which depends on every byte of the object's
//! [`Header`]; the MAC over each [`Slot`], which holds the master key encrypted under a [`Secret`]; and the library's public
//! [`Fingerprint`]. Suite 1 is AES-256-GCM, HKDF-SHA256, HMAC-SHA256 and Argon2id.

mod aead;
mod header;
mod kdf;
mod keys;
mod process;
mod recovery;
mod slot;

pub use aead::{SEAL_OVERHEAD, SealKey};
pub use header::{FORMAT_VERSION, Features, HEADER_LEN, Header, Magic};
pub use kdf::KdfParams;
#[cfg(any(test, feature = "testing"))]
pub use keys::seed_random;
pub use keys::{Fingerprint, MasterKey, random, random_id};
pub use process::harden_process;
pub use slot::{
    KEY_FILE_LEN_MAX, KEY_FILE_LEN_MIN, LABEL_LEN_MAX, SLOT_LEN, Secret, Slot, SlotKind,
};
