use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    digits
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B:
/// key, nonce, associated data, plaintext, ciphertext, tag.
fn vectors() -> Vec<[Vec<u8>; 6]> {
    let zero = "00".repeat(32);
    let key = "feffe9928665731c6d6a8f9467308308".repeat(2);
    let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
                 1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
    let text = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
                8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
    let (short_plain, short_text) = (hex(plain)[..60].to_vec(), hex(text)[..60].to_vec());
    let nonce = hex("cafebabefacedbaddecaf888");
    vec![
        [
            hex(&zero),
            vec![0; 12],
            vec![],
            vec![],
            vec![],
            hex("530f8afbc74536b9a963b4f1c4cb738b"),
        ],
        [
            hex(&zero),
            vec![0; 12],
            vec![],
            vec![0; 16],
            hex("cea7403d4d606b6e074ec5d3baf39d18"),
            hex("d0d1c8a799996bf0265b98b5d48ab919"),
        ],
        [
            hex(&key),
            nonce.clone(),
            vec![],
            hex(plain),
            hex(text),
            hex("b094dac5d93471bdec1a502270e3cc6c"),
        ],
        [
            hex(&key),
            nonce,
            hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
            short_plain,
            short_text,
            hex("76fc6ece0f4e1768cddf8853bb2d551b"),
        ],
    ]
}

macro_rules! published_vectors {
    ($name:ident, $cipher:ty) => {
        #[test]
        fn $name() {
            for [key, nonce, aad, plain, text, tag] in vectors() {
                let cipher = <$cipher>::new(key[..].try_into().unwrap());
                let nonce: [u8; NONCE_LEN] = nonce[..].try_into().unwrap();
                let mut apart = vec![0; plain.len()];
                let mut in_place = plain.clone();
                let tag_apart = cipher.seal_apart(&nonce, &aad, &plain, &mut apart).unwrap();
                let tag_in_place = cipher.seal_in_place(&nonce, &aad, &mut in_place).unwrap();
                assert_eq!((&apart, &tag_apart[..]), (&text, &tag[..]));
                assert_eq!((&in_place, &tag_in_place[..]), (&text, &tag[..]));
                let mut opened = vec![0; text.len()];
                assert!(cipher.open(&nonce, &aad, &text, &tag_apart, &mut opened));
                assert_eq!(opened, plain);
            }
        }
    };
}
#[cfg(feature = "aws-lc")]
published_vectors!(aws_lc_rs_passes_the_published_vectors, aws::Cipher);
published_vectors!(aes_gcm_passes_the_published_vectors, pure::Cipher);

#[cfg(feature = "aws-lc")]
#[test]
fn each_implementation_opens_what_the_other_sealed() {
    for len in [0, 1, 15, 16, 17, 255, 4096, 16 * 1024, 16 * 1024 + 5] {
        let (mut key, mut nonce, mut plain) = ([0; 32], [0; NONCE_LEN], vec![0; len]);
        random(&mut key).unwrap();
        random(&mut nonce).unwrap();
        random(&mut plain).unwrap();
        let aad = &plain[..len.min(13)];
        let (one, other) = (aws::Cipher::new(&key), pure::Cipher::new(&key));
        let (mut a, mut b, mut opened) = (vec![0; len], plain.clone(), vec![0; len]);
        let tag = one.seal_apart(&nonce, aad, &plain, &mut a).unwrap();
        assert!(other.open(&nonce, aad, &a, &tag, &mut opened));
        assert_eq!(opened, plain);
        opened.fill(0);
        let tag = other.seal_in_place(&nonce, aad, &mut b).unwrap();
        assert!(one.open(&nonce, aad, &b, &tag, &mut opened));
        assert_eq!(opened, plain);
        assert_eq!(a, b);
    }
}

#[test]
fn a_changed_byte_anywhere_opens_nothing() {
    let key = SealKey::new(&[7; 32]);
    let mut sealed = b"before".to_vec();
    key.seal(b"at 48", &[b"some ", b"", b"plaintext"], &mut sealed)
        .unwrap();
    let sealed = &sealed[6..];
    let mut plain = [0; 14];
    assert!(key.open(b"at 48", sealed, &mut plain));
    assert_eq!(&plain, b"some plaintext");
    assert!(!key.open(b"at 49", sealed, &mut plain));
    assert!(!SealKey::new(&[8; 32]).open(b"at 48", sealed, &mut plain));
    for at in 0..sealed.len() {
        let mut bad = sealed.to_vec();
        bad[at] ^= 1;
        assert!(!key.open(b"at 48", &bad, &mut plain), "byte {at}");
    }
    for len in 0..sealed.len() {
        let mut short = vec![0; len.saturating_sub(SEAL_OVERHEAD)];
        assert!(
            !key.open(b"at 48", &sealed[..len], &mut short),
            "length {len}"
        );
    }
    assert!(!key.open(b"at 48", sealed, &mut [0; 13]));
}

#[test]
fn sealing_into_a_slice_is_sealing() {
    let key = SealKey::new(&[7; 32]);
    for pieces in [
        &[][..],
        &[&b"one piece"[..]],
        &[&b"two "[..], &b"pieces"[..]],
    ] {
        let len = plain_len(pieces);
        let mut sealed = vec![0; len + SEAL_OVERHEAD];
        key.seal_into(b"", pieces, &mut sealed).unwrap();
        let mut plain = vec![0; len];
        assert!(key.open(b"", &sealed, &mut plain));
        assert_eq!(plain, pieces.concat());
        assert!(key.seal_into(b"", pieces, &mut sealed[1..]).is_err());
        sealed.push(0);
        assert!(key.seal_into(b"", pieces, &mut sealed).is_err());
    }
}

#[test]
fn no_nonce_is_used_twice() {
    let key = SealKey::new(&[7; 32]);
    let mut nonces = std::collections::HashSet::new();
    for _ in 0..1000 {
        let mut sealed = Vec::new();
        key.seal(b"", &[b"same"], &mut sealed).unwrap();
        assert!(nonces.insert(sealed[..NONCE_LEN].to_vec()));
    }
}
