//! What a crash left in this device's `new/` folder: which files are what, and in which order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Core;
use crate::crypto::{HEADER_LEN, Header, Magic};
use crate::error::{Error, Kind, Result};
use crate::index::record::{Frame, Opening, PackLen};
use crate::index::{self, SegmentExtent, SegmentReader};
use crate::pack::{PackId, PackReader};
use crate::store::{Growing, ObjectId};

#[derive(Default)]
pub(super) struct Leftovers {
    pub segments: Vec<LeftSegment>,
    /// Those that were made on top of something that is lost.
    pub unreached: Vec<LeftSegment>,
    /// Those whose header is damaged, or whose first frame does not open, with frames behind it of which one says
    /// "durable before here".
    pub headless: Vec<ObjectId>,
    /// Packs that have no end.
    pub packs: HashMap<PackId, Arc<dyn Growing>>,
    /// Packs that have one.
    pub finished: Vec<(PackLen, Arc<dyn Growing>)>,
    /// Packs that a frame that counts condemns: nothing in them matters, and they may be gone.
    pub condemned: HashSet<PackId>,
    /// What is of no use.
    pub garbage: Vec<ObjectId>,
    /// Of no kind that is known, and not empty: not ours to remove.
    pub strange: Vec<ObjectId>,
}

pub(super) struct LeftSegment {
    pub id: ObjectId,
    pub opening: Opening,
    pub frames: Vec<Frame>,
    /// Its writer closed it: it is whole, and others may build on it.
    pub is_closed: bool,
    /// Something that was durable lies behind the last of its frames.
    pub durable_behind: bool,
}

impl LeftSegment {
    /// Whether one of its frames says that what came before was durable.
    fn hides_durable(&self) -> bool {
        self.durable_behind || self.frames.iter().any(|f| f.durable_before)
    }
}

impl Core {
    pub(super) fn sort_leftovers(&self, found: &[ObjectId]) -> Result<Leftovers> {
        let mut left = Leftovers::default();
        let published = self
            .journal
            .lock()
            .heads
            .get(&self.device)
            .map_or(0, |h| h.number);
        for id in found {
            let file = self.store.open_leftover(*id)?;
            let Some(header) = read_header(&*file)? else {
                left.garbage.push(*id);
                continue;
            };
            let magic = header.first_chunk().and_then(Magic::from_bytes);
            if let Some(magic) = magic {
                check_version(&header, magic, *id, &file.name())?;
            }
            match magic {
                Some(Magic::Segment) => match self.read_segment(&file, *id) {
                    // One that was published already, or a copy or a base that was not finished.
                    Ok(segment)
                        if segment.opening.adopts.is_some()
                            || segment.opening.number <= published
                            || segment.opening.device != self.device =>
                    {
                        left.garbage.push(*id);
                    }
                    Ok(segment) => left.segments.push(segment),
                    // Torn in its first frame: nothing was promised yet, or it is damaged.
                    Err(e) if is_torn(&e) => {
                        let is_changed = is_changed(&header, Magic::Segment, *id);
                        match is_changed || index::hides_durable(&*file, *id, &self.master, 0)? {
                            true => left.headless.push(*id),
                            false => left.garbage.push(*id),
                        }
                    }
                    Err(e) => return Err(e),
                },
                Some(Magic::Pack) => match PackReader::open(file.clone(), *id, &self.master) {
                    Ok(reader) => match reader.trailer() {
                        // Finished: it can be published as it is. Whether all in it opens, the frames will tell.
                        Ok(_) => {
                            let cipher_len = file.cipher_len()? as u32;
                            let pack = *id;
                            left.finished.push((PackLen { pack, cipher_len }, file));
                        }
                        Err(e) if is_torn(&e) => drop(left.packs.insert(*id, file)),
                        Err(e) => return Err(e),
                    },
                    Err(e) if is_torn(&e) => left.garbage.push(*id),
                    Err(e) => return Err(e),
                },
                Some(_) => left.garbage.push(*id),
                None => {
                    log::warn!(
                        "{}: is neither a segment nor a pack, and stays where it is",
                        file.name()
                    );
                    left.strange.push(*id);
                }
            }
        }
        Ok(left)
    }

    fn read_segment(&self, file: &Arc<dyn Growing>, id: ObjectId) -> Result<LeftSegment> {
        let reader = SegmentReader::open(file.clone(), id, &self.master, SegmentExtent::Leftover)?;
        let mut segment = LeftSegment {
            id,
            opening: reader.opening().clone(),
            frames: Vec::new(),
            is_closed: false,
            durable_behind: false,
        };
        // Nothing is adopted of a base, nor of a copy.
        if segment.opening.stamp_segments.is_none() && segment.opening.adopts.is_none() {
            let ending = reader.frames(|frame| {
                segment.frames.push(frame);
                Ok(())
            })?;
            segment.is_closed = ending.closing.is_some();
            if !segment.is_closed {
                let end = ending.frames_end;
                segment.durable_behind = index::hides_durable(&**file, id, &self.master, end)?;
            }
        }
        Ok(segment)
    }

    /// One segment of each number, from the next one on, up to the first that is lost or has no end; and the others
    /// that are no copies of these.
    pub(super) fn put_in_order(
        &self,
        mut segments: Vec<LeftSegment>,
    ) -> (Vec<LeftSegment>, Vec<LeftSegment>) {
        // Of two with one number one is a copy of the other, made when a write failed, and says more when it is whole.
        segments.sort_by_key(|s| (s.opening.number, std::cmp::Reverse(s.frames.len())));
        segments.dedup_by_key(|s| s.opening.number);
        let next = self.journal.lock().next_number();
        // What comes behind one without an end was made on top of what is lost.
        let mut has_end = true;
        let in_order = (next..)
            .zip(&segments)
            .take_while(|(number, segment)| {
                segment.opening.number == *number
                    && std::mem::replace(&mut has_end, segment.is_closed)
            })
            .count();
        let unreached = segments.split_off(in_order);
        (segments, unreached)
    }

    /// Nothing that was durable may lie where it cannot be reached.
    pub(super) fn check_reach(&self, left: &Leftovers, in_order: &[LeftSegment]) -> Result<()> {
        let torn = in_order.iter().filter(|s| s.durable_behind);
        let unreached = left.unreached.iter().filter(|s| s.hides_durable());
        // One whose first frame is damaged may be a copy of another; of which, while that is there.
        let headless = left.headless.iter().filter(|_| in_order.is_empty());
        let mut hidden = torn.chain(unreached).map(|s| s.id).chain(headless.copied());
        let Some(id) = hidden.next() else {
            return Ok(());
        };
        let name = format_args!("new/{}/{id}", self.device);
        Err(
            Error::damaged(name, "changes that were durable lie behind damage")
                .hint("mount --read-only shows what was published before; --accept-rollback gives these changes up"),
        )
    }
}

/// Whether a crash explains it. A store that cannot be read for now must not cost the file.
pub(super) fn is_torn(e: &Error) -> bool {
    let torn = matches!(
        e.kind(),
        Kind::Damaged(_) | Kind::Unsupported(_) | Kind::Missing
    );
    if torn {
        log::info!("{e}");
    }
    torn
}

/// The header of a leftover; `None` where it is too short for one, or all of it is zeros: a crash left nothing in it.
fn read_header(file: &dyn Growing) -> Result<Option<[u8; HEADER_LEN]>> {
    let mut bytes = [0; HEADER_LEN];
    if file.cipher_len()? < HEADER_LEN as u64 {
        return Ok(None);
    }
    file.read_at(&mut bytes, 0)?;
    Ok(Some(bytes).filter(|bytes| bytes.iter().any(|b| *b != 0)))
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
