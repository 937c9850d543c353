//! Padding, so that the lengths of stored files reveal little.

/// The padded length of an object of `true_len` bytes, at least `floor`: Padmé (Nikitin et al., "Reducing
/// Metadata Leakage from Encrypted Files and Communication with PURBs", PoPETs 2019).
///
/// Only the log2(log2(length)) + 1 leading bits of the length are kept, so that few lengths are possible. At most 12 % is
/// added, 3 % at 64 MiB. Both arguments must be below 2^62.
pub fn padme_len(true_len: u64, floor: u64) -> u64 {
    let len = true_len.max(floor);
    debug_assert!(len < 1 << 62, "no object is that long");
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let kept_bits = exponent.ilog2() + 1;
    let rounded = (1 << (exponent - kept_bits)) - 1;
    (len + rounded) & !rounded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_those_of_the_paper() {
        // From the reference implementation of the authors.
        for (len, padded) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (7, 7),
            (8, 8),
            (9, 10),
            (17, 18),
            (33, 36),
            (1000, 1024),
        ] {
            assert_eq!(padme_len(len, 0), padded, "of {len}");
        }
        assert_eq!(padme_len(1, 65_536), 65_536);
        assert_eq!(padme_len(65_537, 65_536), 67_584);
        // A pack of more than 63 MiB becomes exactly 64 MiB.
        assert_eq!(padme_len((63 << 20) + 1, 65_536), 64 << 20);
        assert_eq!(padme_len(64 << 20, 65_536), 64 << 20);
    }

    proptest! {
        #[test]
        fn padding_is_monotone_idempotent_and_small(len in 1u64..1 << 40, more in 0u64..1 << 20, floor in 0u64..100_000) {
            let padded = padme_len(len, floor);
            prop_assert!(padded >= len && padded >= floor);
            prop_assert!(padme_len(len + more, floor) >= padded);
            prop_assert_eq!(padme_len(padded, floor), padded);
            prop_assert!((padded - len.max(floor)) * 100 <= len.max(floor) * 12);
        }
    }
}
