//! Padding.
/// Padmé.
pub fn padme_len(_true_len: u64, _floor: u64) -> u64 {
    unimplemented!()
}
