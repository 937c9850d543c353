//! Detects the format of a library.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// Most directory entries that are read to detect a format.
const LOOKED_AT_MAX: usize = 20_000;

/// The formats of libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub enum FormatKind {
    /// A library of hushfs itself.
    Vault,
    /// Minio Music Server.
    Mms,
    /// Cassandra Medusa.
    Medusa,
    /// The prompt-nest image store.
    Images,
}

impl FormatKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vault, Self::Mms, Self::Medusa, Self::Images];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::Mms => "mms",
            Self::Medusa => "medusa",
            Self::Images => "images",
        }
    }

    /// The format with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vault => "a hushfs library (vault)",
            Self::Mms => "a library of Minio Music Server (mms)",
            Self::Medusa => "a bucket of Cassandra Medusa (medusa)",
            Self::Images => "a prompt-nest image store (images)",
        })
    }
}

/// Detects the format of a folder. The caller knows whether it is hushfs's own (`is_vault`): whether it has slots.
///
/// [`Kind::Usage`] if several formats are possible, [`Kind::NotLibrary`] if none is.
pub fn detect(root: &Path, is_vault: bool) -> Result<FormatKind> {
    let mut found = Vec::new();
    if is_vault {
        found.push(FormatKind::Vault);
    }
    found.extend(looks_like_mms(root).then_some(FormatKind::Mms));
    found.extend(super::medusa::looks_like(root).then_some(FormatKind::Medusa));
    found.extend(looks_like_images(root).then_some(FormatKind::Images));
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Error::new(Kind::NotLibrary, root.display()).hint(
            "and not in a supported foreign format; `hushfs init` creates a library, --format=mms, medusa or images sets the format",
        )),
        several => {
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            let choices: Vec<&str> = several.iter().map(|kind| kind.name()).collect();
            let text = format!("{}: could be {}", root.display(), names.join(", or "));
            Err(Error::usage(text).hint(format_args!("choose one with --format={}", choices.join(" or "))))
        }
    }
}

/// Whether there is a key file in the root. If the index is missing, opening the library reports that.
fn looks_like_mms(root: &Path) -> bool {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .take(LOOKED_AT_MAX)
        .any(|entry| super::mms::is_key_file(&entry.path()))
}

/// Whether there is a file together with its description, in any folder.
fn looks_like_images(root: &Path) -> bool {
    let mut pending = vec![PathBuf::from(root)];
    let mut looked_at = 0;
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > LOOKED_AT_MAX {
                return false;
            }
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() && entry.file_name() != super::stage::STAGE_DIR {
                pending.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_string_lossy().ends_with(".enc.meta") {
                return true;
            }
        }
    }
    false
}
