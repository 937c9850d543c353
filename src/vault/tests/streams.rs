//! Reading from the beginning to the end, which is fetched ahead in pieces.

use super::*;
use crate::error::Kind;
use crate::object::Area;

const REQUEST: usize = 128 << 10;
const MIB: usize = 1 << 20;

/// Bytes that differ from place to place.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// A library with files that were written in parts of odd lengths, so that extents begin anywhere. All is published.
fn published(files: &[(String, Vec<u8>)]) -> Bench {
    const PART: usize = 777_777;
    let mut bench = Bench::new();
    for (name, contents) in files {
        let ino = bench.make(name);
        for (i, part) in contents.chunks(PART).enumerate() {
            bench.write(ino, (i * PART) as u64, part);
        }
    }
    bench.remount().unwrap();
    bench
}

fn one(contents: &[u8]) -> Bench {
    published(&[("f".into(), contents.to_vec())])
}

/// A file read as the kernel does for a stream.
struct Stream<'a> {
    bench: &'a Bench,
    attr: Attr,
    handle: crate::volume::Handle,
    at: usize,
}

impl<'a> Stream<'a> {
    fn open(bench: &'a Bench, name: &str) -> Self {
        let attr = bench.stat(name).unwrap();
        let handle = bench.vault.open(attr.ino, libc::O_RDONLY).unwrap();
        Self {
            bench,
            attr,
            handle,
            at: 0,
        }
    }

    /// The next request; nothing at the end. After an error the one behind it is next.
    fn next(&mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0xaa; REQUEST];
        let at = self.at;
        self.at += REQUEST;
        let (vault, ino) = (&self.bench.vault, self.attr.ino);
        let len = vault.read(ino, self.handle, at as u64, &mut bytes)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// All the requests of a file of `len` bytes: where each starts, and what it brought.
    fn rest(&mut self, len: usize) -> Vec<(usize, Result<Vec<u8>>)> {
        let mut all = Vec::new();
        while self.at < len {
            all.push((self.at, self.next()));
        }
        all
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.bench.vault.release(self.attr.ino, self.handle);
    }
}

/// Changes the one pack behind the mount's back.
fn change_pack(bench: &Bench, change: impl FnOnce(&mut Vec<u8>)) {
    let packs = bench.store.objects(Area::Data);
    let [pack] = packs[..] else {
        panic!("one pack")
    };
    bench.store.with_object(Area::Data, pack, change).unwrap();
}

fn is_damage(read: &Result<Vec<u8>>) -> bool {
    read.as_ref()
        .is_err_and(|e| matches!(e.kind(), Kind::Damaged(_)))
}

#[test]
fn a_stream_is_opened_out_of_what_was_fetched_ahead() {
    let contents = noise(12 * MIB);
    let bench = one(&contents);
    let mut stream = Stream::open(&bench, "f");
    while stream.at < 6 * MIB {
        stream.next().unwrap();
    }
    bench.vault.view.settle();
    change_pack(&bench, |pack| pack.fill(0));
    // So much was there already. Then the damage is met: no zeros are passed on, and nothing is remembered wrongly.
    let rest = stream.rest(contents.len());
    let whole = rest.iter().take_while(|(_, read)| read.is_ok()).count();
    assert!(whole >= MIB / REQUEST, "{whole} requests were ahead");
    for (i, (at, read)) in rest.iter().enumerate() {
        match read {
            Ok(bytes) => assert!(*bytes == contents[*at..at + REQUEST]),
            Err(_) => assert!(i >= whole && is_damage(read)),
        }
    }
    assert!(rest.iter().any(|(_, read)| read.is_err()));
}

#[test]
fn a_stream_is_right_however_the_file_lies() {
    let mut contents = noise(9 * MIB + 4321);
    let mut bench = one(&contents);
    let ino = bench.stat("f").unwrap().ino;
    // Written over here and there, in packs of their own, and with holes.
    for round in 1..4usize {
        for i in 0..40usize {
            let at = (i * 219_001 * round) % (contents.len() - 50_000);
            let part = vec![(i * round) as u8; 1 + i * 1111];
            bench.write(ino, at as u64, &part);
            contents[at..at + part.len()].copy_from_slice(&part);
        }
        bench.remount().unwrap();
    }
    let end = contents.len() + 3 * MIB;
    bench.write(ino, end as u64, b"end");
    contents.resize(end, 0);
    contents.extend(b"end");
    for _ in 0..2 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for (at, read) in Stream::open(&bench, "f").rest(contents.len()) {
                        let end = contents.len().min(at + REQUEST);
                        assert!(read.unwrap() == contents[at..end], "at {at}");
                    }
                });
            }
        });
        bench.remount().unwrap();
    }
}

#[test]
fn damage_is_an_error_where_it_lies_and_nowhere_else() {
    let contents = noise(8 * MIB);
    let bench = one(&contents);
    change_pack(&bench, |pack| {
        let middle = pack.len() / 2;
        pack[middle] ^= 1;
    });
    let all = Stream::open(&bench, "f").rest(contents.len());
    let damaged = all.iter().filter(|(_, read)| is_damage(read)).count();
    assert!((1..=2).contains(&damaged), "{damaged} requests");
    for (at, read) in all.into_iter().filter(|(_, read)| !is_damage(read)) {
        assert!(read.unwrap() == contents[at..at + REQUEST]);
    }
}

#[test]
fn a_pack_that_ends_early_or_is_gone_is_an_error() {
    let contents = noise(8 * MIB);
    let bench = one(&contents);
    change_pack(&bench, |pack| pack.truncate(pack.len() / 2 + 77));
    let all = Stream::open(&bench, "f").rest(contents.len());
    for (at, read) in &all {
        let far = at.abs_diff(contents.len() / 2) > 2 * REQUEST;
        match read {
            Ok(bytes) => assert!(*bytes == contents[*at..at + REQUEST]),
            Err(_) => assert!(is_damage(read)),
        }
        assert!(!far || read.is_ok() == (*at < contents.len() / 2), "{at}");
    }
    let bench = one(&contents);
    bench
        .store
        .take_object(Area::Data, bench.store.objects(Area::Data)[0]);
    for (_, read) in Stream::open(&bench, "f").rest(contents.len()) {
        assert!(matches!(read.unwrap_err().kind(), Kind::Missing));
    }
}

#[test]
fn more_streams_than_there_is_memory_for_are_all_right() {
    let contents = noise(3 * MIB);
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|i| (format!("f{i}"), contents[i * 1001..].to_vec()))
        .collect();
    let bench = published(&files);
    let mut streams: Vec<Stream<'_>> = files
        .iter()
        .map(|(name, _)| Stream::open(&bench, name))
        .collect();
    for _ in 0..contents.len() / REQUEST {
        for (stream, (name, contents)) in streams.iter_mut().zip(&files) {
            let at = stream.at;
            let end = contents.len().min(at + REQUEST);
            assert!(
                stream.next().unwrap() == contents[at..end],
                "{name} at {at}"
            );
        }
    }
}
