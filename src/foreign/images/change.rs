//! Decides how a changed file is stored, and how its description changes.

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

/// Buffer size for copying, in bytes.
const COPY_LEN: u64 = 1 << 20;
/// Bytes of a file that are read to detect its type.
const HEAD_LEN: u64 = 4096;
/// How many renamed unencrypted files are remembered.
const WERE_CLEAR_MAX: usize = 10_000;

impl Images {
    /// Whether a file that is renamed to `to` is stored unencrypted there: if the file that it replaces is. An encrypted file
    /// stays encrypted, unless its name was a temporary one for `to`.
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

    /// Records the rename of an unencrypted file, if the new name is that of a backup.
    pub(super) fn record_clear(&self, from: &Path, to: &Path, entry: &Entry) {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let mut names = self.were_clear.lock();
        if !entry.sealed && is_backup_of(&name(to), &name(from)) && names.len() < WERE_CLEAR_MAX {
            names.insert(from.to_path_buf(), to.to_path_buf());
        }
    }

    /// Whether a file of this name was unencrypted, and is still kept as a backup.
    pub(super) fn was_clear(&self, plain_path: &Path) -> bool {
        let names = self.were_clear.lock();
        let backup = names.get(plain_path).map(|backup| self.root.join(backup));
        backup.is_some_and(|backup| backup.symlink_metadata().is_ok_and(|meta| meta.is_file()))
    }

    /// The steps that remove a stored file and its description.
    pub(super) fn removal(entry: &Entry) -> impl Iterator<Item = Step> + use<> {
        let meta = entry
            .sealed
            .then(|| Step::Remove(with_suffix(&entry.cipher_path, ".meta")));
        std::iter::once(Step::Remove(entry.cipher_path.clone())).chain(meta)
    }

    /// Copies a file, encrypted or not, with its attributes.
    pub(super) fn recode(
        &self,
        plain_path: &Path,
        entry: &Entry,
        in_clear: bool,
    ) -> Result<Sealed> {
        let reader = self.open(plain_path, entry)?;
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
            .take_attributes(&self.root.join(&entry.cipher_path))?;
        Ok(sealed)
    }

    /// Renames a file that must be encrypted or decrypted for that.
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
        let cipher_path = if in_clear {
            steps.push(Step::Install(sealed.temp, to.to_path_buf()));
            to.to_path_buf()
        } else {
            let cipher_path = self.place(to, old)?;
            steps.extend(self.encrypted_steps(sealed, to, &cipher_path)?);
            cipher_path
        };
        steps.extend(Self::removal(entry));
        let replaced = old.filter(|old| old.cipher_path != cipher_path);
        steps.extend(replaced.into_iter().flat_map(Self::removal));
        self.writer()?.commit(steps)?;
        Ok(Entry {
            cipher_path,
            sealed: !in_clear,
            plain_size,
        })
    }

    /// The steps that install an encrypted file and its description.
    pub(super) fn encrypted_steps(
        &self,
        sealed: Sealed,
        plain_path: &Path,
        cipher_path: &Path,
    ) -> Result<[Step; 2]> {
        let place = with_suffix(cipher_path, ".meta");
        let meta = describe(plain_path, types::of(plain_path, &sealed.head));
        let meta = self.writer()?.create_in_place_of(&place, &meta)?;
        Ok([
            Step::Install(sealed.temp, cipher_path.to_path_buf()),
            Step::Install(meta, place),
        ])
    }

    /// The type of a renamed file: the declared one, unless the old name was temporary, or the new one implies another type.
    pub(super) fn type_after(&self, entry: &Entry, from: &Path, to: &Path) -> Result<String> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        let (from, to_name) = (name(from), name(to));
        let declared = self
            .meta(&entry.cipher_path)
            .ok()
            .flatten()
            .map(|meta| meta.mime_type);
        let stays = extname(&from) == extname(&to_name) && !is_temporary_of(&from, &to_name);
        match declared.filter(|mime| stays && mime != types::UNKNOWN) {
            Some(mime) => Ok(mime),
            None => {
                let reader = self.open_sealed(&entry.cipher_path)?;
                let mut head = vec![0; reader.plain_size().min(HEAD_LEN) as usize];
                reader.read_exact_at(0, &mut head)?;
                Ok(types::of(to, &head).into())
            }
        }
    }

    /// The path at which a file of this name is stored. If something exists there, it must be the file that is replaced.
    pub(super) fn place(&self, plain_path: &Path, old: Option<&Entry>) -> Result<PathBuf> {
        if let Some(old) = old.filter(|old| old.sealed) {
            return Ok(old.cipher_path.clone());
        }
        let cipher_path = with_suffix(plain_path, ENC);
        if self.root.join(&cipher_path).symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, cipher_path.display())
                .hint("it is shown under another name, because an unencrypted file has the same name; rename one"));
        }
        Ok(cipher_path)
    }
}

/// The description for a file of this name and type.
pub(super) fn describe(plain_path: &Path, mime_type: &str) -> Vec<u8> {
    let meta = Meta {
        original_extension: extname(plain_path.file_name().unwrap_or_default()),
        mime_type: mime_type.into(),
    };
    serde_json::to_vec(&meta).expect("two strings are JSON")
}
