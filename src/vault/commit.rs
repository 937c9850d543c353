//! The committer: one thread that makes things durable and publishes them.
//!
//! All fsyncs that wait share one sync. Unasked, all that there is is made durable when the oldest of it is 5 s old, and
//! what is written out also when it exceeds 64 MiB: so steady work has one sync in 5 s. The open segment is published
//! when it is full, 30 s after the last change, or 5 minutes after the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Core;
use super::duty::Duties;
use crate::error::{Error, Kind, Result};
use crate::index::PackInfo;
use crate::index::record::Record;
use crate::store::Growing;
use crate::volume::{Done, Time};

/// What is dirty or not durable for so long, is made durable, with all else.
const DURABLE_AFTER: Duration = Duration::from_secs(5);
/// More than this is made durable at once, in bytes.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;
/// A segment is published so long after its last change.
const IDLE_PUBLISH: Duration = Duration::from_secs(30);
/// A segment is published so long after its first change.
const LATEST_PUBLISH: Duration = Duration::from_secs(300);
/// So often it is looked at what is due.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// What requests say to the committer.
#[derive(Default)]
pub struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// [`State::undurable_since`] is set, or about to be: most changes look at no more than this.
    has_changes: AtomicBool,
    /// Something could not be written for want of room, so what is dead has to go.
    room_wanted: AtomicBool,
    /// Contents were lost that nobody may have been told of.
    has_lost: AtomicBool,
}

#[derive(Default)]
struct State {
    waiting: Vec<Done>,
    /// They wait until what is dead is removed.
    waiting_for_room: Vec<Done>,
    /// Since when something may be dirty, or framed and not durable.
    undurable_since: Option<Instant>,
    stop: bool,
    /// The thread has ended: whoever waits for it is told so.
    is_gone: bool,
}

impl Shared {
    /// Something was written, or is dirty.
    pub fn changed(&self) {
        if !self.has_changes.swap(true, Ordering::AcqRel) {
            // The first change after a while: the committer may sleep without a limit.
            let mut state = self.state.lock();
            state.undurable_since.get_or_insert_with(Instant::now);
            self.wake.notify_one();
        }
    }

    /// Whether [`Shared::want_room`] was called since it was asked.
    fn is_room_wanted(&self) -> bool {
        self.room_wanted.swap(false, Ordering::AcqRel)
    }

    /// Whether all that was changed up to now has to be made durable; who is told so does it. What changes from now on
    /// has its own age.
    fn take_due(&self) -> bool {
        let is_due = |since: &mut Instant| since.elapsed() >= DURABLE_AFTER;
        let mut state = self.state.lock();
        let due = state.undurable_since.take_if(is_due).is_some();
        if due {
            self.has_changes.swap(false, Ordering::AcqRel);
        }
        due
    }

    /// Lets what was changed up to now be so much older.
    #[cfg(test)]
    pub fn age(&self, by: Duration) {
        let mut state = self.state.lock();
        state.undurable_since = state
            .undurable_since
            .and_then(|since| since.checked_sub(by));
    }

    /// What was asked for and is not done, or is asked for from now on, nobody does.
    fn is_gone(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_gone = true;
            let mut waiting = std::mem::take(&mut state.waiting);
            waiting.append(&mut state.waiting_for_room);
            waiting
        };
        if !waiting.is_empty() {
            answer(waiting, Err(Error::new(Kind::Poisoned, "the committer")));
        }
    }

    /// Has `done` called when all that is framed now is durable.
    pub fn request(&self, done: Done) {
        let mut state = self.state.lock();
        if state.is_gone {
            drop(state);
            return done(Err(Error::new(Kind::Poisoned, "the committer")));
        }
        state.waiting.push(done);
        self.wake.notify_one();
    }

    /// Has `done` called when what is dead was removed, as far as that could be done.
    pub fn request_room(&self, done: Done) {
        let mut state = self.state.lock();
        if state.is_gone || state.stop {
            drop(state);
            return done(Ok(()));
        }
        state.waiting_for_room.push(done);
        self.wake.notify_one();
    }

    /// Contents were lost: who unmounts is told.
    pub fn note_loss(&self) {
        self.has_lost.store(true, Ordering::Release);
    }

    /// There was no room to write something. Unlike [`Shared::request_room`] for who cannot wait.
    pub fn want_room(&self) {
        if !self.room_wanted.swap(true, Ordering::AcqRel) {
            self.changed();
        }
    }
}

/// Where the thread ends by a panic, nobody must wait for it for ever.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_gone();
        }
    }
}

/// The running thread.
pub struct Committer {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts it.
    pub fn start(core: Arc<Core>) -> Result<Self> {
        let run = core.clone();
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || run.commit_until_stopped())
            .map_err(|e| Error::new(Kind::Io(e), "the committer's thread"))?;
        Ok(Self {
            core,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends it, with everything flushed, durable and published. After an error it may be called again.
    pub fn stop(&self) -> Result<()> {
        self.halt()?;
        self.core.commit.is_gone();
        let core = &self.core;
        // The end takes room, too.
        core.view.store().reserve(0)?;
        // One file that cannot be written out must not keep the others from being published, nor what is dead.
        let flushed = core.flush_all();
        // Where the library is not at its place at all, publishing says so.
        let gone = core.look_after_place().unwrap_or_default();
        let collected = core.collect();
        core.publish()?;
        // Who always mounts for moments would never get one else. All is there without it, too.
        if let Err(e) = core.maintain() {
            log::warn!("{e}");
        }
        core.journal.lock().discard_empty()?;
        let lost = match core.commit.has_lost.swap(false, Ordering::AcqRel) {
            true => Err(Error::damaged(
                "contents",
                "some were lost while it was mounted; the log lists them",
            )),
            false => Ok(()),
        };
        flushed
            .and(collected)
            .and(gone.map_or(Ok(()), Err))
            .and(lost)
    }

    /// Ends the thread, with all that waits answered.
    pub fn halt(&self) -> Result<()> {
        let Some(thread) = self.thread.lock().take() else {
            return Ok(());
        };
        self.core.commit.state.lock().stop = true;
        self.core.commit.wake.notify_one();
        thread
            .join()
            .map_err(|_| Error::new(Kind::Poisoned, "the committer"))
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Dropped without close: like a crash, but the thread must not outlive the store.
        let _ = self.halt();
    }
}

impl Core {
    fn commit_until_stopped(&self) {
        let _alive = Alive(&self.commit);
        let mut duties = Duties::default();
        let mut quiet = false;
        loop {
            {
                let mut state = self.commit.state.lock();
                if state.stop {
                    break;
                }
                if state.waiting.is_empty() && state.waiting_for_room.is_empty() {
                    if quiet && state.undurable_since.is_none() {
                        self.commit.wake.wait(&mut state);
                    } else {
                        self.commit.wake.wait_for(&mut state, LOOK);
                    }
                }
            }
            self.serve();
            self.make_room(&mut duties);
            quiet = self.do_what_is_due(&mut duties);
        }
        self.serve();
        self.make_room(&mut duties);
    }

    /// Answers the fsyncs that wait. Work that takes long does this in between.
    pub(super) fn serve(&self) {
        let waiting = std::mem::take(&mut self.commit.state.lock().waiting);
        if !waiting.is_empty() {
            answer(waiting, self.sync());
        }
    }

    /// Removes what is dead, where somebody waits for room.
    fn make_room(&self, duties: &mut Duties) {
        let waiting = std::mem::take(&mut self.commit.state.lock().waiting_for_room);
        if waiting.is_empty() {
            return;
        }
        duties.publish.note(self.collect());
        // Whether that made enough, those see who waited.
        waiting.into_iter().for_each(|done| done(Ok(())));
    }

    /// What is due without anybody asking. Failures are logged: what failed is tried again. True where nothing will be
    /// due until something changes.
    pub(super) fn do_what_is_due(&self, duties: &mut Duties) -> bool {
        duties.empty.note(self.empty_spoiled());
        self.drop_all_unused();
        self.close_files();
        let is_old = self.commit.take_due();
        let is_due = is_old || self.contents.unsynced_bytes() > UNSYNCED_BYTES_MAX;
        let mut is_synced = true;
        if is_due {
            let flushed = if is_old { self.flush_dirty() } else { Ok(()) };
            let synced = self.sync();
            is_synced = synced.is_ok();
            duties.write.note(synced.and(flushed));
        }
        let (is_full, changes) = {
            let journal = self.journal.lock();
            (journal.is_full(), journal.changes())
        };
        let is_late = self.bases.is_lost()
            || changes.is_some_and(|(first, last)| {
                last.elapsed() >= IDLE_PUBLISH || first.elapsed() >= LATEST_PUBLISH
            });
        let room_wanted = self.commit.is_room_wanted() && self.is_any_dead();
        let publishes = is_full || is_late || room_wanted;
        if (is_due || publishes) && is_synced && duties.publish.may_be_tried() {
            duties.publish.note(self.publish_what_is_due(publishes));
        } else if room_wanted {
            self.commit.want_room();
        }
        let mut waits = true;
        if duties.rewrite.may_be_tried() {
            let rewritten = self.rewrite_fragmented();
            duties.rewrite.note(rewritten.map(|more| waits = more));
        }
        let is_durable = {
            let journal = self.journal.lock();
            journal.durable >= journal.appended
        };
        if !is_durable || self.budget.dirty_cost() > 0 {
            // What failed has an age again, and is tried again when it is due.
            self.commit.changed();
            return false;
        }
        changes.is_none() && self.contents.is_idle() && !waits && !room_wanted
    }

    /// Writes out every file in which something is dirty, and waits for what is being written out.
    fn flush_dirty(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.files.dirty() {
            self.serve();
            result = result.and(self.flush_and_close(file));
        }
        result
    }

    /// Publishes the packs that are full, and with `all`, or where room is wanted, the open segment and pack.
    fn publish_what_is_due(&self, all: bool) -> Result<()> {
        if !all {
            self.publish_packs()?;
            if !self.is_room_wanted()? {
                return Ok(());
            }
        }
        self.collect()?;
        self.restore_reserve();
        self.maintain()
    }

    /// Makes everything durable that is framed now. The packs and the segment are synced side by side: should the
    /// power go in between, a frame counts only if all that it names opens.
    pub(super) fn sync(&self) -> Result<()> {
        loop {
            let (segment, appended) = {
                let journal = self.journal.lock();
                if journal.durable >= journal.appended {
                    drop(journal);
                    return self.check_place().inspect_err(|_| self.replace_ruined());
                }
                journal.sync_point()
            };
            let synced = self.sync_packs_and(segment.as_ref());
            if synced.is_ok() {
                // Durable, and where nobody will find it: not what was asked for.
                self.check_place().inspect_err(|_| self.replace_ruined())?;
            }
            let mut journal = self.journal.lock();
            if let Err(e) = synced {
                // This sync has failed, whatever the next one does: that needs a file that can be synced.
                if let Err(again) = journal.replace_unsyncable(&self.view) {
                    log::warn!("{again}");
                }
                return Err(e);
            }
            if journal.synced(segment.as_deref(), appended) {
                return Ok(());
            }
        }
    }

    /// What is not what was written any more, and was synced before, goes the way of what cannot be synced.
    fn replace_ruined(&self) {
        self.contents.put_back_unsynced(self.contents.growing());
        if let Err(e) = self.journal.lock().replace_unsyncable(&self.view) {
            log::warn!("{e}");
        }
    }

    fn sync_packs_and(&self, segment: Option<&Arc<dyn Growing>>) -> Result<()> {
        let unsynced = self.contents.take_unsynced();
        let sync_packs = || unsynced.files.iter().try_for_each(|pack| pack.sync());
        let synced = match segment {
            // On a disk the two waits are one: the filesystem below commits both together.
            Some(segment) if !unsynced.files.is_empty() => self.side_sync.sync(segment, sync_packs),
            Some(segment) => segment.sync(),
            None => sync_packs(),
        };
        match &synced {
            Ok(()) => unsynced.uncache(),
            Err(_) => self.contents.put_back_unsynced(unsynced.files),
        }
        synced
    }

    /// Publishes the packs that are full.
    fn publish_packs(&self) -> Result<()> {
        let finished = self.contents.finished();
        if finished.is_empty() {
            return Ok(());
        }
        let records = finished.iter().map(|p| Record::Pack(*p)).collect();
        self.journal
            .lock()
            .append(&self.view, Time::now(), records)?;
        self.sync()?;
        self.contents.publish(&finished)
    }

    /// Finishes the open pack and the open segment, and publishes both.
    pub(super) fn publish(&self) -> Result<()> {
        self.empty_spoiled()?;
        self.look_after_place()?;
        // Where that failed the last time, it keeps the open segment from being closed.
        self.publish_closed()?;
        // Most of the waiting, while others go on.
        self.sync()?;
        if !self.finish()? {
            return Ok(());
        }
        self.publish_closed()?;
        self.check_published();
        // Not part of the library: without it only a rollback to here goes unnoticed.
        if let Err(e) = self.remember() {
            log::warn!("{e}");
        }
        Ok(())
    }

    /// Publishes the closed segment, and first the packs that it names.
    fn publish_closed(&self) -> Result<()> {
        let Some(closed) = self.journal.lock().to_publish() else {
            return Ok(());
        };
        let mut finished = self.contents.finished();
        {
            let tree = self.view.tree();
            // One that no record names yet has to wait for it: it would be taken for a crash's.
            let is_recorded = |p: &PackInfo| p.cipher_len.is_some();
            finished.retain(|p| tree.find_pack(p.pack).is_some_and(is_recorded));
        }
        self.contents.publish(&finished)?;
        self.publish_segment(closed, false)?;
        self.journal.lock().published();
        Ok(())
    }

    /// Gives the open pack and the open segment an end that is durable; false where nothing has changed.
    fn finish(&self) -> Result<bool> {
        // Locked to the end: no frame may name a pack that is still open when the segment closes, and none may be
        // made on top of an end that is not durable.
        let mut journal = self.journal.lock();
        if journal.is_idle() && self.contents.is_idle() {
            return Ok(false);
        }
        self.contents.finish_open()?;
        if let Some(id) = self.contents.spoiled().first() {
            // What failed meanwhile has to be copied first: a published frame names published packs only.
            return Err(Error::new(Kind::Poisoned, format_args!("data/{id}")));
        }
        let finished = self.contents.finished();
        if !finished.is_empty() {
            let records = finished.iter().map(|p| Record::Pack(*p)).collect();
            journal.append(&self.view, Time::now(), records)?;
        }
        let closed = journal.close_segment(&self.view)?;
        let (segment, appended) = journal.sync_point();
        self.sync_packs_and(segment.as_ref())?;
        journal.synced(segment.as_deref(), appended);
        if let Some(closed) = closed {
            journal.closed(closed);
        }
        Ok(true)
    }
}

fn answer(waiting: Vec<Done>, synced: Result<()>) {
    let failed = synced
        .as_ref()
        .err()
        .map(|e| (e.is_no_space(), e.to_string()));
    if let Some((_, text)) = &failed {
        log::error!("fsync: {text}");
    }
    for done in waiting {
        done(match &failed {
            None => Ok(()),
            Some((true, _)) => Err(Kind::NoSpace.into()),
            Some((false, text)) => Err(Error::damaged("fsync", text)),
        });
    }
}
