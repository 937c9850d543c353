//! Written ranges of a file that are not stored yet.

use std::collections::BTreeMap;

/// Most bytes of a buffer. When it is full, another one follows it.
const CHUNK_LEN_MAX: usize = 1 << 20;
/// Memory of a buffer besides its contents, in bytes. It counts towards the bound on dirty memory, so that many tiny writes
/// are bounded as well.
const CHUNK_COST: usize = 96;

/// Written ranges of a file: disjoint buffers, ordered by offset.
#[derive(Debug, Default)]
pub struct Dirty {
    chunks: BTreeMap<u64, Vec<u8>>,
    cost: usize,
}

impl Dirty {
    /// Its memory, in bytes.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// Whether there are no written ranges.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Where the last written range ends; 0 if there is none.
    pub fn end(&self) -> u64 {
        let last = self.chunks.last_key_value();
        last.map_or(0, |(start, chunk)| start + chunk.len() as u64)
    }

    /// The number of buffers.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Writes `data` at `plain_offset`, over earlier writes.
    pub fn write(&mut self, mut plain_offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let taken = self.write_some(plain_offset, data);
            plain_offset += taken as u64;
            data = &data[taken..];
        }
    }

    /// Writes the beginning of `data` to the buffer that it starts in, to the end of the one that it continues, or to a new
    /// one, and returns how many bytes that were.
    fn write_some(&mut self, at: u64, data: &[u8]) -> usize {
        let next = self.chunks.range(at + 1..).next().map(|(start, _)| *start);
        let room = next.map_or(usize::MAX, |start| {
            usize::try_from(start - at).unwrap_or(usize::MAX)
        });
        if let Some((start, chunk)) = self.chunks.range_mut(..=at).next_back() {
            let skip = (at - start) as usize;
            if skip < chunk.len() {
                let len = data.len().min(chunk.len() - skip);
                chunk[skip..skip + len].copy_from_slice(&data[..len]);
                return len;
            }
            if skip == chunk.len() && chunk.len() < CHUNK_LEN_MAX {
                let len = data.len().min(room).min(CHUNK_LEN_MAX - chunk.len());
                chunk.extend_from_slice(&data[..len]);
                self.cost += len;
                return len;
            }
        }
        let len = data.len().min(room).min(CHUNK_LEN_MAX);
        self.chunks.insert(at, data[..len].to_vec());
        self.cost += len + CHUNK_COST;
        len
    }

    /// The written parts of `from..to`, in ascending order.
    pub fn parts(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let first = self
            .chunks
            .range(..=from)
            .next_back()
            .map_or(from, |(start, _)| *start);
        self.chunks
            .range(first..to.max(first))
            .filter_map(move |(&start, chunk)| {
                let (a, b) = (start.max(from), (start + chunk.len() as u64).min(to));
                (a < b).then(|| (a, &chunk[(a - start) as usize..(b - start) as usize]))
            })
    }

    /// The written ranges, in ascending order. Adjacent buffers are one range.
    pub fn ranges(&self) -> Vec<(u64, Vec<&[u8]>)> {
        let mut ranges: Vec<(u64, Vec<&[u8]>)> = Vec::new();
        let mut end = None;
        for (&start, chunk) in &self.chunks {
            match ranges.last_mut() {
                Some((_, parts)) if end == Some(start) => parts.push(chunk),
                _ => ranges.push((start, vec![chunk])),
            }
            end = Some(start + chunk.len() as u64);
        }
        ranges
    }

    /// Removes and returns everything after the last whole block of `block_len` bytes. More may be written to that last,
    /// incomplete block.
    pub fn take_tail(&mut self, block_len: u64) -> Dirty {
        self.take_from(self.end() / block_len * block_len)
    }

    /// Removes and returns everything at or after `plain_offset`.
    pub fn take_from(&mut self, plain_offset: u64) -> Dirty {
        let mut chunks = self.chunks.split_off(&plain_offset);
        self.cost -= cost(&chunks);
        if let Some((start, chunk)) = self.chunks.iter_mut().next_back()
            && start + chunk.len() as u64 > plain_offset
        {
            let behind = chunk.split_off((plain_offset - start) as usize);
            self.cost -= behind.len();
            chunks.insert(plain_offset, behind);
        }
        let cost = cost(&chunks);
        Dirty { chunks, cost }
    }

    /// Adds older data, which newer writes hide: a flush that failed gives its data back.
    pub fn put_under(&mut self, older: &Dirty) {
        let newer = std::mem::take(self);
        for (start, chunk) in &older.chunks {
            self.write(*start, chunk);
        }
        for (start, chunk) in newer.chunks {
            self.write(start, &chunk);
        }
    }

    /// The number of written bytes.
    pub fn plain_bytes(&self) -> u64 {
        self.chunks.values().map(|chunk| chunk.len() as u64).sum()
    }

    /// The number of written bytes outside of the file's extents.
    pub fn bytes_outside(&self, extents: impl Fn(u64, u64) -> u64) -> u64 {
        self.chunks
            .iter()
            .map(|(start, chunk)| chunk.len() as u64 - extents(*start, *start + chunk.len() as u64))
            .sum()
    }
}

fn cost(chunks: &BTreeMap<u64, Vec<u8>>) -> usize {
    chunks.values().map(|chunk| chunk.len() + CHUNK_COST).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dirty_ranges_hold_what_was_written_last(
            ops in proptest::collection::vec((0u64..200, 0usize..60, any::<u8>(), 0u8..6), 1..40)
        ) {
            let mut dirty = Dirty::default();
            let mut model: Vec<Option<u8>> = vec![None; 300];
            for (at, len, byte, what) in ops {
                let range = at as usize..at as usize + len;
                match what {
                    0 => {
                        let _ = dirty.take_from(at);
                        model[at as usize..].fill(None);
                    }
                    1 => {
                        // A flush of everything fails while this is written.
                        let older = std::mem::take(&mut dirty);
                        dirty.write(at, &vec![byte; len]);
                        dirty.put_under(&older);
                        model[range].fill(Some(byte));
                    }
                    2 => {
                        // Whole blocks leave, and fail to.
                        let edge = dirty.end() / 16 * 16;
                        let tail = dirty.take_tail(16);
                        let left = std::mem::replace(&mut dirty, tail);
                        prop_assert!(left.end() <= edge);
                        prop_assert!(dirty.ranges().iter().all(|(start, _)| *start >= edge));
                        dirty.put_under(&left);
                    }
                    _ => {
                        dirty.write(at, &vec![byte; len]);
                        model[range].fill(Some(byte));
                    }
                }
                let mut seen = vec![0; 300];
                for (at, part) in dirty.parts(0, 300) {
                    seen[at as usize..at as usize + part.len()].copy_from_slice(part);
                }
                let expected: Vec<u8> = model.iter().map(|b| b.unwrap_or(0)).collect();
                prop_assert_eq!(seen, expected);
                let mut covered = vec![false; 300];
                let mut cost = 0;
                for (start, parts) in dirty.ranges() {
                    let mut at = start as usize;
                    for part in parts {
                        covered[at..at + part.len()].fill(true);
                        at += part.len();
                        cost += part.len() + CHUNK_COST;
                    }
                }
                prop_assert_eq!(covered, model.iter().map(Option::is_some).collect::<Vec<_>>());
                prop_assert_eq!(cost, dirty.cost());
            }
        }
    }
}
