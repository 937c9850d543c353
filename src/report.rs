//! What `hushfs verify` finds, as it finds it.

use std::fmt::Display;

/// What is told of a verification while it runs.
pub trait Watch {
    /// Something is wrong with `subject`.
    fn problem(&mut self, subject: &str, text: &str);
    /// Something worth knowing, and not wrong.
    fn note(&mut self, subject: &str, text: &str);
    /// So many bytes in all will be looked at.
    fn total(&mut self, bytes: u64);
    /// So many more bytes were looked at.
    fn advance(&mut self, bytes: u64);
}

/// Counts what is found.
pub struct Report<'a> {
    watch: &'a mut dyn Watch,
    problems: u64,
    files: u64,
}

impl<'a> Report<'a> {
    /// An empty report, told to `watch` as it grows.
    pub fn new(watch: &'a mut dyn Watch) -> Self {
        Self {
            watch,
            problems: 0,
            files: 0,
        }
    }

    /// Something is wrong with `subject`.
    pub fn problem(&mut self, subject: impl Display, text: impl Display) {
        self.problems += 1;
        self.watch.problem(&subject.to_string(), &text.to_string());
    }

    /// Something worth knowing, and not wrong.
    pub fn note(&mut self, subject: impl Display, text: impl Display) {
        self.watch.note(&subject.to_string(), &text.to_string());
    }

    /// So many bytes in all will be looked at.
    pub fn total(&mut self, bytes: u64) {
        self.watch.total(bytes);
    }

    /// So many more bytes were looked at.
    pub fn advance(&mut self, bytes: u64) {
        self.watch.advance(bytes);
    }

    /// One more file was looked at.
    pub fn count_file(&mut self) {
        self.files += 1;
    }

    /// How many problems there are.
    pub fn problems(&self) -> u64 {
        self.problems
    }

    /// How many files were looked at.
    pub fn files(&self) -> u64 {
        self.files
    }
}
