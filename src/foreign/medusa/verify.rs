//! Checks every object against the manifests.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use md5::{Digest, Md5};

use super::catalog::Known;
use super::manifest::Object;
use super::{Medusa, frames};
use crate::error::Result;
use crate::foreign::{open_file, read_at};
use crate::report::Report;

/// Bytes per read.
const READ_LEN: u64 = 1 << 20;

/// A stored object and its contents.
struct Seen {
    len: u64,
    stored: [u8; 16],
    /// Length and digest of the plaintext, or why it cannot be read.
    plain: Result<(u64, [u8; 16])>,
}

/// Checks every object against every manifest that lists it, and manifests against their copies. Reports objects that no
/// manifest lists, and backups that are not encrypted or incomplete.
pub fn run(medusa: &Medusa, report: &mut Report<'_>) -> Result<()> {
    let catalog = medusa.catalog.lock();
    let mut objects: BTreeMap<PathBuf, Vec<Known>> = BTreeMap::new();
    for object in catalog.objects() {
        let known = || catalog.known(&object.path).to_vec();
        objects.entry((&object.path).into()).or_insert_with(known);
    }
    crate::foreign::walk(&medusa.root, &mut |path, is_dir| {
        if !is_dir && catalog.data_name(path).is_some() {
            objects.entry(path.to_path_buf()).or_default();
        }
    })?;
    for backup in catalog.plain_backups() {
        report.note(backup, "this backup has files that are not encrypted");
    }
    for backup in &catalog.unfinished {
        report.note(
            backup,
            "this backup was never completed: it has no manifest",
        );
    }
    for broken in &catalog.broken {
        let text = format!(
            "{}: the files of the backup {} cannot be held to it",
            broken.why, broken.backup
        );
        report.problem(broken.path.display(), text);
    }
    for (backup, one, other) in catalog.restored_over_each_other() {
        let text = format!("a restore of the backup {backup} puts {other} in its place");
        report.problem(one, text);
    }
    for manifest in &catalog.manifests {
        let bytes = |path| std::fs::read(medusa.root.join(path)).ok();
        if bytes(&manifest.path) != bytes(&manifest.copy) {
            report.problem(
                manifest.path.display(),
                "differs from its copy in the index, or that is missing",
            );
        }
    }
    let unchecked: HashSet<PathBuf> = objects
        .keys()
        .filter(|path| catalog.is_of_broken(path))
        .cloned()
        .collect();
    let names: Vec<String> = catalog.manifests.iter().map(|m| m.backup.clone()).collect();
    drop(catalog);
    let len = |path: &PathBuf| {
        medusa
            .root
            .join(path)
            .metadata()
            .map_or(0, |meta| meta.len())
    };
    report.total(objects.keys().map(len).sum());
    for (path, known) in &objects {
        report.count_file();
        if !(known.is_empty() && unchecked.contains(path)) {
            check(medusa, path, known, &names, report);
        } else if let Some(e) = look(medusa, path, true, report)
            .and_then(|seen| seen.plain)
            .err()
        {
            report.problem(path.display(), e);
        }
    }
    Ok(())
}

fn check(
    medusa: &Medusa,
    path: &PathBuf,
    known: &[Known],
    backups: &[String],
    report: &mut Report<'_>,
) {
    let name = path.display();
    if !crate::foreign::stage::is_confined(path) {
        return report.problem(name, "a manifest names it, but it is outside of the bucket");
    }
    let sealed = known.iter().any(|known| known.object.is_sealed());
    let seen = match look(medusa, path, known.is_empty() || sealed, report) {
        Ok(seen) => seen,
        Err(e) => return report.problem(name, e),
    };
    if known.is_empty() {
        report.problem(&name, "no manifest names it");
        if let Err(e) = &seen.plain {
            report.problem(name, e);
        }
        return;
    }
    let (fitting, others): (Vec<&Known>, Vec<&Known>) = known
        .iter()
        .partition(|known| known.object.size == seen.len && fits(&known.object, &seen.stored));
    for broken in &others {
        let backup = &backups[broken.manifest];
        match fitting.last() {
            // Medusa itself does this: a changed file of a differential backup overwrites the older one.
            Some(by) => report.problem(
                &name,
                format_args!("overwritten by the backup {}: the backup {backup} has lost it", backups[by.manifest]),
            ),
            None => report.problem(
                &name,
                format_args!("differs from the manifest of the backup {backup}: {} bytes instead of {}, or another MD5", seen.len, broken.object.size),
            ),
        }
    }
    match &seen.plain {
        Err(e) => report.problem(&name, e),
        Ok((size, digest)) => {
            for known in fitting.iter().filter(|known| known.object.is_sealed()) {
                let object = &known.object;
                if object.source_size.is_some_and(|expected| expected != *size)
                    || object
                        .source_digest()
                        .is_some_and(|expected| expected != *digest)
                {
                    let backup = &backups[known.manifest];
                    report.problem(
                        &name,
                        format_args!(
                            "its plaintext differs from the manifest of the backup {backup}"
                        ),
                    );
                }
            }
        }
    }
}

/// Whether the digest matches. That of a multipart upload cannot be computed, and always matches.
fn fits(object: &Object, stored: &[u8; 16]) -> bool {
    object
        .stored_digest()
        .is_none_or(|expected| expected == *stored)
}

fn look(medusa: &Medusa, path: &PathBuf, sealed: bool, report: &mut Report<'_>) -> Result<Seen> {
    let (file, len) = open_file(&medusa.root.join(path))?;
    let (mut md5, mut at) = (Md5::new(), 0);
    let mut buffer = vec![0; READ_LEN as usize];
    while at < len {
        let part = (len - at).min(READ_LEN) as usize;
        read_at(&file, at, &mut buffer[..part])?;
        md5.update(&buffer[..part]);
        at += part as u64;
        report.advance(part as u64);
    }
    let stored = md5.finalize().into();
    let plain = if sealed {
        decrypt(medusa, file, len)
    } else {
        Ok((len, stored))
    };
    Ok(Seen { len, stored, plain })
}

fn decrypt(medusa: &Medusa, file: std::fs::File, len: u64) -> Result<(u64, [u8; 16])> {
    let (found, plain_size) = frames::scan(&file, &medusa.key, len)?;
    let cache = Arc::new(crate::cache::BlockCache::new(0));
    let reader = super::FrameReader::new(
        Arc::new(file),
        medusa.key.clone(),
        found,
        plain_size,
        None,
        cache,
    );
    let digest = reader.digest()?;
    Ok((plain_size, digest))
}
