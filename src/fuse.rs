//! The FUSE edge.
