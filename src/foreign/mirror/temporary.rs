//! Temporary names: programs write to a file with such a name, and then rename it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Prefixes of such names. The final name follows.
const BEGINNINGS: [&[u8]; 7] = [
    b".syncthing.",
    b"~syncthing~",
    b".unison.",
    b".~",
    b".#",
    b"~",
    b".",
];
/// Suffixes of such names, after the final name.
const ENDS: [&[u8]; 12] = [
    b".unison.tmp",
    b"_exiftool_tmp",
    b".crdownload",
    b".filepart",
    b".partial",
    b".vctemp",
    b".!sync",
    b".part",
    b".temp",
    b".tmp",
    b".new",
    b"~",
];
/// Prefixes of the temporary names of GLib and `sed -i`, which do not contain the final name. Six letters follow.
const NAMELESS: [&[u8]; 2] = [b".goutputstream-", b"sed"];
/// Number of random letters that mkstemp(3) chooses.
const RANDOM_LEN: usize = 6;

/// The possible final names for a temporary name; none if it is not temporary.
pub fn final_names(name: &OsStr) -> Vec<OsString> {
    let name = name.as_bytes();
    let begun = BEGINNINGS
        .iter()
        .find_map(|start| name.strip_prefix(*start));
    let mut found = Vec::new();
    for core in std::iter::once(name).chain(begun) {
        let ended = ENDS.iter().find_map(|end| core.strip_suffix(*end));
        // Random letters alone are not enough: an extension may look the same.
        let is_marked = ended.is_some() || core.len() < name.len();
        let bare = ended.unwrap_or(core);
        let without_random = is_marked.then(|| without_random(bare)).flatten();
        found.extend(ended);
        found.extend(without_random);
    }
    // A lock of Emacs. A dot alone only hides a file.
    found.extend(name.strip_prefix(b".#"));
    found.retain(|core| !core.is_empty());
    found
        .into_iter()
        .map(|core| OsStr::from_bytes(core).to_owned())
        .collect()
}

/// Whether it is a temporary name that does not contain the final one.
pub fn is_nameless(name: &OsStr) -> bool {
    NAMELESS.iter().any(|start| {
        let rest = name.as_bytes().strip_prefix(*start);
        rest.is_some_and(|rest| {
            rest.len() == RANDOM_LEN && rest.iter().all(u8::is_ascii_alphanumeric)
        })
    })
}

/// Whether `name` is a temporary name for `to`.
pub fn is_temporary_of(name: &OsStr, to: &OsStr) -> bool {
    is_nameless(name) || final_names(name).iter().any(|core| core == to)
}

/// Whether a program that renames `name` to `backup` keeps it as a backup.
pub fn is_backup_of(backup: &OsStr, name: &OsStr) -> bool {
    const ENDS: [&[u8]; 4] = [b"~", b".bak", b".orig", b"_original"];
    let rest = backup.as_bytes().strip_prefix(name.as_bytes());
    rest.is_some_and(|rest| ENDS.contains(&rest))
}

/// A name without random letters at its end: six to eight, after a dot and perhaps a tilde.
fn without_random(name: &[u8]) -> Option<&[u8]> {
    let dot = name.iter().rposition(|b| *b == b'.')?;
    let letters = &name[dot + 1..];
    let letters = letters.strip_prefix(b"~").unwrap_or(letters);
    let is_random = (RANDOM_LEN..=RANDOM_LEN + 2).contains(&letters.len())
        && letters.iter().all(u8::is_ascii_alphanumeric);
    is_random.then(|| &name[..dot])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_tell_the_final_one() {
        for name in [
            ".song.mp3.Ab12Cd",
            "song.mp3~",
            "song.mp3.part",
            ".song.mp3.part",
            "song.mp3.partial",
            "song.mp3.1a2b3c4d.partial",
            "song.mp3.Ab12Cd.part",
            ".syncthing.song.mp3.tmp",
            "~syncthing~song.mp3.tmp",
            ".unison.song.mp3.0123abcd.unison.tmp",
            "song.mp3.crdownload",
            ".song.mp3.~1a2b3c",
            ".~song.mp3.Ab12Cd",
            ".#song.mp3",
            "song.mp3_exiftool_tmp",
            "song.mp3.vctemp",
            "song.mp3.tmp",
            "song.mp3.new",
        ] {
            let found = final_names(OsStr::new(name));
            assert!(
                found.iter().any(|core| core == "song.mp3"),
                "{name}: {found:?}"
            );
        }
        for name in [
            ".nomedia",
            ".song.mp3",
            "song.mp3.sha256",
            "song.mp3.txt",
            "~",
            ".",
            "a",
        ] {
            assert!(final_names(OsStr::new(name)).is_empty(), "{name}");
        }
        assert!(
            is_nameless(OsStr::new(".goutputstream-AB12CD"))
                && is_nameless(OsStr::new("sedx9Qa1b"))
        );
        assert!(
            !is_nameless(OsStr::new("sediment")) && !is_nameless(OsStr::new(".goutputstream-"))
        );
        assert!(is_temporary_of(OsStr::new(".a.Ab12Cd"), OsStr::new("a")));
        assert!(!is_temporary_of(OsStr::new(".a.Ab12Cd"), OsStr::new("b")));
    }
}
