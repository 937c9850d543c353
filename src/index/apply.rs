//! Applying records to the tree.
//!
//! Every register keeps the later of two stamps, so a record may be applied twice, or late. A record about an unknown
//! inode is ignored: a fuzzy snapshot may lack what a concurrent segment goes on to remove. Only values that no valid
//! writer produces are refused, never the combined effects of several writers (see [`super::merge`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::extents::{Extent, ExtentChange, Extents};
use super::inode::*;
use super::record::*;
use super::tree::*;
use crate::object::PackId;
use crate::pack::{PACK_CIPHER_LEN, Run};
use crate::volume::{FILE_LEN_MAX, FileKind, NAME_LEN_MAX, TARGET_LEN_MAX, Time, XATTR_LEN_MAX};

/// Why a record is refused.
pub type Refusal = &'static str;

/// Larger Lamport counters are damage: no writer gets there in a lifetime.
pub(super) const COUNTER_MAX: u64 = 1 << 62;

impl Tree {
    /// Applies a frame of segment number `segment`. If a record is refused, the preceding ones remain applied.
    pub fn apply_frame(&mut self, segment: u32, frame: &Frame) -> Result<(), Refusal> {
        let last = frame.counter.saturating_add(frame.records.len() as u64);
        if last > COUNTER_MAX {
            return Err("counter absurdly ahead");
        }
        for (record, counter) in frame.records.iter().zip(frame.counter..) {
            self.apply(Stamp::new(counter, segment), frame.wall, record)?;
        }
        self.counter = self.counter.max(last);
        Ok(())
    }

    pub(super) fn apply(&mut self, at: Stamp, wall: Time, record: &Record) -> Result<(), Refusal> {
        match record {
            Record::Inode(new) => self.create(at, wall, new),
            Record::Link(link) => self.place(at, wall, link),
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
                Err("a record of a base outside of a base")
            }
        }
    }

    pub(super) fn create(&mut self, at: Stamp, wall: Time, new: &NewInode) -> Result<(), Refusal> {
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

    /// Deletes an inode without links and references. A non-empty directory is kept, so that its entries stay
    /// reachable.
    pub fn drop_if_unused(&mut self, ix: InodeIx) {
        let inode = self.inode(ix);
        if inode.is_linked() || inode.refs.load(Ordering::Acquire) > 0 || self.has_entries(ix) {
            return;
        }
        let Some(inode) = self.remove_inode(ix) else {
            return;
        };
        for e in inode.extents().as_slice() {
            let pack = &mut self.packs[e.pack as usize];
            pack.live_plain_bytes = pack.live_plain_bytes.saturating_sub(u64::from(e.plain_len));
        }
        self.forget_losers(ix);
    }

    fn change_attr(&mut self, at: Stamp, wall: Time, change: &AttrChange) {
        let Some(ix) = self.find_id(change.inode) else {
            return;
        };
        let newer =
            |set, own: fn(&Extra) -> Option<Stamp>| set && self.is_later(at, self.set_at(ix, own));
        let newer = [
            newer(change.perm.is_some(), |x| x.perm_at),
            newer(change.owner.is_some(), |x| x.owner_at),
            newer(change.atime.is_some(), |x| x.atime.map(|(_, at)| at)),
        ];
        let inode = self.inode_mut(ix);
        if let (Some(perm), true) = (change.perm, newer[0]) {
            inode.perm = perm & 0o7777;
            inode.extra_mut().perm_at = Some(at);
        }
        if let (Some(owner), true) = (change.owner, newer[1]) {
            (inode.uid, inode.gid) = (owner.uid, owner.gid);
            inode.extra_mut().owner_at = Some(at);
        }
        if let (Some(atime), true) = (change.atime, newer[2]) {
            inode.extra_mut().atime = Some((atime.into(), at));
        }
        if let Some(number) = change.number {
            self.change_number(ix, number, at);
        }
        // What a snapshot has already has its ctime there, perhaps a later one.
        if newer.contains(&true) {
            self.update_ctime(ix, wall);
        }
    }

    /// When a register was set: at the creation, if not since.
    pub(super) fn set_at(&self, ix: InodeIx, own: fn(&Extra) -> Option<Stamp>) -> Stamp {
        let inode = self.inode(ix);
        let set_at = inode.extra.as_deref().and_then(own);
        set_at.unwrap_or(inode.created)
    }

    /// Updates ctime after a change. During the replay of segments concurrent with a snapshot, which has some later
    /// changes already, ctime never decreases.
    pub(super) fn update_ctime(&mut self, ix: InodeIx, wall: Time) {
        let during_snapshot = self.during_snapshot;
        let ctime = &mut self.inode_mut(ix).ctime;
        if !during_snapshot || wall > Time::from(*ctime) {
            *ctime = wall.into();
        }
    }

    pub(super) fn change_content(
        &mut self,
        at: Stamp,
        wall: Time,
        content: &Content,
    ) -> Result<(), Refusal> {
        let Some(ix) = self.find_id(content.inode) else {
            return Ok(());
        };
        if !self.is_later(at, self.inode(ix).version) {
            return Ok(());
        }
        if content.plain_size > FILE_LEN_MAX {
            return Err("a file longer than files can be");
        }
        let changes = self.extent_changes(&content.packs, &content.splices)?;
        // The writer has kept the versions that lost, unless this one is one of them.
        self.forget_losers(ix);
        self.splice(ix, &changes, Some(content.plain_size));
        let inode = self.inode_mut(ix);
        inode.version = at;
        inode.mtime = content.mtime.unwrap_or(wall).into();
        self.update_ctime(ix, wall);
        Ok(())
    }

    pub(super) fn relocate(&mut self, moved: &Relocate) -> Result<(), Refusal> {
        let Some(ix) = self.find_id(moved.inode) else {
            return Ok(());
        };
        if self.to_wire(self.inode(ix).version) != moved.version {
            return Ok(());
        }
        let changes = self.extent_changes(&moved.packs, &moved.splices)?;
        // Data after the end must not appear when the file grows.
        let plain_size = self.inode(ix).plain_size;
        self.splice(ix, &changes, Some(plain_size));
        Ok(())
    }

    pub(super) fn splice(
        &mut self,
        ix: InodeIx,
        changes: &[ExtentChange],
        plain_size: Option<u64>,
    ) {
        let Self { inodes, packs, .. } = self;
        let inode = inodes.get_mut(ix.0).expect("found by the caller");
        let Body::Extents(extents) = &mut inode.body else {
            return;
        };
        let mut moved = |pack: u32, by: i64| {
            let live = &mut packs[pack as usize].live_plain_bytes;
            *live = live.saturating_add_signed(by);
        };
        extents.splice(changes, &mut moved);
        if let Some(plain_size) = plain_size {
            extents.truncate(plain_size, &mut moved);
            inode.plain_size = plain_size;
        }
    }

    /// Converts splices and checks them: numbers from the store may be hostile.
    pub(super) fn extent_changes(
        &mut self,
        packs: &[PackId],
        splices: &[Splice],
    ) -> Result<Vec<ExtentChange>, Refusal> {
        let numbers: Vec<u32> = packs.iter().map(|id| self.intern_pack(*id)).collect();
        let mut end = 0;
        splices
            .iter()
            .map(|s| {
                if s.plain_offset < end
                    || s.plain_len == 0
                    || s.plain_len > FILE_LEN_MAX - s.plain_offset.min(FILE_LEN_MAX)
                {
                    return Err("splices that overlap or exceed the file");
                }
                end = s.plain_offset + s.plain_len;
                let extent = s
                    .source
                    .map(|source| extent(s, &source, &numbers))
                    .transpose()?;
                Ok(ExtentChange {
                    plain_offset: s.plain_offset,
                    plain_len: s.plain_len,
                    extent,
                })
            })
            .collect()
    }

    fn change_xattr(&mut self, at: Stamp, wall: Time, change: &XattrChange) -> Result<(), Refusal> {
        check_xattr(&change.name, change.value.as_deref())?;
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
        self.update_ctime(ix, wall);
        let xattrs = &mut self.inode_mut(ix).extra_mut().xattrs;
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

    pub(super) fn finish_pack(&mut self, pack: &PackLen) -> Result<(), Refusal> {
        if pack.cipher_len > PACK_CIPHER_LEN {
            return Err("a pack longer than packs can be");
        }
        let number = self.intern_pack(pack.pack);
        self.packs[number as usize].cipher_len = Some(pack.cipher_len);
        Ok(())
    }

    /// Deletes unreferenced inodes whose last link these records removed. Not for a replay: after a fuzzy snapshot, a
    /// later record may restore a link.
    pub fn drop_removed(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Unlink(gone) = record
                && let Some(ix) = self.find_id(gone.inode.unwrap_or(gone.link))
            {
                self.drop_if_unused(ix);
            }
        }
    }

    /// Ends a replay: deletes inodes without links, which were open when the last segment was written.
    pub fn drop_unlinked(&mut self) {
        let unlinked: Vec<InodeIx> = self
            .inodes
            .iter_from(0)
            .filter(|(_, inode)| !inode.is_linked())
            .map(|(at, _)| InodeIx(at))
            .collect();
        unlinked.into_iter().for_each(|ix| self.drop_if_unused(ix));
        self.settle_numbers();
        self.order_entries();
    }
}

fn body(new: &NewInode) -> Result<Body, Refusal> {
    if new.kind != FileKind::Symlink && !new.target.is_empty() {
        return Err("a target, but not a symbolic link");
    }
    Ok(match new.kind {
        FileKind::Regular => Body::Extents(Extents::default()),
        FileKind::Directory => Body::Entries(BTreeMap::new()),
        FileKind::Symlink if new.target.is_empty() || new.target.len() > TARGET_LEN_MAX => {
            return Err("a symbolic link's target of impossible length");
        }
        FileKind::Symlink if new.target.contains(&0) => {
            return Err("a symbolic link's target with a zero in it");
        }
        FileKind::Symlink => Body::Target(new.target.as_slice().into()),
        _ => Body::Nothing,
    })
}

fn extent(s: &Splice, source: &RunSlice, numbers: &[u32]) -> Result<Extent, Refusal> {
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
        return Err("an extent outside of its run or pack");
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

pub(super) fn check_xattr(name: &[u8], value: Option<&[u8]>) -> Result<(), Refusal> {
    let lens = 1..=NAME_LEN_MAX;
    if !lens.contains(&name.len()) || value.is_some_and(|v| v.len() > XATTR_LEN_MAX) {
        return Err("an extended attribute of impossible length");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
