//! An in-memory copy of an open segment. Other programs can write to the folder that the file is in.

use crate::error::{Error, Result};
use crate::store::Object;

/// The bytes of a segment.
pub(super) struct Kept {
    /// What errors call it.
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Object for Kept {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn cipher_len(&self) -> Result<u64> {
        Ok(self.bytes.len() as u64)
    }
    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        let rest = usize::try_from(cipher_offset).ok();
        let rest = rest.and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let Some(bytes) = rest.get(..out.len()) else {
            let end = self.bytes.len();
            return Err(Error::damaged(
                &self.name,
                format_args!("ends after {end} bytes"),
            ));
        };
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        let at = usize::try_from(cipher_offset).unwrap_or(usize::MAX);
        let len = self.bytes.len().saturating_sub(at).min(out.len());
        self.read_at(&mut out[..len], cipher_offset).map(|()| len)
    }
    fn prefetch(&self, _cipher_offset: u64, _cipher_len: u64) {}
    fn uncache(&self, _cipher_offset: u64, _cipher_len: u64) {}
}
