//! A store of one encrypted image and its description: as they come, and the image encrypted well.
#![no_main]
use std::ffi::OsStr;

use hushfs::foreign::Mirror;
use hushfs::foreign::images::{Images, key_of};
use hushfs::volume::{ROOT, Volume};
use libfuzzer_sys::fuzz_target;

/// What is in the image, where it opens.
fn read(stored: &[u8], meta: &[u8]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a place to work");
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a disk that is not full");
    put("a.png.enc", stored);
    put("a.png.enc.meta", meta);
    let format = Images::open(dir.path(), b"key", true).ok()?;
    let volume = Mirror::new(Box::new(format)).expect("two names");
    let attr = volume.lookup(ROOT, OsStr::new("a.png")).ok()?;
    let _ = volume.getxattr(attr.ino, OsStr::new("user.mime_type"));
    let handle = volume.open(attr.ino, 0).ok()?;
    let mut out = vec![0; stored.len() + 1];
    let len = volume.read(attr.ino, handle, 0, &mut out).ok()?;
    assert!(attr.plain_size <= stored.len() as u64, "no plaintext is longer than its image");
    out.truncate(len);
    Some(out)
}

fuzz_target!(|data: (&[u8], &[u8])| {
    read(data.0, data.1);
    let mut sealed = vec![3; 16];
    key_of(b"key").encrypt_padded(&[3; 16], data.0, &mut sealed);
    // Content that is not what its description says may be refused as a wrong key's.
    if let Some(plain) = read(&sealed, data.1) {
        assert_eq!(plain, data.0);
    }
});
