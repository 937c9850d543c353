//! fallocate(2), and the free space that it promises.
//!
//! A promise holds while the library is mounted: other writers do not see that space as free. It covers bytes that are
//! not stored yet. Nothing is written in place, so overwriting stored bytes needs more space, but none is reserved for
//! that: otherwise a program that allocates a file that is already written would fail with ENOSPC.

use std::collections::BTreeMap;

use super::{FileState, Files};
use crate::error::{Kind, Result};
use crate::index::extents::Extents;
use crate::volume::{FILE_LEN_MAX, Fallocate, Ino};

/// Space is promised in whole blocks of this length, in bytes, as on a disk.
const BLOCK_LEN: u64 = 4096;

/// Maximum number of promised ranges per file. Beyond it, the two closest ranges are merged, with the gap between them.
const RANGES_MAX: usize = 64;

type Ranges = BTreeMap<u64, u64>;

/// The ranges of a file that fallocate(2) promised space for.
#[derive(Debug, Default)]
pub struct Promised {
    /// Start to end; disjoint, in whole blocks.
    ranges: Ranges,
    /// Bytes in these ranges that are not stored yet: neither in a pack nor in a buffer.
    pub empty_bytes: u64,
}

impl Promised {
    /// Whether nothing is promised.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds the blocks that overlap `from..to`.
    fn add(&mut self, from: u64, to: u64) {
        let mut from = from / BLOCK_LEN * BLOCK_LEN;
        let mut to = to.div_ceil(BLOCK_LEN) * BLOCK_LEN;
        if from >= to {
            return;
        }
        while let Some((start, end)) = self.ranges.range(..=to).next_back()
            && *end >= from
        {
            (from, to) = (from.min(*start), to.max(*end));
            self.ranges.remove(&{ *start });
        }
        self.ranges.insert(from, to);
        if self.ranges.len() > RANGES_MAX {
            let gaps = self.ranges.iter().zip(self.ranges.iter().skip(1));
            let closest = gaps.min_by_key(|((_, end), (next, _))| **next - **end);
            if let Some(((start, _), (next, end))) =
                closest.map(|(a, b)| ((*a.0, *a.1), (*b.0, *b.1)))
            {
                self.ranges.remove(&next);
                self.ranges.insert(start, end);
            }
        }
    }

    /// Removes the blocks that are entirely in `from..to`.
    fn cut(&mut self, from: u64, to: u64) {
        let from = from.div_ceil(BLOCK_LEN) * BLOCK_LEN;
        let to = to / BLOCK_LEN * BLOCK_LEN;
        if from >= to {
            return;
        }
        while let Some((start, end)) = self.ranges.range(..to).next_back().map(|(s, e)| (*s, *e))
            && end > from
        {
            self.ranges.remove(&start);
            if end > to {
                self.ranges.insert(to, end);
            }
            if start < from {
                self.ranges.insert(start, from);
            }
        }
    }

    /// The parts of `from..to` that are promised.
    fn within(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let ranges = self.ranges.range(..to).rev();
        ranges
            .map(move |(start, end)| ((*start).max(from), (*end).min(to)))
            .take_while(|(from, to)| from < to)
    }
}

impl FileState {
    /// Bytes of `from..to` that are promised and not stored yet.
    pub fn empty_bytes(&self, extents: &Extents, from: u64, to: u64) -> u64 {
        let promised = self.promised.within(from, to);
        promised
            .map(|(from, to)| self.holes(extents, from, to))
            .sum()
    }

    /// Bytes of `from..to` that are not stored yet.
    fn holes(&self, extents: &Extents, from: u64, to: u64) -> u64 {
        let in_flight = self.in_flight.iter().flat_map(|l| l.parts(from, to));
        let written = self.dirty.parts(from, to).chain(in_flight);
        let mut held: Vec<(u64, u64)> = written
            .map(|(at, part)| (at, at + part.len() as u64))
            .collect();
        let stored = extents.overlapping(from, to).iter();
        held.extend(stored.map(|e| (e.plain_offset.max(from), e.plain_end().min(to))));
        held.sort_unstable();
        let (mut at, mut holes) = (from, 0);
        for (start, end) in held {
            holes += start.saturating_sub(at);
            at = at.max(end);
        }
        holes + to.saturating_sub(at)
    }
}

impl Files {
    pub fn allocate(
        &self,
        ino: Ino,
        plain_offset: u64,
        plain_len: u64,
        mode: Fallocate,
    ) -> Result<()> {
        self.log.check_writable()?;
        let end = plain_offset
            .checked_add(plain_len)
            .filter(|end| *end <= FILE_LEN_MAX)
            .ok_or(Kind::FileTooLarge)?;
        if plain_len == 0 {
            return Err(Kind::InvalidArgument.into());
        }
        match mode {
            Fallocate::Allocate { keep_size } => {
                let before = self.promise(ino, plain_offset, end)?;
                let grown = self.change_ranges(ino, |plain_size, _| match keep_size {
                    true => plain_size,
                    false => plain_size.max(end),
                });
                if grown.is_err() {
                    self.change_promise(ino, |promised| promised.ranges = before);
                }
                grown
            }
            Fallocate::PunchHole => {
                self.make_hole(ino, plain_offset, end, true)?;
                self.change_promise(ino, |promised| promised.cut(plain_offset, end));
                Ok(())
            }
            Fallocate::ZeroRange { keep_size } => {
                let before = self.promise(ino, plain_offset, end)?;
                let zeroed = self.make_hole(ino, plain_offset, end, keep_size);
                // The zeroed bytes are no longer stored, so the promise covers them again.
                self.change_promise(ino, |promised| {
                    if zeroed.is_err() {
                        promised.ranges = before;
                    }
                });
                zeroed
            }
        }
    }

    fn make_hole(&self, ino: Ino, from: u64, to: u64, keep_size: bool) -> Result<()> {
        self.change_ranges(ino, |plain_size, splices| {
            splices.hole(from, to.min(plain_size).saturating_sub(from));
            match keep_size {
                true => plain_size,
                false => plain_size.max(to),
            }
        })
    }

    /// Promises space for a range if there is enough. Returns the previously promised ranges.
    fn promise(&self, ino: Ino, from: u64, to: u64) -> Result<Ranges> {
        let before = self.change_promise(ino, |promised| promised.add(from, to));
        match self.has_space(0) {
            Ok(true) => Ok(before),
            failed => {
                self.change_promise(ino, |promised| promised.ranges = before);
                failed.and(Err(Kind::NoSpace.into()))
            }
        }
    }

    /// Changes the promised ranges of a file and recounts their empty bytes. Returns the previous ranges.
    pub fn change_promise(&self, ino: Ino, change: impl FnOnce(&mut Promised)) -> Ranges {
        let file = self.file(ino);
        let before = {
            let mut state = file.state.lock();
            let before = state.promised.ranges.clone();
            change(&mut state.promised);
            self.recount_promise(ino, &mut state);
            before
        };
        drop(file);
        self.close_file(ino);
        before
    }

    /// Recounts the empty bytes of the promised ranges, and drops ranges that are fully stored.
    pub fn recount_promise(&self, ino: Ino, state: &mut FileState) {
        let tree = self.view.tree();
        let mut ranges = std::mem::take(&mut state.promised.ranges);
        let mut empty_bytes = 0;
        if let Some(ix) = tree.find(ino) {
            let extents = tree.inode(ix).extents();
            ranges.retain(|from, to| {
                let empty = state.holes(extents, *from, *to);
                empty_bytes += empty;
                empty > 0
            });
        } else {
            ranges.clear();
        }
        state.promised.ranges = ranges;
        self.set_empty(state, empty_bytes);
    }

    fn set_empty(&self, state: &mut FileState, empty_bytes: u64) {
        /// More than the capacity of any store, and small enough that sums do not overflow.
        const MAX: u64 = 1 << 58;
        let empty_bytes = empty_bytes.min(MAX);
        let before = std::mem::replace(&mut state.promised.empty_bytes, empty_bytes);
        self.budget.recount_promised(before, empty_bytes);
    }

    /// Bytes of a write to `from..to` that use promised space.
    pub fn promised_for(&self, ino: Ino, from: u64, to: u64) -> u64 {
        if self.budget.promised_bytes() == 0 {
            return 0;
        }
        let Some(file) = self.opened(ino) else {
            return 0;
        };
        let state = file.state.lock();
        self.empty_now(ino, &state, from, to)
    }

    fn empty_now(&self, ino: Ino, state: &FileState, from: u64, to: u64) -> u64 {
        if state.promised.is_empty() {
            return 0;
        }
        let tree = self.view.tree();
        let ix = tree.find(ino);
        ix.map_or(0, |ix| {
            state.empty_bytes(tree.inode(ix).extents(), from, to)
        })
    }

    /// Accounts for a write to `from..to` that is about to be added to the buffer.
    pub fn fill_promise(&self, ino: Ino, state: &mut FileState, from: u64, to: u64) {
        let filled = self.empty_now(ino, state, from, to);
        if filled > 0 {
            let left = state.promised.empty_bytes.saturating_sub(filled);
            self.set_empty(state, left);
            if left == 0 {
                state.promised.ranges.clear();
            }
        }
    }

    /// Called after a change other than a write: drops promises past `plain_size`, and recounts the others.
    pub fn cut_promise(&self, ino: Ino, plain_size: u64) {
        if let Some(file) = self.opened(ino) {
            let mut state = file.state.lock();
            if !state.promised.is_empty() {
                state.promised.cut(plain_size, u64::MAX);
                self.recount_promise(ino, &mut state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whole_blocks_are_promised(
            ops in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20, 0u64..3), 1..40)
        ) {
            let mut promised = Promised::default();
            let mut model = [false; 100];
            for (adds, at, len, odd) in ops {
                let (from, to) = (at * BLOCK_LEN + odd, (at + len) * BLOCK_LEN + odd);
                let odd = usize::from(odd > 0);
                let (at, len) = (at as usize, len as usize);
                if adds {
                    promised.add(from, to);
                    model[at..at + len + odd].fill(true);
                } else {
                    promised.cut(from, to);
                    if len > 0 {
                        model[at + odd..at + len].fill(false);
                    }
                }
                let mut seen = [false; 100];
                for (from, to) in promised.within(0, u64::MAX) {
                    seen[(from / BLOCK_LEN) as usize..(to / BLOCK_LEN) as usize].fill(true);
                }
                prop_assert_eq!(seen, model);
            }
        }
    }

    #[test]
    fn many_ranges_become_few() {
        let mut promised = Promised::default();
        for i in 0..1000 {
            promised.add(2 * i * BLOCK_LEN, (2 * i + 1) * BLOCK_LEN);
        }
        assert_eq!(promised.ranges.len(), RANGES_MAX);
        let all = (0..1000).all(|i| {
            promised
                .within(2 * i * BLOCK_LEN, 2 * i * BLOCK_LEN + 1)
                .count()
                == 1
        });
        assert!(all, "what was promised stays so");
    }
}
