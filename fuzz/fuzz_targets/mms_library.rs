//! A whole library of a Minio Music Server: key file, index and object, each cut from the input.
#![no_main]
use hushfs::foreign::Mirror;
use hushfs::foreign::mms::{Mms, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&[u8], &[u8], &[u8])| {
    let dir = tempfile::tempdir().expect("a place to work");
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("a disk that is not full");
    put("key", data.0);
    put("music.index", data.1);
    put("a.encrypt", data.2);
    let options = Options { key: Some("key".into()), index: Some("music.index".into()), ..Options::default() };
    if let Ok(format) = Mms::open(dir.path(), b"XXXXXXX", &options, true) {
        let _ = Mirror::new(Box::new(format));
    }
});
