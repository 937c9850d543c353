//! A library in memory, for tests: it can crash, fail and be slow.
