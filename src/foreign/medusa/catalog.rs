//! All manifests of a bucket, in memory.

use std::fs;
use std::path::{Path, PathBuf};

use super::ByPath;
use super::manifest::{self, Object, Section};
use super::names::DataName;
use crate::error::{Error, Kind, Result};

/// A backup of a node.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The node.
    pub node: String,
    /// The name of the backup.
    pub backup: String,
    /// Its files are in the pool of the node's differential backups.
    pub differential: bool,
    /// It has files that are not encrypted.
    pub has_plain: bool,
    /// Where it is.
    pub path: PathBuf,
    /// Where its copy in the index is.
    pub copy: PathBuf,
    /// When it began, in seconds since 1970: later ones were written over earlier ones.
    pub began: u64,
    /// Its tables.
    pub sections: Vec<Section>,
}

/// What a manifest says of an object.
#[derive(Debug, Clone)]
pub struct Known {
    /// Which manifest, by its place in [`Catalog::manifests`].
    pub manifest: usize,
    /// What it says.
    pub object: Object,
}

/// All manifests.
pub struct Catalog {
    /// The prefix of a shared bucket; usually none.
    base: PathBuf,
    /// Backups, the earliest first.
    pub manifests: Vec<Manifest>,
    by_path: ByPath,
    /// Backups that were begun, and never completed.
    pub unfinished: Vec<String>,
}

/// Whether a folder holds backups of Medusa.
pub fn looks_like(root: &Path) -> bool {
    bases(root).next().is_some()
}

/// The prefixes below which there are backups.
fn bases(root: &Path) -> impl Iterator<Item = PathBuf> {
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    let below = folders.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    let below = below.map(|e| PathBuf::from(e.file_name()));
    let is_base = |base: &PathBuf| {
        let base = root.join(base);
        base.join("index/backup_index").is_dir() || has_manifest(&base)
    };
    std::iter::once(PathBuf::new()).chain(below).filter(is_base)
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

impl Catalog {
    /// Reads every manifest. One that does not parse is an error: writing would lose what it says.
    pub fn read(root: &Path) -> Result<Self> {
        let mut bases = bases(root);
        let base = bases.next().unwrap_or_default();
        if let Some(other) = bases.next() {
            return Err(Error::usage(format_args!(
                "{}: there are backups below {:?} and below {:?}",
                root.display(),
                base,
                other
            ))
            .hint("mount the folder of one prefix; or else, all below one"));
        }
        drop(bases);
        let mut catalog = Self {
            base,
            manifests: Vec::new(),
            by_path: ByPath::new(),
            unfinished: Vec::new(),
        };
        let top = root.join(&catalog.base);
        for node in folders(&top)? {
            for backup in folders(&top.join(&node))? {
                let meta = catalog.base.join(&node).join(&backup).join("meta");
                let path = meta.join("manifest.json");
                if !root.join(&path).is_file() {
                    if root.join(meta).join("schema.cql").is_file() {
                        catalog.unfinished.push(format!("{node}/{backup}"));
                    }
                    continue;
                }
                let sections = manifest::read(&root.join(&path))?;
                let manifest = catalog.manifest(root, &node, &backup, sections);
                catalog.manifests.push(manifest);
            }
        }
        catalog
            .manifests
            .sort_by(|a, b| (a.began, &a.backup).cmp(&(b.began, &b.backup)));
        catalog.index();
        Ok(catalog)
    }

    fn manifest(&self, root: &Path, node: &str, backup: &str, sections: Vec<Section>) -> Manifest {
        let meta = self.base.join(node).join(backup).join("meta");
        let index = self.base.join("index/backup_index").join(backup);
        let mut objects = sections.iter().flat_map(|section| &section.objects);
        Manifest {
            node: node.into(),
            backup: backup.into(),
            differential: root.join(&meta).join("differential").is_file(),
            has_plain: objects.any(|object| !object.is_sealed()),
            path: meta.join("manifest.json"),
            copy: index.join(format!("manifest_{node}.json")),
            began: began(&root.join(index), node),
            sections,
        }
    }

    fn index(&mut self) {
        self.by_path.clear();
        for (at, manifest) in self.manifests.iter().enumerate() {
            for object in manifest
                .sections
                .iter()
                .flat_map(|section| &section.objects)
            {
                let known = Known {
                    manifest: at,
                    object: object.clone(),
                };
                self.by_path
                    .entry(object.path.clone())
                    .or_default()
                    .push(known);
            }
        }
    }

    /// All objects that a manifest names, each as often as one does.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.manifests
            .iter()
            .flat_map(|m| &m.sections)
            .flat_map(|section| &section.objects)
    }

    /// What the manifests say of an object, the earliest first.
    pub fn known(&self, path: &str) -> &[Known] {
        self.by_path.get(path).map_or(&[], Vec::as_slice)
    }

    /// What is said of the object as it is now: of this length. Where nothing fits, what the newest says; nothing
    /// where none names it.
    pub fn current(&self, stored: &Path, len: u64) -> Option<Object> {
        let known = self.known(stored.to_str()?);
        let fits = known.iter().rev().find(|known| known.object.size == len);
        fits.or(known.last()).map(|known| known.object.clone())
    }

    /// A path without the prefix.
    pub fn below_base<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.base).unwrap_or(path)
    }

    /// What a data file's name says; nothing of what is none.
    pub fn data_name<'a>(&self, path: &'a Path) -> Option<DataName<'a>> {
        DataName::parse(path.strip_prefix(&self.base).ok()?)
    }

    /// Backups with files that are not encrypted.
    pub fn plain_backups(&self) -> impl Iterator<Item = &str> {
        self.manifests
            .iter()
            .filter(|m| m.has_plain)
            .map(|m| m.backup.as_str())
    }

    /// The manifest that a new file belongs to: its backup's, or that of the node's newest differential backup.
    pub fn manifest_for(&self, name: &DataName<'_>) -> Option<usize> {
        let belongs = |m: &Manifest| {
            m.node == name.node
                && match name.backup {
                    Some(backup) => m.backup == backup,
                    None => m.differential,
                }
        };
        self.manifests.iter().rposition(belongs)
    }

    /// Makes the manifest of a backup that has none yet, where there is nothing to keep a new file in. A pool without
    /// a differential backup has none.
    pub fn ensure(&mut self, keepers: Vec<usize>, name: &DataName<'_>) -> Result<Vec<usize>> {
        if !keepers.is_empty() {
            return Ok(keepers);
        }
        let Some(backup) = name.backup else {
            return Err(Error::new(Kind::NotPermitted, name.file)
                .hint("the node has no differential backup whose manifest could name it"));
        };
        // Its files are not in the pool, so it is a full backup; and newer than all others.
        let meta = self.base.join(name.node).join(backup).join("meta");
        let index = self.base.join("index/backup_index").join(backup);
        self.manifests.push(Manifest {
            node: name.node.into(),
            backup: backup.into(),
            differential: false,
            has_plain: false,
            path: meta.join("manifest.json"),
            copy: index.join(format!("manifest_{}.json", name.node)),
            began: u64::MAX,
            sections: Vec::new(),
        });
        Ok(vec![self.manifests.len() - 1])
    }

    /// A manifest was changed.
    pub fn replace(&mut self, at: usize, sections: Vec<Section>) {
        self.manifests[at].sections = sections;
        self.index();
    }

    /// A manifest was removed.
    pub fn forget(&mut self, path: &Path) {
        self.manifests.retain(|manifest| manifest.path != path);
        self.index();
    }
}

fn folders(path: &Path) -> Result<Vec<String>> {
    let at = |e| Error::io(e, path);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?;
        if entry.file_type().map_err(at)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
            && name != super::super::stage::STAGE_DIR
            && name != "index"
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// When a backup began, by the file in the index that is named so.
fn began(index: &Path, node: &str) -> u64 {
    let start = format!("started_{node}_");
    let names = fs::read_dir(index).into_iter().flatten().flatten();
    let times = names.filter_map(|e| {
        let name = e.file_name().into_string().ok()?;
        name.strip_prefix(&start)?
            .strip_suffix(".timestamp")?
            .parse()
            .ok()
    });
    times.max().unwrap_or(0)
}
