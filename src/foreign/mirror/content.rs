//! The contents of an open file: the stored file, and changes on top of it.
//!
//! Changes are kept in memory. When these become too much, the beginning of the new file is encrypted into a temporary file
//! (`stream`). A program that appends does not notice this. If a program writes to a part that is already in the stream, the
//! stream is completed, and another one starts from its contents. Plaintext is only in memory, and bounded.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::dirty::Dirty;
use crate::error::{Error, Kind, Result};
use crate::foreign::sealer::{Sealed, Sealer};
use crate::foreign::{Entry, Format, Reader};
use crate::volume::{FILE_LEN_MAX, Time};

/// Memory for the changes of a file, in bytes. More goes into the stream.
pub const DIRTY_COST_MAX: usize = 8 << 20;
/// Buffer size for copying the old contents to the new file, in bytes.
const COPY_LEN: usize = 1 << 20;

/// Attributes that were set while the file has changes that are not in the library yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Permission bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change.
    pub mtime: Option<Time>,
}

/// The contents without the changes in memory.
enum Base {
    Nothing,
    /// Opening failed. It is tried again when the contents are needed, for its error.
    Unopened(Entry),
    Open(Arc<dyn Reader>),
}

/// The contents of one open file.
pub struct Content {
    /// Number of open handles.
    pub handles: u32,
    /// Attributes to set together with the contents.
    pub overrides: Overrides,
    base: Base,
    /// How many bytes of the base are still part of the file.
    base_len: u64,
    stream: Option<Sealer>,
    dirty: Dirty,
    plain_size: u64,
    /// There are changes that are not in the library.
    changed: bool,
    /// The whole file, encrypted, without any changes since.
    sealed: Option<Sealed>,
    /// Whether `sealed` or the stream is unencrypted. The file's name decides that, and may change.
    clear: bool,
    /// A stream failed, and data that only it held is lost. The file is never moved into the library.
    lost: bool,
}

impl Content {
    /// A new file that is not stored yet.
    pub fn new() -> Self {
        Self {
            handles: 0,
            overrides: Overrides::default(),
            base: Base::Nothing,
            base_len: 0,
            stream: None,
            dirty: Dirty::default(),
            plain_size: 0,
            changed: true,
            sealed: None,
            clear: false,
            lost: false,
        }
    }

    /// A stored file.
    pub fn of(format: &dyn Format, plain_path: &Path, entry: &Entry, plain_size: u64) -> Self {
        let (base, plain_size) = match format.open(plain_path, entry) {
            Ok(reader) => {
                let len = reader.plain_size();
                (Base::Open(reader), len)
            }
            Err(_) => (Base::Unopened(entry.clone()), plain_size),
        };
        Self {
            base,
            base_len: plain_size,
            plain_size,
            changed: false,
            ..Self::new()
        }
    }

    /// Bytes of plaintext.
    pub fn plain_size(&self) -> u64 {
        self.plain_size
    }

    /// Whether there are changes that are not in the library.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Memory for the changes, in bytes.
    pub fn dirty_cost(&self) -> usize {
        self.dirty.cost()
    }

    /// The stored file and its length, if there are no changes: it can then be read without a lock.
    pub fn plain_base(&self) -> Option<(Arc<dyn Reader>, u64)> {
        match &self.base {
            Base::Open(reader)
                if self.stream.is_none()
                    && self.dirty.is_empty()
                    && self.base_len == self.plain_size =>
            {
                Some((Arc::clone(reader), self.base_len))
            }
            _ => None,
        }
    }

    fn base(&mut self, format: &dyn Format, plain_path: &Path) -> Result<Option<Arc<dyn Reader>>> {
        if let Base::Unopened(entry) = &self.base {
            let reader = format.open(plain_path, entry)?;
            self.base_len = self.base_len.min(reader.plain_size());
            self.base = Base::Open(reader);
        }
        match &self.base {
            Base::Open(reader) => Ok(Some(Arc::clone(reader))),
            _ => Ok(None),
        }
    }

    /// Reads from `plain_offset` until `out` is full or the file ends.
    pub fn read(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        plain_offset: u64,
        out: &mut [u8],
    ) -> Result<usize> {
        let left = self.plain_size.saturating_sub(plain_offset);
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let streamed = self.stream.as_ref().map_or(0, Sealer::plain_len);
        if len > 0 && plain_offset < streamed {
            self.complete(format, plain_path)?;
        }
        self.merged(format, plain_path, plain_offset, &mut out[..len])?;
        Ok(len)
    }

    /// Fills `out` from the base, the changes on top of it, and zeros elsewhere.
    fn merged(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        from: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let to = from + out.len() as u64;
        let stored = usize::try_from(self.base_len.clamp(from, to) - from).unwrap_or(out.len());
        if stored > 0 && !self.is_written(from, from + stored as u64) {
            match self.base(format, plain_path)? {
                Some(reader) => reader.read_exact_at(from, &mut out[..stored])?,
                None => out[..stored].fill(0),
            }
        }
        out[stored..].fill(0);
        for (at, part) in self.dirty.parts(from, to) {
            let at = (at - from) as usize;
            out[at..at + part.len()].copy_from_slice(part);
        }
        Ok(())
    }

    /// Whether a whole range was overwritten.
    fn is_written(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        for (start, part) in self.dirty.parts(from, to) {
            if start > at {
                return false;
            }
            at = start + part.len() as u64;
        }
        at >= to
    }

    /// Writes `data`. If the changes take too much memory, a part goes into the stream.
    pub fn write(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        plain_offset: u64,
        data: &[u8],
        cost_max: usize,
    ) -> Result<()> {
        let end = plain_offset.checked_add(data.len() as u64);
        let end = end
            .filter(|end| *end <= FILE_LEN_MAX)
            .ok_or(Kind::FileTooLarge)?;
        if self.dirty.cost() + data.len() > cost_max {
            self.drain(format, plain_path)?;
        }
        self.touch();
        self.dirty.write(plain_offset, data);
        self.plain_size = self.plain_size.max(end);
        Ok(())
    }

    fn touch(&mut self) {
        self.changed = true;
        self.sealed = None;
        self.overrides.mtime = None;
    }

    /// Truncates the file, or extends it with zeros.
    pub fn truncate(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        plain_size: u64,
    ) -> Result<()> {
        if plain_size > FILE_LEN_MAX {
            return Err(Kind::FileTooLarge.into());
        }
        if plain_size == self.plain_size && !self.lost {
            return Ok(());
        }
        if plain_size == 0 {
            self.stream = None;
            self.lost = false;
            self.base = Base::Nothing;
        } else if self
            .stream
            .as_ref()
            .is_some_and(|s| s.plain_len() > plain_size)
        {
            self.complete(format, plain_path)?;
        }
        self.touch();
        drop(self.dirty.take_from(plain_size));
        self.base_len = self.base_len.min(plain_size);
        self.plain_size = plain_size;
        Ok(())
    }

    /// The current stream, or a new one, and how many bytes of plaintext it holds.
    fn take_stream(&mut self, format: &dyn Format, plain_path: &Path) -> Result<(Sealer, u64)> {
        if self.lost {
            let lost = io::Error::other("an earlier write failed, and its data is lost");
            return Err(Error::io(lost, plain_path).hint("write the file again"));
        }
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.clear = format.in_clear(plain_path);
                let stage = format.stage().ok_or(Kind::ReadOnly)?;
                Sealer::new(stage, format.seal(plain_path)?, format.wants_digests())?
            }
        };
        let done = stream.plain_len();
        // If an error follows, the stream is dropped.
        self.lost = done > 0;
        Ok((stream, done))
    }

    /// Moves the changes from memory into the stream.
    fn drain(&mut self, format: &dyn Format, plain_path: &Path) -> Result<()> {
        let (mut stream, done) = self.take_stream(format, plain_path)?;
        let end = if self.dirty.is_empty() {
            done
        } else {
            self.dirty.end()
        };
        self.copy(format, plain_path, &mut stream, end)?;
        drop(self.dirty.take_from(done));
        self.stream = Some(stream);
        self.lost = false;
        // Changes before `done` came too late for this stream.
        if self.dirty.is_empty() {
            return Ok(());
        }
        self.complete(format, plain_path)
    }

    /// Copies the file up to `end` into the stream.
    fn copy(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        stream: &mut Sealer,
        end: u64,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        while stream.plain_len() < end {
            let at = stream.plain_len();
            let len = (end - at).min(COPY_LEN as u64) as usize;
            buffer.resize(len, 0);
            self.merged(format, plain_path, at, &mut buffer)?;
            stream.write(&buffer)?;
        }
        Ok(())
    }

    /// Encrypts the whole file, unless that was done; nothing of it is left in memory then.
    pub fn complete(&mut self, format: &dyn Format, plain_path: &Path) -> Result<()> {
        let sealed = self.take_sealed(format, plain_path)?;
        self.sealed = Some(sealed);
        Ok(())
    }

    /// The whole file, encrypted.
    fn take_sealed(&mut self, format: &dyn Format, plain_path: &Path) -> Result<Sealed> {
        let clear = format.in_clear(plain_path);
        if self.clear == clear
            && let Some(sealed) = self.sealed.take()
        {
            return Ok(sealed);
        }
        loop {
            let (mut stream, done) = self.take_stream(format, plain_path)?;
            self.copy(format, plain_path, &mut stream, self.plain_size)?;
            let sealed = stream.finish()?;
            self.lost = false;
            self.base = Base::Open(Arc::clone(&sealed.reader));
            self.base_len = sealed.plain_size;
            drop(self.dirty.take_from(done));
            // Data that was written before the end of the stream came too late for it. In that case, the next one starts from
            // what this one made, and leaves nothing over.
            if self.dirty.is_empty() && self.clear == clear {
                self.sealed = None;
                return Ok(sealed);
            }
        }
    }

    /// Moves the contents into the library, after `prepare` has set the attributes.
    pub fn publish(
        &mut self,
        format: &dyn Format,
        plain_path: &Path,
        old: Option<&Entry>,
        prepare: impl FnOnce(&Sealed, &Overrides) -> Result<()>,
    ) -> Result<Entry> {
        let sealed = self.take_sealed(format, plain_path)?;
        prepare(&sealed, &self.overrides)?;
        let entry = format.publish(sealed, plain_path, old)?;
        self.changed = false;
        self.overrides = Overrides::default();
        Ok(entry)
    }
}
