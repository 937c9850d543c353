//! The recovery code: the master key and a checksum in Crockford's base32, 14 groups of 4 characters.
//!
//! 32 bytes of key and 3 bytes of CRC-24 (RFC 9580, section 6.1) are 280 bits, or 56 characters of 5 bits. The CRC detects
//! every burst error of up to 24 bits, and so every single wrong character and any two swapped neighbours. Of other
//! mistakes, one in 16 million is not detected, and gives a key that decrypts nothing.

use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// <https://www.crockford.com/base32.html>: without I, L and O, which are read as 1, 1 and 0, and without U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CRC_LEN: usize = 3;
/// Characters of a code, without dashes.
const CODE_LEN: usize = (32 + CRC_LEN) * 8 / 5;
const GROUP_LEN: usize = 4;

/// The code of a key.
pub(super) fn encode(master: &[u8; 32]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32 + CRC_LEN]);
    bytes[..32].copy_from_slice(master);
    bytes[32..].copy_from_slice(&crc24(master));
    // Allocated in full: a string that grows would leave parts of the key in freed memory.
    let mut code = Zeroizing::new(String::with_capacity(CODE_LEN + CODE_LEN / GROUP_LEN));
    for at in 0..CODE_LEN {
        if at > 0 && at % GROUP_LEN == 0 {
            code.push('-');
        }
        // Five bits from bit `5 * at`, most significant first; they touch at most two bytes.
        let (byte, shift) = (5 * at / 8, 5 * at % 8);
        let pair = u16::from(bytes[byte]) << 8 | u16::from(*bytes.get(byte + 1).unwrap_or(&0));
        code.push(char::from(ALPHABET[usize::from(pair >> (11 - shift)) & 31]));
    }
    code
}

/// Writes the key of a code to `master`.
pub(super) fn decode(code: &str, master: &mut [u8; 32]) -> Result<()> {
    let mut bytes = Zeroizing::new([0u8; 32 + CRC_LEN]);
    let mut at = 0;
    for c in code.chars().filter(|c| *c != '-' && !c.is_whitespace()) {
        let Some(value) = value_of(c) else {
            return Err(wrong(format_args!(
                "character {} does not occur in one",
                at + 1
            )));
        };
        if at < CODE_LEN {
            let (byte, shift) = (5 * at / 8, 5 * at % 8);
            let pair = u16::from(value) << (11 - shift);
            bytes[byte] |= (pair >> 8) as u8;
            if let Some(next) = bytes.get_mut(byte + 1) {
                *next |= pair as u8;
            }
        }
        at += 1;
    }
    if at != CODE_LEN {
        return Err(wrong(format_args!(
            "it has {at} characters instead of {CODE_LEN}"
        )));
    }
    if bytes[32..] != crc24(&bytes[..32]) {
        return Err(wrong("its checksum does not match"));
    }
    master.copy_from_slice(&bytes[..32]);
    Ok(())
}

/// The error of a wrong code. It shows nothing of the code itself.
fn wrong(rule: impl std::fmt::Display) -> Error {
    let text = format!("this is not a recovery code: {rule}");
    Error::from(Kind::Secret(text.into())).hint("copy it again: 14 groups of 4 characters")
}

fn value_of(c: char) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    };
    let at = ALPHABET.iter().position(|a| char::from(*a) == c)?;
    Some(at as u8)
}

/// CRC-24 of OpenPGP.
fn crc24(bytes: &[u8]) -> [u8; CRC_LEN] {
    let mut crc = 0x00b7_04ce_u32;
    for byte in bytes {
        crc ^= u32::from(*byte) << 16;
        for _ in 0..8 {
            // No branch depends on a bit of the key.
            crc = (crc << 1) ^ (((crc >> 23) & 1) * 0x0186_4cfb);
        }
    }
    let [_, crc @ ..] = crc.to_be_bytes();
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> [u8; 32] {
        std::array::from_fn(|i| (i * 37 + 11) as u8)
    }

    fn decoded(code: &str) -> Result<[u8; 32]> {
        let mut master = [0; 32];
        decode(code, &mut master).map(|()| master)
    }

    #[test]
    fn a_code_is_base32_in_groups() {
        // "check value" of the catalogue of CRCs.
        assert_eq!(crc24(b"123456789"), [0x21, 0xcf, 0x02]);
        assert_eq!(encode(&[0; 32]).len(), 14 * 5 - 1);
        assert!(encode(&[0; 32]).starts_with("0000-0000-"));
        assert!(encode(&[0xff; 32]).starts_with("ZZZZ-ZZZZ-"));
        let mut first = [0; 32];
        first[0] = 0b0000_1000;
        assert!(encode(&first).starts_with("1000-"));
    }

    #[test]
    fn a_code_reads_back_however_it_is_typed() {
        let code = encode(&key());
        assert_eq!(decoded(&code).unwrap(), key());
        let sloppy = code
            .to_lowercase()
            .replace('-', "  ")
            .replace('0', "o")
            .replace('1', "l");
        assert_eq!(decoded(&format!("\t{sloppy}\n")).unwrap(), key());
    }

    #[test]
    fn every_wrong_character_and_every_swap_is_found() {
        let code = encode(&key()).replace('-', "");
        for at in 0..code.len() {
            for c in ALPHABET {
                let mut bad = code.clone().into_bytes();
                if bad[at] == *c {
                    continue;
                }
                bad[at] = *c;
                assert!(decoded(std::str::from_utf8(&bad).unwrap()).is_err());
            }
            let mut swapped = code.clone().into_bytes();
            if at > 0 && swapped[at] != swapped[at - 1] {
                swapped.swap(at, at - 1);
                assert!(decoded(std::str::from_utf8(&swapped).unwrap()).is_err());
            }
        }
    }

    #[test]
    fn errors_say_the_rule_and_not_the_code() {
        let code = encode(&key());
        for bad in [
            String::new(),
            code[1..].to_string(),
            format!("{}0", *code),
            code.replacen(&code[..1], "U", 1),
            "é".repeat(56),
        ] {
            let message = decoded(&bad).unwrap_err().to_string();
            assert!(
                message.starts_with("this is not a recovery code: "),
                "{message}"
            );
            assert!(!message.contains(&code[5..9]), "{message}");
        }
    }
}
