#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hushfs_fuzz::mms_library(data));
