//! The index: records in frames in segments, and the tree that they replay to.

mod apply;
mod base;
mod encoding;
pub mod extents;
pub mod record;
mod replay;
mod segment;
mod tree;

pub use base::{BaseCursor, StampTable};
pub use encoding::{from_cbor, to_cbor};
pub use replay::{Published, Replayed, check_rollback, replay};
pub use segment::{
    ClosedSegment, Ending, Extent as SegmentExtent, SEGMENT_CIPHER_LEN, SegmentReader,
    SegmentWriter,
};
pub use tree::{Inode, InodeIx, Link, LinkIx, PackInfo, ROOT_IX, Stamp, Tree};
