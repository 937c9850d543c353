//! A read-only mount of a library that others keep writing: the index is reread when it has changed.
//!
//! The new tree replaces the old one as a whole. Inodes that the kernel or open files refer to keep their inode numbers
//! and directory cookies. Packs keep their numbers, which are part of the keys of the block cache. Then the kernel is
//! notified of what changed, because it caches attributes and names for a day.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::View;
use crate::error::{Error, Kind, Result};
use crate::index::record::Head;
use crate::index::{InodeIx, Replayed, Tree, check_rollback, replay};
use crate::object::{Area, SegmentId};
use crate::vault::conflicts::{ReportedConflicts, settle_in_memory};
use crate::volume::{Changed, FileKind, Ino, OnChange};

/// Interval at which `index/` is listed.
const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// Minimum interval between listings of `index/`, if a missing pack asks for one immediately.
const CHECK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Maximum time to wait for the thread to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of following the index.
pub(in crate::vault) struct Follow {
    /// Segments that depend on missing ones are shown, too.
    unfounded: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether a [`Follower`] was started.
    is_followed: bool,
    /// The files of `index/` that the tree was replayed from, with their lengths.
    files: Vec<(SegmentId, u64)>,
    /// The newest segment of each device that the tree includes.
    heads: Vec<Head>,
    last_check: Option<Instant>,
    /// The files of `index/` that could not be used the last time; not tried again until they change.
    refused: Vec<(SegmentId, u64)>,
    /// Changes that the kernel was not notified of yet.
    changed: Vec<Changed>,
    /// The last warning, so that it is logged only once.
    last_warning: String,
    reported: ReportedConflicts,
}

/// The thread that checks the index for changes.
pub(in crate::vault) struct Follower {
    /// Disconnected to end the thread.
    stop: Option<mpsc::Sender<()>>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Follow {
    pub fn new(unfounded: bool, replayed: &Replayed) -> Self {
        let state = State {
            files: replayed.files.clone(),
            heads: replayed.heads.values().copied().collect(),
            ..State::default()
        };
        Self {
            unfounded,
            state: Mutex::new(state),
        }
    }
}

impl Follower {
    /// Starts the thread, which calls `on_change` for each change, twice.
    pub fn start(view: &Arc<View>, on_change: OnChange) -> Result<Self> {
        view.follow.state.lock().is_followed = true;
        let view = Arc::clone(view);
        let (stop, stopped) = mpsc::channel::<()>();
        let (running, ended) = mpsc::channel::<()>();
        let check = move || {
            let _running = running;
            // Each change is reported twice: a reply with the old state may have been in flight, and have reached the
            // kernel after the first notification.
            let mut again = Vec::new();
            while stopped.recv_timeout(CHECK_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                let mut state = view.follow.state.lock();
                view.reread_if_changed(&mut state);
                let changed = std::mem::take(&mut state.changed);
                drop(state);
                again.iter().chain(&changed).for_each(&on_change);
                again = changed;
            }
        };
        let thread = std::thread::Builder::new()
            .name("follow".into())
            .spawn(check);
        Ok(Self {
            stop: Some(stop),
            ended,
            thread: Some(thread.map_err(|e| Error::new(Kind::Io(e), "cannot start a thread"))?),
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        // If the store hangs, the thread may be abandoned, because it writes nothing.
        let ended = self.ended.recv_timeout(STOP_TIMEOUT);
        if let Some(thread) = self.thread.take()
            && ended != Err(mpsc::RecvTimeoutError::Timeout)
        {
            let _ = thread.join();
        }
    }
}

impl View {
    /// Settles the conflicts that a merge left, in a read-only mount.
    pub(in crate::vault) fn settle_conflicts(&self) -> Result<()> {
        let mut state = self.follow.state.lock();
        settle_in_memory(&mut self.tree.write(), &mut state.reported)
    }

    /// Checks the index for changes, as the thread does. Returns how many conflicts were reported.
    #[cfg(test)]
    pub(in crate::vault) fn check_now(&self) -> usize {
        let mut state = self.follow.state.lock();
        state.is_followed = true;
        self.reread_if_changed(&mut state);
        assert!(state.last_warning.is_empty(), "{}", state.last_warning);
        state.reported.count()
    }

    /// Called if a pack is missing: if the library is followed, a newer index may no longer need the pack.
    pub(in crate::vault) fn reread_for_missing_pack(&self) {
        let mut state = self.follow.state.lock();
        if state
            .last_check
            .is_none_or(|at| self.env.since(at) > CHECK_INTERVAL_MIN)
        {
            self.reread_if_changed(&mut state);
        }
    }

    /// Rereads the index if its files have changed. If the new index cannot be used, the tree stays as it is, and the
    /// error is logged once.
    fn reread_if_changed(&self, state: &mut State) {
        if !state.is_followed {
            return;
        }
        state.last_check = Some(self.env.now());
        let read = self.store.list(Area::Index).and_then(|listed| {
            let listed = listed.into_iter();
            let mut files: Vec<_> = listed.map(|(id, len)| (SegmentId(id), len)).collect();
            files.sort_unstable();
            if state.files == files || state.refused == files {
                return Ok(());
            }
            state.refused.clear();
            self.reread(state).inspect_err(|e| {
                if !matches!(e.kind(), Kind::Io(_)) {
                    state.refused = files;
                }
            })
        });
        if let Err(e) = read {
            let text = e.to_string();
            if text != state.last_warning {
                log::warn!("the index has changed, but cannot be used yet: {text}");
            }
            state.last_warning = text;
        }
    }

    fn reread(&self, state: &mut State) -> Result<()> {
        let (packs, root) = {
            let tree = self.tree.read();
            let packs: Vec<_> = tree.packs().iter().map(|p| p.id).collect();
            (packs, tree.attr(crate::index::ROOT_IX))
        };
        let empty = || {
            let mut tree = Tree::new(root.uid, root.gid, root.btime);
            for id in &packs {
                tree.intern_pack(*id);
            }
            tree
        };
        let replayed = replay(&*self.store, &self.master, self.follow.unfounded, empty)?;
        check_rollback(&state.heads, replayed.heads.values())?;
        for gap in &replayed.gaps {
            log::warn!("the index is incomplete: {gap} is missing or changed");
        }
        let mut new = replayed.tree;
        settle_in_memory(&mut new, &mut state.reported)?;
        state.heads = replayed.heads.into_values().collect();
        let old = {
            let mut tree = self.tree.write();
            new.take_references(&tree);
            std::mem::replace(&mut *tree, new)
        };
        state.files = replayed.files;
        state.changed.extend(changes(&old, &self.tree.read()));
        Ok(())
    }
}

/// The differences between two trees that concern inodes which the kernel may have cached.
fn changes(old: &Tree, new: &Tree) -> Vec<Changed> {
    let mut changed = Vec::new();
    for ix in old.held() {
        let (ino, was) = (old.ino(ix), old.attr(ix));
        let now = new.find_id(old.inode(ix).id());
        let is_same = now.is_some_and(|now| {
            new.attr(now) == was
                && new.to_wire(new.inode(now).version()) == old.to_wire(old.inode(ix).version())
        });
        let mut is_changed = !is_same;
        if was.kind == FileKind::Directory {
            let (before, after) = (names(old, Some(ix)), names(new, now));
            for (name, child) in &before {
                if after.get(name) != Some(child) {
                    changed.push(name_of(ino, name));
                }
            }
            let added = after.keys().filter(|name| !before.contains_key(*name));
            changed.extend(added.map(|name| name_of(ino, name)));
            is_changed |= before != after;
        }
        if is_changed {
            changed.push(Changed::Inode(ino));
        }
    }
    changed
}

fn name_of(parent: Ino, name: &[u8]) -> Changed {
    Changed::Name(parent, OsStr::from_bytes(name).to_owned())
}

fn names(tree: &Tree, dir: Option<InodeIx>) -> BTreeMap<&[u8], Ino> {
    let entries = dir.into_iter().flat_map(|dir| tree.entries(dir, 0));
    entries
        .map(|(_, link)| (link.name(), tree.ino(link.inode())))
        .collect()
}
