//! A mount that only reads, of a library that others go on writing: the index is read again when it has changed.
//!
//! The new tree takes the place of the old one as a whole, with what the kernel and open files hold: that keeps
//! its numbers and its places in directories. Packs keep their numbers, by which the cache knows blocks. Then the kernel
//! is told what is not as it was: what it keeps, it keeps for a day.

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
use crate::vault::conflicts::{Told, settle_in_memory};
use crate::volume::{Changed, FileKind, Ino, OnChange};

/// So often the folder of the index is listed.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Who misses a pack has it listed at once, but not more often than this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// At the end, the thread is waited for so long.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What reading the index again needs to know.
pub(in crate::vault) struct Follow {
    /// Segments are shown, too, that were made on top of what is missing.
    unfounded: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether anybody is told of changes.
    is_followed: bool,
    /// What is shown was made of these files of `index/`.
    files: Vec<(SegmentId, u64)>,
    /// The newest segment of each device that is shown.
    heads: Vec<Head>,
    looked: Option<Instant>,
    /// Files that cannot be shown: they are not tried again while they are the same.
    refused: Vec<(SegmentId, u64)>,
    /// What the kernel is to be told.
    changed: Vec<Changed>,
    /// What was warned of last.
    warned: String,
    /// The conflicts that were warned of.
    told: Told,
}

/// The thread that looks.
pub(in crate::vault) struct Follower {
    /// Hangs up to end it.
    stop: Option<mpsc::Sender<()>>,
    /// Hangs up when the thread has ended.
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
    pub fn start(view: &Arc<View>, tell: OnChange) -> Result<Self> {
        view.follow.state.lock().is_followed = true;
        let view = Arc::clone(view);
        let (stop, stopped) = mpsc::channel::<()>();
        let (running, ended) = mpsc::channel::<()>();
        let look = move || {
            let _running = running;
            // Told twice: an answer that was under way may have come behind the first time.
            let mut again = Vec::new();
            while stopped.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let mut state = view.follow.state.lock();
                view.reread(&mut state);
                let changed = std::mem::take(&mut state.changed);
                drop(state);
                again.iter().chain(&changed).for_each(&tell);
                again = changed;
            }
        };
        let thread = std::thread::Builder::new()
            .name("follow".into())
            .spawn(look);
        Ok(Self {
            stop: Some(stop),
            ended,
            thread: Some(thread.map_err(|e| Error::new(Kind::Io(e), "a thread"))?),
        })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Where the store does not answer, it holds up nobody: the thread writes nothing.
        let ended = self.ended.recv_timeout(END_PATIENCE);
        if let Some(thread) = self.thread.take()
            && ended != Err(mpsc::RecvTimeoutError::Timeout)
        {
            let _ = thread.join();
        }
    }
}

impl View {
    /// Settles, for a mount that only reads, what a merge left in conflict.
    pub(in crate::vault) fn settle_shown(&self) -> Result<()> {
        let mut state = self.follow.state.lock();
        settle_in_memory(&mut self.tree.write(), &mut state.told)
    }

    /// Looks whether the index has changed, as the thread does; answers how many conflicts were warned of.
    #[cfg(test)]
    pub(in crate::vault) fn look_now(&self) -> usize {
        let mut state = self.follow.state.lock();
        state.is_followed = true;
        self.reread(&mut state);
        assert!(state.warned.is_empty(), "{}", state.warned);
        state.told.count()
    }

    /// A pack is missing: in a library that is followed, the index may say by now that it is not needed.
    pub(in crate::vault) fn follow_missing(&self) {
        let mut state = self.follow.state.lock();
        if state
            .looked
            .is_none_or(|at| self.env.since(at) > LOOK_AGAIN)
        {
            self.reread(&mut state);
        }
    }

    /// Reads the index again where its files are others than before. What does not hold is not shown, and said once.
    fn reread(&self, state: &mut State) {
        if !state.is_followed {
            return;
        }
        state.looked = Some(self.env.now());
        let read = self.store.list(Area::Index).and_then(|listed| {
            let listed = listed.into_iter();
            let mut files: Vec<_> = listed.map(|(id, len)| (SegmentId(id), len)).collect();
            files.sort_unstable();
            if state.files == files || state.refused == files {
                return Ok(());
            }
            state.refused.clear();
            self.show_anew(state).inspect_err(|e| {
                if !matches!(e.kind(), Kind::Io(_)) {
                    state.refused = files;
                }
            })
        });
        if let Err(e) = read {
            let text = e.to_string();
            if text != state.warned {
                log::warn!("what is shown stays as it was, for now: {text}");
            }
            state.warned = text;
        }
    }

    fn show_anew(&self, state: &mut State) -> Result<()> {
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
        settle_in_memory(&mut new, &mut state.told)?;
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

/// What of that which the kernel may know is not as it was.
fn changes(old: &Tree, new: &Tree) -> Vec<Changed> {
    let mut changed = Vec::new();
    for ix in old.held() {
        let (ino, was) = (old.ino(ix), old.attr(ix));
        let now = new.find_id(old.inode(ix).id());
        let is_same = now.is_some_and(|now| {
            new.attr(now) == was
                && new.wire(new.inode(now).version()) == old.wire(old.inode(ix).version())
        });
        let mut is_changed = !is_same;
        if was.kind == FileKind::Directory {
            let (before, after) = (names(old, Some(ix)), names(new, now));
            for (name, child) in &before {
                if after.get(name) != Some(child) {
                    changed.push(name_of(ino, name));
                }
            }
            let made = after.keys().filter(|name| !before.contains_key(*name));
            changed.extend(made.map(|name| name_of(ino, name)));
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
