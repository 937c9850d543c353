//! The bucket as a list of backups, each with the files of its manifest under the names that a restore gives them
//! (`man/hushfs-foreign.5`: Medusa behaviour). Read-only: copying files from it is a restore.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Medusa;
use super::manifest::Object;
use crate::error::{Kind, Result};
use crate::foreign::sealer::{Seal, Sealed};
use crate::foreign::stage::{Stage, is_confined};
use crate::foreign::{Entry, Format, ListEntry, PlainReader, Reader};
use crate::report::Report;

/// Files that are restored in addition to the data.
const METADATA: &[&str] = &[
    "manifest.json",
    "schema.cql",
    "tokenmap.json",
    "server_version.json",
];

/// `<node>/<backup>/<keyspace>/<table>/file` for each backup.
pub struct BackupsView {
    medusa: Medusa,
    /// For each file, its entry in the manifest of its backup.
    objects: HashMap<PathBuf, Object>,
}

impl BackupsView {
    /// Shows an open bucket as its backups.
    pub fn new(medusa: Medusa) -> Self {
        let mut objects = HashMap::new();
        let catalog = medusa.catalog.lock();
        for manifest in &catalog.manifests {
            let top = Path::new(&manifest.node).join(&manifest.backup);
            for section in &manifest.sections {
                let table = top.join(&section.keyspace).join(&section.columnfamily);
                for object in &section.objects {
                    // A secondary index keeps its folder below that of the table.
                    let below = object
                        .path
                        .split_once(&format!("/{}/", section.columnfamily));
                    let plain_path = below.map(|(_, below)| table.join(below));
                    match plain_path.filter(|plain_path| {
                        is_confined(plain_path) && is_confined(Path::new(&object.path))
                    }) {
                        Some(plain_path) => {
                            objects.insert(plain_path, object.clone());
                        }
                        None => log::warn!(
                            "{}: {:?}: no name that can be shown",
                            manifest.path.display(),
                            object.path
                        ),
                    }
                }
            }
        }
        drop(catalog);
        Self { medusa, objects }
    }
}

impl Format for BackupsView {
    fn root(&self) -> &Path {
        self.medusa.root()
    }

    fn stage(&self) -> Option<&Stage> {
        None
    }

    fn list(&self, add: &mut dyn FnMut(ListEntry)) -> Result<()> {
        let catalog = self.medusa.catalog.lock();
        for broken in &catalog.broken {
            add(broken.listed());
        }
        for manifest in &catalog.manifests {
            let top = Path::new(&manifest.node).join(&manifest.backup);
            for section in &manifest.sections {
                add(ListEntry::Folder(
                    top.join(&section.keyspace).join(&section.columnfamily),
                ));
            }
            let meta = manifest.path.parent().unwrap_or(Path::new(""));
            for name in METADATA {
                let cipher_path = meta.join(name);
                if self.root().join(&cipher_path).is_file() {
                    add(ListEntry::File(
                        top.join(name),
                        Entry {
                            cipher_path,
                            sealed: false,
                            plain_size: None,
                        },
                    ));
                }
            }
        }
        for (plain_path, object) in &self.objects {
            let entry = Entry {
                cipher_path: object.path.clone().into(),
                sealed: true,
                plain_size: Some(object.source_size.unwrap_or(object.size)),
            };
            add(ListEntry::File(plain_path.clone(), entry));
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        self.medusa.plain_size(entry)
    }

    fn open(&self, plain_path: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        if !entry.sealed {
            return PlainReader::open(&self.root().join(&entry.cipher_path));
        }
        let object = self.objects.get(plain_path).ok_or(Kind::NotFound)?;
        self.medusa.open_object(&entry.cipher_path, Some(object))
    }

    fn check_name(&self, _shown: &Path) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }

    fn seal(&self, _shown: &Path) -> Result<Box<dyn Seal>> {
        Err(Kind::ReadOnly.into())
    }

    fn publish(&self, _sealed: Sealed, _shown: &Path, _old: Option<&Entry>) -> Result<Entry> {
        Err(Kind::ReadOnly.into())
    }

    fn rename(
        &self,
        _entry: &Entry,
        _from: &Path,
        _to: &Path,
        _old: Option<&Entry>,
    ) -> Result<Entry> {
        Err(Kind::ReadOnly.into())
    }

    fn remove(&self, _shown: &Path, _entry: &Entry) -> Result<()> {
        Err(Kind::ReadOnly.into())
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        self.medusa.verify(report)
    }
}
