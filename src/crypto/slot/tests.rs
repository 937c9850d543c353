use super::*;
use crate::crypto::kdf::{LANES_MAX, MEMORY_KIB_MAX, PASSES_MAX};
use crate::error::ExitStatus;
use crate::object::ObjectId;

const ID: SlotId = SlotId(ObjectId([0xab; 16]));
/// The cheapest that Argon2 allows: what is tested is the slot.
const CHEAP: KdfParams = KdfParams {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

fn password(text: &str) -> Secret {
    Secret::Password(Zeroizing::new(text.as_bytes().to_vec()))
}

fn key_file(len: usize) -> Secret {
    Secret::KeyFile(Zeroizing::new(vec![5; len]))
}

fn sealed(secret: &Secret) -> (MasterKey, Vec<u8>) {
    let master = MasterKey::generate().unwrap();
    let bytes = Slot::seal(ID, &master, secret, CHEAP, "laptop").unwrap();
    (master, bytes)
}

/// What somebody does who changes a slot and knows the format.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = Sha256::digest(&bytes[..CHECKSUM.start]);
    bytes[CHECKSUM].copy_from_slice(&checksum);
    bytes
}

fn status<T>(result: Result<T>) -> ExitStatus {
    match result {
        Ok(_) => ExitStatus::Success,
        Err(e) => {
            assert!(e.to_string().contains("key/abab"), "{e}");
            e.exit_status()
        }
    }
}

#[test]
fn a_slot_opens_with_its_secret_only() {
    for (right, wrong) in [
        (password("right"), password("wrong")),
        (key_file(32), key_file(33)),
        (password("right"), key_file(32)),
    ] {
        let (master, bytes) = sealed(&right);
        assert_eq!(bytes.len(), SLOT_LEN);
        let slot = Slot::parse(ID, &bytes).unwrap();
        assert_eq!(slot.kind, right.kind());
        assert_eq!(slot.open(&right).unwrap().bytes(), master.bytes());
        assert_eq!(slot.label(&master).unwrap(), "laptop");
        assert_eq!(status(slot.open(&wrong)), ExitStatus::WrongKey);
        assert!(slot.created > 1_700_000_000);
    }
}

#[test]
fn nothing_secret_is_in_the_file() {
    let (master, bytes) = sealed(&password("the password"));
    for secret in [&b"the password"[..], b"laptop", &master.bytes()[..8]] {
        assert!(!bytes.windows(secret.len()).any(|w| w == secret));
    }
}

#[test]
fn an_accident_is_told_from_a_wrong_password() {
    let (_, bytes) = sealed(&password("right"));
    for bit in 0..SLOT_LEN * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            8..16 | 24..28 => ExitStatus::NotLibrary,
            _ => ExitStatus::Damaged,
        };
        assert_eq!(status(Slot::parse(ID, &bad)), expected, "bit {bit}");
    }
    for len in 0..SLOT_LEN {
        assert_eq!(status(Slot::parse(ID, &bytes[..len])), ExitStatus::Damaged);
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert_eq!(status(Slot::parse(ID, &longer)), ExitStatus::Damaged);
    let renamed = Slot::parse(SlotId(ObjectId([0xac; 16])), &bytes);
    assert_eq!(renamed.err().unwrap().exit_status(), ExitStatus::Damaged);
}

#[test]
fn a_change_with_a_fitting_checksum_opens_nothing() {
    let (master, bytes) = sealed(&password("right"));
    for at in 0..CHECKSUM.start {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let Ok(slot) = Slot::parse(ID, &with_checksum(bad)) else {
            continue;
        };
        let expected = if CREATED.contains(&at) || LABEL.contains(&at) || MAC.contains(&at) {
            ExitStatus::Damaged
        } else {
            ExitStatus::WrongKey
        };
        assert_eq!(status(slot.open(&password("right"))), expected, "byte {at}");
        assert_eq!(status(slot.verify(&master)), ExitStatus::Damaged);
        assert!(slot.label(&master).is_err());
    }
}

#[test]
fn a_slot_of_another_library_does_not_verify() {
    let (_, bytes) = sealed(&password("right"));
    let slot = Slot::parse(ID, &bytes).unwrap();
    let other = MasterKey::generate().unwrap();
    assert_eq!(status(slot.verify(&other)), ExitStatus::Damaged);
}

#[test]
fn hostile_costs_are_refused_before_they_cost() {
    let (_, bytes) = sealed(&password("right"));
    let with = |costs: [u32; 3]| {
        let mut bad = bytes.clone();
        for (range, cost) in [MEMORY, PASSES, LANES].into_iter().zip(costs) {
            bad[range].copy_from_slice(&cost.to_le_bytes());
        }
        Slot::parse(ID, &with_checksum(bad))
    };
    assert!(with([8, 1, 1]).is_ok());
    assert!(with([MEMORY_KIB_MAX, 8, 64]).is_ok());
    for bad in [
        [MEMORY_KIB_MAX + 1, 1, 1],
        [u32::MAX, u32::MAX, u32::MAX],
        [0, 0, 0],
        [64 << 10, 0, 4],
        [64 << 10, PASSES_MAX + 1, 4],
        [64 << 10, 3, 0],
        [64 << 10, 3, LANES_MAX + 1],
        [31, 1, 4],
        [MEMORY_KIB_MAX, 9, 4],
    ] {
        assert_eq!(status(with(bad)), ExitStatus::Damaged, "{bad:?}");
    }
}

#[test]
fn invalid_labels_costs_and_key_files_are_refused() {
    let master = MasterKey::generate().unwrap();
    let refused = |secret: &Secret, kdf, label: &str| {
        let e = Slot::seal(ID, &master, secret, kdf, label).unwrap_err();
        assert_eq!(e.exit_status(), ExitStatus::Usage, "{e}");
    };
    refused(&key_file(31), CHEAP, "");
    refused(&key_file(KEY_FILE_LEN_MAX + 1), CHEAP, "");
    refused(&key_file(32), CHEAP, &"x".repeat(LABEL_LEN_MAX + 1));
    let free = KdfParams { passes: 0, ..CHEAP };
    refused(&password("p"), free, "");
}
