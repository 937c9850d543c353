//! The prefix of object names in a shared bucket.
//!
//! A part of it may be below the folder that is mounted: a folder that contains backups. A part above that folder is only
//! known from the names in the manifests. hushfs records it, because the manifests may become empty.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::foreign::{read_file, stage::STAGE_DIR};

/// The file in the root that records the part of the prefix above it, if no manifest has an object.
pub const KEPT: &str = ".hushfs-medusa-prefix";
/// The longest prefix with its line feed, in bytes.
const KEPT_LEN_MAX: u64 = 1025;
/// Most folders of a prefix.
const DEPTH_MAX: usize = 8;
/// Most folders that are read to find the prefix.
const LOOKED_INTO_MAX: usize = 20_000;

/// Whether a folder, or one of its subfolders, contains backups of Medusa.
pub fn looks_like(root: &Path) -> bool {
    let is_base = |folder: &PathBuf| is_base(&root.join(folder));
    let below = folders(root).unwrap_or_default().into_iter();
    std::iter::once(PathBuf::new())
        .chain(below.map(PathBuf::from))
        .any(|folder| is_base(&folder))
}

/// The prefix of the backups in a bucket; empty if there are none yet. [`Kind::Usage`] if there are several prefixes, or too
/// many folders.
pub fn find(root: &Path) -> Result<PathBuf> {
    let mut bases: Vec<PathBuf> = Vec::new();
    let (mut pending, mut looked_into) = (vec![(PathBuf::new(), 0)], 0);
    while let Some((folder, depth)) = pending.pop() {
        looked_into += 1;
        if looked_into > LOOKED_INTO_MAX {
            let text = "it has too many folders to find its backups";
            return Err(Error::usage(text)
                .about(root.display())
                .hint("mount the folder of one prefix"));
        }
        let path = root.join(&folder);
        let is_base = is_base(&path);
        if is_base {
            bases.push(folder.clone());
        }
        if depth == DEPTH_MAX {
            continue;
        }
        for name in folders(&path)? {
            let is_part = is_base && (name == "index" || is_node(&path.join(&name)));
            if !is_part {
                pending.push((folder.join(name), depth + 1));
            }
        }
    }
    bases.sort_unstable();
    match bases.as_slice() {
        [] => Ok(PathBuf::new()),
        [base] => Ok(base.clone()),
        [base, other, ..] => Err(Error::usage(format_args!(
            "{}: there are backups below {base:?} and below {other:?}",
            root.display()
        ))
        .hint("mount the folder of one prefix")),
    }
}

fn is_base(folder: &Path) -> bool {
    folder.join("index/backup_index").is_dir() || has_manifest(folder)
}

fn has_manifest(base: &Path) -> bool {
    let below = |path: PathBuf| {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
    };
    below(base.to_path_buf())
        .flat_map(below)
        .any(|backup| backup.join("meta/manifest.json").is_file())
}

/// Whether a folder below a prefix is that of a node: it contains backups, or the pool of differential ones.
fn is_node(folder: &Path) -> bool {
    let backups = folders(folder).unwrap_or_default();
    let is_backup = |name: &String| folder.join(name).join("meta").is_dir();
    folder.join("data").is_dir() || backups.iter().any(is_backup)
}

/// The folders in a folder.
pub fn folders(path: &Path) -> Result<Vec<String>> {
    let at = |e| Error::io(e, path);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?;
        if entry.file_type().map_err(at)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
            && name != STAGE_DIR
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The recorded prefix above the folder that is mounted, if there is one.
pub fn kept(root: &Path) -> Result<Option<String>> {
    let file = root.join(KEPT);
    let bytes = match read_file(&file, KEPT_LEN_MAX) {
        Err(e) if matches!(e.kind(), Kind::Missing) => return Ok(None),
        other => other?,
    };
    let text = String::from_utf8(bytes).ok();
    let prefix = text
        .as_deref()
        .map(|text| text.trim_end_matches(['\r', '\n']));
    match prefix.filter(|prefix| prefix.is_empty() || prefix.ends_with('/')) {
        Some(prefix) => Ok(Some(prefix.into())),
        None => Err(Error::damaged(file.display(), "it does not contain a prefix")
            .hint("it must contain the part of object names before the node, such as `tenant/`, and a line feed")),
    }
}
