//! Reports what `hushfs verify` finds, while it runs.

use std::fmt::Display;

/// Receives the results and the progress of a verification.
pub trait Watch {
    /// Something is wrong with `subject`.
    fn problem(&mut self, subject: &str, text: &str);
    /// Something worth knowing that is not a problem.
    fn note(&mut self, subject: &str, text: &str);
    /// The number of bytes to check.
    fn total(&mut self, bytes: u64);
    /// This many more bytes were checked.
    fn advance(&mut self, bytes: u64);
}

/// Counts problems and files.
pub struct Report<'a> {
    watch: &'a mut dyn Watch,
    problems: u64,
    files: u64,
}

impl<'a> Report<'a> {
    /// An empty report, which passes everything on to `watch`.
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

    /// Something worth knowing that is not a problem.
    pub fn note(&mut self, subject: impl Display, text: impl Display) {
        self.watch.note(&subject.to_string(), &text.to_string());
    }

    /// The number of bytes to check.
    pub fn total(&mut self, bytes: u64) {
        self.watch.total(bytes);
    }

    /// This many more bytes were checked.
    pub fn advance(&mut self, bytes: u64) {
        self.watch.advance(bytes);
    }

    /// One more file was checked.
    pub fn count_file(&mut self) {
        self.files += 1;
    }

    /// The number of problems.
    pub fn problems(&self) -> u64 {
        self.problems
    }

    /// The number of files checked.
    pub fn files(&self) -> u64 {
        self.files
    }
}
