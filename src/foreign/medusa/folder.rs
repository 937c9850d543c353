//! Renaming a folder of data: all of its files in one change, and in every manifest that has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Medusa;
use super::names::DataName;
use crate::error::{Kind, Result};
use crate::foreign::stage::Step;
use crate::foreign::{Entry, Format};

impl Medusa {
    /// Renames a folder. [`Kind::CrossDevice`] if its files would not all stay data of the same backup: programs then copy
    /// them, and each file is added to the right manifest.
    pub(super) fn move_folder(
        &self,
        from: &Path,
        to: &Path,
        files: &[(PathBuf, Entry)],
    ) -> Result<Vec<Entry>> {
        let mut new_paths = Vec::with_capacity(files.len());
        for (path, _) in files {
            let below = path.strip_prefix(from).map_err(|_| Kind::InvalidArgument)?;
            let new = to.join(below);
            self.check_name(&new)?;
            new_paths.push(new);
        }
        let mut catalog = self.catalog.lock();
        // For each manifest, the old and new names.
        let mut renames: BTreeMap<usize, Vec<(&Path, &Path)>> = BTreeMap::new();
        for ((path, _), new) in files.iter().zip(&new_paths) {
            let names = (catalog.data_name(path), catalog.data_name(new));
            let (Some(old_name), Some(new_name)) = names else {
                return Err(Kind::CrossDevice.into());
            };
            let is_one = (old_name.node, old_name.backup) == (new_name.node, new_name.backup);
            if !is_one || self.root.join(path).symlink_metadata().is_err() {
                return Err(Kind::CrossDevice.into());
            }
            let text = path.to_str().ok_or(Kind::InvalidArgument)?;
            for keeper in self.keepers(&catalog, &old_name, text)? {
                renames.entry(keeper).or_default().push((path, new));
            }
        }
        let keepers: Vec<usize> = renames.keys().copied().collect();
        let tables: BTreeMap<&Path, _> = new_paths
            .iter()
            .filter_map(|new| Some((&**new, catalog.data_name(new).map(DataName::own)?)))
            .collect();
        let outer = catalog.outer().to_string();
        let named = |path: &Path| format!("{outer}{}", path.display());
        // In the order of `keepers`.
        let mut renames = renames.values();
        let (mut steps, drafts) = self.manifest_steps(&mut catalog, &keepers, |draft| {
            for (old, new) in renames.next().into_iter().flatten() {
                let Some(object) = draft.take(&named(old)) else {
                    continue;
                };
                if let Some(name) = tables.get(new) {
                    let name = name.borrow();
                    draft.put_value((name.keyspace, name.table), &named(new), object);
                }
            }
        })?;
        if self.root.join(from).is_dir() {
            steps.insert(0, Step::Move(from.to_path_buf(), to.to_path_buf()));
        }
        self.commit(&mut catalog, steps, drafts)?;
        let moved = files.iter().zip(new_paths);
        let moved = moved.map(|((_, entry), cipher_path)| Entry {
            cipher_path,
            ..entry.clone()
        });
        Ok(moved.collect())
    }
}
