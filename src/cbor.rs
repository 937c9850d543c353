//! CBOR (RFC 8949) as the format has it: arrays of members, to which later writers may add some at the end.

use minicbor::Decoder;
use minicbor::decode::Error;

/// Decodes an array by its first `known` members, and passes over those behind. Its length, which may be anything,
/// sizes nothing: each member takes bytes of the message.
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

/// Begins an array; answers how many elements it has.
pub(crate) fn elements(d: &mut Decoder<'_>) -> Result<u64, Error> {
    d.array()?
        .ok_or_else(|| Error::message("array without a length"))
}
