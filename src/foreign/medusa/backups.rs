//! The bucket as its backups: each with the files that its manifest names, under the names that a restore gives them
//! (`man/hushfs-foreign.5`: Medusa behaviour). To be read only: copying out of it is a restore.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Medusa;
use super::manifest::Object;
use crate::error::{Kind, Result};
use crate::foreign::sealer::{Seal, Sealed};
use crate::foreign::stage::{Stage, is_confined};
use crate::foreign::{Entry, Format, Listed, PlainReader, Reader};
use crate::report::Report;

/// What is restored beside the data.
const METADATA: &[&str] = &[
    "manifest.json",
    "schema.cql",
    "tokenmap.json",
    "server_version.json",
];

/// `<node>/<backup>/<keyspace>/<table>/file` for each backup.
pub struct BackupsView {
    medusa: Medusa,
    /// Of each file shown, what its own backup says.
    objects: HashMap<PathBuf, Object>,
}

impl BackupsView {
    /// Of an open bucket.
    pub fn new(medusa: Medusa) -> Self {
        let mut objects = HashMap::new();
        let catalog = medusa.catalog.lock();
        for manifest in &catalog.manifests {
            let top = Path::new(&manifest.node).join(&manifest.backup);
            for section in &manifest.sections {
                let table = top.join(&section.keyspace).join(&section.columnfamily);
                for object in &section.objects {
                    // Below the table's folder: a secondary index keeps its own.
                    let below = object
                        .path
                        .split_once(&format!("/{}/", section.columnfamily));
                    let shown = below.map(|(_, below)| table.join(below));
                    match shown
                        .filter(|shown| is_confined(shown) && is_confined(Path::new(&object.path)))
                    {
                        Some(shown) => {
                            objects.insert(shown, object.clone());
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

    fn list(&self, add: &mut dyn FnMut(Listed)) -> Result<()> {
        let catalog = self.medusa.catalog.lock();
        for broken in &catalog.broken {
            add(broken.listed());
        }
        for manifest in &catalog.manifests {
            let top = Path::new(&manifest.node).join(&manifest.backup);
            for section in &manifest.sections {
                add(Listed::Folder(
                    top.join(&section.keyspace).join(&section.columnfamily),
                ));
            }
            let meta = manifest.path.parent().unwrap_or(Path::new(""));
            for name in METADATA {
                let stored = meta.join(name);
                if self.root().join(&stored).is_file() {
                    add(Listed::File(
                        top.join(name),
                        Entry {
                            stored,
                            sealed: false,
                            plain_size: None,
                        },
                    ));
                }
            }
        }
        for (shown, object) in &self.objects {
            let entry = Entry {
                stored: object.path.clone().into(),
                sealed: true,
                plain_size: Some(object.source_size.unwrap_or(object.size)),
            };
            add(Listed::File(shown.clone(), entry));
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        self.medusa.plain_size(entry)
    }

    fn open(&self, shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        if !entry.sealed {
            return PlainReader::open(&self.root().join(&entry.stored));
        }
        let object = self.objects.get(shown).ok_or(Kind::NotFound)?;
        self.medusa.open_object(&entry.stored, Some(object))
    }

    fn admit(&self, _shown: &Path) -> Result<()> {
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
