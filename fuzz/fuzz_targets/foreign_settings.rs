//! Settings of other programs, in which keys are looked for; and keys.
#![no_main]
use hushfs::foreign::medusa::frames::FernetKey;
use hushfs::foreign::{images, medusa};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = FernetKey::parse(data);
    let _ = (medusa::key_in_ini(data), images::key_in_env(data));
});
