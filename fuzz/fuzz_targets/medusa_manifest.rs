//! Manifests, and what is made of their digests.
#![no_main]
use hushfs::foreign::medusa::manifest::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for section in parse(data).unwrap_or_default() {
        for object in section.objects {
            let _ = (object.stored_digest(), object.source_digest(), object.is_sealed());
        }
    }
});
