//! Checks of the index before the library is used: missing segments, ignored files, rollbacks.

use super::Options;
use crate::crypto::{HEADER_LEN, Magic, MasterKey};
use crate::error::{Error, Kind, Result};
use crate::index::record::Head;
use crate::index::{Ignored, Replayed, WAIT, What, check_rollback};
use crate::object::{Area, ObjectId, PackId, SegmentId, SlotId};
use crate::pack::PackReader;
use crate::store::{Store, index_has_not_arrived};

/// Maximum number of ignored files that are logged individually.
const NAMED_MAX: usize = 20;
/// Maximum number of files of `data/` that are examined if there is no index.
const EXAMINED_MAX: usize = 1000;

/// Logs an error instead of returning it, if the user has asked for that with `accept`.
pub(super) fn accept(accept: bool, checked: Result<()>) -> Result<()> {
    match checked {
        Err(e) if accept => {
            // The hint says what to do instead, which no longer applies.
            log::warn!("continuing anyway: {}", e.without_hint());
            Ok(())
        }
        checked => checked,
    }
}

/// The problems of an index that is used nevertheless.
pub(super) struct Findings {
    /// Part of the index may be missing, so no packs are removed.
    pub has_gaps: bool,
    /// Messages about what is missing or damaged.
    pub problems: Vec<String>,
}

/// Checks a replayed index. `remembered` holds the heads that this machine has seen.
///
/// # Errors The library must not be used in this state. A read-only mount shows an incomplete index and reports the
/// problems; a mount that writes requires that the user accepts them.
pub(super) fn check_index(
    store: &dyn Store,
    master: &MasterKey,
    options: &Options,
    remembered: &[Head],
    replayed: &mut Replayed,
) -> Result<Findings> {
    let accepts = options.accept_rollback;
    refuse_later(options, &mut replayed.ignored)?;
    warn_of_ignored(&replayed.ignored);
    let arrived = check_arrived(store, master, replayed);
    let has_arrived = arrived.is_ok();
    accept(accepts, arrived)?;
    // A damaged file is the likely cause of a rollback, so the error lists it.
    let is_damaged = replayed.ignored.iter().any(Ignored::is_problem);
    // Segments that wait for others are not applied, but they exist.
    let there = replayed.heads.values().chain(&replayed.waiting);
    let rolled_back = check_rollback(remembered, there).map_err(|e| match is_damaged {
        true => e.hint(format_args!("{WAIT}: {}", listed(&replayed.ignored))),
        false => e,
    });
    accept(accepts || options.read_only && is_damaged, rolled_back)?;
    let gaps = check_gaps(replayed);
    accept(accepts || options.read_only, gaps)?;
    if !options.read_only {
        check_writable(replayed.unwritable)?;
    }
    let missing = replayed.gaps.iter();
    let mut problems: Vec<String> = missing
        .map(|gap| format!("the index is incomplete: {gap} is missing or changed"))
        .collect();
    let ignored = replayed.ignored.iter().filter(|i| i.is_problem());
    problems.extend(ignored.map(Ignored::text));
    Ok(Findings {
        has_gaps: !has_arrived || !replayed.gaps.is_empty(),
        problems,
    })
}

/// Refuses files of later versions, unless the mount is read-only and the user accepts gaps.
fn refuse_later(options: &Options, ignored: &mut Vec<Ignored>) -> Result<()> {
    let is_later = |i: &Ignored| matches!(i.what, What::Later(_));
    if options.read_only && options.accept_rollback {
        return Ok(());
    }
    let Some(at) = ignored.iter().position(is_later) else {
        return Ok(());
    };
    match ignored.swap_remove(at).what {
        What::Later(e) => Err(e),
        _ => Ok(()),
    }
}

fn warn_of_ignored(ignored: &[Ignored]) {
    for one in ignored.iter().take(NAMED_MAX) {
        log::warn!("{}", one.text());
    }
    if ignored.len() > NAMED_MAX {
        let more = ignored.len() - NAMED_MAX;
        log::warn!("index: {more} more files in it are ignored");
    }
}

fn listed(ignored: &[Ignored]) -> String {
    let problems = ignored.iter().filter(|i| i.is_problem());
    let names: Vec<String> = problems
        .take(NAMED_MAX)
        .map(|i| match &i.what {
            What::Absent(absent) => format!("index/{}", absent.name),
            _ => format!("index/{}", i.id),
        })
        .collect();
    names.join(", ")
}

/// Refuses a library that has contents but no index, unless this device's first publication was interrupted: then the
/// index is in its own `new/`. Such a library is not empty; a sync may create the folders in any order.
fn check_arrived(store: &dyn Store, master: &MasterKey, replayed: &Replayed) -> Result<()> {
    let has_index = !replayed.heads.is_empty() || !replayed.waiting.is_empty();
    let is_part = |i: &Ignored| matches!(i.what, What::Part(_));
    if has_index {
        return Ok(());
    }
    let mut damaged = replayed.ignored.iter().filter(|i| is_part(i));
    let is_missing = damaged.next().is_some() || holds_pack(store, master)?;
    if !is_missing || holds_own_segment(store)? {
        return Ok(());
    }
    Err(index_has_not_arrived(Area::Index.name()))
}

/// Whether `data/` holds a pack, complete or not.
fn holds_pack(store: &dyn Store, master: &MasterKey) -> Result<bool> {
    let packs = store.list(Area::Data)?;
    let is_pack = |id: ObjectId| {
        let object = store.open(Area::Data, id);
        object
            .and_then(|object| PackReader::open(object, PackId(id), master))
            .is_ok()
    };
    let mut packs = packs.into_iter().take(EXAMINED_MAX);
    Ok(packs.any(|(id, _)| is_pack(id)))
}

fn holds_own_segment(store: &dyn Store) -> Result<bool> {
    let is_segment = |id: ObjectId| {
        let mut header = [0; HEADER_LEN];
        let read = store
            .open_leftover(id)
            .and_then(|file| file.read_at(&mut header, 0));
        read.is_ok() && header.starts_with(Magic::Segment.bytes())
    };
    match store.leftovers() {
        Ok(left) => Ok(left.into_iter().any(is_segment)),
        // There are no leftovers, or they cannot be examined.
        Err(e) if matches!(e.kind(), Kind::ReadOnly) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Refuses to write if a segment has a feature that this version can read, but must not write next to.
fn check_writable(unwritable: Option<SegmentId>) -> Result<()> {
    let Some(id) = unwritable else { return Ok(()) };
    let what = "this version can read the library, but not write to it";
    Err(
        Error::new(Kind::Unsupported(what.into()), format_args!("index/{id}"))
            .hint("mount it with --read-only, or install a newer hushfs"),
    )
}

fn check_gaps(replayed: &Replayed) -> Result<()> {
    if replayed.gaps.is_empty() {
        return Ok(());
    }
    let mut text = format!(
        "the index is incomplete: {} missing or changed",
        replayed.gaps.join(", ")
    );
    if replayed.ignored.iter().any(Ignored::is_problem) {
        text += &format!("; damaged: {}", listed(&replayed.ignored));
    }
    if !replayed.waiting.is_empty() {
        let count = replayed.waiting.len();
        text += &format!("; {count} later segments depend on that");
    }
    Err(Error::from(Kind::RolledBack(text.into())).hint(format_args!(
        "{WAIT}; --read-only shows the state before the gap, --read-only --accept-rollback shows everything that \
         exists, and --accept-rollback alone continues from that"
    )))
}

/// Returns the present slots, and those that were removed. Warns if a removed slot is back.
pub(super) fn list_slots(
    store: &dyn Store,
    listed: &[SlotId],
    removed: &[SlotId],
) -> Result<(Vec<SlotId>, Vec<SlotId>)> {
    const REMOVED_MAX: usize = 1024;
    let now: Vec<SlotId> = store
        .list(Area::Key)?
        .into_iter()
        .map(|(id, _)| SlotId(id))
        .collect();
    let gone = listed.iter().filter(|id| !now.contains(id));
    let mut removed: Vec<SlotId> = removed.iter().chain(gone).copied().collect();
    removed.dedup();
    for back in now.iter().filter(|id| removed.contains(id)) {
        log::warn!(
            "key/{back}: this slot was removed, but exists again: its password or key file unlocks the library again"
        );
    }
    let surplus = removed.len().saturating_sub(REMOVED_MAX);
    removed.drain(..surplus);
    Ok((now, removed))
}
