//! CBOR (RFC 8949) as the format uses it: arrays of members, to which later versions may append more.

use minicbor::Decoder;
use minicbor::decode::Error;

/// Decodes the first `known` members of an array, and skips the others. Nothing is allocated by the length of the array,
/// which is not trusted: each member takes bytes of the message.
pub(crate) fn members<'b, T>(
    d: &mut Decoder<'b>,
    known: u64,
    decode: impl FnOnce(&mut Decoder<'b>) -> Result<T, Error>,
) -> Result<T, Error> {
    let len = elements(d)?;
    if len < known {
        return Err(Error::message("an array that lacks members"));
    }
    let value = decode(d)?;
    for _ in known..len {
        d.skip()?;
    }
    Ok(value)
}

/// Begins an array, and returns the number of its elements.
pub(crate) fn elements(d: &mut Decoder<'_>) -> Result<u64, Error> {
    d.array()?
        .ok_or_else(|| Error::message("array without a length"))
}
