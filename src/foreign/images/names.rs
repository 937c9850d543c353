//! Names and types (`man/hushfs-foreign.5`: Image names, Descriptions).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::ENC;

/// Whether a path has this suffix.
pub(super) fn ends_in(path: &Path, suffix: &str) -> bool {
    path.as_os_str().as_bytes().ends_with(suffix.as_bytes())
}

/// A path with a suffix appended.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The name under which an encrypted file is shown: without `.enc`, and with a mark if that name is taken.
pub(super) fn free_name(cipher_path: &Path, taken: &HashSet<PathBuf>) -> PathBuf {
    let bytes = cipher_path.as_os_str().as_bytes();
    let bare = bytes.strip_suffix(ENC.as_bytes()).unwrap_or(bytes);
    let plain_path = PathBuf::from(OsStr::from_bytes(bare));
    let nameless = bare.is_empty() || bare.ends_with(b"/");
    if !nameless && !taken.contains(&plain_path) {
        return plain_path;
    }
    let name =
        OsStr::from_bytes(&bare[bare.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1)..]);
    let extension = extname(name);
    let stem = &name.as_bytes()[..name.len() - extension.len().min(name.len())];
    let folder = cipher_path.parent().unwrap_or(Path::new(""));
    let mut number = 1;
    loop {
        let mark = if number == 1 {
            " (encrypted)".to_string()
        } else {
            format!(" (encrypted {number})")
        };
        let name = [stem, mark.as_bytes(), extension.as_bytes()].concat();
        let plain_path = folder.join(OsString::from_vec(name));
        if !taken.contains(&plain_path) {
            return plain_path;
        }
        number += 1;
    }
}

/// The extension, from the last dot on, as Node's `path.extname` returns it: a dot at the start does not count.
pub(super) fn extname(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    match name.rfind('.') {
        Some(at) if at > 0 => name[at..].to_string(),
        _ => String::new(),
    }
}

/// The type with which the app serves a file without a description (`man/hushfs-foreign.5`: Image types).
pub(super) fn mime_by_name(path: &Path) -> &'static str {
    let extension = extname(path.file_name().unwrap_or_default()).to_lowercase();
    match &*extension {
        ".jpg" | ".jpeg" => "image/jpeg",
        ".png" => "image/png",
        ".gif" => "image/gif",
        ".webp" => "image/webp",
        ".svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}
