//! Classifies the files in this device's `new/` folder, and orders the segments.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Recovery;
use crate::crypto::{HEADER_LEN, Header, Magic};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, SegmentHeader};
use crate::index::{SegmentReader, SegmentState, TailScan};
use crate::object::{DeviceId, ObjectId, PackId, SegmentId};
use crate::pack::PackReader;
use crate::store::Growing;

/// The files that an unclean shutdown left in `new/`, by kind.
#[derive(Default)]
pub struct CrashRemains {
    pub segments: Vec<LeftSegment>,
    /// Unpublished segments that were written under a former id of this device.
    former: Vec<LeftSegment>,
    /// Segments that depend on a lost segment.
    pub orphaned: Vec<LeftSegment>,
    /// Segments that depend on a torn frame.
    pub after_torn: Vec<SegmentId>,
    /// Segments that are published already.
    pub published: Vec<LeftSegment>,
    /// Segments whose header or first frame is damaged, so that no frame can be read.
    pub undecodable: Vec<UndecodableSegment>,
    /// Packs without a trailer.
    pub packs: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Packs with a trailer.
    pub finished: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Packs that a valid frame condemns: nothing in them is needed, and they may be missing.
    pub condemned: HashSet<PackId>,
    /// Files that are of no use.
    pub garbage: Vec<ObjectId>,
    /// Non-empty files of unknown kind, which must not be removed.
    pub unknown: Vec<ObjectId>,
}

pub struct LeftSegment {
    pub id: SegmentId,
    pub opening: SegmentHeader,
    pub frames: Vec<Frame>,
    /// Whether its writer closed it: it is complete, and later segments may depend on it.
    pub is_closed: bool,
    /// What was found after its last readable frame.
    pub tail: TailScan,
}

pub struct UndecodableSegment {
    pub id: SegmentId,
    /// See [`TailScan::durable`]; `None` if a crash cannot have damaged the header in this way.
    durable: Option<u64>,
}

impl LeftSegment {
    /// Whether one of its frames says that everything before it was durable.
    fn has_durable(&self) -> bool {
        self.tail.durable.is_some() || self.frames.iter().any(|f| f.durable_before)
    }
}

impl Recovery<'_> {
    /// Classifies the files `found` in `new/`. `former` is another id that this device wrote under.
    ///
    /// # Errors
    /// A file cannot be read, or was written by a later version.
    pub fn classify(&self, found: &[ObjectId], former: Option<DeviceId>) -> Result<CrashRemains> {
        let mut left = CrashRemains::default();
        let published = self.log.journal().next_number() - 1;
        for id in found {
            let file = self.view().store().open_leftover(*id)?;
            let Some(header) = read_header(&*file)? else {
                left.garbage.push(*id);
                continue;
            };
            let magic = header.first_chunk().and_then(Magic::from_bytes);
            if let Some(magic) = magic {
                check_version(&header, magic, *id, &file.name())?;
            }
            match magic {
                Some(Magic::Segment) => match self.read_segment(&file, SegmentId(*id)) {
                    Ok(segment)
                        if segment.opening.adopts.is_none()
                            && Some(segment.opening.device) == former =>
                    {
                        if self.adopted.iter().any(|(old, _)| *old == segment.id) {
                            left.garbage.push(*id);
                            left.published.push(segment);
                        } else {
                            left.former.push(segment);
                        }
                    }
                    Ok(segment)
                        if segment.opening.adopts.is_some()
                            || segment.opening.device != self.log.device() =>
                    {
                        left.garbage.push(*id); // an unfinished copy or snapshot
                    }
                    Ok(segment) if segment.opening.number <= published => {
                        left.garbage.push(*id);
                        left.published.push(segment);
                    }
                    Ok(segment) => left.segments.push(segment),
                    Err(e) if is_torn(&e) => {
                        self.classify_undecodable(&*file, *id, &header, &mut left)?;
                    }
                    Err(e) => return Err(e),
                },
                Some(Magic::Pack) => {
                    match PackReader::open(file.clone(), PackId(*id), self.view().master()) {
                        Ok(reader) => match reader.trailer() {
                            // Finished: it can be published as it is. Its blocks are checked when frames refer to them.
                            Ok(_) => {
                                left.finished.insert(PackId(*id), file);
                            }
                            Err(e) if is_torn(&e) => {
                                left.packs.insert(PackId(*id), file);
                            }
                            Err(e) => return Err(e),
                        },
                        Err(e) if is_torn(&e) => left.garbage.push(*id),
                        Err(e) => return Err(e),
                    }
                }
                Some(_) => left.garbage.push(*id),
                None => self.classify_undecodable(&*file, *id, &header, &mut left)?,
            }
        }
        self.renumber(&mut left);
        Ok(left)
    }

    /// Renumbers segments that were written under a former id to follow the published ones of this device. Gaps between
    /// their numbers are kept.
    fn renumber(&self, left: &mut CrashRemains) {
        let next = self.log.journal().next_number();
        let first = left.former.iter().map(|s| s.opening.number).min();
        for mut segment in left.former.drain(..) {
            segment.opening.number = next + (segment.opening.number - first.unwrap_or(0));
            segment.opening.device = self.log.device();
            left.segments.push(segment);
        }
    }

    /// Classifies a file whose header or first frame cannot be read: a segment with durable frames, a segment in which
    /// a crash left nothing valid, or a file of another kind.
    fn classify_undecodable(
        &self,
        file: &dyn Growing,
        id: ObjectId,
        header: &[u8; HEADER_LEN],
        left: &mut CrashRemains,
    ) -> Result<()> {
        let tail = TailScan::search(file, SegmentId(id), self.view().master(), 0)?;
        let is_changed = [Magic::Segment, Magic::Pack]
            .into_iter()
            .all(|magic| is_changed(header, magic, id));
        let durable = tail.durable;
        if durable.is_some() || is_changed && is_ours(header, id) {
            let id = SegmentId(id);
            left.undecodable.push(UndecodableSegment { id, durable });
        } else if is_changed {
            let name = file.name();
            log::warn!("{name}: is neither a segment nor a pack, and is left in place");
            left.unknown.push(id);
        } else {
            if tail.frames > 0 {
                let (name, count) = (file.name(), tail.frames);
                log::warn!(
                    "{name}: its beginning was lost in the crash, so the {count} changes after it are discarded"
                );
            }
            left.garbage.push(id);
        }
        Ok(())
    }

    fn read_segment(&self, file: &Arc<dyn Growing>, id: SegmentId) -> Result<LeftSegment> {
        let reader = SegmentReader::open(
            file.clone(),
            id,
            self.view().master(),
            SegmentState::Leftover,
        )?;
        let mut segment = LeftSegment {
            id,
            opening: reader.opening().clone(),
            frames: Vec::new(),
            is_closed: false,
            tail: TailScan::default(),
        };
        // Frames of snapshots and of copies are not adopted.
        if segment.opening.stamp_segments.is_none() && segment.opening.adopts.is_none() {
            let ending = reader.frames(|frame| {
                segment.frames.push(frame);
                Ok(())
            })?;
            segment.is_closed = ending.closing.is_some();
            if !segment.is_closed {
                segment.tail =
                    TailScan::search(&**file, id, self.view().master(), ending.frames_end)?;
            }
        }
        Ok(segment)
    }

    /// Splits segments into those with contiguous numbers, from the next number of this device up to the first that is
    /// missing or not closed, and the orphaned rest. Of duplicates, one is kept.
    pub fn contiguous_segments(
        &self,
        mut segments: Vec<LeftSegment>,
    ) -> (Vec<LeftSegment>, Vec<LeftSegment>) {
        // Of two segments with the same number, one is a copy of the other that was made when a write failed. The one
        // with more frames is complete.
        segments.sort_by_key(|s| (s.opening.number, std::cmp::Reverse(s.frames.len())));
        segments.dedup_by_key(|s| s.opening.number);
        let next = self.log.journal().next_number();
        // Segments after one that is not closed depend on something that is lost.
        let mut contiguous = 0;
        for (number, segment) in (next..).zip(&segments) {
            if segment.opening.number != number {
                break;
            }
            contiguous += 1;
            if !segment.is_closed {
                break;
            }
        }
        let orphaned = segments.split_off(contiguous);
        (segments, orphaned)
    }

    /// Checks that every durable frame can be reached.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if durable frames follow a damaged or missing part.
    pub fn check_reachable(&self, left: &CrashRemains, contiguous: &[LeftSegment]) -> Result<()> {
        let torn = contiguous.iter().filter(|s| s.tail.durable.is_some());
        let orphaned = left.orphaned.iter().filter(|s| s.has_durable());
        // An undecodable segment may be the unfinished copy of a readable one; then none of its frames are lost.
        let is_readable = |counter| {
            let mut readable = contiguous.iter().chain(&left.published);
            readable.any(|s| s.frames.iter().any(|f| f.counter == counter))
        };
        let undecodable = left
            .undecodable
            .iter()
            .filter(|u| !u.durable.is_some_and(is_readable));
        let mut unreachable = torn
            .chain(orphaned)
            .map(|s| s.id)
            .chain(undecodable.map(|u| u.id));
        let Some(id) = unreachable.next() else {
            return Ok(());
        };
        let name = format_args!("new/{}/{id}", self.log.device());
        Err(
            Error::damaged(name, "synced changes exist after a damaged part")
                .hint("mount --read-only shows what was published before; --accept-rollback discards these changes"),
        )
    }
}

/// Whether a crash can have caused the error. Other errors, as of a store that cannot be read now, must not cause a
/// file to be discarded.
pub fn is_torn(e: &Error) -> bool {
    let torn = matches!(
        e.kind(),
        Kind::Damaged(_) | Kind::Unsupported(_) | Kind::Missing
    );
    if torn {
        log::info!("{e}");
    }
    torn
}

/// The header of a leftover file; `None` if the file is shorter than a header, so that it holds nothing.
fn read_header(file: &dyn Growing) -> Result<Option<[u8; HEADER_LEN]>> {
    let mut bytes = [0; HEADER_LEN];
    if file.cipher_len()? < HEADER_LEN as u64 {
        return Ok(None);
    }
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Whether a damaged header is recognizably that of a segment of this version: its magic is intact, or all that
/// follows.
fn is_ours(bytes: &[u8; HEADER_LEN], id: ObjectId) -> bool {
    let written = Header::new(Magic::Segment, id).encode();
    let from = Magic::Segment.bytes().len();
    bytes[..from] == written[..from] || bytes[from..] == written[from..]
}

/// Whether a header has bytes that this version did not write. A crash may leave zeros, but no other bytes.
fn is_changed(bytes: &[u8; HEADER_LEN], magic: Magic, id: ObjectId) -> bool {
    let written = Header::new(magic, id).encode();
    bytes.iter().zip(written).any(|(b, w)| *b != 0 && *b != w)
}

/// Refuses a file that a later version left: this version can neither interpret nor remove it.
fn check_version(bytes: &[u8; HEADER_LEN], magic: Magic, id: ObjectId, name: &str) -> Result<()> {
    let what = match Header::decode(bytes, magic, id, name) {
        Ok(header) if !header.writable() => "this version can read it, but not write".into(),
        Err(e) if is_changed(bytes, magic, id) => match e.kind() {
            Kind::Unsupported(what) => what.clone(),
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Unsupported(what), name)
        .hint("a later version of hushfs left it: mount with that version, or with --read-only"))
}
