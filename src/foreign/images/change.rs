//! Where a changed file is stored, in clear or encrypted, and what describes it.

use std::path::{Path, PathBuf};

use super::names::{extname, with_suffix};
use super::run::ImageSeal;
use super::{ENC, Images, Meta, types};
use crate::error::{Error, Kind, Result};
use crate::foreign::cipher::random_iv;
use crate::foreign::mirror::temporary::{is_backup_of, is_temporary_of};
use crate::foreign::sealer::{InClear, Seal, Sealed, Sealer};
use crate::foreign::stage::Step;
use crate::foreign::{Entry, Format, Reader};

/// Bytes that are copied at once.
const COPY_LEN: u64 = 1 << 20;
/// How much of a file tells its type, in bytes.
const HEAD_LEN: u64 = 4096;
/// Names of files in clear that are remembered.
const WERE_CLEAR_MAX: usize = 10_000;

impl Images {
    /// Whether a file that is now to be at `to` lies there in clear: as what it replaces does. One that is encrypted stays
    /// so, unless its name was a temporary one of `to`.
    pub(super) fn becomes_clear(
        &self,
        entry: &Entry,
        (from, to): (&Path, &Path),
        old: Option<&Entry>,
    ) -> bool {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let is_whole = entry.sealed && !is_temporary_of(&name(from), &name(to));
        let as_before = match old {
            _ if is_whole => false,
            Some(old) => !old.sealed,
            None => !entry.sealed || self.was_clear(to),
        };
        if self.encrypts_all {
            as_before && !entry.sealed
        } else {
            as_before || self.is_style(to)
        }
    }

    /// Notes that a file in clear was renamed, if its new name is that of a backup of it.
    pub(super) fn note_clear(&self, from: &Path, to: &Path, entry: &Entry) {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let mut names = self.were_clear.lock();
        if !entry.sealed && is_backup_of(&name(to), &name(from)) && names.len() < WERE_CLEAR_MAX {
            names.insert(from.to_path_buf(), to.to_path_buf());
        }
    }

    /// Whether a file of this name was in clear, and still is under the name of a backup.
    pub(super) fn was_clear(&self, shown: &Path) -> bool {
        let names = self.were_clear.lock();
        let backup = names.get(shown).map(|backup| self.root.join(backup));
        backup.is_some_and(|backup| backup.symlink_metadata().is_ok_and(|meta| meta.is_file()))
    }

    /// The steps that remove a stored file and what describes it.
    pub(super) fn removal(entry: &Entry) -> impl Iterator<Item = Step> + use<> {
        let meta = entry
            .sealed
            .then(|| Step::Remove(with_suffix(&entry.stored, ".meta")));
        std::iter::once(Step::Remove(entry.stored.clone())).chain(meta)
    }

    /// A copy of a file, in clear or encrypted, with its attributes.
    pub(super) fn recode(&self, shown: &Path, entry: &Entry, in_clear: bool) -> Result<Sealed> {
        let reader = self.open(shown, entry)?;
        let seal: Box<dyn Seal> = if in_clear {
            Box::new(InClear)
        } else {
            Box::new(ImageSeal::new(self.key.clone(), random_iv()?))
        };
        let mut sealer = Sealer::new(self.writer()?, seal, false)?;
        let mut buffer = vec![0; reader.plain_size().min(COPY_LEN) as usize];
        let mut at = 0;
        while at < reader.plain_size() {
            let len = (reader.plain_size() - at).min(COPY_LEN) as usize;
            reader.read_exact_at(at, &mut buffer[..len])?;
            sealer.write(&buffer[..len])?;
            at += len as u64;
        }
        let sealed = sealer.finish()?;
        sealed
            .temp
            .take_attributes(&self.root.join(&entry.stored))?;
        Ok(sealed)
    }

    /// Puts a file at `to` that is stored in another way there than it was: in clear now, or encrypted.
    pub(super) fn rename_recoded(
        &self,
        entry: &Entry,
        (from, to): (&Path, &Path),
        old: Option<&Entry>,
        in_clear: bool,
    ) -> Result<Entry> {
        let sealed = self.recode(from, entry, in_clear)?;
        let plain_size = Some(sealed.plain_size);
        let mut steps = Vec::new();
        let stored = if in_clear {
            steps.push(Step::Place(sealed.temp, to.to_path_buf()));
            to.to_path_buf()
        } else {
            let stored = self.place(to, old)?;
            steps.extend(self.encrypted_steps(sealed, to, &stored)?);
            stored
        };
        steps.extend(Self::removal(entry));
        let replaced = old.filter(|old| old.stored != stored);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
        self.writer()?.commit(steps)?;
        Ok(Entry {
            stored,
            sealed: !in_clear,
            plain_size,
        })
    }

    /// The steps that place an encrypted file and its description.
    pub(super) fn encrypted_steps(
        &self,
        sealed: Sealed,
        shown: &Path,
        stored: &Path,
    ) -> Result<[Step; 2]> {
        let place = with_suffix(stored, ".meta");
        let meta = describe(shown, types::of(shown, &sealed.head));
        let meta = self.writer()?.create_in_place_of(&place, &meta)?;
        Ok([
            Step::Place(sealed.temp, stored.to_path_buf()),
            Step::Place(meta, place),
        ])
    }

    /// The type of a file that gets another name: as it was declared, unless the name was one for the while, or tells of
    /// another type.
    pub(super) fn type_after(&self, entry: &Entry, from: &Path, to: &Path) -> Result<String> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let (from, to_name) = (name(from), name(to));
        let declared = self
            .meta(&entry.stored)
            .ok()
            .flatten()
            .map(|meta| meta.mime_type);
        let stays = extname(&from) == extname(&to_name) && !is_temporary_of(&from, &to_name);
        match declared.filter(|mime| stays && mime != types::UNKNOWN) {
            Some(mime) => Ok(mime),
            None => {
                let reader = self.open_sealed(&entry.stored)?;
                let mut head = vec![0; reader.plain_size().min(HEAD_LEN) as usize];
                reader.read_exact_at(0, &mut head)?;
                Ok(types::of(to, &head).into())
            }
        }
    }

    /// Where a file of this name is to be stored; what is there already must be the one that it replaces.
    pub(super) fn place(&self, shown: &Path, old: Option<&Entry>) -> Result<PathBuf> {
        if let Some(old) = old.filter(|old| old.sealed) {
            return Ok(old.stored.clone());
        }
        let stored = with_suffix(shown, ENC);
        if self.root.join(&stored).symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, stored.display())
                .hint("it is shown under another name, as the name is also that of a file in clear; rename one"));
        }
        Ok(stored)
    }
}

/// The description of a file of this name and type.
pub(super) fn describe(shown: &Path, mime_type: &str) -> Vec<u8> {
    let meta = Meta {
        original_extension: extname(shown.file_name().unwrap_or_default()),
        mime_type: mime_type.into(),
    };
    serde_json::to_vec(&meta).expect("two strings are JSON")
}
