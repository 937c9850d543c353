//! Samples of what was written to an unfinished file, to notice if another program overwrites or truncates it.
//!
//! If a backup is restored in place over a mounted library, or a tool truncates files, the open file stays the same, but
//! loses contents. The next write leaves a hole before it, and the length is right again. What is restored is usually an
//! older state of the same file, without the latest writes. Therefore samples are kept of the beginning, of the end at the
//! last check, and of the end of each write since.

use std::os::fd::OwnedFd;

use rustix::io::retry_on_intr;

/// Most marks that are kept. When there are more, every second one is dropped, and from then on only every second write
/// gets one.
const MARKS_MAX: usize = 64;
/// Bytes of a mark. They are ciphertext, so that no two marks are the same.
const MARK_LEN: usize = 16;

/// A sample: the end of a write.
#[derive(Clone, Copy)]
struct Mark {
    /// Its offset in the file.
    cipher_offset: u64,
    bytes: [u8; MARK_LEN],
}

impl Mark {
    /// Whether the file still has these bytes. An error of the store does not count as a change.
    fn is_in(&self, file: &OwnedFd) -> bool {
        let mut bytes = [0; MARK_LEN];
        let read = retry_on_intr(|| rustix::io::pread(file, &mut bytes, self.cipher_offset));
        read.is_err() || bytes == self.bytes
    }
}

/// The marks of one file, ordered by offset.
#[derive(Clone)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    /// One in this many writes gets a mark.
    stride: usize,
    /// Writes since the last one that got a mark.
    skipped: usize,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            marks: Vec::new(),
            stride: 1,
            skipped: 0,
        }
    }
}

impl Marks {
    /// Records a write.
    pub fn note(&mut self, data: &[u8], cipher_offset: u64) {
        let Some((_, last)) = data.split_last_chunk::<MARK_LEN>() else {
            return;
        };
        let mark = Mark {
            cipher_offset: cipher_offset + (data.len() - MARK_LEN) as u64,
            bytes: *last,
        };
        self.skipped += 1;
        if self.marks.is_empty() || self.skipped >= self.stride {
            self.skipped = 0;
            self.marks.push(mark);
        }
        if self.marks.len() > MARKS_MAX {
            let mut at = 0;
            self.marks.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// Whether the file still has all marks.
    pub fn are_in(&self, file: &OwnedFd) -> bool {
        self.marks.iter().all(|mark| mark.is_in(file))
    }

    /// Called after the marks `seen` were found in the file: from now on, the first and the last of them are enough.
    pub fn were_seen(&mut self, seen: &Self) {
        let Some(last) = seen.marks.last() else {
            return;
        };
        let mut is_first = true;
        self.marks
            .retain(|m| std::mem::take(&mut is_first) || m.cipher_offset >= last.cipher_offset);
        self.stride = 1;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_hole_shows_however_many_writes_there_were() {
        const LEN: usize = 100;
        let file = tempfile::tempfile().unwrap();
        let fd = OwnedFd::from(file.try_clone().unwrap());
        let mut marks = Marks::default();
        let write = |marks: &mut Marks, i: usize| {
            let data: Vec<u8> = (0..LEN).map(|at| (i * 31 + at * 7) as u8 | 1).collect();
            file.write_all_at(&data, (i * LEN) as u64).unwrap();
            marks.note(&data, (i * LEN) as u64);
        };
        for i in 0..1000 {
            write(&mut marks, i);
        }
        assert!(marks.marks.len() <= MARKS_MAX && marks.are_in(&fd));
        let cut = |from: u64| {
            let file_len = file.metadata().unwrap().len();
            let mut rest = vec![0; (file_len - from) as usize];
            file.read_exact_at(&mut rest, from).unwrap();
            file.set_len(from).unwrap();
            rest
        };
        // The last part goes, and more is written behind it.
        for from in [0, 48_000, 90_000] {
            let rest = cut(from);
            assert!(!marks.are_in(&fd), "{from}");
            file.set_len(200_000).unwrap();
            assert!(!marks.are_in(&fd), "{from}");
            file.write_all_at(&rest, from).unwrap();
            assert!(marks.are_in(&fd));
        }
        // What was seen needs no more than its beginning and its end.
        let seen = marks.clone();
        write(&mut marks, 1000);
        marks.were_seen(&seen);
        assert!(marks.marks.len() <= 3 && marks.are_in(&fd));
        cut(95_000);
        file.set_len(200_000).unwrap();
        assert!(!marks.are_in(&fd));
    }
}
