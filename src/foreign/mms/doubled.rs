//! Files that were encrypted twice: the server lost its index, and took the objects that it had made for songs
//! (`man/hushfs-foreign.5`: Music server). What is shown of such a file is what its innermost layer holds.
//!
//! The vector of an inner layer went with the old index. But where the song's original still lay in the library, the
//! server encrypted that anew, under the same object name, before or after it came to the old object. If before, the
//! record of the song has the vector of what was then encrypted once more: the two objects are the same. That is
//! looked at, as no padding tells a wrong vector.

use std::path::Path;
use std::sync::Arc;

use super::super::{Entry, PlainReader, Reader};
use super::index::Record;
use super::segments::{SegmentReader, cipher_len};
use super::{Mms, extension};
use crate::error::{Kind, Result};
use crate::foreign::cipher::BLOCK_LEN;

/// Layers that are read through; the index was lost once for each but the first.
const LAYERS_MAX: usize = 8;

/// Whether the server took an object for a song, by the name of the song.
pub fn is_doubled(path: &str) -> bool {
    &*extension(Path::new(path)) == "encrypt"
}

/// Opens such a file at its innermost layer; and why that is not the innermost, where it is not.
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

/// Bytes of plaintext of such a file; says where it is not read through. Of what cannot be opened it is what the index
/// says: reading it tells why.
pub fn plain_size(mms: &Mms, entry: &Entry) -> Result<u64> {
    let index = mms.index.lock();
    let object = entry.stored.to_str().unwrap_or_default();
    let record = index.of_object(object).ok_or(Kind::NotFound)?.clone();
    drop(index);
    let path = record.path.clone();
    let by_index = record.plain_size;
    let Ok((reader, lacking)) = open(mms, record) else {
        return Ok(by_index);
    };
    if let Some(lacking) = lacking {
        log::warn!("{path}: encrypted twice, and not read through: {lacking}");
    }
    Ok(reader.plain_size())
}

/// What the next layer holds, and the record of what that is; or what is lacking to open it.
type Inner = Result<(Arc<dyn Reader>, Record), String>;

/// Opens the layer below that of `outer`, which `reader` reads.
fn inner(mms: &Mms, outer: &Record, reader: &Arc<dyn Reader>) -> Result<Inner> {
    let index = mms.index.lock();
    let Some(record) = index.of_object(&outer.path).cloned() else {
        return Ok(Err("its vector went with the old index".into()));
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
    // The same key and the same first block: the same vector, as that is random.
    let len = reader.plain_size().min(BLOCK_LEN as u64) as usize;
    let (mut ours, mut other) = ([0; BLOCK_LEN], [0; BLOCK_LEN]);
    reader.read_exact_at(0, &mut ours[..len])?;
    if object.read_exact_at(0, &mut other[..len]).is_err() || ours != other {
        return Ok(Err(format!("{song} was encrypted anew since")));
    }
    let (key, iv) = (mms.key.clone(), record.iv);
    let through = SegmentReader::new(Arc::clone(reader), key, iv, record.plain_size);
    Ok(Ok((Arc::new(through), record)))
}
