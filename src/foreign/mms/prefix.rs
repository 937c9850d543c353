//! The prefix of object names (the "path" of a library): `pathMusic` in the server's config.js
//! (`man/hushfs-foreign.5`: Music names).
//!
//! The server removes all objects without this prefix from its index, and so loses their initialisation vectors. Therefore
//! the path is never guessed: it is taken from the names of the objects, or from the user. It is not a folder: it may contain
//! slashes, and need not end in one.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::stage::{Step, is_confined};
use super::Mms;
use super::index::Index;
use crate::error::{Error, Kind, Result};

/// The file in the root of a library that records the path if the index has no records.
pub const KEPT: &str = ".hushfs-mms-path";
/// The longest path with its line feed, in bytes.
const KEPT_LEN_MAX: u64 = 1025;
/// Length of an object's name after the path: an MD5 in hexadecimal, and `.encrypt`.
const OBJECT_LEN: usize = 32 + ".encrypt".len();

/// The part of an object's name before `<32 hex>.encrypt`; `None` if no object has such a name.
pub fn of_object(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(OBJECT_LEN)?;
    let (prefix, object) = (name.get(..at)?, name.get(at..)?);
    let digest = object.strip_suffix(".encrypt")?;
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    digest.bytes().all(is_digit).then_some(prefix)
}

/// Whether this is the name of an encrypted object, of this library or of another one in the bucket.
pub fn is_object(path: &Path) -> bool {
    path.to_str().is_some_and(|path| of_object(path).is_some())
}

/// Checks a path that the user gave; `/` is the root. [`Kind::Usage`] if no object can be stored under it.
pub fn check(given: &str) -> Result<&str> {
    let path = if given == "/" { "" } else { given };
    let bare = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() || is_confined(Path::new(bare)) {
        return Ok(path);
    }
    let text = format!("{given}: no object can be stored under this path");
    Err(Error::usage(text).hint("give it as pathMusic in the server's config.js"))
}

/// The path of a library: from the objects in its index, otherwise as `given`, otherwise as recorded in the library. `None`
/// if it is unknown and the library is opened read-only.
///
/// [`Kind::Usage`] if the library is opened for writing, and the path is unknown or not the prefix of all objects.
pub fn find(
    root: &Path,
    index: &Index,
    given: Option<&str>,
    read_only: bool,
) -> Result<Option<String>> {
    let given = given.map(check).transpose()?;
    let seen: BTreeSet<&str> = index.objects().filter_map(of_object).collect();
    // The server keeps everything with its prefix. So if one of the prefixes is the server's, it is the shortest.
    let shortest = seen.iter().copied().min_by_key(|path| path.len());
    let is_path =
        |path: &&str| check(path).is_ok() && seen.iter().all(|other| other.starts_with(path));
    let told = shortest.filter(is_path);
    let fault = match (told, given) {
        (Some(told), None) => return Ok(Some(told.into())),
        (Some(told), Some(given)) if told == given || told.strip_suffix('/') == Some(given) => {
            return Ok(Some(told.into()));
        }
        (None, given) if seen.is_empty() => return without_objects(root, given, read_only),
        (Some(told), Some(given)) => {
            let text = format!("the objects of its index lie under {told:?}, not under {given:?}");
            Error::usage(text).hint("omit --mms-path, or mount with --read-only")
        }
        (None, _) => {
            let text = format!(
                "the objects of its index do not lie under one path that a folder can have: {seen:?}"
            );
            Error::usage(text).hint(
                "at its next run, the server loses the objects that are not under its own path: mount with --read-only, and copy them",
            )
        }
    };
    let fault = fault.about(root.display());
    if !read_only {
        return Err(fault);
    }
    log::warn!("{fault}");
    Ok(told.map(Into::into))
}

/// The same, if the index has no records.
fn without_objects(root: &Path, given: Option<&str>, read_only: bool) -> Result<Option<String>> {
    let known = match given {
        Some(given) => {
            if let Ok(Some(kept)) = kept(root)
                && kept != given
            {
                log::warn!(
                    "{}: the path {given:?} was given, and {kept:?} was kept until now: if it is not the server's, the server loses what is written",
                    root.display()
                );
            }
            Some(given.to_string())
        }
        None => kept(root)?,
    };
    if known.is_none() && !read_only {
        let text = "its index is empty, and the path under which its songs are stored is unknown";
        return Err(Error::usage(text).about(root.display()).hint(
            "give it with --mms-path (-o mms-path=PATH), as pathMusic in the server's config.js: under any other path, the server loses what is written",
        ));
    }
    if let Some(path) = known
        .as_deref()
        .filter(|path| !path.is_empty() && !path.ends_with('/'))
    {
        log::warn!(
            "{}: the path {path:?} does not end in a slash: objects are named {path}<md5>.encrypt, and are not in a folder of that name",
            root.display()
        );
    }
    Ok(known)
}

/// The path that is recorded in the library.
pub fn kept(root: &Path) -> Result<Option<String>> {
    let file = root.join(KEPT);
    let bytes = match super::super::read_file(&file, KEPT_LEN_MAX) {
        Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(None),
        other => other?,
    };
    let text = String::from_utf8(bytes).ok();
    let path = text
        .as_deref()
        .map(|text| text.trim_end_matches(['\r', '\n']));
    match path.map(check) {
        Some(Ok(path)) => Ok(Some(path.into())),
        _ => Err(Error::damaged(file.display(), "it does not contain a path")
            .hint("remove it, and give the path with --mms-path")),
    }
}

impl Mms {
    /// Records the path if the index does not contain it, so that a later mount knows it.
    pub(super) fn keep_path(&self) -> Result<()> {
        let step = match &self.stage {
            Some(_) => self.path_step(&self.index.lock())?,
            None => None,
        };
        step.map_or(Ok(()), |step| self.writer()?.commit(vec![step]))
    }

    /// The step that records the path, if `index` does not contain it.
    pub(super) fn path_step(&self, index: &Index) -> Result<Option<Step>> {
        let path = self.prefix();
        if index.objects().next().is_some() || kept(&self.root)?.as_deref() == Some(path) {
            return Ok(None);
        }
        let temp = self.writer()?.create_with(format!("{path}\n").as_bytes())?;
        Ok(Some(Step::Install(temp, KEPT.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_objects_name_tells_the_path() {
        let digest = "0123456789abcdef0123456789abcdef";
        for path in ["", "music/", "music", "media/music/", "é"] {
            assert_eq!(of_object(&format!("{path}{digest}.encrypt")), Some(path));
        }
        for none in [
            digest,
            "music/0123.encrypt",
            "music/0123456789ABCDEF0123456789ABCDEF.encrypt",
            ".encrypt",
        ] {
            assert_eq!(of_object(none), None, "{none}");
        }
    }

    #[test]
    fn a_path_is_one_under_which_objects_can_lie() {
        assert_eq!(check("/").unwrap(), "");
        for path in ["", "music", "music/", "a/b/", "a/b"] {
            assert_eq!(check(path).unwrap(), path);
        }
        for path in ["/music/", "music//", "../", "a/../b/", "//"] {
            assert!(check(path).is_err(), "{path}");
        }
    }
}
