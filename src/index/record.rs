//! Records: what one operation changes, as it stands in a frame (CBOR; `man/hushfs-format.5`, section RECORDS).
//!
//! Every record is one or more last-writer-wins registers, ordered by [`WireStamp`]: applying the same set in any
//! order gives the same tree.

use minicbor::{Decode, Encode};

pub use super::numbers::{BaseNumber, Number};
use crate::object::{DeviceId, PackId, SegmentId, SlotId};
use crate::pack::Run;
use crate::volume::{FileKind, Time};
pub use base::{BaseInode, BaseLink, BaseStamp, BaseXattr};

mod base;

/// The random 128-bit id of an inode or a link; an inode's first link has the inode's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u128);

/// The id of the root directory, which no record creates.
pub const ROOT_ID: Id = Id(1);

impl Id {
    /// The half by which the names in a directory are ordered.
    pub fn low(self) -> u64 {
        self.0 as u64
    }
}

/// When a record was made: the Lamport counter, then the segment that it first stood in.
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

/// The first frame of a segment: who wrote it, when in that writer's order, and what its writer had applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Opening {
    /// Who writes.
    #[n(0)]
    pub device: DeviceId,
    /// Which of the writer's segments, from 1; a base has no number: 0.
    #[n(1)]
    pub number: u64,
    /// The newest published segment of each device that the writer had applied, its own included.
    #[n(2)]
    pub heads: Vec<Head>,
    /// The newest base known to the writer: its id and SHA-256.
    #[n(3)]
    pub newest_base: Option<BaseRef>,
    /// The slots that there are.
    #[n(4)]
    pub slots: Vec<SlotId>,
    /// The slots that were removed.
    #[n(5)]
    pub removed_slots: Vec<SlotId>,
    /// In a base: the segments that stamps of its records name by their place in this list. For a base, `heads`
    /// is what it covers.
    #[n(6)]
    pub stamp_segments: Option<Vec<StampSegment>>,
    /// This segment takes the place of one that a crash left in `new/`. While it is itself not published, it is
    /// a copy that was not finished, and counts for nothing.
    #[n(7)]
    pub adopts: Option<SegmentId>,
}

/// The newest published segment of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose segment.
    pub device: DeviceId,
    /// Its number in the writer's order, from 1.
    pub number: u64,
    /// SHA-256 of the whole file.
    pub sha256: [u8; 32],
}

/// A base and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct BaseRef {
    /// The segment that is the base.
    #[n(0)]
    pub segment: SegmentId,
    /// SHA-256 of the whole file.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sha256: [u8; 32],
}

/// A segment that a base's stamps name, and where it stood in its writer's order.
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
pub struct Closing {
    /// How many frames stand before this one, the opening counted in.
    #[n(0)]
    pub frames: u64,
    /// What a base was written beside: segments that must be applied on top of it to have one moment's state.
    #[n(1)]
    pub needs: Vec<Head>,
}

/// Records that took effect together. The record at place `i` has the counter `counter + i`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Frame {
    /// Lamport counter of the first record.
    #[n(0)]
    pub counter: u64,
    /// The writer's clock.
    #[n(1)]
    pub wall: Time,
    /// All frames before this one, and all that they name, had been made durable.
    #[n(2)]
    pub durable_before: bool,
    /// The records.
    #[n(3)]
    pub records: Vec<Record>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Encode)]
pub enum Record {
    /// A new inode; it has no name yet.
    #[n(0)]
    Inode(#[n(0)] NewInode),
    /// A link is (now) here.
    #[n(1)]
    Link(#[n(0)] LinkAt),
    /// A link is no more.
    #[n(2)]
    Unlink(#[n(0)] Unlink),
    /// Attributes.
    #[n(3)]
    Attr(#[n(0)] AttrChange),
    /// Contents, length and mtime.
    #[n(4)]
    Content(#[n(0)] Content),
    /// The same contents lie elsewhere.
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
    /// Bases only: an inode with its registers.
    #[n(16)]
    BaseInode(#[n(0)] Box<BaseInode>),
    /// Bases only: a link.
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
    /// What it is.
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
    /// Of which inode; absent where the ids are the same.
    #[n(1)]
    pub inode: Option<Id>,
    /// In which directory.
    #[n(2)]
    pub parent: Id,
    /// By which name: 1 to 255 bytes without a slash or a zero, not `.` or `..`.
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
    /// Of which inode; absent where the ids are the same.
    #[n(1)]
    pub inode: Option<Id>,
    /// The newest version of the contents that the remover knew.
    #[n(2)]
    pub seen: WireStamp,
}

/// Attributes that are set; absent ones stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub struct AttrChange {
    /// Of which inode.
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
    /// The number that programs know it by, where another inode has the one that follows from its id.
    #[n(4)]
    pub number: Option<Number>,
}

/// Owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Owner {
    /// The user's number.
    #[n(0)]
    pub uid: u32,
    /// The group's number.
    #[n(1)]
    pub gid: u32,
}

impl Default for Id {
    fn default() -> Self {
        ROOT_ID
    }
}

/// A change of contents, length or mtime. The stamp of this record is the id of the version that it makes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Content {
    /// Of which inode; a directory has only an mtime.
    #[n(0)]
    pub inode: Id,
    /// The version that it was made on.
    #[n(1)]
    pub base: WireStamp,
    /// Length in bytes; what lies behind it is gone.
    #[n(2)]
    pub plain_size: u64,
    /// Absent: the frame's clock.
    #[n(3)]
    pub mtime: Option<Time>,
    /// The packs that `splices` name by their place in this list.
    #[n(4)]
    pub packs: Vec<PackId>,
    /// Ranges that lie elsewhere now, ascending, disjoint.
    #[n(5)]
    pub splices: Vec<Splice>,
}

/// Contents that were copied: applied only while the file is still at `version`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Relocate {
    /// Of which inode.
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

/// A range of a file, and where its bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Splice {
    /// Where in the file.
    #[n(0)]
    pub plain_offset: u64,
    /// How long.
    #[n(1)]
    pub plain_len: u64,
    /// Absent: a hole.
    #[n(2)]
    pub source: Option<Source>,
}

/// Where bytes lie: a run as it was sealed, and where in it to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Source {
    /// Place in the record's list of packs.
    #[n(0)]
    pub pack: u32,
    /// Where in the pack the run starts.
    #[n(1)]
    pub cipher_offset: u32,
    /// Length of the run.
    #[n(2)]
    pub run_len: u32,
    /// Where in the run.
    #[n(3)]
    pub start: u32,
}

/// Collects the packs that splices name.
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
        // Few packs, and mostly the last one: a search from the end is short.
        let pack = self
            .packs
            .iter()
            .rposition(|p| *p == run.pack)
            .unwrap_or_else(|| {
                self.packs.push(run.pack);
                self.packs.len() - 1
            }) as u32;
        let source = Source {
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
    /// Of which inode.
    #[n(0)]
    pub inode: Id,
    /// Its name, at most 255 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// Its value, at most 64 KiB; absent: removed.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub value: Option<Vec<u8>>,
}

/// How long a finished pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PackLen {
    /// The pack.
    #[n(0)]
    pub pack: PackId,
    /// All its bytes.
    #[n(1)]
    pub cipher_len: u32,
}

#[cfg(test)]
mod tests;
