//! The index: records in frames in segments, and the tree that they replay to.

mod apply;
mod base;
mod behind;
mod conflicts;
mod encoding;
pub mod extents;
mod history;
mod inode;
mod kept;
mod links;
mod merge;
mod numbers;
pub mod record;
mod removals;
mod replay;
mod segment;
mod several_bases;
mod slab;
mod tree;
mod unlinked;
mod versions;

pub use base::{BaseCursor, StampTable};
pub use behind::Behind;
pub use conflicts::Settling;
pub use encoding::{from_cbor, to_cbor};
pub use history::{Ignored, Published, WAIT, What, Writer, check_rollback};
pub use inode::{Inode, InodeIx, Link, LinkIx, ROOT_IX, Stamp};
pub use merge::Known;
pub use replay::{Replayed, replay};
pub use segment::{
    ClosedSegment, Ending, Extent as SegmentExtent, SEGMENT_CIPHER_LEN, SegmentReader,
    SegmentWriter,
};
pub use tree::{PackInfo, Tree};
