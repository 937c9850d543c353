//! What a record does to the tree.
//!
//! Every register keeps the later of two stamps, so a record may come twice, or late. A record about an inode that
//! is not there changes nothing: a base that was written while work went on may already lack what a segment
//! beside it goes on to remove.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::extents::{Extent, Extents, Piece};
use super::record::*;
use super::tree::*;
use crate::pack::{PACK_CIPHER_LEN, PackId, Run};
use crate::volume::{FILE_LEN_MAX, FileKind, NAME_LEN_MAX, TARGET_LEN_MAX, Time, XATTR_LEN_MAX};

/// Why a record cannot be.
pub type Refusal = &'static str;

/// Lamport counters beyond this are damage: no writer gets there in a lifetime.
const COUNTER_MAX: u64 = 1 << 62;

/// Cookies below this are taken: 0 is the start of a directory, 1 and 2 are `.` and `..`.
const COOKIE_MIN: u64 = 3;

impl Tree {
    /// Applies a frame of segment number `segment`, all of it or, where it is refused, a part.
    pub fn apply_frame(&mut self, segment: u32, frame: &Frame) -> Result<(), Refusal> {
        let last = frame.counter.saturating_add(frame.records.len() as u64);
        if last > COUNTER_MAX {
            return Err("counter absurdly ahead");
        }
        // Two links that swap places must both leave before either arrives.
        let mut moving: Vec<LinkIx> = Vec::new();
        for (record, counter) in frame.records.iter().zip(frame.counter..) {
            let Record::Link(at) = record else { continue };
            if let Some(link) = self.newer_link(at, Stamp::new(counter, segment)) {
                let stamp = Stamp::new(counter, segment);
                self.detach(link, stamp, frame.wall);
                moving.push(link);
            }
        }
        for (record, counter) in frame.records.iter().zip(frame.counter..) {
            self.apply(Stamp::new(counter, segment), frame.wall, record, &moving)?;
        }
        self.counter = self.counter.max(last);
        Ok(())
    }

    fn apply(
        &mut self,
        at: Stamp,
        wall: Time,
        record: &Record,
        moving: &[LinkIx],
    ) -> Result<(), Refusal> {
        match record {
            Record::Inode(new) => self.create(at, wall, new),
            Record::Link(link) => self.place(at, wall, link, moving),
            Record::Unlink(gone) => {
                self.unlink(at, wall, gone);
                Ok(())
            }
            Record::Attr(change) => {
                self.change_attr(at, wall, change);
                Ok(())
            }
            Record::Content(content) => self.change_content(at, wall, content),
            Record::Relocate(moved) => self.relocate(moved),
            Record::Xattr(change) => self.change_xattr(at, wall, change),
            Record::Pack(pack) => self.finish_pack(pack),
            Record::Condemn(packs) => {
                for id in packs {
                    let number = self.intern_pack(*id);
                    self.packs[number as usize].condemned = true;
                }
                Ok(())
            }
            Record::BaseInode(_) | Record::BaseLink(_) => {
                Err("a record of a base in a frame that is not one's")
            }
        }
    }

    fn create(&mut self, at: Stamp, wall: Time, new: &NewInode) -> Result<(), Refusal> {
        if self.find_id(new.id).is_some() {
            return Ok(());
        }
        let inode = Inode {
            id: halves(new.id),
            plain_size: 0,
            body: body(new)?,
            extra: None,
            uid: new.uid,
            gid: new.gid,
            rdev: new.rdev,
            perm: new.perm & 0o7777,
            kind: new.kind,
            count: 0,
            first_link: None,
            created: at,
            version: at,
            mtime: wall.into(),
            ctime: wall.into(),
            btime: wall.into(),
            refs: AtomicU32::new(0),
        };
        self.insert_inode(inode);
        Ok(())
    }

    pub(super) fn insert_inode(&mut self, inode: Inode) -> InodeIx {
        let low = inode.id[1];
        let taken = self.find(crate::volume::Ino(low)).is_some();
        let ix = InodeIx(self.inodes.insert(inode));
        let Self {
            by_id,
            inodes,
            hash,
            ..
        } = self;
        use std::hash::BuildHasher;
        by_id.insert_unique(hash.hash_one(low), ix, |ix| {
            hash.hash_one(inodes.get(ix.0).expect("the table holds slots in use").id[1])
        });
        if taken {
            let mut ino = low;
            // 2^63 numbers, of which few are taken.
            while self.find(crate::volume::Ino(ino)).is_some() {
                ino = ino.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 1;
            }
            self.renumbered.insert(ino, ix);
        }
        ix
    }

    /// The link that `at` moves, where it is there and was placed earlier.
    fn newer_link(&self, at: &LinkAt, stamp: Stamp) -> Option<LinkIx> {
        let inode = self.find_id(at.inode.unwrap_or(at.link))?;
        let link = self.find_link(inode, at.link)?;
        self.is_later(stamp, self.link(link).at).then_some(link)
    }

    fn place(
        &mut self,
        at: Stamp,
        wall: Time,
        to: &LinkAt,
        moving: &[LinkIx],
    ) -> Result<(), Refusal> {
        check_name(&to.name)?;
        let Some(inode) = self.find_id(to.inode.unwrap_or(to.link)) else {
            return Ok(());
        };
        let Some(parent) = self.find_id(to.parent) else {
            return Ok(());
        };
        if self.inode(parent).kind != FileKind::Directory {
            return Err("a link below something that is not a directory");
        }
        let link = match self.find_link(inode, to.link) {
            Some(link) if !moving.contains(&link) => return Ok(()),
            found => found,
        };
        if let Some(other) = self.child(parent, &to.name) {
            if !self.is_later(self.link(other).at, at) {
                return Err("two links of one name");
            }
            // A base that was written meanwhile knows who had the name next. So this link has left it, and a
            // record that comes says for where, or that it is no more.
            if let Some(link) = link {
                self.remove_link(link);
            }
            return Ok(());
        }
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        if is_dir && link.is_none() && self.inode(inode).first_link.is_some() {
            return Err("a second link of a directory");
        }
        if is_dir && link.is_some() && self.is_within(parent, inode) {
            return Err("a directory below itself");
        }
        let link = match link {
            Some(link) => {
                let l = self.links.get_mut(link.0).expect("found above");
                (l.parent, l.name, l.at) = (parent, to.name.as_slice().into(), at);
                link
            }
            None => self.insert_link(
                to.link,
                Link {
                    inode,
                    parent,
                    name: to.name.as_slice().into(),
                    at,
                },
            ),
        };
        self.attach(link, at, wall);
        Ok(())
    }

    fn insert_link(&mut self, id: Id, link: Link) -> LinkIx {
        let inode = link.inode;
        let ix = LinkIx(self.links.insert(link));
        let holder = self.inode_mut(inode);
        if holder.kind != FileKind::Directory {
            holder.count += 1;
        }
        if holder.first_link.is_none() {
            holder.first_link = Some(ix);
        } else {
            holder.extra_mut().more_links.push(ix);
        }
        if holder.id() != id {
            self.other_links.insert(id, ix);
            self.other_link_ids.insert(ix, id);
        }
        ix
    }

    /// The place of a link in its directory's order: the order in which links were made.
    fn cookie(&self, ix: LinkIx) -> u64 {
        (self.link_id(ix).low() & (u64::MAX >> 1)).max(COOKIE_MIN)
    }

    /// Puts a link into its directory.
    pub(super) fn attach(&mut self, ix: LinkIx, at: Stamp, wall: Time) {
        let mut cookie = self.cookie(ix);
        let link = self.link(ix);
        let (parent, inode) = (link.parent, link.inode);
        let hash = self.name_hash(parent, &link.name);
        let Self {
            by_name,
            links,
            hash: build,
            ..
        } = self;
        use std::hash::BuildHasher;
        by_name.insert_unique(hash, ix, |ix| {
            let link = links.get(ix.0).expect("the table holds slots in use");
            build.hash_one((link.parent.0, &*link.name))
        });
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        let dir = self.inode_mut(parent);
        dir.count += u32::from(is_dir);
        if let Body::Entries(entries) = &mut dir.body {
            // Two links of one cookie in one directory: the later one takes the next.
            while entries.contains_key(&cookie) {
                cookie += 1;
            }
            entries.insert(cookie, ix);
        }
        self.touch(parent, at, wall);
        self.inode_mut(inode).ctime = wall.into();
    }

    /// Takes a link out of its directory; the link stays.
    fn detach(&mut self, ix: LinkIx, at: Stamp, wall: Time) {
        let cookie = self.cookie(ix);
        let link = self.link(ix);
        let (parent, inode) = (link.parent, link.inode);
        let hash = self.name_hash(parent, &link.name);
        if let Ok(entry) = self.by_name.find_entry(hash, |other| *other == ix) {
            entry.remove();
        }
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        let dir = self.inode_mut(parent);
        dir.count = dir.count.saturating_sub(u32::from(is_dir));
        if let Body::Entries(entries) = &mut dir.body {
            let place = entries
                .range(cookie..)
                .find(|(_, other)| **other == ix)
                .map(|(c, _)| *c);
            place.and_then(|c| entries.remove(&c));
        }
        self.touch(parent, at, wall);
    }

    /// A directory's names changed.
    fn touch(&mut self, dir: InodeIx, at: Stamp, wall: Time) {
        if self.is_later(at, self.inode(dir).version) {
            let dir = self.inode_mut(dir);
            dir.version = at;
            (dir.mtime, dir.ctime) = (wall.into(), wall.into());
        }
    }

    fn unlink(&mut self, at: Stamp, wall: Time, gone: &Unlink) {
        let Some(inode) = self.find_id(gone.inode.unwrap_or(gone.link)) else {
            return;
        };
        let Some(ix) = self.find_link(inode, gone.link) else {
            return;
        };
        if !self.is_later(at, self.link(ix).at) {
            return;
        }
        self.detach(ix, at, wall);
        self.remove_link(ix);
        self.inode_mut(inode).ctime = wall.into();
        self.drop_if_unused(inode);
    }

    /// Forgets a link that is in no directory any more.
    fn remove_link(&mut self, ix: LinkIx) {
        let Some(link) = self.links.remove(ix.0) else {
            return;
        };
        if let Some(id) = self.other_link_ids.remove(&ix) {
            self.other_links.remove(&id);
        }
        let holder = self.inode_mut(link.inode);
        if holder.kind != FileKind::Directory {
            holder.count = holder.count.saturating_sub(1);
        }
        if let Some(extra) = &mut holder.extra {
            extra.more_links.retain(|l| *l != ix);
        }
        if holder.first_link == Some(ix) {
            holder.first_link = holder.extra.as_mut().and_then(|x| x.more_links.pop());
        }
    }

    /// Forgets an inode that has no name and that nobody holds.
    pub fn drop_if_unused(&mut self, ix: InodeIx) {
        let inode = self.inode(ix);
        if inode.is_linked() || inode.refs.load(Ordering::Acquire) > 0 {
            return;
        }
        let low = inode.id[1];
        let Some(inode) = self.inodes.remove(ix.0) else {
            return;
        };
        for e in inode.extents().as_slice() {
            let pack = &mut self.packs[e.pack as usize];
            pack.live_plain_bytes = pack.live_plain_bytes.saturating_sub(u64::from(e.plain_len));
        }
        use std::hash::BuildHasher;
        if let Ok(entry) = self
            .by_id
            .find_entry(self.hash.hash_one(low), |other| *other == ix)
        {
            entry.remove();
        }
        self.renumbered.retain(|_, other| *other != ix);
    }

    fn change_attr(&mut self, at: Stamp, wall: Time, change: &AttrChange) {
        let Some(ix) = self.find_id(change.inode) else {
            return;
        };
        let inode = self.inode(ix);
        let set_at = |own: fn(&Extra) -> Option<Stamp>| {
            inode
                .extra
                .as_deref()
                .and_then(own)
                .unwrap_or(inode.created)
        };
        let newer = [
            change.perm.is_some() && self.is_later(at, set_at(|x| x.perm_at)),
            change.owner.is_some() && self.is_later(at, set_at(|x| x.owner_at)),
            change.atime.is_some() && self.is_later(at, set_at(|x| x.atime.map(|(_, at)| at))),
        ];
        let inode = self.inode_mut(ix);
        if let (Some(perm), true) = (change.perm, newer[0]) {
            inode.perm = perm & 0o7777;
            inode.extra_mut().perm_at = Some(at);
        }
        if let (Some((uid, gid)), true) = (change.owner, newer[1]) {
            (inode.uid, inode.gid) = (uid, gid);
            inode.extra_mut().owner_at = Some(at);
        }
        if let (Some(atime), true) = (change.atime, newer[2]) {
            inode.extra_mut().atime = Some((atime.into(), at));
        }
        // What a base knows already has a ctime there, perhaps a later one.
        if newer.contains(&true) {
            inode.ctime = wall.into();
        }
    }

    fn change_content(&mut self, at: Stamp, wall: Time, content: &Content) -> Result<(), Refusal> {
        let Some(ix) = self.find_id(content.inode) else {
            return Ok(());
        };
        if !self.is_later(at, self.inode(ix).version) {
            return Ok(());
        }
        if content.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        let pieces = self.pieces(&content.packs, &content.splices)?;
        self.splice(ix, &pieces, Some(content.plain_size));
        let inode = self.inode_mut(ix);
        inode.version = at;
        inode.mtime = content.mtime.unwrap_or(wall).into();
        inode.ctime = wall.into();
        Ok(())
    }

    fn relocate(&mut self, moved: &Relocate) -> Result<(), Refusal> {
        let Some(ix) = self.find_id(moved.inode) else {
            return Ok(());
        };
        if self.wire(self.inode(ix).version) != moved.version {
            return Ok(());
        }
        let pieces = self.pieces(&moved.packs, &moved.splices)?;
        self.splice(ix, &pieces, None);
        Ok(())
    }

    fn splice(&mut self, ix: InodeIx, pieces: &[Piece], plain_size: Option<u64>) {
        let Self { inodes, packs, .. } = self;
        let inode = inodes.get_mut(ix.0).expect("found by the caller");
        let Body::Extents(extents) = &mut inode.body else {
            return;
        };
        let mut moved = |pack: u32, by: i64| {
            let live = &mut packs[pack as usize].live_plain_bytes;
            *live = live.saturating_add_signed(by);
        };
        extents.splice(pieces, &mut moved);
        if let Some(plain_size) = plain_size {
            extents.truncate(plain_size, &mut moved);
            inode.plain_size = plain_size;
        }
    }

    /// Splices as pieces, each checked: what comes from the store may be hostile in its numbers.
    fn pieces(&mut self, packs: &[PackId], splices: &[Splice]) -> Result<Vec<Piece>, Refusal> {
        let numbers: Vec<u32> = packs.iter().map(|id| self.intern_pack(*id)).collect();
        let mut end = 0;
        splices
            .iter()
            .map(|s| {
                if s.plain_offset < end
                    || s.plain_len == 0
                    || s.plain_len > FILE_LEN_MAX - s.plain_offset.min(FILE_LEN_MAX)
                {
                    return Err("splices that overlap or run out of the file");
                }
                end = s.plain_offset + s.plain_len;
                let extent = s
                    .source
                    .map(|source| extent(s, &source, &numbers))
                    .transpose()?;
                Ok(Piece {
                    plain_offset: s.plain_offset,
                    plain_len: s.plain_len,
                    extent,
                })
            })
            .collect()
    }

    fn change_xattr(&mut self, at: Stamp, wall: Time, change: &XattrChange) -> Result<(), Refusal> {
        let too_long = change.name.len() > NAME_LEN_MAX
            || change
                .value
                .as_ref()
                .is_some_and(|v| v.len() > XATTR_LEN_MAX);
        if change.name.is_empty() || too_long {
            return Err("an extended attribute of impossible length");
        }
        let Some(ix) = self.find_id(change.inode) else {
            return Ok(());
        };
        let extra = self.inode(ix).extra.as_ref();
        let place = extra.and_then(|x| {
            x.xattrs
                .iter()
                .position(|(name, ..)| **name == *change.name)
        });
        let set_at = place.and_then(|i| extra.map(|x| x.xattrs[i].2));
        if set_at.is_some_and(|set_at| !self.is_later(at, set_at)) {
            return Ok(());
        }
        let inode = self.inode_mut(ix);
        inode.ctime = wall.into();
        let xattrs = &mut inode.extra_mut().xattrs;
        match (&change.value, place) {
            (Some(value), Some(i)) => (xattrs[i].1, xattrs[i].2) = (value.as_slice().into(), at),
            (Some(value), None) => {
                xattrs.push((change.name.as_slice().into(), value.as_slice().into(), at))
            }
            (None, Some(i)) => {
                xattrs.remove(i);
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn finish_pack(&mut self, pack: &PackLen) -> Result<(), Refusal> {
        if pack.cipher_len > PACK_CIPHER_LEN {
            return Err("a pack longer than packs can be");
        }
        let number = self.intern_pack(pack.pack);
        self.packs[number as usize].cipher_len = Some(pack.cipher_len);
        Ok(())
    }

    /// Applies a record of a base, whose stamps name segments by `numbers`.
    pub fn apply_base(&mut self, record: &Record, numbers: &[u32]) -> Result<(), Refusal> {
        let stamp = |s: BaseStamp| {
            let segment = *numbers
                .get(s.segment as usize)
                .ok_or("a stamp of a segment that is not in the list")?;
            if s.counter > COUNTER_MAX {
                Err("counter absurdly ahead")
            } else {
                Ok(Stamp::new(s.counter, segment))
            }
        };
        match record {
            Record::BaseInode(base) => self.apply_base_inode(base, &stamp),
            Record::BaseLink(base) => {
                let at = stamp(base.at)?;
                self.counter = self.counter.max(at.counter());
                let parent = self.find_id(base.link.parent);
                let times = parent.map(|p| {
                    (
                        p,
                        self.inode(p).mtime,
                        self.inode(p).ctime,
                        self.inode(p).version,
                    )
                });
                let inode = self.find_id(base.link.inode.unwrap_or(base.link.link));
                let ctime = inode.map(|i| (i, self.inode(i).ctime));
                self.place(at, Time::default(), &base.link, &[])?;
                // The base has the times themselves.
                if let Some((ix, ctime)) = ctime {
                    self.inode_mut(ix).ctime = ctime;
                }
                if let Some((ix, mtime, ctime, version)) = times {
                    let dir = self.inode_mut(ix);
                    (dir.mtime, dir.ctime, dir.version) = (mtime, ctime, version);
                }
                Ok(())
            }
            Record::Pack(pack) => self.finish_pack(pack),
            Record::Relocate(more) => self.relocate(more),
            Record::Condemn(_) => self.apply(Stamp::new(0, 0), Time::default(), record, &[]),
            _ => Err("a record that bases do not have"),
        }
    }

    fn apply_base_inode(
        &mut self,
        base: &BaseInode,
        stamp: &impl Fn(BaseStamp) -> Result<Stamp, Refusal>,
    ) -> Result<(), Refusal> {
        let created = stamp(base.created)?;
        let version = stamp(base.version)?;
        if base.inode.id == ROOT_ID {
            self.inode_mut(ROOT_IX).created = created;
        } else if self.find_id(base.inode.id).is_some() {
            return Ok(());
        } else {
            self.create(created, base.btime, &base.inode)?;
        }
        let Some(ix) = self.find_id(base.inode.id) else {
            return Ok(());
        };
        let pieces = self.pieces(&base.packs, &base.splices)?;
        if base.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        self.splice(
            ix,
            &pieces,
            (base.inode.kind == FileKind::Regular).then_some(base.plain_size),
        );
        let inode = self.inode_mut(ix);
        (inode.perm, inode.uid, inode.gid) =
            (base.inode.perm & 0o7777, base.inode.uid, base.inode.gid);
        inode.version = version;
        inode.mtime = base.mtime.into();
        (inode.ctime, inode.btime) = (base.ctime.into(), base.btime.into());
        let mut newest = version.counter().max(created.counter());
        for (own, at) in [(0, base.perm_at), (1, base.owner_at), (2, base.atime_at)] {
            let Some(at) = at.map(stamp).transpose()? else {
                continue;
            };
            let extra = inode.extra_mut();
            match own {
                0 => extra.perm_at = Some(at),
                1 => extra.owner_at = Some(at),
                _ => extra.atime = Some((base.atime.into(), at)),
            }
            newest = newest.max(at.counter());
        }
        for x in &base.xattrs {
            let at = stamp(x.at)?;
            inode.extra_mut().xattrs.push((
                x.name.as_slice().into(),
                x.value.as_slice().into(),
                at,
            ));
            newest = newest.max(at.counter());
        }
        self.counter = self.counter.max(newest);
        Ok(())
    }

    /// Ends a replay: inodes without a name go. They were open when the last segment was written.
    pub fn drop_unlinked(&mut self) {
        let unlinked: Vec<InodeIx> = self
            .inodes
            .iter_from(0)
            .filter(|(_, inode)| !inode.is_linked())
            .map(|(at, _)| InodeIx(at))
            .collect();
        unlinked.into_iter().for_each(|ix| self.drop_if_unused(ix));
    }
}

fn body(new: &NewInode) -> Result<Body, Refusal> {
    Ok(match new.kind {
        FileKind::Regular => Body::Extents(Extents::default()),
        FileKind::Directory => Body::Entries(BTreeMap::new()),
        FileKind::Symlink if new.target.is_empty() || new.target.len() > TARGET_LEN_MAX => {
            return Err("a symbolic link's target of impossible length");
        }
        FileKind::Symlink => Body::Target(new.target.as_slice().into()),
        _ => Body::Nothing,
    })
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    let impossible = name.is_empty() || name.len() > NAME_LEN_MAX || name == b"." || name == b"..";
    if impossible || name.iter().any(|c| matches!(c, b'/' | 0)) {
        Err("a name that cannot be")
    } else {
        Ok(())
    }
}

fn extent(s: &Splice, source: &Source, numbers: &[u32]) -> Result<Extent, Refusal> {
    let pack = *numbers
        .get(source.pack as usize)
        .ok_or("a pack that is not in the record's list")?;
    let run = Run {
        pack: PackId::default(),
        cipher_offset: source.cipher_offset,
        plain_len: source.run_len,
    };
    let fits = source.run_len <= PACK_CIPHER_LEN
        && u64::from(source.cipher_offset) + u64::from(run.cipher_len())
            <= u64::from(PACK_CIPHER_LEN);
    if !fits || u64::from(source.start) + s.plain_len > u64::from(source.run_len) {
        return Err("an extent that runs out of its run or pack");
    }
    Ok(Extent {
        plain_offset: s.plain_offset,
        plain_len: s.plain_len as u32,
        pack,
        cipher_offset: source.cipher_offset,
        run_len: source.run_len,
        start: source.start,
    })
}
