//! Key derivation from a password: Argon2id (RFC 9106), with bounds on the costs that a slot may ask for.

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// The most memory that a slot, which may be hostile, can use, in KiB: 1 GiB.
pub(super) const MEMORY_KIB_MAX: u32 = 1 << 20;
pub(super) const PASSES_MAX: u32 = 64;
pub(super) const LANES_MAX: u32 = 64;
/// The most work that a slot can cause, in KiB times passes: 40 times the default, which takes some seconds.
const WORK_MAX: u64 = 8 << 20;

/// Costs above which the user is asked first: four times the memory of the default, and five times its work, which takes a
/// second or two.
const CHEAP_MEMORY_KIB_MAX: u32 = 256 * 1024;
const CHEAP_WORK_MAX: u64 = 1 << 20;

/// The costs of Argon2id (RFC 9106), stored in the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB: from 8 for each lane to 1 GiB.
    pub memory_kib: u32,
    /// Passes: 1 to 64.
    pub passes: u32,
    /// Lanes: 1 to 64.
    pub lanes: u32,
}

impl Default for KdfParams {
    /// The second recommendation of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes.
    fn default() -> Self {
        Self {
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 4,
        }
    }
}

impl KdfParams {
    /// The work to open the slot, in KiB times passes.
    pub fn work(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }

    /// Whether the costs are so much higher than those that hushfs writes that the user should be asked first.
    pub fn is_costly(&self) -> bool {
        self.memory_kib > CHEAP_MEMORY_KIB_MAX || self.work() > CHEAP_WORK_MAX
    }

    /// Checks the bounds. The error describes the cost that is out of bounds.
    pub(super) fn check(&self) -> Result<(), String> {
        let KdfParams {
            memory_kib,
            passes,
            lanes,
        } = *self;
        if !(1..=LANES_MAX).contains(&lanes) {
            return Err(format!(
                "it asks for {lanes} lanes of Argon2, where 1 to {LANES_MAX} are allowed"
            ));
        }
        if !(1..=PASSES_MAX).contains(&passes) {
            return Err(format!(
                "it asks for {passes} passes of Argon2, where 1 to {PASSES_MAX} are allowed"
            ));
        }
        if !(8 * lanes..=MEMORY_KIB_MAX).contains(&memory_kib) {
            return Err(format!(
                "it asks for {memory_kib} KiB of memory for Argon2, where {} to {MEMORY_KIB_MAX} are allowed",
                8 * lanes
            ));
        }
        if self.work() > WORK_MAX {
            return Err(format!(
                "it asks for {passes} passes of Argon2 over {memory_kib} KiB, more than a library needs"
            ));
        }
        Ok(())
    }
}

/// Argon2id, version 1.3.
pub(super) fn stretch(password: &[u8], kdf: KdfParams, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>> {
    kdf.check().map_err(Error::usage)?;
    let refused = |e: argon2::Error| match e {
        argon2::Error::OutOfMemory => Error::new(
            Kind::Io(std::io::ErrorKind::OutOfMemory.into()),
            format_args!("{} KiB for Argon2", kdf.memory_kib),
        ),
        e => Error::usage(format_args!("Argon2: {e}")),
    };
    let params = Params::new(kdf.memory_kib, kdf.passes, kdf.lanes, Some(32)).map_err(refused)?;
    let mut out = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password, salt, &mut *out)
        .map_err(refused)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figure is that of another implementation (OpenSSL's, by Python's cryptography).
    #[test]
    fn stretching_is_argon2id() {
        let kdf = KdfParams {
            memory_kib: 256,
            passes: 2,
            lanes: 4,
        };
        let out = stretch(b"password", kdf, b"somesalt1234567").unwrap();
        assert_eq!(out[..8], [206, 178, 156, 37, 2, 17, 132, 120]);
    }
}
