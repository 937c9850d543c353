//! Names that programs give to what they are still writing, before they rename it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What such names begin with, before the name that the file will have.
const BEGINNINGS: [&[u8]; 7] = [
    b".syncthing.",
    b"~syncthing~",
    b".unison.",
    b".~",
    b".#",
    b"~",
    b".",
];
/// What they end in, after that name.
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
/// What the names of GLib and of `sed -i` begin with, which say nothing of the name that the file will have; six letters
/// follow.
const NAMELESS: [&[u8]; 2] = [b".goutputstream-", b"sed"];
/// Letters that mkstemp(3) makes up.
const RANDOM_LEN: usize = 6;

/// The names that a file of this temporary name may get. None where it is not a temporary name.
pub fn final_names(name: &OsStr) -> Vec<OsString> {
    let name = name.as_bytes();
    let begun = BEGINNINGS
        .iter()
        .find_map(|start| name.strip_prefix(*start));
    let mut found = Vec::new();
    for core in std::iter::once(name).chain(begun) {
        let ended = ENDS.iter().find_map(|end| core.strip_suffix(*end));
        // Made-up letters alone are no mark: a file's extension may look so.
        let is_marked = ended.is_some() || core.len() < name.len();
        let bare = ended.unwrap_or(core);
        let without_random = is_marked.then(|| without_random(bare)).flatten();
        found.extend(ended);
        found.extend(without_random);
    }
    // A lock of Emacs. A dot alone hides a file, and says nothing of another name.
    found.extend(name.strip_prefix(b".#"));
    found.retain(|core| !core.is_empty());
    found
        .into_iter()
        .map(|core| OsStr::from_bytes(core).to_owned())
        .collect()
}

/// Whether it is one of the temporary names that say nothing of the final one.
pub fn is_nameless(name: &OsStr) -> bool {
    NAMELESS.iter().any(|start| {
        let rest = name.as_bytes().strip_prefix(*start);
        rest.is_some_and(|rest| {
            rest.len() == RANDOM_LEN && rest.iter().all(u8::is_ascii_alphanumeric)
        })
    })
}

/// Whether a program may rename a file of this name to `to` when it is whole.
pub fn is_temporary_of(name: &OsStr, to: &OsStr) -> bool {
    is_nameless(name) || final_names(name).iter().any(|core| core == to)
}

/// Whether a file was renamed from `name` to `backup` to be kept for a while.
pub fn is_backup_of(backup: &OsStr, name: &OsStr) -> bool {
    const ENDS: [&[u8]; 4] = [b"~", b".bak", b".orig", b"_original"];
    let rest = backup.as_bytes().strip_prefix(name.as_bytes());
    rest.is_some_and(|rest| ENDS.contains(&rest))
}

/// A name without the made-up letters at its end: six to eight, after a dot and perhaps a tilde.
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
