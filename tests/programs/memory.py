#!/usr/bin/env python3
"""The memory use of a mount under any load: the block cache, 96 MiB, and a little for each file and extent."""
import os
import random
import threading
from common import check, content, drop_caches, main, run

MIB = 1 << 20
CACHE_MIB, CONSTANT_MIB = 32, 96
FILE_BYTES, EXTENT_BYTES = 300, 32


def is_bounded(library, files, extents, what):
    with open(f"/proc/{library.process.pid}/status") as f:
        peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    bound = (CACHE_MIB + CONSTANT_MIB) * MIB + files * FILE_BYTES + extents * EXTENT_BYTES
    print(f"      {what}: {peak / MIB:.0f} MiB at most, {bound / MIB:.0f} may be")
    check(peak <= bound, f"{what} took {peak / MIB:.0f} MiB of memory, more than {bound / MIB:.0f}")


def side_by_side(threads, work):
    failures = []

    def guarded(i):
        try:
            work(i)
        except Exception as e:  # a thread's exception is nobody's else
            failures.append(e)

    running = [threading.Thread(target=guarded, args=(i,)) for i in range(threads)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    if failures:
        raise failures[0]


def test_random_writes(library):
    """Writes of 4 KiB all over a file, from several threads, for long enough that many snapshots and packs are
    written."""
    size, piece, threads, writes = 256 * MIB, 4096, 4, 100_000
    path, noise = library.mnt / "big", content("noise", MIB)
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            f.write(noise)

    def write(i):
        rnd = random.Random(i)
        fd = os.open(path, os.O_WRONLY)
        try:
            for _ in range(writes):
                os.pwrite(fd, noise[:piece], rnd.randrange(size // piece) * piece)
        finally:
            os.close(fd)

    side_by_side(threads, write)
    is_bounded(library, 1, size // piece, "random writes")


def test_small_appends(library):
    """Appends of 100 bytes, with a close after each."""
    appends, threads = 50_000, 2

    def append(i):
        for n in range(appends):
            with open(library.mnt / f"log{i}", "ab", buffering=0) as f:
                f.write(b"%099d\n" % n)

    side_by_side(threads, append)
    blocks = threads * appends * 100 // 16384
    is_bounded(library, threads, 8 * blocks, "small appends")
    for i in range(threads):
        got = (library.mnt / f"log{i}").read_bytes()
        check(got == b"".join(b"%099d\n" % n for n in range(appends)), "what was appended is not what is there")


def test_streams(library):
    """Many files are written and read from end to end concurrently."""
    streams, mib = 24, 24
    noise = content("stream", MIB)

    def write(i):
        with open(library.mnt / f"f{i}", "wb") as f:
            for _ in range(mib):
                f.write(noise)

    def read(i):
        with open(library.mnt / f"f{i}", "rb", buffering=0) as f:
            while got := f.read(MIB):
                check(got == noise[: len(got)], f"f{i} is not what was written")

    side_by_side(streams, write)
    is_bounded(library, streams, 1000, "writing streams")
    library.remount()
    side_by_side(streams, read)
    drop_caches()
    run("cp", "-r", library.mnt, library.base / "copy", timeout=300)
    is_bounded(library, streams, 1000, "reading streams")


if __name__ == "__main__":
    main()
