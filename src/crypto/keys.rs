//! The master key and what is derived from it.

use std::fmt;
use std::ptr::NonNull;

use hkdf::Hkdf;
use rand::TryRng;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::{Header, Magic, SealKey, recovery};
use crate::error::{Error, Kind, Result, io_text};
use crate::object::ObjectId;

/// The salt of HKDF-Extract over the master key (RFC 5869, section 3.1).
const EXTRACT_SALT: &[u8] = b"hushfs master key";

/// 16 public bytes that identify a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The 32 random bytes that all keys are derived from. They are kept in locked memory, and wiped when dropped.
///
/// fork(2) copies the key, but not the lock: fork before creating it, or call [`MasterKey::lock`] in the child.
pub struct MasterKey {
    page: NonNull<Keys>,
}

/// The contents of the page. Plain bytes, for which zero is a valid value.
#[repr(C)]
struct Keys {
    master: [u8; 32],
    /// HKDF-Extract of the master key, so that a derivation is a single HKDF-Expand.
    extracted: [u8; 32],
}

/// Bytes of the mapping. The kernel rounds it up to whole pages, which hold nothing else.
const PAGE_LEN: usize = size_of::<Keys>();

// SAFETY: the page belongs to this value alone, and is written only while no other reference to it exists (in `with`,
// before the value is returned, and in `drop`).
unsafe impl Send for MasterKey {}
// SAFETY: as above; through a shared reference it is only read.
unsafe impl Sync for MasterKey {}

impl MasterKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        Self::with(|master| random(master))
    }

    /// The key of a recovery code. Case, blanks and dashes are ignored; O is read as 0, and I or L as 1. A mistyped
    /// character is noticed ([`Kind::Secret`], with the rule that fails).
    pub fn from_recovery_code(code: &str) -> Result<Self> {
        Self::with(|master| recovery::decode(code, master))
    }

    /// The recovery code: the key and a checksum, in groups of base32.
    pub fn recovery_code(&self) -> Zeroizing<String> {
        recovery::encode(self.bytes())
    }

    /// Derives a key with HKDF-SHA256 (RFC 5869). `info` is the purpose, a zero byte and the context. `purpose` must not
    /// contain a zero byte: otherwise two pairs could have the same `info`.
    pub fn derive(&self, purpose: &str, context: &[u8]) -> Zeroizing<[u8; 32]> {
        debug_assert!(!purpose.contains('\0'));
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::from_prk(&self.keys().extracted)
            .expect("a pseudorandom key has 32 bytes")
            .expand_multi_info(&[purpose.as_bytes(), &[0], context], &mut *key)
            .expect("32 bytes are below HKDF's limit of 8160");
        key
    }

    /// The key of a pack, a segment or a slot's label. It depends on every byte of the object's header.
    pub fn object_key(&self, header: &Header) -> SealKey {
        let purpose = match header.magic {
            Magic::Slot => "hushfs slot",
            Magic::Segment => "hushfs segment",
            Magic::Pack => "hushfs pack",
        };
        SealKey::new(&self.derive(purpose, &header.encode()))
    }

    /// The library's public fingerprint, which reveals nothing about the key.
    pub fn fingerprint(&self) -> Fingerprint {
        let derived = self.derive("hushfs fingerprint", &[]);
        let (front, _) = derived
            .split_first_chunk()
            .expect("16 bytes are fewer than 32");
        Fingerprint(*front)
    }

    /// Locks the key into memory, so that it is not swapped out. Must be repeated after fork(2), which does not inherit
    /// locks. If the limit RLIMIT_MEMLOCK forbids it, this is only logged.
    pub fn lock(&self) {
        // SAFETY: the range is the mapping that this value owns; locking changes no contents.
        let locked = unsafe { rustix::mm::mlock(self.page.as_ptr().cast(), PAGE_LEN) };
        if let Err(e) = locked {
            log::info!(
                "the key could be swapped out: mlock: {}",
                io_text(&e.into())
            );
        }
    }

    /// The master key itself, to be encrypted.
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.keys().master
    }

    /// Creates a key whose bytes `fill` writes directly into locked memory.
    pub(super) fn with(fill: impl FnOnce(&mut [u8; 32]) -> Result<()>) -> Result<Self> {
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE_LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let mapping =
            mapping.map_err(|e| Error::new(Kind::Io(e.into()), "memory for the master key"))?;
        let page = NonNull::new(mapping.cast()).expect("mmap(2) maps nothing at address 0");
        let mut key = Self { page };
        key.lock();
        // SAFETY: the range is the mapping just made; the advice changes no contents.
        if let Err(e) = unsafe { rustix::mm::madvise(mapping, PAGE_LEN, Advice::LinuxDontDump) } {
            log::info!(
                "the key could be in a core dump: madvise: {}",
                io_text(&e.into())
            );
        }
        let keys = key.keys_mut();
        fill(&mut keys.master)?;
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(EXTRACT_SALT), &keys.master);
        keys.extracted.copy_from_slice(&extracted);
        extracted.as_mut_slice().zeroize();
        Ok(key)
    }

    fn keys(&self) -> &Keys {
        // SAFETY: the mapping is page-aligned, readable, at least as long as `Keys`, zeroed by the kernel or written
        // as `Keys`, and lives until `drop`; it is not written while shared references exist.
        unsafe { self.page.as_ref() }
    }

    fn keys_mut(&mut self) -> &mut Keys {
        // SAFETY: as in `keys`; `&mut self` says that there is no other reference.
        unsafe { self.page.as_mut() }
    }
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        let keys = self.keys_mut();
        keys.master.zeroize();
        keys.extracted.zeroize();
        // SAFETY: the mapping is this value's own, made with this length, and nothing refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE_LEN) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Does not show the key.
impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// A new random id.
pub fn random_id() -> Result<ObjectId> {
    let mut id = ObjectId([0; 16]);
    random(&mut id.0)?;
    Ok(id)
}

/// Fills `out` with random bytes from getrandom(2).
pub fn random(out: &mut [u8]) -> Result<()> {
    #[cfg(any(test, feature = "testing"))]
    if seeded(out) {
        return Ok(());
    }
    rand::rngs::SysRng
        .try_fill_bytes(out)
        .map_err(|e| Error::new(Kind::Io(e.into()), "getrandom"))
}

#[cfg(any(test, feature = "testing"))]
std::thread_local! {
    static DICE: std::cell::RefCell<Option<crate::dice::Dice>> = const { std::cell::RefCell::new(None) };
}

/// From now on this thread's keys and nonces come from a seed, so that a test can be repeated.
#[cfg(any(test, feature = "testing"))]
pub fn seed_random(seed: u64) {
    DICE.with_borrow_mut(|dice| *dice = Some(crate::dice::Dice::new(seed)));
}

/// Fills `out` where this thread has a seed.
#[cfg(any(test, feature = "testing"))]
fn seeded(out: &mut [u8]) -> bool {
    DICE.with_borrow_mut(|dice| {
        let Some(dice) = dice else { return false };
        for bytes in out.chunks_mut(8) {
            bytes.copy_from_slice(&dice.next().to_le_bytes()[..bytes.len()]);
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectId;

    fn key(byte: u8) -> MasterKey {
        MasterKey::with(|master| {
            master.fill(byte);
            Ok(())
        })
        .unwrap()
    }

    /// RFC 5869 by hand: HMAC-SHA256 with the salt, then with the first block's counter.
    #[test]
    fn derivation_is_hkdf_sha256_with_the_documented_info() {
        use hmac::{Hmac, KeyInit, Mac};
        let hmac = |key: &[u8], message: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.update(message);
            mac.finalize().into_bytes()
        };
        let extracted = hmac(b"hushfs master key", &[9; 32]);
        let expected = hmac(&extracted, b"a purpose\0a context\x01");
        assert_eq!(key(9).derive("a purpose", b"a context")[..], expected[..]);
    }

    #[test]
    fn purposes_contexts_and_keys_all_count() {
        let one = key(1);
        let derived = one.derive("p", b"c");
        assert_eq!(derived, one.derive("p", b"c"));
        assert_ne!(derived, one.derive("q", b"c"));
        assert_ne!(derived, one.derive("p", b"d"));
        assert_ne!(derived, key(2).derive("p", b"c"));
        assert_ne!(one.fingerprint(), key(2).fingerprint());
    }

    #[test]
    fn an_object_opens_under_its_own_header_only() {
        let master = key(1);
        let pack = Header::new(Magic::Pack, ObjectId([1; 16]));
        let mut sealed = Vec::new();
        master
            .object_key(&pack)
            .seal(b"", &[b"plain"], &mut sealed)
            .unwrap();
        let opens = |header: &Header| master.object_key(header).open(b"", &sealed, &mut [0; 5]);
        assert!(opens(&pack));
        let mut other = pack;
        other.features.ignore = 1;
        assert!(!opens(&other));
        assert!(!opens(&Header::new(Magic::Segment, ObjectId([1; 16]))));
        assert!(!opens(&Header::new(Magic::Pack, ObjectId([2; 16]))));
    }

    #[test]
    fn the_key_is_kept_out_of_dumps_and_swap() {
        let master = key(1);
        let at = master.page.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The mapping may be one with the next: the kernel joins what is alike.
        let mut lines = maps.lines().skip_while(|line| {
            let (start, rest) = line.split_once('-').unwrap_or_default();
            let end = rest.split(' ').next().unwrap_or_default();
            let hex = |digits| usize::from_str_radix(digits, 16).ok();
            !matches!((hex(start), hex(end)), (Some(start), Some(end)) if (start..end).contains(&at))
        });
        let flags = lines.find(|line| line.starts_with("VmFlags:"));
        let flags: Vec<_> = flags.unwrap().split(' ').collect();
        assert!(flags.contains(&"dd"), "{flags:?}");
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        if limit.current.is_none_or(|bytes| bytes >= 1 << 16) {
            assert!(flags.contains(&"lo"), "{flags:?}");
        }
    }

    #[test]
    fn keys_are_random_and_debug_shows_none() {
        let (one, other) = (
            MasterKey::generate().unwrap(),
            MasterKey::generate().unwrap(),
        );
        assert_ne!(one.bytes(), other.bytes());
        assert_eq!(format!("{one:?}"), "MasterKey(..)");
    }
}
