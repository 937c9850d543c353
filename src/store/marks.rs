//! What a growing file must still hold: a few bytes of what was written to it, here and there.
//!
//! A backup that is copied over a mounted library in place, or a tool that cuts files short, leaves the file that a
//! descriptor leads to and takes its contents. What is written next lies behind a hole then, and the length is right
//! again. What is put back is mostly an older state of the same file: whatever was written later is missing. So the
//! beginning is kept, the end as it was at the last look, and the end of each write since.

use std::os::fd::OwnedFd;

use rustix::io::retry_on_intr;

/// More are not kept: every second one goes then, and from there on only every second write has one.
const MARKS_MAX: usize = 64;
/// Bytes of a mark. They are ciphertext, so that no two places have the same.
const MARK_LEN: usize = 16;

/// The end of a write.
#[derive(Clone, Copy)]
struct Mark {
    /// Where it starts.
    cipher_offset: u64,
    bytes: [u8; MARK_LEN],
}

impl Mark {
    /// False where something else is there, or nothing. A store that cannot say is no sign.
    fn is_in(&self, file: &OwnedFd) -> bool {
        let mut bytes = [0; MARK_LEN];
        let read = retry_on_intr(|| rustix::io::pread(file, &mut bytes, self.cipher_offset));
        read.is_err() || bytes == self.bytes
    }
}

/// The marks of one file, in the order of their places.
#[derive(Clone)]
pub(super) struct Marks {
    marks: Vec<Mark>,
    /// One write of so many gets a mark.
    stride: usize,
    /// Writes since the last one that got a mark.
    passed_over: usize,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            marks: Vec::new(),
            stride: 1,
            passed_over: 0,
        }
    }
}

impl Marks {
    /// Notes a write.
    pub fn note(&mut self, data: &[u8], cipher_offset: u64) {
        let Some((_, last)) = data.split_last_chunk::<MARK_LEN>() else {
            return;
        };
        let mark = Mark {
            cipher_offset: cipher_offset + (data.len() - MARK_LEN) as u64,
            bytes: *last,
        };
        self.passed_over += 1;
        if self.marks.is_empty() || self.passed_over >= self.stride {
            self.passed_over = 0;
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

    /// Whether all of it is there.
    pub fn are_in(&self, file: &OwnedFd) -> bool {
        self.marks.iter().all(|mark| mark.is_in(file))
    }

    /// These were seen to be there: the first and the last are enough from now on.
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
