//! A library in a directory.
