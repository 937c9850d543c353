use super::*;
use std::io::Write;
use std::time::{Duration, Instant};

const FRAMES: usize = 40;
const PIECE: usize = 256 << 10;

fn key() -> FernetKey {
    FernetKey::parse(b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap()
}

/// A file of frames in this order, each full of its own number, and a reader that expects them in turn.
fn reader(order: &[usize], cache_bytes: usize) -> FrameReader {
    let frame = |number: &usize| vec![*number as u8; FRAME_PLAIN_LEN];
    let (mut stored, mut md5) = (Vec::new(), Md5::new());
    for number in order {
        key().seal(1, &[7; 16], &frame(number), &mut stored);
    }
    for number in 0..order.len() {
        md5.update(frame(&number));
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&stored).unwrap();
    let plain_size = (order.len() * FRAME_PLAIN_LEN) as u64;
    let (file, cache) = (Arc::new(file), Arc::new(BlockCache::new(cache_bytes)));
    let expected = md5.finalize().into();
    FrameReader::new(
        file,
        key(),
        Frames::Canonical,
        plain_size,
        Some(expected),
        cache,
    )
}

/// Reads all of it as the kernel does for a stream: pieces in turn, each by whoever has time. Answers how many
/// failed.
fn stream(reader: &FrameReader) -> usize {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut piece = vec![0; PIECE];
                loop {
                    let at = next.fetch_add(PIECE as u64, Ordering::Relaxed);
                    if at >= reader.plain_size() {
                        return;
                    }
                    match reader.read_exact_at(at, &mut piece) {
                        Ok(()) => {
                            let number = at / FRAME_PLAIN_LEN as u64;
                            assert!(piece.iter().all(|b| u64::from(*b) == number));
                        }
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    failed.into_inner() as usize
}

#[test]
fn a_stream_by_several_threads_is_read_and_digested() {
    let order: Vec<usize> = (0..FRAMES).collect();
    for cache_bytes in [64 << 20, 0] {
        let reader = reader(&order, cache_bytes);
        assert_eq!(stream(&reader), 0);
        let digested = reader.order.as_ref().map(|order| order.next());
        assert_eq!(digested, Some(FRAMES as u64));
    }
}

#[test]
fn swapped_frames_are_noticed_at_the_end_of_a_sequential_read() {
    let mut order: Vec<usize> = (0..FRAMES).collect();
    // As somebody would who cannot forge frames, but move them.
    order[7] = 9;
    order[9] = 7;
    let reader = reader(&order, 64 << 20);
    let mut byte = [0];
    for frame in [FRAMES - 1, 7, 20] {
        let at = (frame * FRAME_PLAIN_LEN) as u64;
        reader.read_exact_at(at, &mut byte).unwrap();
    }
    for frame in 0..FRAMES - 2 {
        let at = (frame * FRAME_PLAIN_LEN) as u64;
        reader.read_exact_at(at, &mut byte).unwrap();
    }
    // With the last but one, the thread comes to the last frame, which it was given before its turn: perhaps before
    // this read has its answer.
    let at = ((FRAMES - 2) * FRAME_PLAIN_LEN) as u64;
    let _ = reader.read_exact_at(at, &mut byte);
    let order = reader.order.as_ref().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while order.working.load(Ordering::Acquire) {
        assert!(Instant::now() < end, "the digest hangs");
        std::thread::yield_now();
    }
    let last = ((FRAMES - 1) * FRAME_PLAIN_LEN) as u64;
    assert!(reader.read_exact_at(last, &mut byte).is_err());
    // From then on everywhere.
    assert!(reader.read_exact_at(0, &mut byte).is_err());
}
