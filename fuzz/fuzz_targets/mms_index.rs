//! The index of a Minio Music Server: as it comes, and with a record that is sealed well and holds anything.
#![no_main]
use base64_simd::STANDARD as BASE64;
use hushfs::foreign::cipher::Key;
use hushfs::foreign::mms::index::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let key = Key::short(&[7; 16]);
    let _ = Index::parse(data, &key);
    let mut sealed = Vec::new();
    key.encrypt_padded(&[1; 16], data, &mut sealed);
    let line = format!("{{\"data\":\"{}\",\"iv\":\"{}\"}}", BASE64.encode_to_string(sealed), BASE64.encode_to_string([1; 16]));
    let text = format!("{{\"version\":2,\"registers\":1,\"id\":1}}\n{line}\n");
    if let Ok(index) = Index::parse(text.as_bytes(), &key) {
        assert!(index.records().all(|record| !record.path.starts_with('/') && !record.path.contains("..//")));
    }
});
