//! The names of objects (`man/hushfs-foreign.5`: Medusa names, Unencrypted files).

use std::path::Path;

/// The parts of a data file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataName<'a> {
    /// The node.
    pub node: &'a str,
    /// The backup; `None` in the pool of a node's differential backups.
    pub backup: Option<&'a str>,
    /// The keyspace.
    pub keyspace: &'a str,
    /// The folder of the table.
    pub table: &'a str,
    /// The file's own name.
    pub file: &'a str,
    /// The last folder between that of the table and the file, if there is one.
    pub folder: Option<&'a str>,
}

/// The same, without borrowing.
pub struct OwnedName {
    node: String,
    backup: Option<String>,
    keyspace: String,
    table: String,
    file: String,
    folder: Option<String>,
}

impl<'a> DataName<'a> {
    /// Parses a path below the bucket's prefix; `None` if it is not a data file. `is_backup` returns whether a node has a
    /// backup of this name, which is needed because a backup may be called `data`, like the pool of differential backups.
    pub fn parse(path: &'a Path, is_backup: impl Fn(&str, &str) -> bool) -> Option<Self> {
        let parts: Vec<&str> = path.to_str()?.split('/').collect();
        let (node, backup, below) = match parts.as_slice() {
            [node, "data", "data", below @ ..] if below.len() > 2 && is_backup(node, "data") => {
                (*node, Some("data"), below)
            }
            [node, "data", below @ ..] => (*node, None, below),
            [node, backup, "data", below @ ..] => (*node, Some(*backup), below),
            _ => return None,
        };
        let [keyspace, table, folders @ .., file] = below else {
            return None;
        };
        if node == "index" {
            return None;
        }
        Some(Self {
            node,
            backup,
            keyspace,
            table,
            file,
            folder: folders.last().copied(),
        })
    }

    /// The path to which a restore writes it, below the folder of its table. The folder of a secondary index or of nodes is
    /// kept, any other is dropped (`man/hushfs-foreign.5`: Medusa names).
    pub fn restored_to(&self) -> (Option<&'a str>, &'a str) {
        let is_kept = |folder: &&str| folder.starts_with('.') || folder.ends_with("nodes");
        (self.folder.filter(is_kept), self.file)
    }

    /// A copy that borrows nothing.
    pub fn own(self) -> OwnedName {
        OwnedName {
            node: self.node.into(),
            backup: self.backup.map(Into::into),
            keyspace: self.keyspace.into(),
            table: self.table.into(),
            file: self.file.into(),
            folder: self.folder.map(Into::into),
        }
    }
}

impl OwnedName {
    /// The name, borrowed.
    pub fn borrow(&self) -> DataName<'_> {
        DataName {
            node: &self.node,
            backup: self.backup.as_deref(),
            keyspace: &self.keyspace,
            table: &self.table,
            file: &self.file,
            folder: self.folder.as_deref(),
        }
    }
}

/// Whether a path below the prefix is a manifest, or the copy of one in the index.
pub fn is_manifest(path: &Path) -> bool {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let parts: Vec<&str> = parts.iter().map(|part| &**part).collect();
    match parts.as_slice() {
        [_, _, "meta", "manifest.json"] => true,
        ["index", "backup_index", _, file] => file.starts_with("manifest_"),
        _ => false,
    }
}

/// Whether a path below the prefix is one at which Medusa stores unencrypted files.
pub fn in_metadata(path: &Path) -> bool {
    let mut parts = path.iter();
    let first = parts.next();
    first.is_some_and(|part| part == "index") || parts.nth(1).is_some_and(|part| part == "meta")
}

/// Whether a restore by Medusa takes a file of this name for one of its unencrypted files, because its patterns are not
/// anchored at their end (`man/hushfs-foreign.5`: Unencrypted files). This includes the two files that are never backed up.
pub fn restores_undecrypted(file: &str) -> bool {
    let begins = |start: &str, end: &str| {
        file.strip_prefix(start)
            .is_some_and(|rest| rest.contains(end))
    };
    begins("manifest", ".json")
        || begins("schema", ".cql")
        || begins("server_version", ".json")
        || begins("tokenmap", ".json")
        || file.starts_with("backup_name.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        let parse = |path: &'static str| DataName::parse(Path::new(path), |node, _| node == "n2");
        let pooled = parse("n1/data/ks/t-1/.idx/f.db").unwrap();
        assert_eq!(
            (pooled.backup, pooled.table, pooled.file),
            (None, "t-1", "f.db")
        );
        assert_eq!(parse("n1/b1/data/ks/t-1/f.db").unwrap().backup, Some("b1"));
        assert_eq!(parse("n1/data/data/ks/t/f").unwrap().backup, None);
        let named_data = parse("n2/data/data/ks/t/f").unwrap();
        assert_eq!((named_data.backup, named_data.table), (Some("data"), "t"));
        assert_eq!(parse("n2/data/ks/t/f").unwrap().backup, None);
        for none in [
            "n1/b1/meta/manifest.json",
            "n1/data/ks/f.db",
            "index/data/a/b/c",
            "n1/b1/c/data/ks/t/f",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
        assert!(is_manifest(Path::new("n1/b1/meta/manifest.json")));
        assert!(is_manifest(Path::new(
            "index/backup_index/b1/manifest_n1.json"
        )));
        assert!(!is_manifest(Path::new("n1/b1/meta/schema.cql")));
        assert!(
            in_metadata(Path::new("n1/b1/meta/schema.cql")) && in_metadata(Path::new("index/x"))
        );
        assert!(!in_metadata(Path::new("n1/file")));
        assert!(
            restores_undecrypted("manifest-2.json.bak") && restores_undecrypted("tokenmap.json")
        );
        assert!(
            !restores_undecrypted("nb-1-big-Data.db") && !restores_undecrypted("xmanifest.json")
        );
    }
}
