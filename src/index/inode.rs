//! Inodes and links in memory: small, as there are millions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::extents::Extents;
use super::record::{Id, ROOT_ID};
use crate::volume::{FileKind, Time};

/// Slot number of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeIx(pub(super) u32);

/// Slot number of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkIx(pub(super) u32);

/// The slot of the root directory.
pub const ROOT_IX: InodeIx = InodeIx(0);

/// When a register was set: Lamport counter, and the segment's number in the tree's table. 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    counter: [u32; 2],
    /// Which segment.
    pub segment: u32,
}

impl Stamp {
    /// A stamp of segment number `segment`.
    pub fn new(counter: u64, segment: u32) -> Self {
        Self {
            counter: [(counter >> 32) as u32, counter as u32],
            segment,
        }
    }
    /// The Lamport counter.
    pub fn counter(self) -> u64 {
        u64::from(self.counter[0]) << 32 | u64::from(self.counter[1])
    }
}

/// A [`Time`] in 12 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedTime([u32; 3]);

impl From<Time> for PackedTime {
    fn from(t: Time) -> Self {
        Self([(t.sec >> 32) as u32, t.sec as u32, t.nsec])
    }
}

impl From<PackedTime> for Time {
    fn from(PackedTime([high, low, nsec]): PackedTime) -> Self {
        Self {
            sec: (i64::from(high as i32)) << 32 | i64::from(low),
            nsec,
        }
    }
}

/// What only inodes of one kind have.
#[derive(Debug)]
pub(super) enum Body {
    Extents(Extents),
    /// Names in a directory, by cookie.
    Entries(BTreeMap<u32, LinkIx>),
    Target(Box<[u8]>),
    Nothing,
}

/// An extended attribute: name, value, and when it was set.
pub(super) type Xattr = (Box<[u8]>, Box<[u8]>, Stamp);

/// What few inodes have, to keep the others small.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub perm_at: Option<Stamp>,
    pub owner_at: Option<Stamp>,
    /// Last access, and when that was set; if absent, the creation.
    pub atime: Option<(PackedTime, Stamp)>,
    /// The inode number that a record assigned, and when.
    pub number: Option<(u64, Stamp)>,
    /// The inode number shown while another inode has this one's own.
    pub spare_number: Option<u64>,
    pub xattrs: Vec<Xattr>,
    /// Links beyond the first.
    pub more_links: Vec<LinkIx>,
}

/// An inode.
#[derive(Debug)]
pub struct Inode {
    pub(super) id: [u64; 2],
    pub(super) plain_size: u64,
    pub(super) body: Body,
    pub(super) extra: Option<Box<Extra>>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) perm: u16,
    pub(super) kind: FileKind,
    /// Number of links; of a directory, number of subdirectories.
    pub(super) count: u32,
    pub(super) first_link: Option<LinkIx>,
    pub(super) created: Stamp,
    pub(super) version: Stamp,
    pub(super) mtime: PackedTime,
    pub(super) ctime: PackedTime,
    pub(super) btime: PackedTime,
    /// References of the kernel and of open handles: an inode without a link lives until this is 0.
    pub(super) refs: AtomicU32,
}

impl Inode {
    /// Its id.
    pub fn id(&self) -> Id {
        Id(u128::from(self.id[0]) << 64 | u128::from(self.id[1]))
    }
    /// What it is.
    pub fn kind(&self) -> FileKind {
        self.kind
    }
    /// Its permission bits.
    pub fn perm(&self) -> u16 {
        self.perm
    }
    /// Its group.
    pub fn gid(&self) -> u32 {
        self.gid
    }
    /// Its length in bytes.
    pub fn plain_size(&self) -> u64 {
        self.plain_size
    }
    /// The version of its contents.
    pub fn version(&self) -> Stamp {
        self.version
    }
    /// Whether it has a name. The root needs none.
    pub fn is_linked(&self) -> bool {
        self.first_link.is_some() || self.id() == ROOT_ID
    }
    /// Its extents; empty unless it is a regular file.
    pub fn extents(&self) -> &Extents {
        static NONE: Extents = Extents::Empty;
        match &self.body {
            Body::Extents(e) => e,
            _ => &NONE,
        }
    }
    /// The target of a symbolic link.
    pub fn target(&self) -> Option<&[u8]> {
        match &self.body {
            Body::Target(t) => Some(t),
            _ => None,
        }
    }
    /// Whether a directory has no entries.
    pub fn is_empty_dir(&self) -> bool {
        matches!(&self.body, Body::Entries(e) if e.is_empty())
    }
    /// Extended attributes: names and values.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.extra
            .iter()
            .flat_map(|x| x.xattrs.iter().map(|(n, v, _)| (&**n, &**v)))
    }
    /// The value of one.
    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
    /// Adds references.
    pub fn incref(&self, count: u32) {
        self.refs.fetch_add(count, Ordering::Relaxed);
    }
    /// Drops references; true if none is left.
    pub fn release(&self, count: u32) -> bool {
        let before = self
            .refs
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                Some(n.saturating_sub(count))
            })
            .unwrap_or_else(|n| n);
        before <= count
    }
    pub(super) fn atime(&self) -> PackedTime {
        let set = self.extra.as_ref().and_then(|x| x.atime);
        set.map_or(self.btime, |(atime, _)| atime)
    }
    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}

/// A name of an inode.
#[derive(Debug)]
pub struct Link {
    pub(super) inode: InodeIx,
    pub(super) parent: InodeIx,
    pub(super) name: Box<[u8]>,
    pub(super) at: Stamp,
    /// Its place in the order of its directory.
    pub(super) cookie: u32,
}

impl Link {
    /// Of which inode.
    pub fn inode(&self) -> InodeIx {
        self.inode
    }
    /// In which directory.
    pub fn parent(&self) -> InodeIx {
        self.parent
    }
    /// By which name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }
}

pub(super) fn halves(id: Id) -> [u64; 2] {
    [(id.0 >> 64) as u64, id.0 as u64]
}

// A file takes at most 300 bytes in addition to its extents: an inode, a link, and entries in three tables.
const _: () = assert!(size_of::<Inode>() <= 168 && size_of::<Link>() <= 40);
