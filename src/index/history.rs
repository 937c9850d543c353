//! The history of a library: which files of `index/` count, who wrote them, and in which order they are applied.
//!
//! Nothing here is applied. A [`Survey`] opens every file of `index/`, each up to its first frame; a [`History`] is
//! what follows from these alone: which bases are in use, which segments they make superfluous, the order of the
//! others, and what is missing. The same files give the same history, in whatever order they arrived.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::record::{Head, Opening};
use super::segment::{Extent, SegmentReader};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SLOT_LEN, Slot};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId, SegmentId, SlotId};
use crate::store::{Absent, Store};

mod chain;
#[cfg(test)]
mod tests;

/// What to do where a file of the index is missing or damaged.
pub const WAIT: &str = "wait for the sync to finish, or copy this file again";

/// So often is looked again where a file goes while the index is read: a sync is at work.
const SURVEYS_MAX: usize = 5;

/// Who wrote a segment. Of a device that wrote two histories (its disk or its memory was copied, and both went on), one
/// has the device's id, and the other an id that follows from its first segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer(pub ObjectId);

impl Writer {
    /// The writer of a second history of `device`, which begins with the segment of this digest.
    fn of_branch(device: DeviceId, first: &[u8; 32]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"hushfs branch");
        hash.update(device.0);
        hash.update(first);
        let hash: [u8; 32] = hash.finalize().into();
        let (front, _) = hash
            .split_first_chunk()
            .expect("16 bytes are fewer than 32");
        Self(ObjectId(*front))
    }
}

/// A published segment that was read, or that a base makes superfluous.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The segment.
    pub id: SegmentId,
    /// Its writer.
    pub device: DeviceId,
    /// Its number; 0 for a base.
    pub number: u64,
    /// All its bytes.
    pub cipher_len: u64,
}

/// A segment or base of which the ends open with the library's key. What lies between may still be damaged.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The file.
    pub published: Published,
    /// Who wrote it; the device's own where a base makes it superfluous.
    pub writer: Writer,
    /// SHA-256 of the whole file, where it was needed: of every segment that is to be applied.
    pub sha256: Option<[u8; 32]>,
    /// Its first frame.
    pub opening: Opening,
    /// Whether this version may write to the library, as far as this segment says.
    pub writable: bool,
}

impl Opened {
    /// Opens it again, for its frames.
    pub fn reader(&self, store: &dyn Store, master: &MasterKey) -> Result<SegmentReader> {
        let mut reader = open_segment(store, master, self.published.id)?;
        if let Some(sha256) = self.sha256 {
            reader.digest_is(sha256);
        }
        Ok(reader)
    }

    fn is_base(&self) -> bool {
        self.opening.stamp_segments.is_some()
    }

    /// The digest of the segment before it in its writer's order.
    fn parent(&self) -> Option<[u8; 32]> {
        let Published { device, number, .. } = self.published;
        let mut own = self.opening.heads.iter().filter(|h| h.device == device);
        let parent = own.find(|h| h.number + 1 == number)?;
        Some(parent.sha256)
    }
}

/// A file of `index/` that does not count.
#[derive(Debug)]
pub struct Ignored {
    /// Its name.
    pub id: SegmentId,
    /// What it is.
    pub what: What,
}

/// What a file is that does not count.
#[derive(Debug)]
pub enum What {
    /// The same as another one that is there, under another name.
    Copy(SegmentId),
    /// One of this library that is cut or damaged: as if it had not arrived.
    Part(Error),
    /// Nothing that this library's key opens.
    Strange(Error),
    /// Not there itself: something stands for it.
    Absent(Absent),
    /// What a later version wrote, or somebody who wants it to look so.
    Later(Error),
}

/// A base that is damaged, and what it covers.
#[derive(Debug)]
struct LostBase {
    id: SegmentId,
    heads: Vec<Head>,
}

impl Ignored {
    /// Whether something may be lost by it.
    pub fn is_problem(&self) -> bool {
        !matches!(self.what, What::Copy(_))
    }

    /// For people.
    pub fn text(&self) -> String {
        let name = format_args!("index/{}", self.id);
        match &self.what {
            What::Copy(of) => {
                format!("{name}: is a copy of index/{of}, and passed over (it can be removed)")
            }
            What::Part(e) => format!("{e}; it counts as not arrived: {WAIT}"),
            What::Strange(e) => format!(
                "{e}; nothing in it opens with this library's key, and it is passed over: if it is the library's, {WAIT}"
            ),
            What::Absent(absent) => {
                format!(
                    "index/{}: {absent}; it counts as not arrived: {WAIT}",
                    absent.name
                )
            }
            What::Later(e) => e.to_string(),
        }
    }
}

/// What lies in `index/`.
#[derive(Debug, Default)]
pub struct Survey {
    opened: Vec<Opened>,
    ignored: Vec<Ignored>,
    lost_bases: Vec<LostBase>,
    files: Vec<(SegmentId, u64)>,
}

/// What follows from the files that are there.
#[derive(Debug, Default)]
pub struct History {
    /// Bases to apply, the newest first.
    pub bases: Vec<Opened>,
    /// Segments to apply on top, each after all that its writer had applied.
    pub segments: Vec<Opened>,
    /// How many segments, at the end of these, were made on top of something that is missing. They are there only
    /// where they were asked for.
    pub unfounded: usize,
    /// Segments that are not applied, as something that their writers had applied is missing.
    pub waiting: Vec<Head>,
    /// Segments and bases that the newest base makes superfluous.
    pub covered: Vec<Published>,
    /// What should be there and is not, in words.
    pub gaps: Vec<String>,
    /// Devices that wrote two histories.
    pub forked: Vec<DeviceId>,
    /// The bases are all of one history of each device.
    pub bases_agree: bool,
    /// Leftovers that were adopted, and the segments that are there in their stead.
    pub adopted: Vec<(SegmentId, SegmentId)>,
    /// A segment with a feature without which nobody may write to the library.
    pub unwritable: Option<SegmentId>,
}

impl Survey {
    /// Opens all files of `index/`.
    ///
    /// [`Kind::WrongKey`] where nothing opens, and no slot says that this is the key. A file that is damaged is no
    /// error, nor is one of a later version.
    pub fn new(store: &dyn Store, master: &MasterKey) -> Result<Self> {
        for _ in 1..SURVEYS_MAX {
            match Self::once(store, master) {
                // Listed, and gone: a base may have come in its place.
                Err(e) if matches!(e.kind(), Kind::Missing) => {}
                surveyed => return surveyed,
            }
        }
        Self::once(store, master)
    }

    fn once(store: &dyn Store, master: &MasterKey) -> Result<Self> {
        let listed = store.list(Area::Index)?.into_iter();
        let mut files: Vec<_> = listed.map(|(id, len)| (SegmentId(id), len)).collect();
        files.sort_unstable();
        let mut survey = Self {
            files,
            ..Self::default()
        };
        for (id, cipher_len) in survey.files.clone() {
            match opening(store, master, id, cipher_len) {
                Ok(opened) => survey.opened.push(opened),
                Err(e) if is_of_one_file(&e) => survey.identify(store, master, id, e),
                Err(e) => return Err(e),
            }
        }
        for absent in store.absent(Area::Index)? {
            let (id, what) = (SegmentId(absent.id), What::Absent(absent));
            survey.ignored.push(Ignored { id, what });
        }
        survey.find_copies();
        survey.check_key(store, master)?;
        survey.add_digests(store);
        Ok(survey)
    }

    /// A copy of what is not there itself says more than a copy.
    fn find_copies(&mut self) {
        let opened = &self.opened;
        for ignored in &mut self.ignored {
            let What::Copy(of) = ignored.what else {
                continue;
            };
            if opened.iter().all(|o| o.published.id != of) {
                let name = format_args!("index/{}", ignored.id);
                let check = format!("it was written as index/{of}, which is not there: rename it");
                ignored.what = What::Part(Error::damaged(name, check));
            }
        }
    }

    /// Tells a wrong key from damage.
    fn check_key(&self, store: &dyn Store, master: &MasterKey) -> Result<()> {
        let strange = self.ignored.iter().find_map(|ignored| match &ignored.what {
            What::Strange(e) => Some(e),
            _ => None,
        });
        let is_ours = |i: &Ignored| !matches!(i.what, What::Strange(_) | What::Absent(_));
        match strange {
            Some(e)
                if self.opened.is_empty()
                    && !self.ignored.iter().any(is_ours)
                    && !has_slot(store, master) =>
            {
                Err(Error::new(Kind::WrongKey, "index").hint(format_args!(
                    "no index segment opens with this key: is it another library's? Of the first it says: {e}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Reads all of what is to be applied, but for bases: heads name their predecessors by digest.
    fn add_digests(&mut self, store: &dyn Store) {
        let wanted = chain::digests_wanted(&self.opened);
        let mut failed = Vec::new();
        for opened in self
            .opened
            .iter_mut()
            .filter(|o| wanted.contains(&o.published.id))
        {
            match digest(store, &opened.published) {
                Ok(sha256) => opened.sha256 = Some(sha256),
                Err(e) => failed.push((opened.published.id, e)),
            }
        }
        failed.into_iter().for_each(|(id, e)| self.discard(id, e));
    }

    /// Finds out what a file is that does not open as the segment of its name.
    fn identify(&mut self, store: &dyn Store, master: &MasterKey, id: SegmentId, why: Error) {
        let open_as = |as_id, extent| {
            store
                .open(Area::Index, id.object())
                .and_then(|object| SegmentReader::open(object, as_id, master, extent))
        };
        let mut header = [0; HEADER_LEN];
        let read = store
            .open(Area::Index, id.object())
            .and_then(|object| object.read_at(&mut header, 0));
        let written_as = Header::id_of(&header, Magic::Segment)
            .map(SegmentId)
            .filter(|_| read.is_ok());
        let what = match (open_as(id, Extent::Leftover), written_as) {
            (Ok(part), _) => {
                self.note_base(id, part.opening());
                What::Part(why)
            }
            (Err(_), Some(of)) if of != id && open_as(of, Extent::Published).is_ok() => {
                What::Copy(of)
            }
            (Err(e), Some(of)) if of == id && matches!(e.kind(), Kind::Unsupported(_)) => {
                What::Later(why)
            }
            _ => What::Strange(why),
        };
        self.ignored.push(Ignored { id, what });
    }

    fn note_base(&mut self, id: SegmentId, opening: &Opening) {
        if opening.stamp_segments.is_some() {
            let heads = opening.heads.clone();
            self.lost_bases.push(LostBase { id, heads });
        }
    }

    /// Takes out a file that turned out not to be whole.
    pub fn discard(&mut self, id: SegmentId, why: Error) {
        if let Some(at) = self.opened.iter().position(|o| o.published.id == id) {
            let opened = self.opened.swap_remove(at);
            self.note_base(id, &opened.opening);
        }
        let what = What::Part(why);
        self.ignored.push(Ignored { id, what });
    }

    /// What opens.
    pub fn found(&self) -> Vec<Published> {
        self.opened.iter().map(|o| o.published).collect()
    }

    /// The files of `index/`, in order, with their lengths; and those of them that do not count.
    pub fn into_files(self) -> (Vec<(SegmentId, u64)>, Vec<Ignored>) {
        (self.files, self.ignored)
    }

    /// What follows. With `unfounded`, segments are applied, too, that were made on top of what is missing.
    pub fn history(&self, unfounded: bool) -> History {
        chain::history(&self.opened, &self.lost_bases, unfounded)
    }
}

/// Whether an error is about the one file alone, and says nothing of others.
fn is_of_one_file(e: &Error) -> bool {
    const OF_FILES: [i32; 7] = [
        libc::EACCES,
        libc::EPERM,
        libc::EIO,
        libc::EBADMSG,
        libc::EUCLEAN,
        libc::EINVAL,
        libc::EISDIR,
    ];
    match e.kind() {
        Kind::Damaged(_) | Kind::Unsupported(_) => true,
        Kind::Io(io) => io.raw_os_error().is_some_and(|no| OF_FILES.contains(&no)),
        _ => false,
    }
}

/// Whether a slot says that this is the library's key.
fn has_slot(store: &dyn Store, master: &MasterKey) -> bool {
    let slots = store.list(Area::Key).unwrap_or_default();
    slots.into_iter().any(|(id, _)| {
        let mut bytes = [0; SLOT_LEN];
        let read = store
            .open(Area::Key, id)
            .and_then(|object| object.read_at(&mut bytes, 0));
        read.and_then(|()| Slot::parse(SlotId(id), &bytes)?.verify(master))
            .is_ok()
    })
}

fn open_segment(store: &dyn Store, master: &MasterKey, id: SegmentId) -> Result<SegmentReader> {
    let object = store
        .open(Area::Index, id.object())
        .map_err(|e| match e.kind() {
            // It was listed: somebody, a sync perhaps, takes files away right now.
            Kind::Missing => e.hint("wait for the sync to finish, or restore it from a copy"),
            _ => e,
        })?;
    SegmentReader::open(object, id, master, Extent::Published)
}

fn opening(
    store: &dyn Store,
    master: &MasterKey,
    id: SegmentId,
    cipher_len: u64,
) -> Result<Opened> {
    let reader = open_segment(store, master, id)?;
    let opening = reader.opening().clone();
    let published = Published {
        id,
        device: opening.device,
        number: opening.number,
        cipher_len,
    };
    Ok(Opened {
        published,
        writer: Writer(opening.device),
        sha256: None,
        opening,
        writable: reader.writable(),
    })
}

/// SHA-256 of a whole file.
fn digest(store: &dyn Store, published: &Published) -> Result<[u8; 32]> {
    const CHUNK: u64 = 256 * 1024;
    let object = store.open(Area::Index, published.id.object())?;
    let (mut hash, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK.min(published.cipher_len) as usize];
    while at < published.cipher_len {
        let len = (published.cipher_len - at).min(CHUNK);
        let bytes = &mut buffer[..len as usize];
        object.read_at(bytes, at)?;
        hash.update(bytes);
        at += len;
    }
    Ok(hash.finalize().into())
}

/// Takes a segment into the heads: in the place of the one before it.
pub fn advance(heads: &mut BTreeMap<DeviceId, Head>, segment: &Opened, sha256: [u8; 32]) {
    let Published { device, number, .. } = segment.published;
    if let Some(parent) = segment.parent() {
        heads.retain(|_, h| h.sha256 != parent);
    }
    let head = Head {
        device,
        number,
        sha256,
    };
    let newest = heads.entry(segment.writer.0).or_insert(head);
    if number > newest.number {
        *newest = head;
    }
}

/// Takes what a base covers into the heads.
pub fn cover(heads: &mut BTreeMap<DeviceId, Head>, base: &Opened) {
    for head in &base.opening.heads {
        let same = heads.get(&head.device).copied();
        match same {
            Some(same) if same.number == head.number && same.sha256 != head.sha256 => {
                let branch = Writer::of_branch(head.device, &head.sha256);
                heads.insert(branch.0, *head);
            }
            Some(same) if same.number >= head.number => {}
            _ => drop(heads.insert(head.device, *head)),
        }
    }
}

/// A segment, in words.
pub fn name_of(head: &Head) -> String {
    format!("segment {} of device {}", head.number, head.device)
}

/// Compares what is there with what this machine has seen; says what went back.
pub fn check_rollback<'a>(
    remembered: &[Head],
    there: impl Iterator<Item = &'a Head> + Clone,
) -> Result<()> {
    let is_there = |seen: &Head| {
        let mut same = there.clone().filter(|have| have.device == seen.device);
        same.any(|have| {
            have.number > seen.number || have.number == seen.number && have.sha256 == seen.sha256
        })
    };
    let mut gone: Vec<String> = Vec::new();
    for name in remembered
        .iter()
        .filter(|seen| !is_there(seen))
        .map(name_of)
    {
        if !gone.contains(&name) {
            gone.push(name);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the index is older than this machine has seen: {} is gone or was changed",
        gone.join(", ")
    );
    Err(Error::from(Kind::RolledBack(text.into()))
        .hint("wait for the sync to finish, restore the index folder, or accept the older state with --accept-rollback"))
}
