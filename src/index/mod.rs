//! The index: records in frames in segments, and the tree that they replay to.
//!
//! The format page calls a snapshot a *base*; so do the record types ([`record::BaseInode`]) and some names here.

mod apply;
mod base;
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
mod tail_scan;
mod tree;
mod unlinked;
mod versions;

pub use base::{SnapshotCursor, StampTable};
pub use conflicts::Settling;
pub use encoding::{from_cbor, to_cbor};
pub use history::{Ignored, SegmentInfo, WAIT, What, Writer, check_rollback};
pub use inode::{Inode, InodeIx, Link, LinkIx, ROOT_IX, Stamp};
pub use merge::Known;
pub use replay::{Replayed, replay};
pub use segment::{
    ClosedSegment, SEGMENT_CIPHER_LEN, SegmentEnd, SegmentReader, SegmentState, SegmentWriter,
};
pub use tail_scan::TailScan;
pub use tree::{PackInfo, Tree};
