//! Cassandra Medusa with client-side encryption: Fernet frames, and unencrypted names and manifests
//! (`man/hushfs-foreign.5`: CASSANDRA MEDUSA).
//!
//! Each frame is authenticated, but not its file or position. Only the sizes and digests in the manifest show that frames
//! were swapped or are from another file, and the manifest is neither encrypted nor authenticated. It also reveals the
//! digests of the plaintext.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::sealer::{InClear, Seal, Sealed};
use super::stage::{Stage, Step};
use super::{Entry, Format, ListEntry, PlainReader, Reader};
use crate::cache::BlockCache;
use crate::error::{Error, Kind, Result};
use crate::report::Report;

mod backups;
mod base;
mod catalog;
mod change;
mod folder;
pub mod frames;
mod ini;
pub mod manifest;
mod names;
mod reader;
mod verify;

pub use backups::BackupsView;
pub use base::looks_like;
use catalog::Catalog;
use frames::{FernetKey, FrameSeal, Frames};
pub use ini::key_in_ini;
use manifest::{DigestForm, NewObject, Object};
use names::{DataName, in_metadata, is_manifest, restores_undecrypted};
pub use reader::FrameReader;

/// Most files that are tried to notice a wrong key.
const SAMPLE_MAX: usize = 8;

/// An open bucket.
pub struct Medusa {
    root: PathBuf,
    stage: Option<Stage>,
    key: FernetKey,
    cache: Arc<BlockCache>,
    catalog: Mutex<Catalog>,
}

impl Medusa {
    /// Opens a bucket. [`Kind::WrongKey`] if its objects cannot be decrypted, [`Kind::OtherForm`] if they are in the later
    /// format.
    pub fn open(root: &Path, key: &[u8], cache_bytes: usize, read_only: bool) -> Result<Self> {
        let key = FernetKey::parse(key).ok_or_else(|| {
            Error::from(Kind::Secret(
                "the key is not the base64 of 32 bytes, as key_secret_base64 is in medusa.ini"
                    .into(),
            ))
        })?;
        let stage = if read_only {
            None
        } else {
            Some(Stage::open(root)?)
        };
        let catalog = Catalog::read(root)?;
        let medusa = Self {
            root: root.to_path_buf(),
            stage,
            key,
            cache: Arc::new(BlockCache::new(cache_bytes)),
            catalog: Mutex::new(catalog),
        };
        medusa.check_key()?;
        Ok(medusa)
    }

    /// Tries the key on the first frame of some files.
    fn check_key(&self) -> Result<()> {
        let catalog = self.catalog.lock();
        let objects = || catalog.objects().filter(|o| o.is_sealed() && o.size > 0);
        let mut plain_backups = catalog.plain_backups();
        if let Some(first) = plain_backups.next() {
            let others = plain_backups.count();
            log::warn!(
                "{}: the backup {first} and {others} others hold files that are not encrypted",
                self.root.display()
            );
        }
        // Objects that look like frames come first: the bucket may also contain backups in another format.
        let likely = objects().filter(|object| object.is_like_frames());
        let others = objects().filter(|object| !object.is_like_frames());
        let mut wrong = None;
        for object in likely.take(SAMPLE_MAX).chain(others.take(SAMPLE_MAX)) {
            let path = self.root.join(&object.path);
            let Ok((file, len)) = super::open_file(&path) else {
                continue;
            };
            match self.try_first(Arc::new(file), len) {
                Ok(()) => return Ok(()),
                // A file that cannot be decrypted says more about the key than one in another format.
                Err(e) if matches!(e.kind(), Kind::OtherForm(_)) && wrong.is_some() => {}
                Err(e) => wrong = Some(e.about(path.display())),
            }
        }
        match wrong {
            None => Ok(()),
            Some(e) if matches!(e.kind(), Kind::OtherForm(_)) => Err(e),
            Some(e) => Err(
                Error::new(Kind::WrongKey, self.root.display()).hint(format_args!(
                    "none of the files tried can be decrypted; the last error: {e}"
                )),
            ),
        }
    }

    fn try_first(&self, file: Arc<std::fs::File>, len: u64) -> Result<()> {
        let (frames, plain_size) = frames::scan(&file, &self.key, len)?;
        let cache = Arc::new(BlockCache::new(0));
        let reader = FrameReader::new(file, self.key.clone(), frames, plain_size, None, cache);
        reader.read_exact_at(0, &mut [0; 1][..plain_size.min(1) as usize])
    }

    fn writer(&self) -> Result<&Stage> {
        self.stage.as_ref().ok_or_else(|| Kind::ReadOnly.into())
    }

    /// Opens a stored file according to its entry in a manifest (`object`), or, without one, according to its contents.
    fn open_object(&self, cipher_path: &Path, object: Option<&Object>) -> Result<Arc<dyn Reader>> {
        let path = self.root.join(cipher_path);
        let (file, len) = super::open_file(&path)?;
        self.reader(file, len, object)
            .map_err(|e| e.about(path.display()))
    }

    fn reader(
        &self,
        file: std::fs::File,
        len: u64,
        object: Option<&Object>,
    ) -> Result<Arc<dyn Reader>> {
        if let Some(object) = object.filter(|object| object.size != len) {
            let check = format!("it has {len} bytes, and {} by its manifest", object.size);
            return Err(Error::from(Kind::Damaged(check.into()))
                .hint("cut short, or overwritten by a later differential backup: `hushfs verify` says which"));
        }
        let mut head = vec![0; len.min(10) as usize];
        super::read_at(&file, 0, &mut head)?;
        if frames::looks_like_aws(&head) {
            return Err(frames::aws_sdk());
        }
        let file = Arc::new(file);
        if !object.map_or_else(
            || len == 0 || frames::looks_like_frames(&head),
            Object::is_sealed,
        ) {
            return Ok(Arc::new(PlainReader {
                file,
                plain_size: len,
            }));
        }
        let known = object
            .and_then(|o| o.source_size)
            .filter(|size| frames::cipher_len(*size) == len);
        let (frames, plain_size) = match known {
            Some(plain_size) => (Frames::Canonical, plain_size),
            None => frames::scan(&file, &self.key, len)?,
        };
        if let Some(expected) = object
            .and_then(|o| o.source_size)
            .filter(|size| *size != plain_size)
        {
            let check =
                format!("its frames hold {plain_size} bytes, and its manifest says {expected}");
            return Err(Kind::Damaged(check.into()).into());
        }
        let digest = object
            .and_then(Object::source_digest)
            .filter(|_| plain_size > 0);
        let (key, cache) = (self.key.clone(), Arc::clone(&self.cache));
        Ok(Arc::new(FrameReader::new(
            file, key, frames, plain_size, digest, cache,
        )))
    }
}

impl Format for Medusa {
    fn root(&self) -> &Path {
        &self.root
    }

    fn stage(&self) -> Option<&Stage> {
        self.stage.as_ref()
    }

    fn list(&self, add: &mut dyn FnMut(ListEntry)) -> Result<()> {
        let catalog = self.catalog.lock();
        super::walk(&self.root, &mut |path, is_dir| {
            let cipher_path = path.to_path_buf();
            if is_dir {
                return add(ListEntry::Folder(cipher_path));
            }
            if path == Path::new(base::KEPT) {
                return;
            }
            let sealed = catalog.data_name(path).is_some();
            add(ListEntry::File(
                cipher_path.clone(),
                Entry {
                    cipher_path,
                    sealed,
                    plain_size: None,
                },
            ));
        })?;
        for broken in &catalog.broken {
            add(broken.listed());
        }
        // Missing objects of manifests are shown as well: reading one fails, and says that it is missing.
        for object in catalog.objects() {
            let cipher_path = PathBuf::from(&object.path);
            if super::stage::is_confined(&cipher_path)
                && self.root.join(&cipher_path).symlink_metadata().is_err()
            {
                let plain_size = Some(object.source_size.unwrap_or(object.size));
                add(ListEntry::File(
                    cipher_path.clone(),
                    Entry {
                        cipher_path,
                        sealed: true,
                        plain_size,
                    },
                ));
            }
        }
        Ok(())
    }

    fn plain_size(&self, entry: &Entry) -> Result<u64> {
        let path = self.root.join(&entry.cipher_path);
        let (file, len) = super::open_file(&path)?;
        if !entry.sealed {
            return Ok(len);
        }
        let object = self.catalog.lock().current(&entry.cipher_path, len);
        if let Some(size) = object.as_ref().and_then(|o| o.source_size) {
            return Ok(size);
        }
        self.reader(file, len, object.as_ref())
            .map(|reader| reader.plain_size())
    }

    fn open(&self, _shown: &Path, entry: &Entry) -> Result<Arc<dyn Reader>> {
        if !entry.sealed {
            return PlainReader::open(&self.root.join(&entry.cipher_path));
        }
        let len =
            std::fs::metadata(self.root.join(&entry.cipher_path)).map_or(0, |meta| meta.len());
        let object = self.catalog.lock().current(&entry.cipher_path, len);
        self.open_object(&entry.cipher_path, object.as_ref())
    }

    fn check_name(&self, plain_path: &Path) -> Result<()> {
        let refuse =
            |hint: &str| Err(Error::new(Kind::NotPermitted, plain_path.display()).hint(hint));
        let Some(text) = plain_path.to_str() else {
            return Err(Kind::InvalidArgument.into());
        };
        let catalog = self.catalog.lock();
        let Some(name) = catalog.data_name(plain_path) else {
            let path = catalog.below_base(plain_path);
            return match () {
                () if is_manifest(path) => {
                    refuse("manifests are kept by hushfs, as files come and go")
                }
                () if in_metadata(path) => Ok(()),
                () => refuse("it is in no data, meta or index folder, and would lie in clear"),
            };
        };
        if restores_undecrypted(name.file) {
            return refuse(
                "Medusa takes files of this name for its own, and would restore it without decrypting",
            );
        }
        if let Some(other) = catalog.restored_to_the_same_place(&name, text) {
            let hint = format!(
                "a restore would put it in the place of {other}: it knows no such folders in that of a table"
            );
            return Err(Error::new(Kind::NotPermitted, plain_path.display()).hint(hint));
        }
        self.keepers(&catalog, &name, text)?;
        Ok(())
    }

    fn in_clear(&self, plain_path: &Path) -> bool {
        self.catalog.lock().data_name(plain_path).is_none()
    }

    fn seal(&self, plain_path: &Path) -> Result<Box<dyn Seal>> {
        if self.in_clear(plain_path) {
            return Ok(Box::new(InClear));
        }
        let (key, cache) = (self.key.clone(), Arc::clone(&self.cache));
        Ok(Box::new(FrameSeal {
            key,
            pinned: None,
            cache,
        }))
    }

    fn wants_digests(&self) -> bool {
        true
    }

    fn publish(&self, sealed: Sealed, plain_path: &Path, _old: Option<&Entry>) -> Result<Entry> {
        let cipher_path = plain_path.to_path_buf();
        let path = plain_path.to_str().ok_or(Kind::InvalidArgument)?;
        let mut catalog = self.catalog.lock();
        let Some(name) = catalog.data_name(plain_path).map(DataName::own) else {
            self.writer()?
                .commit(vec![Step::Install(sealed.temp, cipher_path.clone())])?;
            return Ok(Entry {
                cipher_path,
                sealed: false,
                plain_size: Some(sealed.plain_size),
            });
        };
        let name = name.borrow();
        let keepers = self.keepers(&catalog, &name, path)?;
        let digests = sealed.digests.ok_or(Kind::InvalidArgument)?;
        let named = catalog.named(path);
        let new = NewObject {
            table: (name.keyspace, name.table),
            path: &named,
            stored: (digests.cipher, sealed.cipher_len),
            source: (digests.plain, sealed.plain_size),
        };
        let form = DigestForm::of(catalog.objects());
        let (mut steps, drafts) =
            self.manifest_steps(&mut catalog, &keepers, |draft| draft.put(&new, form))?;
        steps.insert(0, Step::Install(sealed.temp, cipher_path.clone()));
        self.commit(&mut catalog, steps, drafts)?;
        Ok(Entry {
            cipher_path,
            sealed: true,
            plain_size: Some(sealed.plain_size),
        })
    }

    fn rename(&self, entry: &Entry, from: &Path, to: &Path, _old: Option<&Entry>) -> Result<Entry> {
        self.check_name(to)?;
        let moved = Entry {
            cipher_path: to.to_path_buf(),
            ..entry.clone()
        };
        let step = Step::Move(from.to_path_buf(), to.to_path_buf());
        let mut catalog = self.catalog.lock();
        let names = (
            catalog.data_name(from).map(DataName::own),
            catalog.data_name(to).map(DataName::own),
        );
        let (Some(old), Some(new)) = names else {
            if entry.sealed || catalog.data_name(to).is_some() {
                return Err(Kind::CrossDevice.into());
            }
            self.writer()?.commit(vec![step])?;
            return Ok(moved);
        };
        let (old, new) = (old.borrow(), new.borrow());
        if (old.node, old.backup) != (new.node, new.backup) {
            return Err(Kind::CrossDevice.into());
        }
        let (from, to) = (
            from.to_str().ok_or(Kind::InvalidArgument)?,
            to.to_str().ok_or(Kind::InvalidArgument)?,
        );
        let keepers = self.keepers(&catalog, &old, from)?;
        let table = (new.keyspace, new.table);
        let (old_name, new_name) = (catalog.named(from), catalog.named(to));
        let (mut steps, drafts) = self.manifest_steps(&mut catalog, &keepers, |draft| {
            if let Some(object) = draft.take(&old_name) {
                draft.put_value(table, &new_name, object);
            }
        })?;
        steps.insert(0, step);
        self.commit(&mut catalog, steps, drafts)?;
        Ok(moved)
    }

    fn rename_dir(&self, from: &Path, to: &Path, files: &[(PathBuf, Entry)]) -> Result<Vec<Entry>> {
        self.move_folder(from, to, files)
    }

    fn remove(&self, plain_path: &Path, entry: &Entry) -> Result<()> {
        let mut catalog = self.catalog.lock();
        if let Some(name) = catalog.data_name(plain_path) {
            catalog.check_change(&name)?;
        }
        let path = plain_path.to_str().unwrap_or_default();
        let named: Vec<usize> = catalog
            .known(path)
            .iter()
            .map(|known| known.manifest)
            .collect();
        let still = |at: &usize| self.root.join(&catalog.manifests[*at].path).exists();
        let named: Vec<usize> = named.into_iter().filter(still).collect();
        let name = catalog.named(path);
        let (mut steps, drafts) =
            self.manifest_steps(&mut catalog, &named, |draft| drop(draft.take(&name)))?;
        steps.push(Step::Remove(entry.cipher_path.clone()));
        self.commit(&mut catalog, steps, drafts)?;
        if is_manifest(catalog.below_base(plain_path)) {
            catalog.forget(plain_path);
        }
        Ok(())
    }

    fn verify(&self, report: &mut Report<'_>) -> Result<()> {
        verify::run(self, report)
    }
}
