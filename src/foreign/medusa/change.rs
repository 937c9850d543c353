//! Changes of manifests, together with the objects in them.

use super::catalog::{Catalog, Known};
use super::manifest::{Draft, Section};
use super::names::DataName;
use super::{Medusa, base};
use crate::error::{Error, Kind, Result};
use crate::foreign::stage::Step;

/// Changed manifests, with their index in the catalogue.
pub(super) type Drafts = Vec<(usize, Draft)>;

impl Medusa {
    /// The manifests that describe an object in its current state, and change with it. For a new object, the manifest of its
    /// backup, or the newest one of a pool. [`Kind::NotPermitted`] if one of them is of a backup to which nothing may be added.
    pub(super) fn keepers(
        &self,
        catalog: &Catalog,
        name: &DataName<'_>,
        path: &str,
    ) -> Result<Vec<usize>> {
        catalog.check_change(name)?;
        let len = std::fs::metadata(self.root.join(path)).map(|meta| meta.len());
        let current = |known: &&Known| len.as_ref().is_ok_and(|len| *len == known.object.size);
        let mut keepers: Vec<usize> = catalog
            .known(path)
            .iter()
            .filter(current)
            .map(|k| k.manifest)
            .collect();
        if keepers.is_empty() {
            keepers.push(catalog.manifest_for(name)?);
        }
        for at in &keepers {
            let manifest = &catalog.manifests[*at];
            let refuse = |why: &str| {
                let hint = format!("the backup {} {why}", manifest.backup);
                Err(Error::new(Kind::NotPermitted, path).hint(hint))
            };
            if manifest.has_plain {
                return refuse("is not encrypted, and encrypted files cannot be added to it");
            }
            if manifest.is_aws(&self.root) {
                return refuse(
                    "is encrypted with the AWS Encryption SDK: with a file in another format, Medusa could not download it",
                );
            }
        }
        Ok(keepers)
    }

    /// Edits manifests: the steps that install them and their copies, and the edited manifests.
    pub(super) fn manifest_steps(
        &self,
        catalog: &mut Catalog,
        keepers: &[usize],
        mut edit: impl FnMut(&mut Draft),
    ) -> Result<(Vec<Step>, Drafts)> {
        let stage = self.writer()?;
        let (mut steps, mut drafts) = (Vec::new(), Vec::new());
        for at in keepers {
            let manifest = &catalog.manifests[*at];
            let mut draft = Draft::read(&self.root.join(&manifest.path))?;
            edit(&mut draft);
            let bytes = draft.to_bytes();
            for place in [&manifest.path, &manifest.copy] {
                let temp = stage.create_in_place_of(place, &bytes)?;
                steps.push(Step::Install(temp, place.clone()));
            }
            drafts.push((*at, draft));
        }
        steps.extend(self.prefix_step(catalog, &drafts)?);
        Ok((steps, drafts))
    }

    /// The step that records the prefix, if no manifest contains it any more.
    fn prefix_step(&self, catalog: &Catalog, drafts: &Drafts) -> Result<Option<Step>> {
        let names_any = |sections: &[Section]| sections.iter().any(|s| !s.objects.is_empty());
        let changed = |at: usize| drafts.iter().find(|(changed, _)| *changed == at);
        let mut manifests = catalog.manifests.iter().enumerate();
        let is_told = manifests.any(|(at, manifest)| match changed(at) {
            Some((_, draft)) => names_any(&draft.objects()),
            None => names_any(&manifest.sections),
        });
        if is_told || drafts.is_empty() {
            return Ok(None);
        }
        let bytes = format!("{}\n", catalog.outer());
        let temp = self.writer()?.create_with(bytes.as_bytes())?;
        Ok(Some(Step::Install(temp, base::KEPT.into())))
    }

    pub(super) fn commit(
        &self,
        catalog: &mut Catalog,
        steps: Vec<Step>,
        drafts: Drafts,
    ) -> Result<()> {
        self.writer()?.commit(steps)?;
        for (at, draft) in drafts {
            catalog.replace(at, draft.objects());
        }
        Ok(())
    }
}
