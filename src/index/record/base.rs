//! The records of a snapshot, which hold the whole state: each register with its stamp.

use minicbor::{Decode, Encode};

use super::{BaseNumber, LinkAt, NewInode, Splice};
use crate::object::PackId;
use crate::volume::Time;

/// A stamp in a snapshot: the counter, and an index into the header's list of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseStamp {
    /// The Lamport counter.
    #[cbor(n(0), decode_with = "crate::index::encoding::counter")]
    pub counter: u64,
    /// Index in [`SegmentHeader::stamp_segments`](super::SegmentHeader::stamp_segments).
    #[n(1)]
    pub segment: u32,
}

/// An inode in a snapshot. A register without a stamp of its own has that of the creation.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseInode {
    /// The inode with its current attributes.
    #[n(0)]
    pub inode: NewInode,
    /// When it was created.
    #[n(1)]
    pub created: BaseStamp,
    /// When its permission bits were set.
    #[n(2)]
    pub perm_at: Option<BaseStamp>,
    /// When its owner was set.
    #[n(3)]
    pub owner_at: Option<BaseStamp>,
    /// When its atime was set.
    #[n(4)]
    pub atime_at: Option<BaseStamp>,
    /// The version of its contents.
    #[n(5)]
    pub version: BaseStamp,
    /// Last access.
    #[n(6)]
    pub atime: Time,
    /// mtime.
    #[n(7)]
    pub mtime: Time,
    /// ctime.
    #[n(8)]
    pub ctime: Time,
    /// Time of creation.
    #[n(9)]
    pub btime: Time,
    /// Length in bytes.
    #[n(10)]
    pub plain_size: u64,
    /// As in [`Content`](super::Content).
    #[n(11)]
    pub packs: Vec<PackId>,
    /// Its extents.
    #[n(12)]
    pub splices: Vec<Splice>,
    /// Its extended attributes.
    #[n(13)]
    pub xattrs: Vec<BaseXattr>,
    /// The inode number that a record assigned.
    #[n(14)]
    pub number: Option<BaseNumber>,
}

/// An extended attribute in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseXattr {
    /// Its name.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// Its value.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
    /// When it was set.
    #[n(2)]
    pub at: BaseStamp,
}

/// A link in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseLink {
    /// Its place.
    #[n(0)]
    pub link: LinkAt,
    /// When it was placed there.
    #[n(1)]
    pub at: BaseStamp,
}
