//! All manifests of a bucket, in memory.

use std::cell::OnceCell;
use std::collections::HashMap;
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
    /// It has files of the AWS Encryption SDK; found out when it is first asked for.
    is_aws: OnceCell<bool>,
}

impl Manifest {
    /// All that it names.
    fn objects(&self) -> impl Iterator<Item = &Object> {
        self.sections.iter().flat_map(|section| &section.objects)
    }

    /// Whether it has files of the AWS Encryption SDK. Those that have the length of frames of their contents are
    /// not looked at, but for the first few.
    pub fn is_aws(&self, root: &Path) -> bool {
        /// Files that are looked at whatever their length, and in all.
        const LOOKED_AT: (usize, usize) = (8, 64);
        let begins_so = |object: &Object| {
            let mut head = [0; 4];
            super::super::open_file(&root.join(&object.path))
                .and_then(|(file, _)| super::super::read_at(&file, 0, &mut head))
                .is_ok_and(|()| super::frames::looks_like_aws(&head))
        };
        *self.is_aws.get_or_init(|| {
            let mut kept = LOOKED_AT.0;
            let looked_at = self.objects().filter(|object| {
                let keep = object.size > 0 && (!object.is_like_frames() || kept > 0);
                kept = kept.saturating_sub(usize::from(keep));
                keep
            });
            looked_at.take(LOOKED_AT.1).any(begins_so)
        })
    }
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
    /// The prefix of a shared bucket, below the folder that is mounted; usually none.
    base: PathBuf,
    /// The prefix, or its beginning, where what is mounted is the folder of it: names in manifests begin with that.
    outer: String,
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
            outer: String::new(),
            manifests: Vec::new(),
            by_path: ByPath::new(),
            unfinished: Vec::new(),
        };
        let top = root.join(&catalog.base);
        for node in folders(&top)?.into_iter().filter(|node| node != "index") {
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
        catalog.check_level(root)?;
        catalog.find_outer(root)?;
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
            is_aws: OnceCell::new(),
        }
    }

    /// Refuses the folder that a bucket is in: names in its manifests begin in the bucket.
    fn check_level(&self, root: &Path) -> Result<()> {
        const TRIED_MAX: usize = 64;
        if self.base.as_os_str().is_empty() {
            return Ok(());
        }
        let bucket = root.join(&self.base);
        let is_below = |object: &Object| {
            !root.join(&object.path).exists() && bucket.join(&object.path).exists()
        };
        match self.objects().take(TRIED_MAX).any(is_below) {
            true => Err(Error::usage(format_args!(
                "{}: the bucket is one level below this folder",
                root.display()
            ))
            .hint(format_args!("give {}", bucket.display()))),
            false => Ok(()),
        }
    }

    /// Finds what names in manifests begin with, and takes that away.
    fn find_outer(&mut self, root: &Path) -> Result<()> {
        let mut found: Option<String> = None;
        for manifest in &self.manifests {
            let node = self.base.join(&manifest.node);
            let node = node.to_string_lossy();
            let starts = [
                format!("{node}/{}/data/", manifest.backup),
                format!("{node}/data/"),
            ];
            for object in manifest.objects() {
                let outer = outer(&object.path, &starts);
                match &found {
                    Some(other) if *other != outer => {
                        let text = format!(
                            "names in its manifests begin with {other:?} and with {outer:?}"
                        );
                        return Err(Error::usage(text).about(root.display()));
                    }
                    Some(_) => {}
                    None => found = Some(outer.into()),
                }
            }
        }
        self.outer = found.unwrap_or_default();
        let mut manifests = std::mem::take(&mut self.manifests);
        for manifest in &mut manifests {
            self.take_outer(&mut manifest.sections);
        }
        self.manifests = manifests;
        Ok(())
    }

    fn take_outer(&self, sections: &mut [Section]) {
        if self.outer.is_empty() {
            return;
        }
        for object in sections.iter_mut().flat_map(|section| &mut section.objects) {
            if let Some(path) = object.path.strip_prefix(&self.outer) {
                object.path = path.into();
            }
        }
    }

    /// The name of a stored file as manifests have it.
    pub fn named(&self, path: &str) -> String {
        format!("{}{path}", self.outer)
    }

    fn index(&mut self) {
        self.by_path.clear();
        for (at, manifest) in self.manifests.iter().enumerate() {
            for object in manifest.objects() {
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
        self.manifests.iter().flat_map(Manifest::objects)
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
        DataName::parse(path.strip_prefix(&self.base).ok()?, |node, backup| {
            let unfinished = || {
                self.unfinished
                    .iter()
                    .any(|name| *name == format!("{node}/{backup}"))
            };
            self.manifests
                .iter()
                .any(|m| m.node == node && m.backup == backup)
                || unfinished()
        })
    }

    /// Files of one backup that a restore puts in one place: the backup, and the two.
    pub fn restored_over_each_other(&self) -> Vec<(&str, &str, &str)> {
        let mut found = Vec::new();
        for manifest in &self.manifests {
            let mut places = HashMap::new();
            for object in manifest.objects() {
                let Some(name) = self.data_name(Path::new(&object.path)) else {
                    continue;
                };
                let place = (name.keyspace, name.table, name.restored_to());
                if let Some(other) = places.insert(place, object.path.as_str()) {
                    found.push((manifest.backup.as_str(), other, object.path.as_str()));
                }
            }
        }
        found
    }

    /// Another file of the table that a restore puts where it puts this one: in the folder of the table, whatever folders
    /// they are in there, but for those of secondary indexes and of nodes (`man/hushfs-foreign.5`: Medusa names).
    pub fn restored_to_the_same_place(&self, name: &DataName<'_>, path: &str) -> Option<&str> {
        let place = name.restored_to();
        let manifests = self.manifests.iter().filter(|m| match name.backup {
            Some(backup) => m.node == name.node && m.backup == backup,
            None => m.node == name.node && m.differential,
        });
        let mut others = manifests
            .flat_map(Manifest::objects)
            .map(|object| object.path.as_str());
        others.find(|other| {
            let same = |other: DataName<'_>| {
                (other.keyspace, other.table, other.restored_to())
                    == (name.keyspace, name.table, place)
            };
            *other != path
                && other.ends_with(name.file)
                && self.data_name(Path::new(other)).is_some_and(same)
        })
    }

    /// Backups with files that are not encrypted.
    pub fn plain_backups(&self) -> impl Iterator<Item = &str> {
        self.manifests
            .iter()
            .filter(|m| m.has_plain)
            .map(|m| m.backup.as_str())
    }

    /// The manifest that a new file belongs to: its backup's, or that of the node's newest differential backup.
    ///
    /// [`Kind::NotPermitted`] where there is none. None is made: Medusa takes a backup that has one for complete, and
    /// restores what it names, and no more.
    pub fn manifest_for(&self, name: &DataName<'_>) -> Result<usize> {
        let belongs = |m: &Manifest| {
            m.node == name.node
                && match name.backup {
                    Some(backup) => m.backup == backup,
                    None => m.differential,
                }
        };
        self.manifests.iter().rposition(belongs).ok_or_else(|| {
            let hint = match name.backup {
                Some(backup) => format!(
                    "the backup {backup} has no manifest: it is under way, or was broken off, and only Medusa completes it"
                ),
                None => "the node has no differential backup whose manifest could name it".into(),
            };
            Error::new(Kind::NotPermitted, name.file).hint(hint)
        })
    }

    /// A manifest was changed.
    pub fn replace(&mut self, at: usize, mut sections: Vec<Section>) {
        self.take_outer(&mut sections);
        self.manifests[at].sections = sections;
        self.index();
    }

    /// A manifest was removed.
    pub fn forget(&mut self, path: &Path) {
        self.manifests.retain(|manifest| manifest.path != path);
        self.index();
    }
}

/// What stands before the part of a name that begins with one of `starts`.
fn outer<'a>(path: &'a str, starts: &[String]) -> &'a str {
    if starts.iter().any(|start| path.starts_with(start)) {
        return "";
    }
    let found = starts
        .iter()
        .find_map(|start| path.find(&format!("/{start}")));
    found.map_or("", |at| &path[..=at])
}

fn folders(path: &Path) -> Result<Vec<String>> {
    let at = |e| Error::io(e, path);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(at)? {
        let entry = entry.map_err(at)?;
        if entry.file_type().map_err(at)?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
            && name != super::super::stage::STAGE_DIR
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
