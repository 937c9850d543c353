#!/usr/bin/env python3
"""What programs expect of the contents of files: holes, maps, copies, direct and shared access.

Many cases check three times: immediately, after the kernel's caches are dropped, and after a remount, because the
answers then come from different layers.
"""
import ctypes
import errno
import mmap
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from common import call, check, content, fails, libc, main, run, same, stored_bytes, thrice, until

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
BLOCK = 4096


def fallocate(fd, mode, offset, length):
    call(libc.fallocate, fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def data_ranges(path):
    """Returns the ranges that SEEK_DATA and SEEK_HOLE report as data."""
    found, at = [], 0
    with open(path, "rb") as f:
        end = os.fstat(f.fileno()).st_size
        while at < end:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError as e:
                same(e.errno, errno.ENXIO, "SEEK_DATA behind the last data")
                break
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            check(at > start, f"SEEK_HOLE at {start} says {at}")
            found.append((start, at))
        fails(errno.ENXIO, lambda: os.lseek(f.fileno(), end, os.SEEK_DATA), "SEEK_DATA at the end")
        fails(errno.ENXIO, lambda: os.lseek(f.fileno(), end + 1, os.SEEK_HOLE), "SEEK_HOLE behind the end")
    return found


def test_sparse(library):
    """Holes take no space and are reported; dirty data is reported as data even before it is flushed."""
    path, mib = library.mnt / "sparse", 1 << 20
    with open(path, "wb") as f:
        f.truncate(100 * mib)
        for at in (10 * mib, 50 * mib):
            os.pwrite(f.fileno(), content(at, mib), at)
        same(os.lseek(f.fileno(), 0, os.SEEK_DATA), 10 * mib, "SEEK_DATA over what is not yet flushed")
        same(os.lseek(f.fileno(), 10 * mib, os.SEEK_HOLE), 11 * mib, "SEEK_HOLE over what is not yet flushed")

    def look():
        same(data_ranges(path), [(10 * mib, 11 * mib), (50 * mib, 51 * mib)], "data")
        blocks = os.stat(path).st_blocks * 512
        check(2 * mib <= blocks <= 3 * mib, f"2 MiB of data, and st_blocks says {blocks} bytes")
        with open(path, "rb") as f:
            whole = f.read()
        check(whole[10 * mib:11 * mib] == content(10 * mib, mib) and whole[50 * mib:51 * mib] == content(50 * mib, mib), "content of the data")
        same(len(whole.replace(b"\0", b"")) <= 2 * mib, True, "all else is zeros")
    thrice(library, look)
    check(stored_bytes(library) < 4 * mib or not (library.dir / "key").is_dir(), "2 MiB in a sparse file, and the library has grown by 4 and more")


def test_holes_beside_maps(library):
    """Data that is only in another program's map counts as data: `cp` and `tar` must not treat it as a hole."""
    path, size = library.mnt / "mapped", 8 << 20
    expected = bytearray(size)
    with open(path, "wb") as f:
        f.truncate(size)
    same(path.stat().st_blocks, 0, "blocks before there is a map, which the kernel remembers")
    # Blocks are only supposed as long as there may be a map.
    with open(path, "r+b"):
        check(path.stat().st_blocks > 0, "no blocks beside a handle that a map may belong to")
    until(lambda: path.stat().st_blocks == 0, "blocks when the handle is gone")
    # A process of its own: one that a descriptor was handed to writes the map back when it closes it.
    mapper = subprocess.Popen([sys.executable, "-c", MAPPER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def store(at, data):
        mapper.stdin.write(b"%d %s\n" % (at, data.hex().encode()))
        mapper.stdin.flush()
        mapper.stdout.readline()
        expected[at:at + len(data)] = data
    try:
        # First while none of the file's blocks is anywhere else: a file without any is zeros, to tar.
        store(size // 2, b"5")
        same_in_tar(library, path, expected)
        os.link(path, library.mnt / "linked")  # the answers to this, to a listing and to a chmod have attributes, too
        check(all(e.stat().st_blocks > 0 for e in os.scandir(library.mnt)), "no blocks after link(2)")
        path.chmod(0o640)
        check(path.stat().st_blocks > 0, "no blocks after chmod(2)")
        for at in range(0, size, 1 << 20):
            store(at + 5000, content(at, 10_000))
        run("cp", "--sparse=auto", path, library.mnt / "copy")
        check((library.mnt / "copy").read_bytes() == expected, "a copy")
        store(size - 1, b"9")
        store(40_000, content(7, 9000))
        same_in_tar(library, path, expected)
        # Many at once, while pages become dirty.
        seekers = [threading.Thread(target=lambda: [seek_about(path) for _ in range(20)]) for _ in range(16)]
        for t in seekers:
            t.start()
        for i in range(2000):
            store(i * 4099 % size, b"%c" % (i % 256))
        for t in seekers:
            t.join(60)
            check(not t.is_alive(), "lseek hangs beside a map")
    finally:
        mapper.stdin.close()
        mapper.wait(30)
    thrice(library, lambda: check(path.read_bytes() == expected, "content"))


def same_in_tar(library, path, expected):
    # With 1 it says that the file changed meanwhile: its time does, when the map is written back.
    run("tar", "-cSf", library.base / "sparse.tar", "-C", path.parent, path.name, ok=(0, 1))
    run("tar", "-xf", library.base / "sparse.tar", "-C", library.base)
    check((library.base / path.name).read_bytes() == expected, "what tar -S took")


MAPPER = """
import mmap, sys
with open(sys.argv[1], "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
    for line in sys.stdin:
        at, data = line.split()
        mapped[int(at):int(at) + len(data) // 2] = bytes.fromhex(data)
        print(flush=True)
"""


def seek_about(path):
    with open(path, "rb") as f:
        at = 0
        try:
            while True:
                at = os.lseek(f.fileno(), os.lseek(f.fileno(), at, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as e:
            same(e.errno, errno.ENXIO, "the end of the data")


def test_fallocate(library):
    path = library.mnt / "f"
    expected = bytearray(content("f", 200_000))
    path.write_bytes(expected)
    with open(path, "r+b") as f:
        fd = f.fileno()
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 10_000, 50_001)
        expected[10_000:60_001] = bytes(50_001)
        fallocate(fd, ZERO_RANGE, 100_000, 20_000)
        expected[100_000:120_000] = bytes(20_000)
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, 190_000, 100_000)
        expected[190_000:] = bytes(10_000)
        same(os.fstat(fd).st_size, 200_000, "size after ZERO_RANGE with KEEP_SIZE")
        fallocate(fd, KEEP_SIZE, 150_000, 500_000)
        same(os.fstat(fd).st_size, 200_000, "size after fallocate with KEEP_SIZE")
        fallocate(fd, 0, 150_000, 150_000)
        expected += bytes(100_000)
        same(os.fstat(fd).st_size, 300_000, "size after fallocate")
        fallocate(fd, ZERO_RANGE, 299_000, 2_000)
        expected += bytes(1_000)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 300_500, 1 << 20)
        fails(errno.EINVAL, lambda: fallocate(fd, 0, 0, 0), "fallocate of nothing")
        fails(errno.EINVAL, lambda: fallocate(fd, 0, -1, 10), "fallocate at a negative offset")
        fails(errno.EOPNOTSUPP, lambda: fallocate(fd, PUNCH_HOLE, 0, 10), "PUNCH_HOLE without KEEP_SIZE")
        for mode in (0, KEEP_SIZE):
            fails(errno.ENOSPC, lambda: fallocate(fd, mode, 0, 1 << 50), f"fallocate of more than there is with mode {mode}")
        for mode in (0, KEEP_SIZE, ZERO_RANGE, PUNCH_HOLE | KEEP_SIZE):
            os.utime(fd, (1, 1))
            fallocate(fd, mode, 300_500, 10)
            check(os.fstat(fd).st_mtime > 1, f"mtime after fallocate with mode {mode}")
    thrice(library, lambda: check(path.read_bytes() == expected, "content after fallocate"))


def test_copy_file_range(library):
    """Copies share stored data: a copy of 32 MiB adds next to nothing to the library."""
    source, copy = library.mnt / "source", library.mnt / "copy"
    whole = content("cfr", 32 << 20)
    source.write_bytes(whole)
    library.remount()
    before = stored_bytes(library)
    with open(source, "rb") as i, open(copy, "wb") as o:
        at = 0
        while at < len(whole):
            n = os.copy_file_range(i.fileno(), o.fileno(), len(whole) - at)
            check(n > 0, f"copy_file_range stops at {at}")
            at += n
    with open(copy, "r+b") as f:  # within a file, at odd offsets; then the copy goes its own way
        same(os.copy_file_range(f.fileno(), f.fileno(), 100_000, 12_345, 20_000_001), 100_000, "copied within the file")
        os.pwrite(f.fileno(), b"changed", 5_000_000)
        fails(errno.EINVAL, lambda: os.copy_file_range(f.fileno(), f.fileno(), 10, 100, 105), "copying onto itself")
    expected = bytearray(whole)
    expected[20_000_001:20_100_001] = whole[12_345:112_345]
    expected[5_000_000:5_000_007] = b"changed"

    def look():
        check(source.read_bytes() == whole, "the source has changed")
        check(copy.read_bytes() == expected, "content of the copy")
    thrice(library, look)
    grown = stored_bytes(library) - before
    check(grown < 1 << 20, f"a copy of 32 MiB made the library grow by {grown} bytes")
    source.unlink()
    thrice(library, lambda: check(copy.read_bytes() == expected, "content of the copy when the source is gone"))


def test_mmap(library):
    """Data written through a shared map reaches the file, even if the descriptor was closed first."""
    path = library.mnt / "mapped"
    size = 1_000_003
    expected = bytearray(content("mapped", size))
    path.write_bytes(expected)
    with open(path, "r+b") as f:
        both = mmap.mmap(f.fileno(), size)
        check(both[:] == expected, "content through a map")
        for at in range(0, size - 10, 77_777):
            both[at:at + 10] = b"0123456789"
            expected[at:at + 10] = b"0123456789"
        both[-1:] = expected[-1:] = b"!"
        same(os.pread(f.fileno(), 10, 77_777), b"0123456789", "read(2) of what was written through the map")
        os.pwrite(f.fileno(), b"by write", 500_000)
        expected[500_000:500_008] = b"by write"
        same(both[500_000:500_008], b"by write", "the map of what was written by write(2)")
    both[42:46] = expected[42:46] = b"late"
    both.close()
    thrice(library, lambda: check(path.read_bytes() == expected, "content after writing through a map"))
    script = library.mnt / "program"
    script.write_bytes(open("/bin/true", "rb").read())
    script.chmod(0o755)
    run(script)
    with open("/bin/true", "rb") as f:
        same(script.read_bytes() == f.read(), True, "content of a program")


def test_times_of_what_was_mapped(library):
    """Writing back earlier stores to a map does not change a time that was set after them; later stores do."""
    path, then = library.mnt / "mapped", 10**18
    path.write_bytes(bytes(100_000))

    def stored(at):
        with open(path, "r+b") as f:
            mapped = mmap.mmap(f.fileno(), 100_000)
        mapped[at] = 1
        return mapped

    for what, end in (("sync", os.sync), ("msync", lambda: mapped.flush()), ("munmap", lambda: mapped.close()), ("close of another", lambda: open(path, "r+b").close())):
        for when in (then, 2**33 * 10**9):  # long ago, and in the year 2242
            mapped = stored(1)
            os.utime(path, ns=(when, when))
            end()
            same(os.stat(path).st_mtime_ns, when, f"mtime that was set, after {what}")
            check(os.stat(path).st_ctime_ns < 2**32 * 10**9, f"ctime after {what} is not the present")
            mapped.close()
            same(os.stat(path).st_mtime_ns, when, f"mtime that was set, after {what} and munmap")
    os.utime(path, ns=(then, then))
    thrice(library, lambda: same(os.stat(path).st_mtime_ns, then, "mtime that was set in the end"))

    mapped = stored(1)
    os.utime(path, ns=(then, then))
    mapped.flush()
    mapped[2] = 1
    mapped.flush()
    check(os.stat(path).st_mtime_ns > then, "what is stored after msync moves no mtime")
    os.utime(path, ns=(then, then))
    with open(path, "r+b") as f:
        f.write(b"write")
    mapped[3] = 1
    mapped.close()
    check(os.stat(path).st_mtime_ns > then, "write beside a map moves no mtime")


def test_direct(library):
    """O_DIRECT and buffered descriptors of one file see each other's writes."""
    path = library.mnt / "direct"
    buffer = mmap.mmap(-1, 1 << 20)  # memory of one's own, aligned as O_DIRECT asks
    expected = content("direct", 1 << 20)
    buffer[:] = expected
    direct = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        same(os.pwritev(direct, [buffer], 0), 1 << 20, "written with O_DIRECT")
        check(path.read_bytes() == expected, "buffered read of what was written with O_DIRECT")
        with open(path, "r+b") as f:
            f.seek(8192)
            f.write(b"buffered" * 512)
        expected = expected[:8192] + b"buffered" * 512 + expected[8192 + 4096:]
        buffer[:] = bytes(1 << 20)
        same(os.preadv(direct, [buffer], 0), 1 << 20, "read with O_DIRECT")
        check(buffer[:] == expected, "O_DIRECT read of what was written buffered")
        same(os.preadv(direct, [buffer], 1 << 20), 0, "read with O_DIRECT at the end")
    finally:
        os.close(direct)
    thrice(library, lambda: check(path.read_bytes() == expected, "content"))


def test_handles_that_only_write(library):
    """Writes that bypass the page cache are visible in maps and reads through other descriptors."""
    path = library.mnt / "write-only"
    size = 300_000
    expected = bytearray(content("write-only", size))
    path.write_bytes(expected)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), size) as mapped:
        writer = os.open(path, os.O_WRONLY)
        try:
            for step, at in enumerate(range(0, size - 9000, 4999)):
                # Dirty in the map, in pages that the write covers in part.
                mapped[at:at + 100] = expected[at:at + 100] = bytes([step % 251]) * 100
                data = bytes([step % 241 + 1]) * (step * 37 % 8000 + 1)
                os.pwrite(writer, data, at + 50)
                expected[at + 50:at + 50 + len(data)] = data
                check(mapped[:] == expected, f"the map after {len(data)} bytes at {at + 50}")
                check(os.pread(f.fileno(), size, 0) == expected, f"another descriptor after a write at {at + 50}")
        finally:
            os.close(writer)
    thrice(library, lambda: check(path.read_bytes() == expected, "content"))


def test_readers_beside_an_appending_writer(library):
    """A program that follows a log sees lines, never zeros in place of lines to come."""
    path = library.mnt / "log"
    lines = [b"line %06d of the log\n" % i for i in range(8000)]
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    reader = os.open(path, os.O_RDONLY)
    whole, wrong, ended = b"".join(lines), [], threading.Event()

    def follow():
        while not ended.is_set():
            got = os.pread(reader, 1 << 20, 0)
            if got != whole[:len(got)]:
                wrong.append(len(got))
    threads = [threading.Thread(target=follow) for _ in range(2)]
    for t in threads:
        t.start()
    for line in lines:
        os.write(writer, line)
    ended.set()
    for t in threads:
        t.join()
    same(wrong[:5], [], "lengths at which a reader saw something else")
    check(os.pread(reader, 1 << 20, 0) == whole, "what a reader sees at the end")
    os.close(writer)
    os.close(reader)


def test_maps_beside_a_creating_writer(library):
    """A file that was mapped while its creator was writing is later read with its final contents."""
    path, step = library.mnt / "created", 5000
    whole = content("created", 200 * step)
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(writer, whole[:step])
    ended = threading.Event()

    def look():
        with open(path, "rb") as f:
            while not ended.is_set():
                with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    mapped[-1], mapped[len(mapped) // 2]
    looking = threading.Thread(target=look)
    looking.start()
    for at in range(step, len(whole), step):
        os.write(writer, whole[at:at + step])
        check(path.read_bytes() == whole[:at + step], f"what a reader sees after {at + step} bytes")
    os.close(writer)
    ended.set()
    looking.join()
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        check(mapped[:] == whole, "a map made when all had closed it")
        mapped[7] = 7
    check(path.read_bytes() == whole[:7] + b"\x07" + whole[8:], "what is read beside a map")


def test_append(library):
    """With two O_APPEND writers, no line is lost or mixed with another."""
    path = library.mnt / "appended"

    def writer(which):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for i in range(2000):
            os.write(fd, b"%d %04d %s\n" % (which, i, b"." * (i % 50)))
        os.close(fd)
    threads = [threading.Thread(target=writer, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()

    def look():
        lines = path.read_bytes().splitlines()
        for which in range(2):
            mine = [x for x in lines if x.startswith(b"%d " % which)]
            same(mine, [b"%d %04d %s" % (which, i, b"." * (i % 50)) for i in range(2000)], f"lines of writer {which}")
    thrice(library, look)
    for flags, size in ((os.O_TRUNC, 0), (os.O_TRUNC | os.O_CREAT, 0)):
        os.close(os.open(path, os.O_WRONLY | flags))
        same(os.stat(path).st_size, size, "size after O_TRUNC")
    fails(errno.EEXIST, lambda: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "O_EXCL")
    try:
        with open(os.open(library.mnt, os.O_TMPFILE | os.O_RDWR), "r+b") as f:
            f.write(b"nameless")
            f.flush()
            same(os.pread(f.fileno(), 10, 0), b"nameless", "content of an O_TMPFILE")
    except OSError as e:  # FUSE has it, but a server may not: programs know this answer
        same(e.errno, errno.EOPNOTSUPP, "O_TMPFILE")


def test_readers_and_a_writer(library):
    """Readers of a growing file always see a prefix of the final contents."""
    path, whole = library.mnt / "grows", content("grows", 8 << 20)
    path.touch()
    ended, wrong = threading.Event(), []

    def reader():
        with open(path, "rb", buffering=0) as f:
            while not ended.is_set():
                size = os.fstat(f.fileno()).st_size
                got = os.pread(f.fileno(), 100_000, max(0, size - 100_000))
                start = max(0, size - 100_000)
                if got[:size - start] != whole[start:start + len(got[:size - start])]:
                    wrong.append(size)
    threads = [threading.Thread(target=reader) for _ in range(3)]
    for t in threads:
        t.start()
    with open(path, "r+b", buffering=0) as f:
        for at in range(0, len(whole), 10_007):
            f.write(whole[at:at + 10_007])
            if at % 50 == 0:
                os.fsync(f.fileno())
    time.sleep(0.2)
    ended.set()
    for t in threads:
        t.join()
    same(wrong[:5], [], "sizes at which a reader saw something else")
    thrice(library, lambda: check(path.read_bytes() == whole, "content"))


def test_few_file_descriptors(library):
    """If file descriptors run out, packs are closed; no operation fails."""
    for i in range(30):
        (library.mnt / f"{i:02}").write_bytes(content(f"few {i}", 50_000))
        library.remount()
    # Less than the packs are: what is set later is not known when the mount begins.
    resource.prlimit(library.process.pid, resource.RLIMIT_NOFILE, (28, 28))
    for _ in range(2):
        for i in range(30):
            check((library.mnt / f"{i:02}").read_bytes() == content(f"few {i}", 50_000), f"content of {i}")
    same(len(os.listdir(library.mnt)), 30, "names")
    for i in range(30):
        with open(library.mnt / f"new {i:02}", "wb") as f:
            f.write(content(f"new {i}", 100_000))
            os.fsync(f.fileno())
    library.remount()
    for i in range(30):
        check((library.mnt / f"new {i:02}").read_bytes() == content(f"new {i}", 100_000), f"content of new {i}")
    same(library.log.read_text(), "", "what the mounts said")


def test_failed_reads_are_logged_once(library):
    """A failed read is logged once, with the file's path, however often the file is read."""
    (library.mnt / "dir").mkdir()
    (library.mnt / "dir" / "lost é").write_bytes(content("lost", 300_000))
    library.umount()
    for pack in (library.dir / "data").iterdir():
        pack.unlink()
    library.mount()
    for _ in range(5):
        fails(errno.EIO, (library.mnt / "dir" / "lost é").read_bytes, "reading what is lost")
    lines = library.log.read_text().splitlines()
    same(len(lines), 1, f"lines in {lines}")
    check("read of dir/lost é: data/" in lines[0] and "inode" not in lines[0], lines[0])


if __name__ == "__main__":
    main(["--allow-other"] if os.geteuid() == 0 else [])
