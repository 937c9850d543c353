//! Placeholders of missing objects: symbolic links, as git-annex makes them; files that cloud storage clients leave in place
//! of a file; and names that were changed during a sync.

use std::collections::HashSet;
use std::fmt;

use rustix::fs::{AtFlags, Dir, FileType};

use super::dir::DirStore;
use crate::error::Result;
use crate::object::{Area, ObjectId};

/// At most this many are reported.
const NAMED_MAX: usize = 1000;
/// Suffixes of files that are still being transferred.
const TEMPORARY: [&str; 3] = [".tmp", ".part", ".partial"];

/// A placeholder in an area for a missing object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// The missing object.
    pub id: ObjectId,
    /// The name of the placeholder, in the area's folder.
    pub name: String,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Link,
    NoFile,
    OtherName,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Link => write!(
                f,
                "is a symbolic link, and links are not followed in a library"
            ),
            What::NoFile => write!(f, "is not a regular file"),
            What::OtherName => write!(
                f,
                "has another name than the file that it is or stands for, {}, which is not there",
                self.id
            ),
        }
    }
}

impl DirStore {
    /// See [`Objects::absent`](super::Objects::absent).
    pub(super) fn find_absent(&self, area: Area) -> Result<Vec<Absent>> {
        let Some(folder) = self.area(area)? else {
            return Ok(Vec::new());
        };
        let (mut there, mut found) = (HashSet::new(), Vec::new());
        let entries = self.root.descriptors.open(|| Dir::read_from(&folder.fd));
        for entry in entries.map_err(|e| self.root.error(e, area.name()))? {
            let entry = entry.map_err(|e| self.root.error(e, area.name()))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let kind = || match entry.file_type() {
                FileType::Unknown => {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    let stat = rustix::fs::statat(&folder.fd, entry.file_name(), flags);
                    stat.map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode))
                }
                known => known,
            };
            let (id, what) = match (ObjectId::parse(name), stands_for(name)) {
                (Some(id), _) => match kind() {
                    // Removed meanwhile, or of unknown type.
                    FileType::RegularFile | FileType::Unknown => {
                        there.insert(id);
                        continue;
                    }
                    FileType::Symlink => (id, What::Link),
                    _ => (id, What::NoFile),
                },
                (None, Some(id)) => (id, What::OtherName),
                (None, None) => continue,
            };
            if found.len() < NAMED_MAX {
                let name = name.to_owned();
                found.push(Absent { id, name, what });
            }
        }
        found.retain(|absent| !there.contains(&absent.id));
        Ok(found)
    }

    /// Whether an area's folder is there, or a link to one.
    pub fn has_area(&self, area: Area) -> bool {
        let stat = rustix::fs::statat(&self.root.fd, area.name(), AtFlags::empty());
        stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
    }

    /// Why an area has no objects, for people.
    pub fn why_empty(&self, area: Area) -> String {
        let name = area.name();
        let stat = rustix::fs::statat(&self.root.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        match stat.map(|s| FileType::from_raw_mode(s.st_mode)) {
            Ok(FileType::Directory) => {}
            Ok(FileType::Symlink) if self.has_area(area) => {
                return format!(
                    "`{name}` is a symbolic link, and links are not followed in a library"
                );
            }
            Ok(FileType::Symlink) => {
                return format!("`{name}` is a symbolic link to something that is not there");
            }
            Ok(_) => return format!("`{name}` is a file, and in a library it has to be a folder"),
            Err(_) => return format!("the folder `{name}` is missing"),
        }
        if let Some(absent) = self.find_absent(area).into_iter().flatten().min_by(by_name) {
            return format!("{name}/{} {absent}", absent.name);
        }
        let folder = self.area(area).ok().flatten();
        let entries = folder.and_then(|folder| Dir::read_from(&folder.fd).ok());
        let names = entries.into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        match names.filter(|n| n != "." && n != "..").min() {
            Some(other) => format!(
                "no file in `{name}` has the name of an object; there is {name}/{}",
                other.escape_debug()
            ),
            None => format!("the folder `{name}` is empty"),
        }
    }
}

fn by_name(a: &Absent, b: &Absent) -> std::cmp::Ordering {
    a.name.cmp(&b.name)
}

/// The object for which a file of this name is a placeholder or a copy: `.ID.icloud`, `ID (1)`, `ID.cloud`, or an id in
/// upper case. `None` for other names, and for files that are still being transferred.
fn stands_for(name: &str) -> Option<ObjectId> {
    let placeholder = name
        .strip_prefix('.')
        .and_then(|n| n.strip_suffix(".icloud"));
    let name = placeholder.unwrap_or(name);
    let (id, rest) = name.split_at_checked(32)?;
    if rest.starts_with(char::is_alphanumeric) || TEMPORARY.iter().any(|t| rest.ends_with(t)) {
        return None;
    }
    ObjectId::parse(&id.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_known_by_its_name() {
        let id = "0123456789abcdef0123456789abcdef";
        for name in [
            format!(".{id}.icloud"),
            format!("{id} (1)"),
            format!("{id}.sync-conflict-1"),
            id.to_uppercase(),
        ] {
            assert_eq!(stands_for(&name), ObjectId::parse(id), "{name}");
        }
        for name in [
            format!(".{id}.Ab3dEf"),
            format!(".syncthing.{id}.tmp"),
            format!("{id}.partial"),
            format!("{id}0"),
            format!("._{id}"),
            id[1..].to_owned(),
            "ä".repeat(32),
        ] {
            assert_eq!(stands_for(&name), None, "{name}");
        }
    }
}
