//! The contents of an open file: what is stored, and what was written on top.
//!
//! What is written waits in memory; where that is too much, the new file is encrypted into a temporary one as far as
//! it is known (`stream`), which a writer that appends never feels. Who writes where the stream has passed makes it
//! end, and the next one start from what it holds. Plaintext is in memory only, and bounded.

use std::path::Path;
use std::sync::Arc;

use crate::dirty::Dirty;
use crate::error::{Error, Kind, Result};
use crate::foreign::sealer::{Sealed, Sealer};
use crate::foreign::{Entry, Format, Reader};
use crate::volume::{FILE_LEN_MAX, Time};

/// Bytes of a file that wait in memory; more goes into the stream.
pub const DIRTY_COST_MAX: usize = 8 << 20;
/// Bytes that are copied at once from the old contents to the new.
const COPY_LEN: usize = 1 << 20;

/// Attributes that were set while the file has contents that are not in the library yet.
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

/// What was there before anything was written.
enum Base {
    Nothing,
    /// Could not be opened; tried again, for the error, when it is needed.
    Unopened(Entry),
    Open(Arc<dyn Reader>),
}

/// The contents of one open file.
pub struct Content {
    /// Handles open.
    pub handles: u32,
    /// Attributes to be set with the contents.
    pub overrides: Overrides,
    base: Base,
    /// How much of the base still counts.
    base_len: u64,
    stream: Option<Sealer>,
    dirty: Dirty,
    plain_size: u64,
    /// Something is not in the library.
    changed: bool,
    /// All of it, encrypted, and nothing written since.
    sealed: Option<Sealed>,
    /// How it, or the stream, is stored: in clear or encrypted. The name decides, and it may change.
    clear: bool,
    /// A stream failed, and with it what only it held: nothing of this is ever put into the library.
    lost: bool,
}

impl Content {
    /// A new file, which nobody has written out yet.
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
    pub fn of(format: &dyn Format, shown: &Path, entry: &Entry, plain_size: u64) -> Self {
        let (base, plain_size) = match format.open(shown, entry) {
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

    /// Whether something is not in the library.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// What waits in memory, in bytes.
    pub fn dirty_cost(&self) -> usize {
        self.dirty.cost()
    }

    /// The stored file, where nothing lies on top: it can be read without this lock.
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

    fn base(&mut self, format: &dyn Format, shown: &Path) -> Result<Option<Arc<dyn Reader>>> {
        if let Base::Unopened(entry) = &self.base {
            let reader = format.open(shown, entry)?;
            self.base_len = self.base_len.min(reader.plain_size());
            self.base = Base::Open(reader);
        }
        match &self.base {
            Base::Open(reader) => Ok(Some(Arc::clone(reader))),
            _ => Ok(None),
        }
    }

    /// Fills `out` from `plain_offset`, as far as the file goes.
    pub fn read(
        &mut self,
        format: &dyn Format,
        shown: &Path,
        plain_offset: u64,
        out: &mut [u8],
    ) -> Result<usize> {
        let left = self.plain_size.saturating_sub(plain_offset);
        let len = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let streamed = self.stream.as_ref().map_or(0, Sealer::plain_len);
        if len > 0 && plain_offset < streamed {
            self.complete(format, shown)?;
        }
        self.merged(format, shown, plain_offset, &mut out[..len])?;
        Ok(len)
    }

    /// What is stored, with what was written over it; zeros where nothing is.
    fn merged(
        &mut self,
        format: &dyn Format,
        shown: &Path,
        from: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let to = from + out.len() as u64;
        let stored = usize::try_from(self.base_len.clamp(from, to) - from).unwrap_or(out.len());
        if stored > 0 && !self.is_written(from, from + stored as u64) {
            match self.base(format, shown)? {
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

    /// Whether all of a range was written over.
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

    /// Writes; where too much waits in memory, some goes into the stream.
    pub fn write(
        &mut self,
        format: &dyn Format,
        shown: &Path,
        plain_offset: u64,
        data: &[u8],
        cost_max: usize,
    ) -> Result<()> {
        let end = plain_offset.checked_add(data.len() as u64);
        let end = end
            .filter(|end| *end <= FILE_LEN_MAX)
            .ok_or(Kind::FileTooLarge)?;
        if self.dirty.cost() + data.len() > cost_max {
            self.drain(format, shown)?;
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

    /// Cuts the file, or lengthens it with zeros.
    pub fn truncate(&mut self, format: &dyn Format, shown: &Path, plain_size: u64) -> Result<()> {
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
            self.complete(format, shown)?;
        }
        self.touch();
        drop(self.dirty.take_from(plain_size));
        self.base_len = self.base_len.min(plain_size);
        self.plain_size = plain_size;
        Ok(())
    }

    /// The stream that is under way, or a new one; and how much it holds.
    fn take_stream(&mut self, format: &dyn Format, shown: &Path) -> Result<(Sealer, u64)> {
        if self.lost {
            let lost = "writing it out failed, and what was written is lost";
            return Err(Error::damaged(shown.display(), lost).hint("write it anew"));
        }
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                self.clear = format.in_clear(shown);
                let stage = format.stage().ok_or(Kind::ReadOnly)?;
                Sealer::new(stage, format.seal(shown)?, format.wants_digests())?
            }
        };
        let done = stream.plain_len();
        // Until it is back.
        self.lost = done > 0;
        Ok((stream, done))
    }

    /// Empties the memory into the stream.
    fn drain(&mut self, format: &dyn Format, shown: &Path) -> Result<()> {
        let (mut stream, done) = self.take_stream(format, shown)?;
        let end = if self.dirty.is_empty() {
            done
        } else {
            self.dirty.end()
        };
        self.copy(format, shown, &mut stream, end)?;
        drop(self.dirty.take_from(done));
        self.stream = Some(stream);
        self.lost = false;
        // What lies below `done` came too late for this stream.
        if self.dirty.is_empty() {
            return Ok(());
        }
        self.complete(format, shown)
    }

    /// Lets the stream take what the file holds up to `end`.
    fn copy(
        &mut self,
        format: &dyn Format,
        shown: &Path,
        stream: &mut Sealer,
        end: u64,
    ) -> Result<()> {
        let mut buffer = Vec::new();
        while stream.plain_len() < end {
            let at = stream.plain_len();
            let len = (end - at).min(COPY_LEN as u64) as usize;
            buffer.resize(len, 0);
            self.merged(format, shown, at, &mut buffer)?;
            stream.write(&buffer)?;
        }
        Ok(())
    }

    /// Encrypts the whole file, if it is not; then nothing is left in memory.
    pub fn complete(&mut self, format: &dyn Format, shown: &Path) -> Result<()> {
        let clear = format.in_clear(shown);
        if self.sealed.is_some() && self.clear == clear {
            return Ok(());
        }
        loop {
            let (mut stream, done) = self.take_stream(format, shown)?;
            self.copy(format, shown, &mut stream, self.plain_size)?;
            let sealed = stream.finish()?;
            self.lost = false;
            self.base = Base::Open(Arc::clone(&sealed.reader));
            self.base_len = sealed.plain_size;
            drop(self.dirty.take_from(done));
            // Written where the stream had passed: once more, over what it made. Then nothing can be left.
            if self.dirty.is_empty() && self.clear == clear {
                self.sealed = Some(sealed);
                return Ok(());
            }
        }
    }

    /// Puts the contents in their place in the library, if they are not there. On an error they stay here.
    pub fn publish(
        &mut self,
        format: &dyn Format,
        shown: &Path,
        old: Option<&Entry>,
        prepare: impl FnOnce(&Sealed, &Overrides) -> Result<()>,
    ) -> Result<Entry> {
        self.complete(format, shown)?;
        let sealed = self
            .sealed
            .take()
            .ok_or_else(|| Error::from(Kind::Poisoned))?;
        prepare(&sealed, &self.overrides)?;
        let entry = format.publish(sealed, shown, old)?;
        self.changed = false;
        self.overrides = Overrides::default();
        Ok(entry)
    }
}
