//! Standard output and standard error: what cannot be written there is no reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Kind, Result};
use crate::logged;

/// Writes to standard output; on return the system has it.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(failed)
}

/// Writes a line to standard output; on return the system has it.
pub fn print_line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// An error of standard output.
pub fn failed(e: io::Error) -> Error {
    Error::new(Kind::Io(e), "standard output")
}

/// Tells of an error, and says with which code to exit. That nobody reads standard output any more (`| head`) is not
/// worth a word, nor what another process has said already.
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

/// Writes a line to standard error. If that takes nothing, there is nobody left to tell.
pub fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "hushfs: {text}");
}

/// A number of things: `1 file`, `2 files`.
pub fn counted(number: u64, one: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {one}{end}")
}
