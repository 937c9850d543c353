//! Records: what one operation changes, as stored in a frame (CBOR; `man/hushfs-format.5`, section RECORDS).
//!
//! Every record sets one or more last-writer-wins registers, ordered by [`WireStamp`]: applying the same set in any
//! order gives the same tree.

use minicbor::{Decode, Encode};

pub use super::numbers::{BaseNumber, Number};
use crate::object::{DeviceId, PackId, SegmentId, SlotId};
use crate::pack::Run;
use crate::volume::{FileKind, Time};
pub use base::{BaseInode, BaseLink, BaseStamp, BaseXattr};

mod base;

/// The random 128-bit id of an inode or a link; an inode's first link has the id of the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u128);

/// The id of the root directory, which no record creates.
pub const ROOT_ID: Id = Id(1);

impl Id {
    /// The half by which directory entries are sorted.
    pub fn low(self) -> u64 {
        self.0 as u64
    }
}

/// When a record was made: the Lamport counter, then the first segment that had the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct WireStamp {
    /// The Lamport counter of the record.
    #[cbor(n(0), decode_with = "super::encoding::counter")]
    pub counter: u64,
    /// The segment.
    #[n(1)]
    pub segment: SegmentId,
}

/// The first frame of a segment: its writer, its number, and what its writer had applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct SegmentHeader {
    /// The writer.
    #[n(0)]
    pub device: DeviceId,
    /// The segment's number in the writer's order, from 1; 0 for a snapshot.
    #[n(1)]
    pub number: u64,
    /// The newest published segment of each device that the writer had applied, including its own.
    #[n(2)]
    pub heads: Vec<Head>,
    /// The newest snapshot known to the writer: its id and SHA-256.
    #[n(3)]
    pub newest_base: Option<BaseRef>,
    /// The existing slots.
    #[n(4)]
    pub slots: Vec<SlotId>,
    /// The slots that were removed.
    #[n(5)]
    pub removed_slots: Vec<SlotId>,
    /// Only in a snapshot: the segments that the stamps of its records refer to by position. `heads` of a snapshot are
    /// what it covers.
    #[n(6)]
    pub stamp_segments: Option<Vec<StampSegment>>,
    /// This segment replaces one that a crash left in `new/`. Until it is published it is an incomplete copy and is
    /// ignored.
    #[n(7)]
    pub adopts: Option<SegmentId>,
}

/// The newest published segment of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The writer.
    pub device: DeviceId,
    /// Its number in the writer's order, from 1.
    pub number: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// A snapshot and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseRef {
    /// The snapshot's segment.
    #[n(0)]
    pub segment: SegmentId,
    /// SHA-256 of the whole file.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sha256: [u8; 32],
}

/// A segment that stamps of a snapshot refer to, with its writer and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct StampSegment {
    /// The segment.
    #[n(0)]
    pub segment: SegmentId,
    /// Its writer.
    #[n(1)]
    pub device: DeviceId,
    /// Its number.
    #[n(2)]
    pub number: u64,
}

/// The last frame of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct SegmentFooter {
    /// Number of preceding frames, including the header.
    #[n(0)]
    pub frames: u64,
    /// Segments that were written concurrently with a snapshot: they must be applied on top of it to get the state of
    /// one moment.
    #[n(1)]
    pub needs: Vec<Head>,
}

/// Records that take effect atomically. The record at index `i` has the counter `counter + i`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Frame {
    /// Lamport counter of the first record.
    #[n(0)]
    pub counter: u64,
    /// The writer's clock.
    #[n(1)]
    pub wall: Time,
    /// All preceding frames and all objects that they refer to were durable.
    #[n(2)]
    pub durable_before: bool,
    /// The records.
    #[n(3)]
    pub records: Vec<Record>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Encode)]
pub enum Record {
    /// A new inode, without a link.
    #[n(0)]
    Inode(#[n(0)] NewInode),
    /// A link is created or moved.
    #[n(1)]
    Link(#[n(0)] LinkAt),
    /// A link is removed.
    #[n(2)]
    Unlink(#[n(0)] Unlink),
    /// Attributes.
    #[n(3)]
    Attr(#[n(0)] AttrChange),
    /// Contents, length and mtime.
    #[n(4)]
    Content(#[n(0)] Content),
    /// The same contents are stored elsewhere.
    #[n(5)]
    Relocate(#[n(0)] Relocate),
    /// An extended attribute.
    #[n(6)]
    Xattr(#[n(0)] XattrChange),
    /// A pack is finished.
    #[n(7)]
    Pack(#[n(0)] PackLen),
    /// Packs that nothing refers to any more.
    #[n(8)]
    Condemn(#[n(0)] Vec<PackId>),
    /// Only in snapshots: an inode with its registers.
    #[n(16)]
    BaseInode(#[n(0)] Box<BaseInode>),
    /// Only in snapshots: a link.
    #[n(17)]
    BaseLink(#[n(0)] BaseLink),
}

/// A new inode. Its times are the frame's.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct NewInode {
    /// Its id.
    #[n(0)]
    pub id: Id,
    /// Its kind.
    #[n(1)]
    pub kind: FileKind,
    /// Permission bits.
    #[n(2)]
    pub perm: u16,
    /// Owner.
    #[n(3)]
    pub uid: u32,
    /// Group.
    #[n(4)]
    pub gid: u32,
    /// Device number, of device nodes.
    #[n(5)]
    pub rdev: u32,
    /// Target, of symbolic links.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub target: Vec<u8>,
}

/// A link's register: its place.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct LinkAt {
    /// The link.
    #[n(0)]
    pub link: Id,
    /// Its inode; absent if the ids are the same.
    #[n(1)]
    pub inode: Option<Id>,
    /// Its directory.
    #[n(2)]
    pub parent: Id,
    /// Its name: 1 to 255 bytes without a slash or zero, not `.` or `..`.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub name: Vec<u8>,
}

/// A link's register: removed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Unlink {
    /// The link.
    #[n(0)]
    pub link: Id,
    /// Its inode; absent if the ids are the same.
    #[n(1)]
    pub inode: Option<Id>,
    /// The newest version of the contents that the remover knew.
    #[n(2)]
    pub seen: WireStamp,
}

/// Attributes to set; absent ones are unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub struct AttrChange {
    /// The inode.
    #[n(0)]
    pub inode: Id,
    /// Permission bits.
    #[n(1)]
    pub perm: Option<u16>,
    /// Owner and group.
    #[n(2)]
    pub owner: Option<Owner>,
    /// Last access.
    #[n(3)]
    pub atime: Option<Time>,
    /// Its inode number, if another inode has the number that follows from its id.
    #[n(4)]
    pub number: Option<Number>,
}

/// Owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Owner {
    /// The user id.
    #[n(0)]
    pub uid: u32,
    /// The group id.
    #[n(1)]
    pub gid: u32,
}

impl Default for Id {
    fn default() -> Self {
        ROOT_ID
    }
}

/// A change of contents, length or mtime. Its stamp is the id of the version that it creates.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Content {
    /// The inode; a directory has only an mtime.
    #[n(0)]
    pub inode: Id,
    /// The version that it is based on.
    #[n(1)]
    pub base: WireStamp,
    /// Length in bytes; data after it is dropped.
    #[n(2)]
    pub plain_size: u64,
    /// If absent, the frame's clock.
    #[n(3)]
    pub mtime: Option<Time>,
    /// The packs that `splices` refer to by position.
    #[n(4)]
    pub packs: Vec<PackId>,
    /// The changed ranges, ascending, disjoint.
    #[n(5)]
    pub splices: Vec<Splice>,
}

/// Contents that were copied; applied only if the file is still at `version`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Relocate {
    /// The inode.
    #[n(0)]
    pub inode: Id,
    /// The version that was copied.
    #[n(1)]
    pub version: WireStamp,
    /// As in [`Content`].
    #[n(2)]
    pub packs: Vec<PackId>,
    /// As in [`Content`].
    #[n(3)]
    pub splices: Vec<Splice>,
}

/// A range of a file, and where its bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Splice {
    /// Offset in the file.
    #[n(0)]
    pub plain_offset: u64,
    /// Length in bytes.
    #[n(1)]
    pub plain_len: u64,
    /// If absent, a hole.
    #[n(2)]
    pub source: Option<RunSlice>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct RunSlice {
    /// Index in the record's list of packs.
    #[n(0)]
    pub pack: u32,
    /// Offset of the run in the pack.
    #[n(1)]
    pub cipher_offset: u32,
    /// Plaintext length of the run.
    #[n(2)]
    pub run_len: u32,
    /// Offset in the run's plaintext.
    #[n(3)]
    pub start: u32,
}

/// Builds splices and the list of packs that they refer to.
#[derive(Debug, Default)]
pub struct Splices {
    /// The packs.
    pub packs: Vec<PackId>,
    /// The splices.
    pub list: Vec<Splice>,
}

impl Splices {
    /// Adds bytes `start..start + plain_len` of `run` at `plain_offset`.
    pub fn data(&mut self, plain_offset: u64, plain_len: u64, run: Run, start: u32) {
        // There are few packs and the last one is the most likely, so search from the end.
        let pack = self
            .packs
            .iter()
            .rposition(|p| *p == run.pack)
            .unwrap_or_else(|| {
                self.packs.push(run.pack);
                self.packs.len() - 1
            }) as u32;
        let source = RunSlice {
            pack,
            cipher_offset: run.cipher_offset,
            run_len: run.plain_len,
            start,
        };
        self.list.push(Splice {
            plain_offset,
            plain_len,
            source: Some(source),
        });
    }

    /// Adds a hole.
    pub fn hole(&mut self, plain_offset: u64, plain_len: u64) {
        if plain_len > 0 {
            self.list.push(Splice {
                plain_offset,
                plain_len,
                source: None,
            });
        }
    }
}

/// An extended attribute's register.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct XattrChange {
    /// The inode.
    #[n(0)]
    pub inode: Id,
    /// Its name, at most 255 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// Its value, at most 64 KiB; if absent, the attribute is removed.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub value: Option<Vec<u8>>,
}

/// The length of a finished pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PackLen {
    /// The pack.
    #[n(0)]
    pub pack: PackId,
    /// Its length in bytes.
    #[n(1)]
    pub cipher_len: u32,
}

#[cfg(test)]
mod tests;
