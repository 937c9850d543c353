//! Where a file's bytes are stored: a sorted list of extents, without the holes.

use crate::pack::{BLOCK_PLAIN_LEN, Run};

/// A range of a file, and the part of an encrypted run that holds it. 32 bytes, as a fragmented file has many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub plain_offset: u64,
    /// Length in bytes; never 0.
    pub plain_len: u32,
    /// The pack's number in the tree's table of packs.
    pub pack: u32,
    /// Offset of the run in the pack.
    pub cipher_offset: u32,
    /// Plaintext length of the run; the block boundaries follow from it.
    pub run_len: u32,
    /// Offset of the extent in the run's plaintext; `start + plain_len <= run_len`.
    pub start: u32,
}

impl Extent {
    /// Offset of its end in the file.
    pub fn plain_end(&self) -> u64 {
        self.plain_offset + u64::from(self.plain_len)
    }

    /// The part inside `from..to`, which must overlap the extent.
    pub fn clip(&self, from: u64, to: u64) -> Self {
        let skip = from.saturating_sub(self.plain_offset) as u32;
        let end = to.min(self.plain_end());
        let plain_offset = self.plain_offset + u64::from(skip);
        Self {
            plain_offset,
            plain_len: (end - plain_offset) as u32,
            start: self.start + skip,
            ..*self
        }
    }

    /// Merges `next` into this extent if the two are adjacent in the file and in one run.
    fn absorb(&mut self, next: &Self) -> bool {
        if self.pack != next.pack || self.plain_end() != next.plain_offset {
            return false;
        }
        let same_run =
            self.cipher_offset == next.cipher_offset && self.start + self.plain_len == next.start;
        if same_run {
            // One of the two may have been written before the run grew: the longer run has the same blocks.
            self.run_len = self.run_len.max(next.run_len);
            self.plain_len += next.plain_len;
            return true;
        }
        // A run of whole blocks and the run stored right after it count as one.
        let run = Run {
            pack: Default::default(),
            cipher_offset: self.cipher_offset,
            plain_len: self.run_len,
        };
        let joined = next.start == 0
            && self.start + self.plain_len == self.run_len
            && self.run_len.is_multiple_of(BLOCK_PLAIN_LEN)
            && run.cipher_offset + run.cipher_len() == next.cipher_offset;
        if joined {
            self.run_len += next.run_len;
            self.plain_len += next.plain_len;
        }
        joined
    }
}

/// A new extent or hole for a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentChange {
    /// Offset in the file.
    pub plain_offset: u64,
    /// Length in bytes.
    pub plain_len: u64,
    /// An extent with this offset and length, or `None` for a hole.
    pub extent: Option<Extent>,
}

impl ExtentChange {
    fn plain_end(&self) -> u64 {
        self.plain_offset + self.plain_len
    }
}

/// The extents of one file: ascending, disjoint. A single extent, as most files have, is stored inline and not on the
/// heap.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Extents {
    /// No bytes.
    #[default]
    Empty,
    /// One extent.
    One(Extent),
    /// Several.
    Many(Box<Many>),
}

/// Several extents.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Many {
    list: Vec<Extent>,
    /// Sum of their lengths, cached for stat(2).
    plain_bytes: u64,
}

impl Extents {
    /// All extents.
    pub fn as_slice(&self) -> &[Extent] {
        match self {
            Self::Empty => &[],
            Self::One(e) => std::slice::from_ref(e),
            Self::Many(many) => &many.list,
        }
    }

    /// The extents that overlap `from..to`, not clipped.
    pub fn overlapping(&self, from: u64, to: u64) -> &[Extent] {
        let all = self.as_slice();
        let first = all.partition_point(|e| e.plain_end() <= from);
        let count = all[first..].partition_point(|e| e.plain_offset < to);
        &all[first..first + count]
    }

    /// Bytes of `from..to` that are not in holes.
    pub fn covered(&self, from: u64, to: u64) -> u64 {
        let within = self.overlapping(from, to).iter();
        within.map(|e| u64::from(e.clip(from, to).plain_len)).sum()
    }

    /// The first byte at or after `from` that is not in a hole.
    pub fn next_data(&self, from: u64) -> Option<u64> {
        let next = self.overlapping(from, u64::MAX).first();
        next.map(|e| e.plain_offset.max(from))
    }

    /// The first byte at or after `from` that is in a hole or after all extents.
    pub fn next_hole(&self, from: u64) -> u64 {
        let mut end = from;
        for e in self.overlapping(from, u64::MAX) {
            if e.plain_offset > end {
                break;
            }
            end = e.plain_end();
        }
        end
    }

    /// Replaces ranges of the file by `changes` (ascending, disjoint). `moved` is called with the pack and length of
    /// each extent that is added, and with the negative length of each that is removed.
    pub fn splice(&mut self, changes: &[ExtentChange], moved: &mut impl FnMut(u32, i64)) {
        if !changes.is_empty() {
            self.change(|many| many.splice(changes, moved));
        }
    }

    /// Removes everything from `plain_size` on.
    pub fn truncate(&mut self, plain_size: u64, moved: &mut impl FnMut(u32, i64)) {
        let last = self.as_slice().last();
        if last.is_some_and(|e| e.plain_end() > plain_size) {
            self.change(|many| many.truncate(plain_size, moved));
        }
    }

    /// Bytes that are not in holes.
    pub fn plain_bytes(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::One(e) => u64::from(e.plain_len),
            Self::Many(many) => many.plain_bytes,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Many)) {
        let mut many = match std::mem::take(self) {
            Self::Empty => Box::default(),
            Self::One(e) => Box::new(Many {
                list: vec![e],
                plain_bytes: u64::from(e.plain_len),
            }),
            Self::Many(many) => many,
        };
        change(&mut many);
        *self = match many.list[..] {
            [] => Self::Empty,
            [e] => Self::One(e),
            _ => Self::Many(many),
        };
    }
}

impl Many {
    fn splice(&mut self, changes: &[ExtentChange], moved: &mut impl FnMut(u32, i64)) {
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
            return;
        };
        // Include the extent before the first change: the change may continue it.
        let lo = self
            .list
            .partition_point(|e| e.plain_end() < first.plain_offset);
        let hi = lo + self.list[lo..].partition_point(|e| e.plain_offset < last.plain_end());
        let merged = merge(&self.list[lo..hi], changes);
        for e in &self.list[lo..hi] {
            self.plain_bytes -= u64::from(e.plain_len);
            moved(e.pack, -i64::from(e.plain_len));
        }
        for e in &merged {
            self.plain_bytes += u64::from(e.plain_len);
            moved(e.pack, i64::from(e.plain_len));
        }
        let more = merged.len().saturating_sub(hi - lo);
        // Amortised doubling would waste too much memory on the largest files.
        if self.list.len() + more > self.list.capacity() {
            self.list.reserve_exact(more + self.list.len() / 8);
        }
        self.list.splice(lo..hi, merged);
    }

    fn truncate(&mut self, plain_size: u64, moved: &mut impl FnMut(u32, i64)) {
        while let Some(last) = self.list.last_mut() {
            if last.plain_end() <= plain_size {
                break;
            }
            self.plain_bytes -= u64::from(last.plain_len);
            moved(last.pack, -i64::from(last.plain_len));
            if last.plain_offset < plain_size {
                *last = last.clip(0, plain_size);
                self.plain_bytes += u64::from(last.plain_len);
                moved(last.pack, i64::from(last.plain_len));
                break;
            }
            self.list.pop();
        }
        if self.list.capacity() > 4 * self.list.len() {
            self.list.shrink_to_fit();
        }
    }
}

/// `old` with `changes` on top.
fn merge(old: &[Extent], changes: &[ExtentChange]) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::with_capacity(old.len() + changes.len() + 1);
    let mut push = |e: Extent| {
        if !out.last_mut().is_some_and(|last| last.absorb(&e)) {
            out.push(e);
        }
    };
    let mut olds = old.iter().copied();
    let mut current = olds.next();
    for change in changes {
        while let Some(e) = current.filter(|e| e.plain_offset < change.plain_offset) {
            push(e.clip(0, change.plain_offset.min(e.plain_end())));
            current = if e.plain_end() > change.plain_offset {
                Some(e)
            } else {
                olds.next()
            };
            if current == Some(e) {
                break;
            }
        }
        while let Some(e) = current.filter(|e| e.plain_offset < change.plain_end()) {
            if e.plain_end() > change.plain_end() {
                current = Some(e.clip(change.plain_end(), e.plain_end()));
                break;
            }
            current = olds.next();
        }
        if let Some(e) = change.extent {
            push(e);
        }
    }
    current.into_iter().chain(olds).for_each(push);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: usize = 96;

    fn extent(plain_offset: u64, plain_len: u32, pack: u32, start: u32) -> Extent {
        Extent {
            plain_offset,
            plain_len,
            pack,
            cipher_offset: 48,
            run_len: 1000,
            start,
        }
    }

    /// What every byte shows: (pack, place in the run), or nothing.
    fn bytes(e: &Extents) -> Vec<Option<(u32, u32)>> {
        let mut out = vec![None; SPACE];
        for x in e.as_slice() {
            for i in 0..x.plain_len {
                let at = (x.plain_offset + u64::from(i)) as usize;
                assert!(out[at].is_none(), "extents overlap at {at}");
                out[at] = Some((x.pack, x.start + i));
            }
        }
        out
    }

    #[derive(Debug, Clone)]
    enum Op {
        Splice(Vec<(u64, u64, Option<u32>)>),
        Truncate(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let cuts = proptest::collection::btree_set(0..SPACE as u64, 2..8);
        let packs = proptest::collection::vec(proptest::option::of(0u32..3), 8);
        prop_oneof![
            8 => (cuts, packs).prop_map(|(cuts, packs)| {
                let cuts: Vec<u64> = cuts.into_iter().collect();
                let ranges = cuts.windows(2).zip(packs).enumerate();
                // Some ranges are skipped, so that there are gaps between the changes.
                Op::Splice(ranges.filter(|(i, _)| i % 3 != 1).map(|(_, (w, p))| (w[0], w[1] - w[0], p)).collect())
            }),
            1 => (0..SPACE as u64).prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn extents_show_what_was_put_there_last(ops in proptest::collection::vec(op(), 1..40)) {
            let mut extents = Extents::default();
            let mut model: Vec<Option<(u32, u32)>> = vec![None; SPACE];
            let mut live = [0i64; 3];
            for op in ops {
                let mut moved = |pack: u32, by: i64| live[pack as usize] += by;
                match op {
                    Op::Splice(ranges) => {
                        let changes: Vec<ExtentChange> = ranges.iter().map(|&(plain_offset, plain_len, pack)| ExtentChange {
                            plain_offset,
                            plain_len,
                            extent: pack.map(|p| extent(plain_offset, plain_len as u32, p, plain_offset as u32)),
                        }).collect();
                        extents.splice(&changes, &mut moved);
                        for (offset, len, pack) in ranges {
                            for at in offset..offset + len {
                                model[at as usize] = pack.map(|p| (p, at as u32));
                            }
                        }
                    }
                    Op::Truncate(size) => {
                        extents.truncate(size, &mut moved);
                        model[size as usize..].fill(None);
                    }
                }
                prop_assert_eq!(&bytes(&extents), &model);
                for from in 0..SPACE {
                    let (data, hole) = (extents.next_data(from as u64), extents.next_hole(from as u64));
                    let behind = &model[from..];
                    let at = |there: bool| behind.iter().position(|b| b.is_some() == there).map(|i| from + i);
                    prop_assert_eq!(data, at(true).map(|i| i as u64), "data behind {}", from);
                    prop_assert_eq!(hole, at(false).unwrap_or(SPACE) as u64, "hole behind {}", from);
                }
                prop_assert_eq!(extents.plain_bytes(), model.iter().flatten().count() as u64);
                for (pack, live) in live.iter().enumerate() {
                    let count = model.iter().flatten().filter(|(p, _)| *p == pack as u32).count();
                    prop_assert_eq!(*live, count as i64, "live bytes of pack {}", pack);
                }
            }
        }
    }

    #[test]
    fn a_stream_of_whole_blocks_is_one_extent() {
        let mut extents = Extents::default();
        let mut cipher_offset = 48;
        for i in 0..4u64 {
            let run_len = 4 * BLOCK_PLAIN_LEN;
            let plain_offset = i * u64::from(run_len);
            let e = Extent {
                plain_offset,
                plain_len: run_len,
                pack: 0,
                cipher_offset,
                run_len,
                start: 0,
            };
            let change = ExtentChange {
                plain_offset,
                plain_len: u64::from(run_len),
                extent: Some(e),
            };
            extents.splice(&[change], &mut |_, _| {});
            cipher_offset += Run {
                pack: Default::default(),
                cipher_offset,
                plain_len: run_len,
            }
            .cipher_len();
        }
        assert_eq!(extents.as_slice().len(), 1);
        assert_eq!(extents.as_slice()[0].run_len, 16 * BLOCK_PLAIN_LEN);
    }
}
