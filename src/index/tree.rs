//! The tree that the index replays to, in memory: at most 300 bytes per file and 32 per extent, plus the bytes of
//! extended attributes, link targets and long names.
//!
//! Inodes and links are stored in slabs and refer to each other by slot number. Hash tables of 4-byte slot numbers find
//! an inode by its id or number, and a link by its directory and name, without storing any of these twice.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::inode::*;
use super::merge::Unsettled;
use super::record::{Id, ROOT_ID, StampSegment, WireStamp};
use super::slab::Slab;
use super::unlinked::Unlinked;
use crate::object::{PackId, SegmentId};
use crate::volume::{Attr, FileKind, Ino, Time};

/// The state of a pack according to the index.
#[derive(Debug, Clone, Copy)]
pub struct PackInfo {
    /// The pack.
    pub id: PackId,
    /// All its bytes, once it is finished.
    pub cipher_len: Option<u32>,
    /// Plaintext bytes referenced by extents; bytes referenced twice count twice.
    pub live_plain_bytes: u64,
    /// Condemned: nothing may refer to it any more.
    pub condemned: bool,
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    pub(super) inodes: Slab<Inode>,
    pub(super) links: Slab<Link>,
    pub(super) by_id: HashTable<InodeIx>,
    pub(super) by_name: HashTable<LinkIx>,
    pub(super) hash: DefaultHashBuilder,
    /// Additional hard links, whose ids differ from their inodes': by id, and their ids.
    pub(super) other_links: HashMap<Id, LinkIx>,
    pub(super) other_link_ids: HashMap<LinkIx, Id>,
    /// By inode that still has links: the newest removal of a link by each device.
    pub(super) unlinked: BTreeMap<InodeIx, Vec<Unlinked>>,
    /// Inodes shown by another number than the one of their id, by that number.
    pub(super) renumbered: HashMap<u64, InodeIx>,
    /// Inodes that were given a spare number; some may no longer exist.
    pub(super) contested: Vec<InodeIx>,
    pub(super) packs: Vec<PackInfo>,
    pub(super) pack_numbers: HashMap<PackId, u32>,
    pub(super) segments: Vec<StampSegment>,
    pub(super) segment_numbers: HashMap<SegmentId, u32>,
    /// The highest counter of any record.
    pub(super) counter: u64,
    /// True while replaying segments concurrent with the snapshot: it may already contain some of their effects.
    pub(super) during_snapshot: bool,
    /// The conflicts of merged segments; `None` in a tree without merges.
    pub(super) unsettled: Option<Box<Unsettled>>,
}

impl Tree {
    /// An empty library: a root directory of this owner, made at `now`.
    pub fn new(uid: u32, gid: u32, now: Time) -> Self {
        let mut tree = Self {
            inodes: Slab::default(),
            links: Slab::default(),
            by_id: HashTable::new(),
            by_name: HashTable::new(),
            hash: DefaultHashBuilder::default(),
            other_links: HashMap::new(),
            other_link_ids: HashMap::new(),
            unlinked: BTreeMap::new(),
            renumbered: HashMap::new(),
            contested: Vec::new(),
            packs: Vec::new(),
            pack_numbers: HashMap::new(),
            segments: Vec::new(),
            segment_numbers: HashMap::new(),
            counter: 0,
            during_snapshot: false,
            unsettled: None,
        };
        // Segment number 0 stands for the root, which no record created.
        let none = tree.intern_segment(StampSegment {
            segment: SegmentId::default(),
            device: Default::default(),
            number: 0,
        });
        let origin = Stamp::new(0, none);
        tree.insert_inode(Inode {
            id: halves(ROOT_ID),
            plain_size: 0,
            body: Body::Entries(BTreeMap::new()),
            extra: None,
            uid,
            gid,
            rdev: 0,
            perm: 0o755,
            kind: FileKind::Directory,
            count: 0,
            first_link: None,
            created: origin,
            version: origin,
            mtime: now.into(),
            ctime: now.into(),
            btime: now.into(),
            refs: AtomicU32::new(1),
        });
        tree
    }

    /// The inode in a slot, which must be in use.
    pub fn inode(&self, ix: InodeIx) -> &Inode {
        self.inodes
            .get(ix.0)
            .expect("slots of inodes are only held while the inode lives")
    }

    pub(super) fn inode_mut(&mut self, ix: InodeIx) -> &mut Inode {
        self.inodes
            .get_mut(ix.0)
            .expect("slots of inodes are only held while the inode lives")
    }

    /// The link in a slot, which must be in use.
    pub fn link(&self, ix: LinkIx) -> &Link {
        self.links
            .get(ix.0)
            .expect("slots of links are only held while the link lives")
    }

    /// The link `name` in a directory.
    pub fn child(&self, parent: InodeIx, name: &[u8]) -> Option<LinkIx> {
        let found = self.by_name.find(self.name_hash(parent, name), |ix| {
            let link = self.link(*ix);
            link.parent == parent && *link.name == *name
        });
        found.copied()
    }

    pub(super) fn name_hash(&self, parent: InodeIx, name: &[u8]) -> u64 {
        self.hash.hash_one((parent.0, name))
    }

    /// The link with this id, of this inode.
    pub fn find_link(&self, inode: InodeIx, link: Id) -> Option<LinkIx> {
        if let Some(ix) = self.other_links.get(&link) {
            // A bad record may give one id to links of two inodes.
            return Some(*ix).filter(|ix| self.link(*ix).inode == inode);
        }
        // The link with the inode's id, which need not be the first.
        self.links_of(inode).find(|ix| self.link_id(*ix) == link)
    }

    /// All links of an inode.
    pub fn links_of(&self, inode: InodeIx) -> impl Iterator<Item = LinkIx> + '_ {
        let inode = self.inode(inode);
        let more = inode.extra.iter().flat_map(|x| &x.more_links);
        inode.first_link.iter().chain(more).copied()
    }

    /// The id of a link.
    pub fn link_id(&self, ix: LinkIx) -> Id {
        let own = self.other_link_ids.get(&ix);
        own.copied()
            .unwrap_or_else(|| self.inode(self.link(ix).inode).id())
    }

    /// The entries of a directory after `cookie`, with their cookies.
    pub fn entries(&self, dir: InodeIx, cookie: u64) -> impl Iterator<Item = (u64, &Link)> {
        let from = u32::try_from(cookie.saturating_add(1)).ok();
        let entries = match (&self.inode(dir).body, from) {
            (Body::Entries(e), Some(from)) => Some(e.range(from..)),
            _ => None,
        };
        entries
            .into_iter()
            .flatten()
            .map(|(cookie, ix)| (u64::from(*cookie), self.link(*ix)))
    }

    /// The parent directory; the root's is the root.
    pub fn parent(&self, dir: InodeIx) -> InodeIx {
        self.inode(dir)
            .first_link
            .map_or(ROOT_IX, |l| self.link(l).parent)
    }

    /// Whether `dir` is `ancestor` or a descendant of it.
    pub fn is_within(&self, dir: InodeIx, ancestor: InodeIx) -> bool {
        let mut at = dir;
        // Bounds the walk: a damaged tree could have a cycle.
        for _ in 0..=self.inodes.len() {
            if at == ancestor {
                return true;
            }
            if at == ROOT_IX {
                return false;
            }
            at = self.parent(at);
        }
        true
    }

    /// The path of an inode from the root, without a leading slash; empty if it has no link or is the root.
    pub fn path(&self, ix: InodeIx) -> Vec<u8> {
        const PATH_LEN_MAX: usize = 4095;
        let mut names: Vec<&[u8]> = Vec::new();
        let (mut at, mut len) = (ix, 0);
        while let Some(link) = self.inode(at).first_link {
            let link = self.link(link);
            len += link.name.len() + 1;
            if len > PATH_LEN_MAX {
                break;
            }
            names.push(&link.name);
            at = link.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The attributes for stat(2).
    pub fn attr(&self, ix: InodeIx) -> Attr {
        let inode = self.inode(ix);
        let target_len = inode.target().map_or(0, |t| t.len() as u64);
        Attr {
            ino: self.ino(ix),
            generation: inode.generation(),
            kind: inode.kind,
            perm: inode.perm,
            nlink: match inode.kind {
                FileKind::Directory if inode.is_linked() => inode.count + 2,
                FileKind::Directory => 0,
                _ => inode.count,
            },
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            plain_size: inode.plain_size + target_len,
            blocks_512: inode.extents().plain_bytes().div_ceil(512),
            atime: inode.atime().into(),
            mtime: inode.mtime.into(),
            ctime: inode.ctime.into(),
            btime: inode.btime.into(),
        }
    }

    /// The inodes referenced by the kernel or open files.
    pub fn held(&self) -> impl Iterator<Item = InodeIx> {
        let held = |inode: &Inode| inode.refs.load(Ordering::Relaxed) > 0;
        let inodes = self.inodes.iter_from(0);
        inodes
            .filter(move |(_, inode)| held(inode))
            .map(|(at, _)| InodeIx(at))
    }

    /// Takes over the references, inode numbers and directory cookies of `old`, for inodes that exist in both.
    pub fn take_references(&mut self, old: &Tree) {
        self.keep_numbers(old);
        for held in old.held() {
            let inode = old.inode(held);
            if let Some(ix) = self.find_id(inode.id()) {
                let count = inode.refs.load(Ordering::Relaxed);
                self.inode(ix).refs.store(count, Ordering::Relaxed);
                self.keep_cookies(ix, old, held);
            }
        }
    }

    /// How many inodes there are.
    pub fn inode_count(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// What the index says of pack number `pack`.
    pub fn pack(&self, pack: u32) -> &PackInfo {
        &self.packs[pack as usize]
    }

    /// The files that refer to a pack, with the ranges stored in it.
    pub fn users_of(&self, id: PackId) -> Vec<(Ino, Vec<(u64, u64)>)> {
        let Some(number) = self.pack_numbers.get(&id) else {
            return Vec::new();
        };
        let mut users = Vec::new();
        for (at, inode) in self.inodes.iter_from(0) {
            let inside = inode
                .extents()
                .as_slice()
                .iter()
                .filter(|e| e.pack == *number);
            let ranges: Vec<(u64, u64)> = inside.map(|e| (e.plain_offset, e.plain_end())).collect();
            if !ranges.is_empty() {
                users.push((self.ino(InodeIx(at)), ranges));
            }
        }
        users
    }

    /// All packs that records mentioned since the newest snapshot.
    pub fn packs(&self) -> &[PackInfo] {
        &self.packs
    }

    /// The state of a pack according to the index.
    pub fn find_pack(&self, id: PackId) -> Option<&PackInfo> {
        self.pack_numbers.get(&id).map(|n| self.pack(*n))
    }

    /// The pack's number; assigned if it has none.
    pub fn intern_pack(&mut self, id: PackId) -> u32 {
        *self.pack_numbers.entry(id).or_insert_with(|| {
            self.packs.push(PackInfo {
                id,
                cipher_len: None,
                live_plain_bytes: 0,
                condemned: false,
            });
            (self.packs.len() - 1) as u32
        })
    }

    /// The segment's number; assigned if it has none.
    pub fn intern_segment(&mut self, segment: StampSegment) -> u32 {
        *self
            .segment_numbers
            .entry(segment.segment)
            .or_insert_with(|| {
                self.segments.push(segment);
                (self.segments.len() - 1) as u32
            })
    }

    /// Changes the id of segment number `number`.
    pub fn rename_segment(&mut self, number: u32, id: SegmentId) {
        let segment = &mut self.segments[number as usize];
        self.segment_numbers.remove(&segment.segment);
        segment.segment = id;
        self.segment_numbers.insert(id, number);
    }

    /// The id of the segment with this number in the tree.
    pub fn segment_id(&self, number: u32) -> SegmentId {
        self.segments[number as usize].segment
    }

    /// A stamp as it is stored in records.
    pub fn to_wire(&self, stamp: Stamp) -> WireStamp {
        WireStamp {
            counter: stamp.counter(),
            segment: self.segments[stamp.segment as usize].segment,
        }
    }

    /// The counter that the next record gets.
    pub fn next_counter(&self) -> u64 {
        self.counter + 1
    }

    /// Whether `a` is later than `b`: by counter, then by the segment's id.
    pub(super) fn is_later(&self, a: Stamp, b: Stamp) -> bool {
        a != b && self.key(a) > self.key(b)
    }

    /// The sort key of stamps.
    pub(super) fn key(&self, stamp: Stamp) -> (u64, SegmentId) {
        (stamp.counter(), self.segment_id(stamp.segment))
    }
}
