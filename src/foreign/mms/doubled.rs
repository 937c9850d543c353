//! Files that were encrypted twice: the server lost its index, and encrypted its own objects as if they were songs
//! (`man/hushfs-foreign.5`: Music server). Such a file is shown with the contents of its innermost layer.
//!
//! The initialisation vector of an inner layer was lost with the old index. But if the song's original was still in the
//! library, the server encrypted that again, under the same object name. If it did so before it encrypted the old object,
//! then the record of the song has the vector of the inner layer: the object of the song and the inner layer are the same.
//! This is checked, because a wrong vector cannot be noticed by the padding.

use std::path::Path;
use std::sync::Arc;

use super::super::{Entry, PlainReader, Reader};
use super::index::Record;
use super::segments::{SegmentReader, cipher_len};
use super::{Mms, extension};
use crate::error::{Kind, Result};
use crate::foreign::cipher::BLOCK_LEN;

/// Most layers that are read. Each but the first means that the index was lost once more.
const LAYERS_MAX: usize = 8;

/// Whether the name of a song shows that it is an object which the server encrypted again.
pub fn is_doubled(path: &str) -> bool {
    &*extension(Path::new(path)) == "encrypt"
}

/// Opens such a file at its innermost layer. If that cannot be reached, returns a reader of the deepest possible layer, and
/// the reason.
pub fn open(mms: &Mms, outer: Record) -> Result<(Arc<dyn Reader>, Option<String>)> {
    let mut reader = mms.open_object(&outer)?;
    let mut at = outer;
    for _ in 0..LAYERS_MAX {
        if !is_doubled(&at.path) {
            return Ok((reader, None));
        }
        (reader, at) = match inner(mms, &at, &reader)? {
            Ok(inner) => inner,
            Err(lacking) => return Ok((reader, Some(lacking))),
        };
    }
    let lacking = format!("more than {LAYERS_MAX} layers");
    Ok((reader, Some(lacking)))
}

/// Bytes of plaintext of such a file; logs if its innermost layer cannot be reached. If it cannot be opened, the size in the
/// index is returned, and reading fails with the reason.
pub fn plain_size(mms: &Mms, entry: &Entry) -> Result<u64> {
    let index = mms.index.lock();
    let object = entry.cipher_path.to_str().unwrap_or_default();
    let record = index.of_object(object).ok_or(Kind::NotFound)?.clone();
    drop(index);
    let path = record.path.clone();
    let by_index = record.plain_size;
    let Ok((reader, lacking)) = open(mms, record) else {
        return Ok(by_index);
    };
    if let Some(lacking) = lacking {
        log::warn!("{path}: encrypted twice, and the inner layer cannot be read: {lacking}");
    }
    Ok(reader.plain_size())
}

/// A reader of the next layer and its record, or the reason why it cannot be opened.
type Inner = Result<(Arc<dyn Reader>, Record), String>;

/// Opens the layer below that of `outer`, which `reader` reads.
fn inner(mms: &Mms, outer: &Record, reader: &Arc<dyn Reader>) -> Result<Inner> {
    let index = mms.index.lock();
    let Some(record) = index.of_object(&outer.path).cloned() else {
        return Ok(Err("its vector was lost with the old index".into()));
    };
    drop(index);
    let song = &record.path;
    if cipher_len(record.plain_size) != reader.plain_size() {
        return Ok(Err(format!("{song} has another length now")));
    }
    let Ok(object) = PlainReader::open(&mms.root.join(&*record.object)) else {
        return Ok(Err(format!(
            "the object of {song}, to compare it with, is missing"
        )));
    };
    // With the same key, the same first block means the same vector, as vectors are random.
    let len = reader.plain_size().min(BLOCK_LEN as u64) as usize;
    let (mut ours, mut other) = ([0; BLOCK_LEN], [0; BLOCK_LEN]);
    reader.read_exact_at(0, &mut ours[..len])?;
    if object.read_exact_at(0, &mut other[..len]).is_err() || ours != other {
        return Ok(Err(format!("{song} was encrypted again since")));
    }
    let (key, iv) = (mms.key.clone(), record.iv);
    let through = SegmentReader::new(Arc::clone(reader), key, iv, record.plain_size);
    Ok(Ok((Arc::new(through), record)))
}
