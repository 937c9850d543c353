//! Keys, slots, derivation, sealing; no I/O.

mod aead;
mod header;
mod keys;
mod recovery;
mod slot;

pub use aead::{NONCE_LEN, SEAL_OVERHEAD, SealKey, TAG_LEN};
pub use header::{Features, HEADER_LEN, Header, Magic};
pub use keys::{Fingerprint, MasterKey, random};
pub use slot::{KdfParams, Secret, Slot, SlotKind};
