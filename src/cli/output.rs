//! Standard output and standard error: what cannot be written there is no reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Kind, Result};

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
/// worth a word.
pub fn report(e: &Error) -> u8 {
    if !matches!(e.kind(), Kind::Io(io) if io.kind() == ErrorKind::BrokenPipe) {
        // Where standard error takes nothing, there is nobody left to tell.
        let _ = writeln!(io::stderr(), "hushfs: {e}");
    }
    e.exit_status() as u8
}
