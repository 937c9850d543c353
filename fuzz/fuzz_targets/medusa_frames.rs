//! Files of Fernet frames: as they come, and well made ones around the input.
#![no_main]
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use hushfs::cache::BlockCache;
use hushfs::foreign::Reader;
use hushfs::foreign::medusa::FrameReader;
use hushfs::foreign::medusa::frames::{FernetKey, scan};
use libfuzzer_sys::fuzz_target;

fn read(key: &FernetKey, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file: File = tempfile::tempfile().expect("a place to work");
    file.write_all(bytes).expect("a disk that is not full");
    let (frames, plain_size) = scan(&file, key, bytes.len() as u64).ok()?;
    assert!(plain_size <= bytes.len() as u64, "no plaintext is longer than its frames");
    let cache = Arc::new(BlockCache::new(1 << 20));
    let reader = FrameReader::new(Arc::new(file), key.clone(), frames, plain_size, None, cache);
    let mut out = vec![0; plain_size as usize];
    reader.read_exact_at(0, &mut out).ok()?;
    Some(out)
}

fuzz_target!(|data: &[u8]| {
    let key = FernetKey::parse(&[b'A'; 43].into_iter().chain(*b"=").collect::<Vec<u8>>()).expect("32 zero bytes");
    assert!(data.is_empty() || read(&key, data).is_none_or(|plain| plain.is_empty()), "nobody guesses an HMAC");
    let mut sealed = Vec::new();
    let pieces = data.chunks(usize::from(*data.first().unwrap_or(&1)) + 1);
    pieces.for_each(|piece| key.seal(0, &[2; 16], piece, &mut sealed));
    assert_eq!(read(&key, &sealed).as_deref(), Some(data));
});
