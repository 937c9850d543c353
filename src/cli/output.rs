//! Standard output and standard error, written to without a panic on failure.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Kind, Result};
use crate::logged;

/// Writes to standard output, and flushes it.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(failed)
}

/// Writes a line to standard output, and flushes it.
pub fn print_line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Returns the error for a failed write to standard output.
pub fn failed(e: io::Error) -> Error {
    Error::new(Kind::Io(e), "standard output")
}

/// Prints an error, and returns the exit code. Prints nothing if the reader of standard output is gone (`| head`), or
/// if another process has reported the error already.
pub fn report(e: &Error) -> u8 {
    let is_said = match e.kind() {
        Kind::Io(io) => io.kind() == ErrorKind::BrokenPipe,
        Kind::Ended(_, text) => text.is_empty(),
        _ => false,
    };
    if !is_said && logged::ends_with(e) {
        tell(e);
    }
    e.exit_status() as u8
}

/// Writes a line to standard error. If that fails, there is nowhere left to report it.
pub fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "hushfs: {text}");
}

/// Returns a number of things in words: `1 file`, `2 files`.
pub fn counted(number: u64, one: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {one}{end}")
}
