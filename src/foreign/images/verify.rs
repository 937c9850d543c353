//! Checks every file and its description.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::names::{ends_in, with_suffix};
use super::{ENC, Images, META, is_image};
use crate::error::Result;
use crate::foreign::Reader;
use crate::report::Report;

/// Reads every encrypted file to its end, and reports descriptions without a file, and unencrypted pictures.
pub fn run(images: &Images, report: &mut Report<'_>) -> Result<()> {
    let (mut sealed, mut metas) = (Vec::new(), Vec::new());
    crate::foreign::walk(&images.root, &mut |path, is_dir| {
        if !is_dir && ends_in(path, ENC) {
            sealed.push(path.to_path_buf());
        } else if !is_dir && ends_in(path, META) {
            metas.push(path.to_path_buf());
        } else if !is_dir
            && !infer::get_from_path(images.root.join(path)).is_ok_and(|kind| kind.is_none())
        {
            report.note(path.display(), "is not encrypted");
        }
    })?;
    sealed.sort_unstable();
    let lens = sealed
        .iter()
        .map(|path| images.root.join(path).metadata().map_or(0, |m| m.len()));
    report.total(lens.sum());
    for cipher_path in &sealed {
        check(images, cipher_path, report);
    }
    let sealed: HashSet<PathBuf> = sealed
        .iter()
        .map(|path| with_suffix(path, ".meta"))
        .collect();
    for meta in metas.iter().filter(|meta| !sealed.contains(*meta)) {
        report.problem(meta.display(), "describes a file that does not exist");
    }
    Ok(())
}

fn check(images: &Images, cipher_path: &Path, report: &mut Report<'_>) {
    report.count_file();
    let mime = match images.meta(cipher_path) {
        Ok(Some(meta)) => meta.mime_type,
        Ok(None) => {
            report.problem(
                cipher_path.display(),
                "its .meta is missing: the type is guessed from the name",
            );
            String::new()
        }
        Err(e) => {
            report.problem(cipher_path.display(), e);
            String::new()
        }
    };
    let reader = match images.open_sealed(cipher_path) {
        Ok(reader) => reader,
        Err(e) => {
            report.advance(
                images
                    .root
                    .join(cipher_path)
                    .metadata()
                    .map_or(0, |meta| meta.len()),
            );
            return report.problem(cipher_path.display(), e);
        }
    };
    if mime.starts_with("image/") && !is_image(&reader) {
        if images.proof != Some(false) {
            report.note(
                cipher_path.display(),
                "is not of a known image type, contrary to its .meta",
            )
        } else {
            report.problem(
                cipher_path.display(),
                "does not contain a picture: wrong key?",
            )
        }
    }
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < reader.plain_size() {
        let len = (reader.plain_size() - at).min(buffer.len() as u64);
        if let Err(e) = reader.read_exact_at(at, &mut buffer[..len as usize]) {
            return report.problem(cipher_path.display(), e);
        }
        at += len;
        report.advance(len);
    }
}
