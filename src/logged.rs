//! Where the log goes, and which names appear in it.
//!
//! File names are plaintext. They are logged to a terminal or to a file that the user has chosen. The system's log is
//! stored on a disk, and others may read it: there, names appear at level debug only.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::fmt::Formatter;
use rustix::fs::FileType;

use crate::volume::Ino;

/// The file that the log is appended to.
static FILE: OnceLock<File> = OnceLock::new();

/// The log goes only to the file: the mount has started, and no user waits for its messages at a terminal.
static ONLY_TO_FILE: AtomicBool = AtomicBool::new(false);

/// Makes the log go to a file, which is appended to. If it is created, only its owner may read it.
pub(crate) fn to_file(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    let file = options.append(true).create(true).mode(0o600).open(path)?;
    FILE.set(file)
        .map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))
}

/// The log's file, if there is one.
pub(crate) fn file() -> Option<&'static File> {
    FILE.get()
}

/// From now on, the log goes only to its file, if there is one.
pub(crate) fn only_to_file() {
    ONLY_TO_FILE.store(true, Ordering::Relaxed);
}

/// Writes a line of the log: to the file, with the time, and to standard error (`out`), unless the log goes only to the
/// file.
pub(crate) fn write(out: &mut Formatter, line: impl Display) -> io::Result<()> {
    if let Some(mut file) = file() {
        // In one write, so that lines of other threads cannot come in between.
        let line = format!("{} {line}\n", out.timestamp_seconds());
        file.write_all(line.as_bytes())?;
        if ONLY_TO_FILE.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    writeln!(out, "{line}")
}

/// Writes the error that ends the program to the log's file. Returns whether the caller must also print it, because
/// standard error is not that file.
pub(crate) fn ends_with(error: impl Display) -> bool {
    let Some(file) = file() else { return true };
    only_to_file();
    log::error!("{error}");
    let number = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let is_file = |stat: rustix::fs::Stat| {
        file.metadata().map(number).ok() == Some((stat.st_dev, stat.st_ino))
    };
    !rustix::fs::fstat(io::stderr()).is_ok_and(is_file)
}

/// The name of a file in messages: its path from the root, or its inode number if the path is unknown or must not be
/// logged.
pub(crate) fn file_name(ino: Ino, path: Option<Vec<u8>>) -> String {
    named(ino, path.filter(|_| may_name()))
}

fn named(ino: Ino, path: Option<Vec<u8>>) -> String {
    match path {
        Some(path) if !path.is_empty() => printable(&String::from_utf8_lossy(&path)),
        _ => format!("inode {}", ino.0),
    }
}

/// Replaces control characters, which could move a terminal's cursor or start another line of the log.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// Whether names may be logged. The log's file is the user's. The system's log is reached through a socket: that of syslog,
/// or one of journald for a service.
fn may_name() -> bool {
    let to_system = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    let to_file = file().is_some() && ONLY_TO_FILE.load(Ordering::Relaxed);
    to_file || !to_system || log::log_enabled!(log::Level::Debug)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_look_like_another_line() {
        let named = |path: &[u8]| named(Ino(7), Some(path.to_vec()));
        assert_eq!(named("a/é b".as_bytes()), "a/é b");
        assert_eq!(named(b"a\nERROR \x1b[2J"), "a\u{fffd}ERROR \u{fffd}[2J");
        assert_eq!(named(b"\xff"), "\u{fffd}");
        assert_eq!(named(b""), "inode 7");
    }
}
