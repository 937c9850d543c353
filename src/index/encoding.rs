//! CBOR encoding (RFC 8949) of ids, times and other types of the crate; records derive theirs.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use super::apply::COUNTER_MAX;
use super::record::{Head, Id, Number, Record};
use crate::cbor::members;
use crate::object::{ObjectId, PackId, SegmentId, SlotId};
use crate::volume::{FileKind, Time};

impl<C> Encode<C> for Id {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0.to_be_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Id {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        sixteen(d).map(|b| Self(u128::from_be_bytes(b)))
    }
}

impl<C> Encode<C> for Number {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.u64(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Number {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Some(d.u64()?)
            .filter(|number| (2..1 << 53).contains(number))
            .map(Self)
            .ok_or_else(|| decode::Error::message("invalid inode number"))
    }
}

impl<C> Encode<C> for ObjectId {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ObjectId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        sixteen(d).map(Self)
    }
}

/// Encodes the id of one kind of object like any [`ObjectId`].
macro_rules! as_object_id {
    ($name:ident) => {
        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(
                &self,
                e: &mut Encoder<W>,
                c: &mut C,
            ) -> Result<(), encode::Error<W::Error>> {
                self.object().encode(e, c)
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, decode::Error> {
                ObjectId::decode(d, c).map(Self)
            }
        }
    };
}

as_object_id!(SlotId);
as_object_id!(SegmentId);
as_object_id!(PackId);

fn sixteen(d: &mut Decoder<'_>) -> Result<[u8; 16], decode::Error> {
    d.bytes()?
        .try_into()
        .map_err(|_| decode::Error::message("an id is 16 bytes"))
}

impl<C> Encode<C> for Time {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.i64(self.sec)?.u32(self.nsec)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Time {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let (sec, nsec) = members(d, 2, |d| Ok((d.i64()?, d.u32()?)))?;
        if nsec >= 1_000_000_000 {
            return Err(decode::Error::message("nanoseconds of a second or more"));
        }
        Ok(Self { sec, nsec })
    }
}

impl<C> Encode<C> for Head {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        c: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?;
        self.device.encode(e, c)?;
        e.u64(self.number)?.bytes(&self.sha256)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Head {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, decode::Error> {
        members(d, 3, |d| {
            let device = ObjectId::decode(d, c)?;
            let number = d.u64()?;
            let sha256 = d
                .bytes()?
                .try_into()
                .map_err(|_| decode::Error::message("a digest is 32 bytes"))?;
            Ok(Self {
                device,
                number,
                sha256,
            })
        })
    }
}

/// Written by hand, as a derived decoder refuses additional members.
impl<'b, C> Decode<'b, C> for Record {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, decode::Error> {
        members(d, 2, |d| {
            let number = d.u64()?;
            members(d, 1, |d| {
                Ok(match number {
                    0 => Record::Inode(Decode::decode(d, c)?),
                    1 => Record::Link(Decode::decode(d, c)?),
                    2 => Record::Unlink(Decode::decode(d, c)?),
                    3 => Record::Attr(Decode::decode(d, c)?),
                    4 => Record::Content(Decode::decode(d, c)?),
                    5 => Record::Relocate(Decode::decode(d, c)?),
                    6 => Record::Xattr(Decode::decode(d, c)?),
                    7 => Record::Pack(Decode::decode(d, c)?),
                    8 => Record::Condemn(Decode::decode(d, c)?),
                    16 => Record::BaseInode(Decode::decode(d, c)?),
                    17 => Record::BaseLink(Decode::decode(d, c)?),
                    _ => return Err(decode::Error::message("unknown record")),
                })
            })
        })
    }
}

/// The counter of a stamp inside a record.
pub(super) fn counter<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<u64, decode::Error> {
    Some(d.u64()?)
        .filter(|counter| *counter <= COUNTER_MAX)
        .ok_or_else(|| decode::Error::message("counter absurdly ahead"))
}

impl<C> Encode<C> for FileKind {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.u8(*self as u8)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for FileKind {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(match d.u8()? {
            0 => FileKind::Regular,
            1 => FileKind::Directory,
            2 => FileKind::Symlink,
            3 => FileKind::Fifo,
            4 => FileKind::Socket,
            5 => FileKind::CharDevice,
            6 => FileKind::BlockDevice,
            _ => return Err(decode::Error::message("unknown kind of inode")),
        })
    }
}

/// Encodes a record, frame, header or footer.
pub fn to_cbor<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a vector cannot fail, and none of the types has an encoding that can.
    minicbor::encode(value, &mut out).expect("encoding to memory cannot fail");
    out
}

/// Decodes a value; bytes after it are an error.
pub fn from_cbor<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, decode::Error> {
    let mut d = Decoder::new(bytes);
    let value = d.decode()?;
    if d.position() != bytes.len() {
        return Err(decode::Error::message("bytes after the end"));
    }
    Ok(value)
}
