//! A store of one encrypted image and its description.
#![no_main]
use std::ffi::OsStr;

use hushfs::foreign::Mirror;
use hushfs::foreign::images::Images;
use hushfs::volume::{ROOT, Volume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&[u8], &[u8])| {
    let dir = tempfile::tempdir().expect("a place to work");
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a disk that is not full");
    put("a.png.enc", data.0);
    put("a.png.enc.meta", data.1);
    let Ok(format) = Images::open(dir.path(), b"key", true) else { return };
    let volume = Mirror::new(Box::new(format)).expect("two names");
    let Ok(attr) = volume.lookup(ROOT, OsStr::new("a.png")) else { return };
    let _ = volume.getxattr(attr.ino, OsStr::new("user.mime_type"));
    if let Ok(handle) = volume.open(attr.ino, 0) {
        let mut out = vec![0; data.0.len() + 1];
        let read = volume.read(attr.ino, handle, 0, &mut out);
        assert!(read.is_err() || attr.plain_size <= data.0.len() as u64);
    }
});
