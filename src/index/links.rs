//! Applying records to links, the names in directories.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use super::apply::Refusal;
use super::inode::*;
use super::record::*;
use super::tree::*;
use crate::volume::{FileKind, NAME_LEN_MAX, Time};

/// Cookies below this are reserved: 0 is the start of a directory, 1 and 2 are `.` and `..`.
const COOKIE_MIN: u32 = 3;
/// 32-bit programs fail on a directory with a larger cookie.
const COOKIE_MAX: u32 = i32::MAX as u32;

impl Tree {
    /// Sets a link's place to `to`. Another link may have that name: for a moment (an exchange places two links one
    /// after the other), or because two devices used the name concurrently.
    pub(super) fn place(&mut self, at: Stamp, wall: Time, to: &LinkAt) -> Result<(), Refusal> {
        check_name(&to.name)?;
        let Some(inode) = self.find_id(to.inode.unwrap_or(to.link)) else {
            return Ok(());
        };
        let Some(parent) = self.parent_for(to) else {
            return Ok(());
        };
        if self.inode(parent).kind != FileKind::Directory {
            return Err("a link below something that is not a directory");
        }
        let link = self.find_link(inode, to.link);
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        if link.is_none()
            && (self.is_taken(to.link, inode) || is_dir && self.inode(inode).is_linked())
        {
            // No valid writer gives one link to two inodes, or a second link to a directory.
            return Ok(());
        }
        if let Some(link) = link {
            let set_at = self.link(link).at;
            if set_at == at {
                // A snapshot has the link, but perhaps the inodes as they were before.
                self.touch(parent, at, wall);
                let inode = self.inode_mut(inode);
                inode.ctime = wall.max(inode.ctime.into()).into();
            }
            if !self.is_later(at, set_at) {
                return Ok(());
            }
            self.detach(link, at, wall);
        }
        if self.during_snapshot
            && let Some(other) = self.child(parent, &to.name)
            && self.is_later(self.link(other).at, at)
            && self.device_of(self.link(other).at) == self.device_of(at)
        {
            // The snapshot already has a later link of the same device at this name. So this link was moved or removed
            // in between, which a later record says.
            if let Some(link) = link {
                self.remove_link(link);
            }
            return Ok(());
        }
        let link = match link {
            Some(link) => {
                let l = self.links.get_mut(link.0).expect("found above");
                if l.parent != parent {
                    l.cookie = 0;
                }
                (l.parent, l.name, l.at) = (parent, to.name.as_slice().into(), at);
                link
            }
            None => {
                let name = to.name.as_slice().into();
                #[rustfmt::skip]
                let new = Link { inode, parent, name, at, cookie: 0 };
                self.insert_link(to.link, new)
            }
        };
        self.mark_placed(link);
        self.attach(link, at, wall);
        Ok(())
    }

    /// The device whose record set a register.
    pub(super) fn device_of(&self, at: Stamp) -> crate::object::DeviceId {
        self.segments[at.segment as usize].device
    }

    /// The directory that a link is placed in. If several devices wrote, it may have been removed without a trace (by
    /// records that are only in a snapshot, of a device that did not know the link): then the link is placed in the
    /// root.
    fn parent_for(&self, to: &LinkAt) -> Option<InodeIx> {
        let is_merging = self.unsettled.is_some();
        self.find_id(to.parent)
            .or(is_merging.then_some(super::inode::ROOT_IX))
    }

    /// Whether another inode has a link of this id.
    fn is_taken(&self, link: Id, inode: InodeIx) -> bool {
        let other = self.other_links.get(&link).map(|ix| self.link(*ix).inode);
        let own = self.find_id(link).filter(|ix| *ix != inode);
        other.is_some() || own.is_some_and(|ix| self.find_link(ix, link).is_some())
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

    /// Sorts directory entries by creation of the links, regardless of the order in which records were applied.
    pub(super) fn order_entries(&mut self) {
        // The low halves of two devices' ids may be equal.
        let order = |tree: &Self, ix: LinkIx| {
            let id = tree.link_id(ix);
            (id.low(), id)
        };
        let is_mixed = |(_, inode): &(u32, &Inode)| match &inode.body {
            Body::Entries(entries) => !entries.values().is_sorted_by_key(|ix| order(self, *ix)),
            _ => false,
        };
        let mixed: Vec<u32> = self
            .inodes
            .iter_from(0)
            .filter(is_mixed)
            .map(|(at, _)| at)
            .collect();
        for at in mixed {
            let Body::Entries(entries) =
                std::mem::replace(&mut self.inode_mut(InodeIx(at)).body, Body::Nothing)
            else {
                continue;
            };
            let mut links: Vec<LinkIx> = entries.into_values().collect();
            links.sort_by_cached_key(|ix| order(self, *ix));
            for (cookie, ix) in (COOKIE_MIN..).zip(&links) {
                self.links
                    .get_mut(ix.0)
                    .expect("a directory holds links in use")
                    .cookie = cookie;
            }
            let entries = (COOKIE_MIN..).zip(links).collect();
            self.inode_mut(InodeIx(at)).body = Body::Entries(entries);
        }
    }

    /// Keeps the cookies of a directory in `old`, so that a listing in progress continues; new entries follow.
    pub(super) fn keep_cookies(&mut self, dir: InodeIx, old: &Tree, was: InodeIx) {
        let (Body::Entries(before), Body::Entries(after)) =
            (&old.inode(was).body, &self.inode(dir).body)
        else {
            return;
        };
        let places: HashMap<Id, u32> = before
            .iter()
            .map(|(cookie, ix)| (old.link_id(*ix), *cookie))
            .collect();
        let mut next = before
            .last_key_value()
            .map_or(COOKIE_MIN, |(cookie, _)| cookie + 1);
        if next as usize + after.len() > COOKIE_MAX as usize {
            return;
        }
        let place = |ix: &LinkIx| {
            let cookie = places.get(&self.link_id(*ix)).copied();
            let cookie = cookie.unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            (cookie, *ix)
        };
        let entries: BTreeMap<u32, LinkIx> = after.values().map(place).collect();
        for (cookie, ix) in &entries {
            let link = self.links.get_mut(ix.0);
            link.expect("a directory holds links in use").cookie = *cookie;
        }
        self.inode_mut(dir).body = Body::Entries(entries);
    }

    /// Adds a link to its directory.
    fn attach(&mut self, ix: LinkIx, at: Stamp, wall: Time) {
        let link = self.link(ix);
        let (parent, inode, own) = (link.parent, link.inode, link.cookie);
        let hash = self.name_hash(parent, &link.name);
        let Self {
            by_name,
            links,
            hash: build,
            ..
        } = self;
        by_name.insert_unique(hash, ix, |ix| {
            let link = links.get(ix.0).expect("the table holds slots in use");
            build.hash_one((link.parent.0, &*link.name))
        });
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        let dir = self.inode_mut(parent);
        dir.count += u32::from(is_dir);
        if let Body::Entries(entries) = &mut dir.body {
            // A renamed entry keeps its cookie, so that a program that renames while listing does not see it twice.
            let is_free = |cookie: &u32| *cookie >= COOKIE_MIN && !entries.contains_key(cookie);
            let last = entries.last_key_value().map(|(cookie, _)| *cookie);
            let next = last.map_or(COOKIE_MIN, |last| last + 1);
            let cookie = match own {
                own if is_free(&own) => own,
                _ if next <= COOKIE_MAX => next,
                _ => (COOKIE_MIN..).find(is_free).unwrap_or(next),
            };
            entries.insert(cookie, ix);
            self.links.get_mut(ix.0).expect("found above").cookie = cookie;
        }
        self.touch(parent, at, wall);
        self.update_ctime(inode, wall);
    }

    /// Removes a link from its directory, but not the link itself.
    pub(super) fn detach(&mut self, ix: LinkIx, at: Stamp, wall: Time) {
        let link = self.link(ix);
        let (parent, inode, cookie) = (link.parent, link.inode, link.cookie);
        let hash = self.name_hash(parent, &link.name);
        if let Ok(entry) = self.by_name.find_entry(hash, |other| *other == ix) {
            entry.remove();
        }
        let is_dir = self.inode(inode).kind == FileKind::Directory;
        let dir = self.inode_mut(parent);
        dir.count = dir.count.saturating_sub(u32::from(is_dir));
        if let Body::Entries(entries) = &mut dir.body
            && entries.get(&cookie) == Some(&ix)
        {
            entries.remove(&cookie);
        }
        self.touch(parent, at, wall);
    }

    /// Updates a directory's version and times after a change of its entries.
    fn touch(&mut self, dir: InodeIx, at: Stamp, wall: Time) {
        if self.is_later(at, self.inode(dir).version) {
            let inode = self.inode_mut(dir);
            inode.version = at;
            inode.mtime = wall.into();
            self.update_ctime(dir, wall);
        }
    }

    pub(super) fn unlink(&mut self, at: Stamp, wall: Time, gone: &Unlink) {
        let Some(inode) = self.find_id(gone.inode.unwrap_or(gone.link)) else {
            return;
        };
        let Some(ix) = self.find_link(inode, gone.link) else {
            if self.during_snapshot {
                // It was removed before the snapshot reached it, but perhaps after the snapshot reached the inode.
                self.update_ctime(inode, wall);
            }
            self.mark_unlinked(inode, gone.link, at);
            return;
        };
        if !self.is_later(at, self.link(ix).at) {
            return;
        }
        // A directory in which another device created something is kept.
        if self.has_entries(inode) {
            return;
        }
        self.detach(ix, at, wall);
        self.remove_link(ix);
        self.update_ctime(inode, wall);
        self.mark_unlinked(inode, gone.link, at);
    }

    /// Deletes a link that was removed from its directory.
    pub(super) fn remove_link(&mut self, ix: LinkIx) {
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

    pub(super) fn has_entries(&self, ix: InodeIx) -> bool {
        matches!(&self.inode(ix).body, Body::Entries(entries) if !entries.is_empty())
    }
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    let impossible = name.is_empty() || name.len() > NAME_LEN_MAX || name == b"." || name == b"..";
    if impossible || name.iter().any(|c| matches!(c, b'/' | 0)) {
        Err("invalid name")
    } else {
        Ok(())
    }
}
