//! Names in the log. They are plaintext: they go where the user who mounts sends the log, a terminal or a file, and not
//! to the system's log, which lies on a disk and which others may read. There, names are at level debug only.

use rustix::fs::FileType;

use crate::volume::Ino;

/// What a message calls a file: by its path from the root, or where that must not or cannot be said, by its number.
pub(crate) fn file_name(ino: Ino, path: Option<Vec<u8>>) -> String {
    named(ino, path.filter(|_| may_name()))
}

fn named(ino: Ino, path: Option<Vec<u8>>) -> String {
    match path {
        Some(path) if !path.is_empty() => printable(&String::from_utf8_lossy(&path)),
        _ => format!("inode {}", ino.0),
    }
}

/// Without what would move a terminal's cursor, or look like another line of a log.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    text.chars().map(shown).collect()
}

/// Whether names may be logged. The system's log is reached by a socket: that of syslog, or a service's of journald.
fn may_name() -> bool {
    let to_system = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket);
    !to_system || log::log_enabled!(log::Level::Debug)
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
