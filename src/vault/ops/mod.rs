//! Operations on names and attributes: each is one transaction of the log, built against the tree as it is.
//!
//! Owns nothing: these are methods of [`Files`](super::files::Files), because attributes count in what is dirty.

pub mod acl;
mod attrs;
mod list;
mod names;

pub(super) use names::NewNode;
