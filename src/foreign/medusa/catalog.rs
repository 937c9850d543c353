//! All manifests of a bucket, in memory.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::base::{self, folders};
use super::manifest::{self, Object, Section};
use super::names::DataName;
use crate::error::{Error, Kind, Result};
use crate::foreign::ListEntry;

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
    /// The path of the manifest.
    pub path: PathBuf,
    /// The path of its copy in the index.
    pub copy: PathBuf,
    /// When the backup began, in seconds since 1970. Later backups overwrite files of earlier ones.
    pub began: u64,
    /// Its tables.
    pub sections: Vec<Section>,
    /// It has files of the AWS Encryption SDK. Determined when it is first needed.
    is_aws: OnceCell<bool>,
}

impl Manifest {
    /// All of its objects.
    fn objects(&self) -> impl Iterator<Item = &Object> {
        self.sections.iter().flat_map(|section| &section.objects)
    }

    /// Whether it has files of the AWS Encryption SDK. Except for the first few, files whose length is that of frames are not
    /// opened.
    pub fn is_aws(&self, root: &Path) -> bool {
        /// How many files are opened whatever their length, and in all.
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

/// The entry of an object in a manifest.
#[derive(Debug, Clone)]
pub struct Known {
    /// The index of the manifest in [`Catalog::manifests`].
    pub manifest: usize,
    /// The entry.
    pub object: Object,
}

/// All manifests.
pub struct Catalog {
    /// The prefix of a shared bucket, below the folder that is mounted; usually none.
    base: PathBuf,
    /// The part of the prefix above the folder that is mounted: names in manifests begin with it. `None` if it is unknown.
    outer: Option<String>,
    /// Backups, the earliest first.
    pub manifests: Vec<Manifest>,
    /// What manifests record of each stored object, by its path.
    by_path: HashMap<String, Vec<Known>>,
    /// Backups that were never completed.
    pub unfinished: Vec<String>,
    /// Backups whose manifest cannot be read.
    pub broken: Vec<Broken>,
}

/// A backup whose manifest cannot be read. Its files cannot be changed, because the effect on it would be unknown.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The node.
    pub node: String,
    /// The name of the backup.
    pub backup: String,
    /// Its files are in the pool of the node's differential backups.
    differential: bool,
    /// The path of the manifest.
    pub path: PathBuf,
    /// The reason.
    pub why: String,
}

impl Broken {
    /// An entry for the listing: the backup's files are shown, but nothing says whether they are complete.
    pub fn listed(&self) -> ListEntry {
        let why = format!("{}: its files cannot be held to it", self.why);
        ListEntry::NotShown(self.path.display().to_string(), why)
    }
}

impl Catalog {
    /// Reads every manifest. One that does not parse is set aside.
    pub fn read(root: &Path) -> Result<Self> {
        let mut catalog = Self {
            base: base::find(root)?,
            outer: None,
            manifests: Vec::new(),
            by_path: HashMap::new(),
            unfinished: Vec::new(),
            broken: Vec::new(),
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
                let sections = match manifest::read(&root.join(&path)) {
                    Err(e) if matches!(e.kind(), Kind::Damaged(_)) => {
                        log::error!("{e}: nothing of this backup can be changed");
                        let broken = Broken {
                            differential: root.join(meta).join("differential").is_file(),
                            why: e.to_string(),
                            node: node.clone(),
                            backup,
                            path,
                        };
                        catalog.broken.push(broken);
                        continue;
                    }
                    other => other?,
                };
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

    /// Refuses the parent folder of a bucket: names in its manifests are relative to the bucket.
    fn check_level(&self, root: &Path) -> Result<()> {
        const TRIED_MAX: usize = 64;
        if self.base.as_os_str().is_empty() {
            return Ok(());
        }
        let bucket = root.join(&self.base);
        let is_below = |object: &Object| {
            !root.join(&object.path).exists() && bucket.join(&object.path).exists()
        };
        if self.objects().take(TRIED_MAX).any(is_below) {
            Err(Error::usage(format_args!(
                "{}: the bucket is below this folder",
                root.display()
            ))
            .hint(format_args!("give {}", bucket.display())))
        } else {
            Ok(())
        }
    }

    /// Finds the prefix of the names in manifests, and removes it from them.
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
        self.outer = match found {
            Some(found) => Some(found),
            None => base::kept(root)?,
        };
        let mut manifests = std::mem::take(&mut self.manifests);
        for manifest in &mut manifests {
            self.take_outer(&mut manifest.sections);
        }
        self.manifests = manifests;
        Ok(())
    }

    fn take_outer(&self, sections: &mut [Section]) {
        let Some(outer) = self.outer.as_deref().filter(|outer| !outer.is_empty()) else {
            return;
        };
        for object in sections.iter_mut().flat_map(|section| &mut section.objects) {
            if let Some(path) = object.path.strip_prefix(outer) {
                object.path = path.into();
            }
        }
    }

    /// The name of a stored file in manifests.
    pub fn named(&self, path: &str) -> String {
        format!("{}{path}", self.outer())
    }

    /// The part of the prefix above the folder that is mounted.
    pub fn outer(&self) -> &str {
        self.outer.as_deref().unwrap_or_default()
    }

    /// Checks that a file may be changed: [`Kind::NotPermitted`] if its manifest cannot be read.
    pub fn check_change(&self, name: &DataName<'_>) -> Result<()> {
        let is_in = |broken: &&Broken| {
            broken.node == name.node
                && match name.backup {
                    Some(backup) => broken.backup == backup,
                    None => broken.differential,
                }
        };
        match self.broken.iter().find(is_in) {
            None => Ok(()),
            Some(broken) => {
                let hint = format!(
                    "the manifest of the backup {} cannot be read, so it cannot be changed",
                    broken.backup
                );
                Err(Error::new(Kind::NotPermitted, name.file).hint(hint))
            }
        }
    }

    /// Whether a file belongs to a backup whose manifest cannot be read.
    pub fn is_of_broken(&self, path: &Path) -> bool {
        self.data_name(path)
            .is_some_and(|name| self.check_change(&name).is_err())
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

    /// The objects of all manifests. An object may occur in several.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.manifests.iter().flat_map(Manifest::objects)
    }

    /// The entries of an object in all manifests, the earliest first.
    pub fn known(&self, path: &str) -> &[Known] {
        self.by_path.get(path).map_or(&[], Vec::as_slice)
    }

    /// The entry that describes an object in its current state, with this length. If none has this length, the newest entry;
    /// `None` if there is no entry.
    pub fn current(&self, cipher_path: &Path, len: u64) -> Option<Object> {
        let known = self.known(cipher_path.to_str()?);
        let fits = known.iter().rev().find(|known| known.object.size == len);
        fits.or(known.last()).map(|known| known.object.clone())
    }

    /// A path without the prefix.
    pub fn below_base<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.base).unwrap_or(path)
    }

    /// The parts of a data file's name; `None` if it is not a data file.
    pub fn data_name<'a>(&self, path: &'a Path) -> Option<DataName<'a>> {
        DataName::parse(path.strip_prefix(&self.base).ok()?, |node, backup| {
            let unfinished = || {
                self.unfinished
                    .iter()
                    .any(|name| *name == format!("{node}/{backup}"))
            };
            let mut broken = self.broken.iter();
            self.manifests
                .iter()
                .any(|m| m.node == node && m.backup == backup)
                || broken.any(|b| b.node == node && b.backup == backup)
                || unfinished()
        })
    }

    /// Pairs of files of one backup that a restore would write to the same path: the backup, and the two files.
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

    /// Another file of the table that a restore would write to the same path. A restore drops all folders below that of the
    /// table, except for those of secondary indexes and of nodes (`man/hushfs-foreign.5`: Medusa names).
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
    /// [`Kind::NotPermitted`] if there is none. It is not created: Medusa considers a backup with a manifest complete, and
    /// restores only the files in it.
    pub fn manifest_for(&self, name: &DataName<'_>) -> Result<usize> {
        if self.outer.is_none() {
            let hint = "no manifest names an object, so the prefix of their names is unknown: mount the top of the bucket, or let Medusa make a backup";
            return Err(Error::new(Kind::NotPermitted, name.file).hint(hint));
        }
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
                    "the backup {backup} has no manifest: it is in progress, or was interrupted, and only Medusa can complete it"
                ),
                None => "the node has no differential backup whose manifest could name it".into(),
            };
            Error::new(Kind::NotPermitted, name.file).hint(hint)
        })
    }

    /// Called after a manifest was changed.
    pub fn replace(&mut self, at: usize, mut sections: Vec<Section>) {
        self.take_outer(&mut sections);
        self.manifests[at].sections = sections;
        self.index();
    }

    /// Called after a manifest was removed.
    pub fn forget(&mut self, path: &Path) {
        self.manifests.retain(|manifest| manifest.path != path);
        self.broken.retain(|broken| broken.path != path);
        self.index();
    }
}

/// The part of a name before the one that begins with one of `starts`.
fn outer<'a>(path: &'a str, starts: &[String]) -> &'a str {
    if starts.iter().any(|start| path.starts_with(start)) {
        return "";
    }
    let found = starts
        .iter()
        .find_map(|start| path.find(&format!("/{start}")));
    found.map_or("", |at| &path[..=at])
}

/// When a backup began, by the name of a file in the index.
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
