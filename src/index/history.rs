//! The history of a library: which files of `index/` count, who wrote them, and in which order they are applied.
//!
//! Nothing is applied here. A [`Survey`] reads the header of every file of `index/`. A [`History`] is derived from
//! these alone: the snapshots in use, the segments they supersede, the order of the others, and what is missing. The
//! same files give the same history, in whatever order they arrived.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::record::{Head, SegmentHeader};
use super::segment::{SegmentReader, SegmentState};
use crate::crypto::{HEADER_LEN, Header, Magic, MasterKey, SLOT_LEN, Slot};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId, SegmentId, SlotId};
use crate::store::{Absent, Store};

mod chain;
#[cfg(test)]
mod tests;

/// Advice for a missing or damaged file of the index.
pub const WAIT: &str = "wait for the sync to finish, or copy this file again";

/// Number of attempts if a file disappears while the index is read, because a sync program is working.
const SURVEYS_MAX: usize = 5;

/// The writer of a segment. If a device wrote two histories (its disk or memory was copied, and both copies went on),
/// one has the device's id, and the other an id derived from its first segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer(pub ObjectId);

impl Writer {
    /// The writer of a second history of `device` whose first segment has this digest.
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

/// A closed segment or snapshot.
#[derive(Debug, Clone, Copy)]
pub struct SegmentInfo {
    /// The segment.
    pub id: SegmentId,
    /// Its writer.
    pub device: DeviceId,
    /// Its number; 0 for a snapshot.
    pub number: u64,
    /// Its length in bytes.
    pub cipher_len: u64,
}

/// A segment or snapshot whose header and trailer decrypt. Its other frames may still be damaged.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The file.
    pub info: SegmentInfo,
    /// Its writer; the device itself if a snapshot supersedes it.
    pub writer: Writer,
    /// SHA-256 of the whole file, if it was needed: that of every segment to be applied is.
    pub sha256: Option<[u8; 32]>,
    /// Its header.
    pub header: SegmentHeader,
    /// False if the segment has a feature that a writer must know and this version does not.
    pub writable: bool,
}

impl Opened {
    /// Opens it again to read its frames.
    pub fn reader(&self, store: &dyn Store, master: &MasterKey) -> Result<SegmentReader> {
        let mut reader = open_segment(store, master, self.info.id)?;
        if let Some(sha256) = self.sha256 {
            reader.digest_is(sha256);
        }
        Ok(reader)
    }

    fn is_base(&self) -> bool {
        self.header.stamp_segments.is_some()
    }

    /// The digest of the preceding segment of its writer.
    fn parent(&self) -> Option<[u8; 32]> {
        let SegmentInfo { device, number, .. } = self.info;
        let mut own = self.header.heads.iter().filter(|h| h.device == device);
        let parent = own.find(|h| h.number + 1 == number)?;
        Some(parent.sha256)
    }
}

/// A file of `index/` that is ignored.
#[derive(Debug)]
pub struct Ignored {
    /// Its name.
    pub id: SegmentId,
    /// Why.
    pub what: What,
}

/// Why a file is ignored.
#[derive(Debug)]
pub enum What {
    /// A copy of another file of `index/`.
    Copy(SegmentId),
    /// A truncated or damaged file of this library, treated as not arrived.
    Part(Error),
    /// Nothing in it decrypts with this library's key.
    Unknown(Error),
    /// A placeholder of a sync program.
    Absent(Absent),
    /// Written by a later version, or made to look like that.
    Later(Error),
}

/// A damaged snapshot, and what it covers.
#[derive(Debug)]
struct LostBase {
    id: SegmentId,
    heads: Vec<Head>,
}

impl Ignored {
    /// Whether data may be missing because of it.
    pub fn is_problem(&self) -> bool {
        !matches!(self.what, What::Copy(_))
    }

    /// A description for users.
    pub fn text(&self) -> String {
        let name = format_args!("index/{}", self.id);
        match &self.what {
            What::Copy(of) => {
                format!("{name}: is a copy of index/{of} and is ignored (it can be removed)")
            }
            What::Part(e) => format!("{e}; it is treated as not arrived: {WAIT}"),
            What::Unknown(e) => format!(
                "{e}; nothing in it decrypts with this library's key, and it is ignored: if it is the library's, {WAIT}"
            ),
            What::Absent(absent) => {
                format!(
                    "index/{}: {absent}; it is treated as not arrived: {WAIT}",
                    absent.name
                )
            }
            What::Later(e) => e.to_string(),
        }
    }
}

/// The contents of `index/`.
#[derive(Debug, Default)]
pub struct Survey {
    opened: Vec<Opened>,
    ignored: Vec<Ignored>,
    lost_bases: Vec<LostBase>,
    files: Vec<(SegmentId, u64)>,
}

/// What follows from the files of `index/`.
#[derive(Debug, Default)]
pub struct History {
    /// Snapshots to apply, newest first.
    pub bases: Vec<Opened>,
    /// Segments to apply on top, each after all that its writer had applied.
    pub segments: Vec<Opened>,
    /// Number of segments, at the end of `segments`, that are based on something missing. Only included on request.
    pub unfounded: usize,
    /// Segments that are not applied, because something that their writers had applied is missing.
    pub waiting: Vec<Head>,
    /// Superseded segments and snapshots.
    pub covered: Vec<SegmentInfo>,
    /// Descriptions of what is missing.
    pub gaps: Vec<String>,
    /// Devices that wrote two histories.
    pub forked: Vec<DeviceId>,
    /// No two snapshots are of different histories of one device.
    pub bases_agree: bool,
    /// Adopted leftovers, and the segments that replace them.
    pub adopted: Vec<(SegmentId, SegmentId)>,
    /// A segment with a feature that a writer must know and this version does not.
    pub unwritable: Option<SegmentId>,
}

impl Survey {
    /// Opens all files of `index/`.
    ///
    /// [`Kind::WrongKey`] if nothing decrypts and no slot confirms the key. A damaged file or one of a later version is
    /// not an error.
    pub fn new(store: &dyn Store, master: &MasterKey) -> Result<Self> {
        for _ in 1..SURVEYS_MAX {
            match Self::once(store, master) {
                // It was listed and then removed: a new snapshot may have superseded it.
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
            match open_header(store, master, id, cipher_len) {
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

    /// If the original is missing, reports a copy as such: the user should rename it.
    fn find_copies(&mut self) {
        let opened = &self.opened;
        for ignored in &mut self.ignored {
            let What::Copy(of) = ignored.what else {
                continue;
            };
            if opened.iter().all(|o| o.info.id != of) {
                let name = format_args!("index/{}", ignored.id);
                let check = format!("it was written as index/{of}, which is missing: rename it");
                ignored.what = What::Part(Error::damaged(name, check));
            }
        }
    }

    /// Distinguishes a wrong key from damage.
    fn check_key(&self, store: &dyn Store, master: &MasterKey) -> Result<()> {
        let strange = self.ignored.iter().find_map(|ignored| match &ignored.what {
            What::Unknown(e) => Some(e),
            _ => None,
        });
        let is_ours = |i: &Ignored| !matches!(i.what, What::Unknown(_) | What::Absent(_));
        match strange {
            Some(e)
                if self.opened.is_empty()
                    && !self.ignored.iter().any(is_ours)
                    && !has_slot(store, master) =>
            {
                Err(Error::new(Kind::WrongKey, "index").hint(format_args!(
                    "no index segment decrypts with this key: is it another library's? The error of the first: {e}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Computes the digests of the segments to be applied, as heads refer to segments by digest.
    fn add_digests(&mut self, store: &dyn Store) {
        let wanted = chain::digests_wanted(&self.opened);
        let mut failed = Vec::new();
        for opened in self
            .opened
            .iter_mut()
            .filter(|o| wanted.contains(&o.info.id))
        {
            match digest(store, &opened.info) {
                Ok(sha256) => opened.sha256 = Some(sha256),
                Err(e) => failed.push((opened.info.id, e)),
            }
        }
        failed.into_iter().for_each(|(id, e)| self.discard(id, e));
    }

    /// Classifies a file that does not open as the segment of its name.
    fn identify(&mut self, store: &dyn Store, master: &MasterKey, id: SegmentId, why: Error) {
        let open_as = |as_id, state| {
            store
                .open(Area::Index, id.object())
                .and_then(|object| SegmentReader::open(object, as_id, master, state))
        };
        let mut header = [0; HEADER_LEN];
        let read = store
            .open(Area::Index, id.object())
            .and_then(|object| object.read_at(&mut header, 0));
        let written_as = Header::id_of(&header, Magic::Segment)
            .map(SegmentId)
            .filter(|_| read.is_ok());
        let what = match (open_as(id, SegmentState::Leftover), written_as) {
            (Ok(part), _) => {
                self.mark_lost_base(id, part.opening());
                What::Part(why)
            }
            (Err(_), Some(of)) if of != id && open_as(of, SegmentState::Published).is_ok() => {
                What::Copy(of)
            }
            (Err(e), Some(of)) if of == id && matches!(e.kind(), Kind::Unsupported(_)) => {
                What::Later(why)
            }
            _ => What::Unknown(why),
        };
        self.ignored.push(Ignored { id, what });
    }

    fn mark_lost_base(&mut self, id: SegmentId, header: &SegmentHeader) {
        if header.stamp_segments.is_some() {
            let heads = header.heads.clone();
            self.lost_bases.push(LostBase { id, heads });
        }
    }

    /// Ignores a file that turned out to be damaged.
    pub fn discard(&mut self, id: SegmentId, why: Error) {
        if let Some(at) = self.opened.iter().position(|o| o.info.id == id) {
            let opened = self.opened.swap_remove(at);
            self.mark_lost_base(id, &opened.header);
        }
        let what = What::Part(why);
        self.ignored.push(Ignored { id, what });
    }

    /// The segments and snapshots that can be opened.
    pub fn found(&self) -> Vec<SegmentInfo> {
        self.opened.iter().map(|o| o.info).collect()
    }

    /// The files of `index/` with their lengths, sorted, and the ignored ones.
    pub fn into_files(self) -> (Vec<(SegmentId, u64)>, Vec<Ignored>) {
        (self.files, self.ignored)
    }

    /// Derives the history. With `unfounded`, segments that are based on something missing are included.
    pub fn history(&self, unfounded: bool) -> History {
        chain::history(&self.opened, &self.lost_bases, unfounded)
    }
}

/// Whether an error concerns this file alone.
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

/// Whether a slot confirms that this is the library's key.
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
            // It was listed, so something, perhaps a sync program, is removing files.
            Kind::Missing => e.hint("wait for the sync to finish, or restore it from a copy"),
            _ => e,
        })?;
    SegmentReader::open(object, id, master, SegmentState::Published)
}

fn open_header(
    store: &dyn Store,
    master: &MasterKey,
    id: SegmentId,
    cipher_len: u64,
) -> Result<Opened> {
    let reader = open_segment(store, master, id)?;
    let header = reader.opening().clone();
    let info = SegmentInfo {
        id,
        device: header.device,
        number: header.number,
        cipher_len,
    };
    Ok(Opened {
        info,
        writer: Writer(header.device),
        sha256: None,
        header,
        writable: reader.writable(),
    })
}

/// SHA-256 of a whole file.
fn digest(store: &dyn Store, info: &SegmentInfo) -> Result<[u8; 32]> {
    const CHUNK: u64 = 256 * 1024;
    let object = store.open(Area::Index, info.id.object())?;
    let (mut hash, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK.min(info.cipher_len) as usize];
    while at < info.cipher_len {
        let len = (info.cipher_len - at).min(CHUNK);
        let bytes = &mut buffer[..len as usize];
        object.read_at(bytes, at)?;
        hash.update(bytes);
        at += len;
    }
    Ok(hash.finalize().into())
}

/// Adds a segment to the heads, replacing its predecessor.
pub fn advance(heads: &mut BTreeMap<DeviceId, Head>, segment: &Opened, sha256: [u8; 32]) {
    let SegmentInfo { device, number, .. } = segment.info;
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

/// Adds what a snapshot covers to the heads.
pub fn cover(heads: &mut BTreeMap<DeviceId, Head>, base: &Opened) {
    for head in &base.header.heads {
        let same = heads.get(&head.device).copied();
        match same {
            Some(same) if same.number == head.number && same.sha256 != head.sha256 => {
                let branch = Writer::of_branch(head.device, &head.sha256);
                heads.insert(branch.0, *head);
            }
            Some(same) if same.number >= head.number => {}
            _ => {
                heads.insert(head.device, *head);
            }
        }
    }
}

/// A description of a segment.
pub fn name_of(head: &Head) -> String {
    format!("segment {} of device {}", head.number, head.device)
}

/// Compares the heads with those that this machine has seen. The error lists what is missing or was replaced.
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
        "the index is older than this machine has seen: {} is missing or was changed",
        gone.join(", ")
    );
    Err(Error::from(Kind::RolledBack(text.into()))
        .hint("wait for the sync to finish, restore the index folder, or accept the older state with --accept-rollback"))
}
