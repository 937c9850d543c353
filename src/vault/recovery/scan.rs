//! The files in this device's `new/` folder: which are what, and in which order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Recovery;
use crate::crypto::{HEADER_LEN, Header, Magic};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, Opening};
use crate::index::{Behind, SegmentExtent, SegmentReader};
use crate::object::{DeviceId, ObjectId, PackId, SegmentId};
use crate::pack::PackReader;
use crate::store::Growing;

#[derive(Default)]
pub struct Leftovers {
    pub segments: Vec<LeftSegment>,
    /// Those that were written under another id, and are not published.
    former: Vec<LeftSegment>,
    /// Those that were made on top of something that is lost.
    pub unreached: Vec<LeftSegment>,
    /// Those that were made on top of a frame that is torn.
    pub behind: Vec<SegmentId>,
    /// Those that are published already.
    pub published: Vec<LeftSegment>,
    /// Those whose header or first frame is damaged, so that no frame can be reached.
    pub headless: Vec<Headless>,
    /// Packs that have no end.
    pub packs: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Packs that have one.
    pub finished: BTreeMap<PackId, Arc<dyn Growing>>,
    /// Packs that a frame that counts condemns: nothing in them matters, and they may be gone.
    pub condemned: HashSet<PackId>,
    /// What is of no use.
    pub garbage: Vec<ObjectId>,
    /// Of no kind that is known, and not empty: not ours to remove.
    pub strange: Vec<ObjectId>,
}

pub struct LeftSegment {
    pub id: SegmentId,
    pub opening: Opening,
    pub frames: Vec<Frame>,
    /// Its writer closed it: it is whole, and others may build on it.
    pub is_closed: bool,
    /// What lies behind the last of its frames.
    pub behind: Behind,
}

pub struct Headless {
    pub id: SegmentId,
    /// See [`Behind::durable`]; `None` where no crash explains what became of the header.
    durable: Option<u64>,
}

impl LeftSegment {
    /// Whether one of its frames says that what came before was durable.
    fn hides_durable(&self) -> bool {
        self.behind.durable.is_some() || self.frames.iter().any(|f| f.durable_before)
    }
}

impl Recovery<'_> {
    /// `former` is another id that this device wrote under.
    pub fn sort_leftovers(
        &self,
        found: &[ObjectId],
        former: Option<DeviceId>,
    ) -> Result<Leftovers> {
        let mut left = Leftovers::default();
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
                        left.garbage.push(*id); // a copy or a base that was not finished
                    }
                    Ok(segment) if segment.opening.number <= published => {
                        left.garbage.push(*id);
                        left.published.push(segment);
                    }
                    Ok(segment) => left.segments.push(segment),
                    Err(e) if is_torn(&e) => self.sort_headless(&*file, *id, &header, &mut left)?,
                    Err(e) => return Err(e),
                },
                Some(Magic::Pack) => {
                    match PackReader::open(file.clone(), PackId(*id), self.view().master()) {
                        Ok(reader) => match reader.trailer() {
                            // Finished: it can be published as it is. Whether all in it opens, the frames will tell.
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
                None => self.sort_headless(&*file, *id, &header, &mut left)?,
            }
        }
        self.renumber(&mut left);
        Ok(left)
    }

    /// Lets what was written under another id follow on what this device has published. Gaps stay gaps.
    fn renumber(&self, left: &mut Leftovers) {
        let next = self.log.journal().next_number();
        let first = left.former.iter().map(|s| s.opening.number).min();
        for mut segment in left.former.drain(..) {
            segment.opening.number = next + (segment.opening.number - first.unwrap_or(0));
            segment.opening.device = self.log.device();
            left.segments.push(segment);
        }
    }

    /// What cannot be opened by its first bytes: a segment that hides something, one that a crash left nothing in that
    /// counts, or something else.
    fn sort_headless(
        &self,
        file: &dyn Growing,
        id: ObjectId,
        header: &[u8; HEADER_LEN],
        left: &mut Leftovers,
    ) -> Result<()> {
        let behind = Behind::search(file, SegmentId(id), self.view().master(), 0)?;
        let is_changed = [Magic::Segment, Magic::Pack]
            .into_iter()
            .all(|magic| is_changed(header, magic, id));
        let durable = behind.durable;
        if durable.is_some() || is_changed && is_ours(header, id) {
            let id = SegmentId(id);
            left.headless.push(Headless { id, durable });
        } else if is_changed {
            let name = file.name();
            log::warn!("{name}: is neither a segment nor a pack, and stays where it is");
            left.strange.push(id);
        } else {
            if behind.frames > 0 {
                let (name, count) = (file.name(), behind.frames);
                log::warn!(
                    "{name}: the crash took its beginning, so the {count} changes behind it do not count"
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
            SegmentExtent::Leftover,
        )?;
        let mut segment = LeftSegment {
            id,
            opening: reader.opening().clone(),
            frames: Vec::new(),
            is_closed: false,
            behind: Behind::default(),
        };
        // Nothing is adopted of a base, nor of a copy.
        if segment.opening.stamp_segments.is_none() && segment.opening.adopts.is_none() {
            let ending = reader.frames(|frame| {
                segment.frames.push(frame);
                Ok(())
            })?;
            segment.is_closed = ending.closing.is_some();
            if !segment.is_closed {
                segment.behind =
                    Behind::search(&**file, id, self.view().master(), ending.frames_end)?;
            }
        }
        Ok(segment)
    }

    /// One segment of each number, from the next one on, up to the first that is lost or has no end; and the others
    /// that are no copies of these.
    pub fn put_in_order(
        &self,
        mut segments: Vec<LeftSegment>,
    ) -> (Vec<LeftSegment>, Vec<LeftSegment>) {
        // Of two with one number one is a copy of the other, made when a write failed, and says more when it is whole.
        segments.sort_by_key(|s| (s.opening.number, std::cmp::Reverse(s.frames.len())));
        segments.dedup_by_key(|s| s.opening.number);
        let next = self.log.journal().next_number();
        // What comes after a segment without an end was made on top of something that is lost.
        let mut in_order = 0;
        for (number, segment) in (next..).zip(&segments) {
            if segment.opening.number != number {
                break;
            }
            in_order += 1;
            if !segment.is_closed {
                break;
            }
        }
        let unreached = segments.split_off(in_order);
        (segments, unreached)
    }

    /// Nothing that was durable may lie where it cannot be reached.
    pub fn check_reach(&self, left: &Leftovers, in_order: &[LeftSegment]) -> Result<()> {
        let torn = in_order.iter().filter(|s| s.behind.durable.is_some());
        let unreached = left.unreached.iter().filter(|s| s.hides_durable());
        // One that a crash tore may be the copy of another that was not finished: what is in that is not lost.
        let is_there = |counter| {
            let mut readable = in_order.iter().chain(&left.published);
            readable.any(|s| s.frames.iter().any(|f| f.counter == counter))
        };
        let headless = left
            .headless
            .iter()
            .filter(|h| !h.durable.is_some_and(is_there));
        let mut hidden = torn
            .chain(unreached)
            .map(|s| s.id)
            .chain(headless.map(|h| h.id));
        let Some(id) = hidden.next() else {
            return Ok(());
        };
        let name = format_args!("new/{}/{id}", self.log.device());
        Err(
            Error::damaged(name, "changes that were durable lie behind damage")
                .hint("mount --read-only shows what was published before; --accept-rollback gives these changes up"),
        )
    }
}

/// Whether a crash explains it. A store that cannot be read for now must not cost the file.
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

/// The header of a leftover; `None` where it is too short for one: a crash left nothing in it.
fn read_header(file: &dyn Growing) -> Result<Option<[u8; HEADER_LEN]>> {
    let mut bytes = [0; HEADER_LEN];
    if file.cipher_len()? < HEADER_LEN as u64 {
        return Ok(None);
    }
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Whether a header with another beginning is otherwise what this version writes.
fn is_ours(bytes: &[u8; HEADER_LEN], id: ObjectId) -> bool {
    let written = Header::new(Magic::Segment, id).encode();
    let from = Magic::Segment.bytes().len();
    bytes[..from] == written[..from] || bytes[from..] == written[from..]
}

/// Whether a header is not what this version wrote: a crash takes bytes of that, which are zeros then, and changes none.
fn is_changed(bytes: &[u8; HEADER_LEN], magic: Magic, id: ObjectId) -> bool {
    let written = Header::new(magic, id).encode();
    bytes.iter().zip(written).any(|(b, w)| *b != 0 && *b != w)
}

/// Refuses what a later version left: it is not ours to judge, nor to remove.
fn check_version(bytes: &[u8; HEADER_LEN], magic: Magic, id: ObjectId, name: &str) -> Result<()> {
    let what = match Header::decode(bytes, magic, id, name) {
        Ok(header) if !header.writable() => "this version may read it, but not write".into(),
        Err(e) if is_changed(bytes, magic, id) => match e.kind() {
            Kind::Unsupported(what) => what.clone(),
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Unsupported(what), name)
        .hint("a later version of hushfs left it: mount with that, or with --read-only"))
}
