//! Operations on names and attributes. Each is one transaction of the log, built against the current tree.
//!
//! Owns nothing: these are methods of [`Files`](super::files::Files), because attributes depend on dirty data.

pub mod acl;
mod attrs;
mod list;
mod names;

pub(super) use names::NewNode;
