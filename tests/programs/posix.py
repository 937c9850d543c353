#!/usr/bin/env python3
"""What programs expect of a filesystem beyond names and attributes (which pjdfstest asks about).

Many cases look three times: at once, when the kernel's caches are dropped, and after a remount, since each of these
is answered from another place.
"""
import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from common import Failed, check, content, drop_caches, main, run, same, stored_bytes

libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
BLOCK = 4096


def call(function, *args):
    """A call of libc that answers -1 on error."""
    ctypes.set_errno(0)
    result = function(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def fallocate(fd, mode, offset, length):
    call(libc.fallocate, fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def rename2(old, new, flags):
    call(libc.renameat2, -100, os.fsencode(old), -100, os.fsencode(new), flags)


def fails(number, action, what):
    try:
        action()
    except OSError as e:
        same(errno.errorcode[e.errno], errno.errorcode[number], what)
        return
    raise Failed(f"{what}: succeeded, expected {errno.errorcode[number]}")


def thrice(library, look):
    look()
    drop_caches()
    look()
    library.remount()
    look()


def data_ranges(path):
    """What SEEK_DATA and SEEK_HOLE say is data."""
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
    """Holes cost nothing and are found; dirty data is data before it is flushed."""
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
    thrice(library, lambda: check(path.read_bytes() == expected, "content after fallocate"))


def test_copy_file_range(library):
    """Copies share what is stored: one of 32 MiB makes the library grow by next to nothing."""
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
    """Shared maps: what is written through them is in the file, also when the descriptor was closed before."""
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


def test_direct(library):
    """O_DIRECT beside buffered descriptors: each sees what the other wrote."""
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


# Runs in another process: takes the lock or says that somebody has it, then answers to a line.
LOCKER = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
how, first, length = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lock = (lambda flag: fcntl.flock(f, flag)) if how == "flock" else (lambda flag: fcntl.lockf(f, flag, length, first))
for line in sys.stdin:
    try:
        lock({"try": fcntl.LOCK_EX | fcntl.LOCK_NB, "take": fcntl.LOCK_EX, "share": fcntl.LOCK_SH | fcntl.LOCK_NB, "drop": fcntl.LOCK_UN}[line.strip()])
        print("ok", flush=True)
    except BlockingIOError:
        print("held", flush=True)
"""


class Locker:
    def __init__(self, path, how, first=0, length=0):
        self.process = subprocess.Popen([sys.executable, "-c", LOCKER, path, how, str(first), str(length)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self, timeout=10):
        check(select.select([self.process.stdout], [], [], timeout)[0], "no answer about a lock")
        return self.process.stdout.readline().strip()

    def ask(self, word):
        self.tell(word)
        return self.answer()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def test_locks(library):
    """POSIX and BSD locks between processes: exclusive, shared, by range, waited for, and gone with their process."""
    path = library.mnt / "locked"
    path.write_bytes(bytes(1000))
    for how in ("flock", "posix"):
        a, b = Locker(path, how), Locker(path, how)
        try:
            same([a.ask("try"), b.ask("try"), b.ask("share")], ["ok", "held", "held"], f"{how}: exclusive")
            same([a.ask("drop"), a.ask("share"), b.ask("share"), b.ask("try")], ["ok", "ok", "ok", "held"], f"{how}: shared")
            a.ask("drop")
            b.ask("try")
            a.tell("take")  # waits, and gets it when the other's process ends
            same(select.select([a.process.stdout], [], [], 0.3)[0], [], f"{how}: an answer while the lock is held")
            b.end()
            same(a.answer(), "ok", f"{how}: the lock of a process that ended")
        finally:
            a.end()
            b.end()
    low, high, middle = Locker(path, "posix", 0, 100), Locker(path, "posix", 100, 100), Locker(path, "posix", 50, 100)
    try:
        same([low.ask("try"), high.ask("try"), middle.ask("try")], ["ok", "ok", "held"], "ranges")
        low.end()
        same(middle.ask("try"), "held", "a range that one other holds")
        high.end()
        same(middle.ask("try"), "ok", "a range that nobody holds")
    finally:
        for each in (low, high, middle):
            each.end()


def test_unlinked(library):
    """A file without a name lives while it is open; the space of a directory removed under one is not reused."""
    expected = content("unlinked", 300_000)
    with open(library.mnt / "unlinked", "w+b") as f:
        f.write(expected[:100_000])
        f.flush()
        os.unlink(library.mnt / "unlinked")
        same(os.fstat(f.fileno()).st_nlink, 0, "links of an unlinked file")
        f.write(expected[100_000:])
        f.flush()
        os.fchmod(f.fileno(), 0o600)
        drop_caches()
        f.seek(0)
        check(f.read() == expected, "content of an unlinked file")
        os.ftruncate(f.fileno(), 10)
        same(os.pread(f.fileno(), 100, 0), expected[:10], "content of an unlinked file that was cut")
    with open(library.mnt / "a", "wb") as a:
        (library.mnt / "b").write_bytes(b"b")
        os.rename(library.mnt / "b", library.mnt / "a")
        a.write(b"into the one that was replaced")
    same((library.mnt / "a").read_bytes(), b"b", "content of the one that replaced")
    os.mkdir(library.mnt / "d")
    d = os.open(library.mnt / "d", os.O_RDONLY)
    os.rmdir(library.mnt / "d")
    same(os.listdir(d), [], "entries of a removed directory")
    fails(errno.ENOENT, lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=d), "creating in a removed directory")
    os.close(d)
    library.remount()
    same(os.listdir(library.mnt), ["a"], "entries after a remount")


def test_rename_flags(library):
    m = library.mnt
    (m / "a").write_bytes(b"a")
    (m / "b").write_bytes(b"b")
    (m / "d").mkdir()
    (m / "d" / "inside").write_bytes(b"inside")
    fails(errno.EEXIST, lambda: rename2(m / "a", m / "b", NOREPLACE), "NOREPLACE onto a name")
    rename2(m / "a", m / "b", EXCHANGE)
    rename2(m / "a", m / "d", EXCHANGE)
    rename2(m / "d", m / "new", NOREPLACE)
    fails(errno.ENOENT, lambda: rename2(m / "a", m / "none", EXCHANGE), "EXCHANGE with nothing")
    fails(errno.EINVAL, lambda: rename2(m / "a", m / "b", NOREPLACE | EXCHANGE), "NOREPLACE and EXCHANGE")
    fails(errno.EINVAL, lambda: os.rename(m / "a", m / "a" / "below"), "a directory into itself")

    def look():
        same(sorted(os.listdir(m)), ["a", "b", "new"], "names")
        same([(m / "a" / "inside").read_bytes(), (m / "b").read_bytes(), (m / "new").read_bytes()], [b"inside", b"a", b"b"], "contents")
    thrice(library, look)


def test_attributes(library):
    """Times, extended attributes, special files, odd names, and the inode numbers of all of them."""
    m = os.fsencode(library.mnt)
    names = [b"x" * 255, b"\xff\xfe", b"new\nline", "\u00e9".encode(), "e\u0301".encode(), b" ", b"...", b"-"]
    for i, name in enumerate(names):
        with open(os.path.join(m, name), "wb") as f:
            f.write(name)
        os.utime(os.path.join(m, name), ns=(i, 2**33 * 10**9 + 999_999_999 - i))  # the year 2242
    os.utime(os.path.join(m, b" "), ns=(-1, -(10**9) * 10**6 - 1))  # before 1970
    fails(errno.ENAMETOOLONG, lambda: open(os.path.join(m, b"y" * 256), "wb"), "a name of 256 bytes")
    file = os.path.join(m, b"-")
    for name, value in ((b"user.a", b"1"), (b"user.empty", b""), (b"user." + b"n" * 250, b"long name"), (b"user.big", content("x", 60_000)), (b"user.a", b"2")):
        os.setxattr(file, name, value)
    fails(errno.EEXIST, lambda: os.setxattr(file, b"user.a", b"3", os.XATTR_CREATE), "XATTR_CREATE")
    fails(errno.ENODATA, lambda: os.setxattr(file, b"user.none", b"3", os.XATTR_REPLACE), "XATTR_REPLACE")
    fails(errno.ENODATA, lambda: os.getxattr(file, b"user.none"), "an attribute that is not there")
    os.removexattr(file, b"user.empty")
    os.symlink(b"t" * 4000, os.path.join(m, b"link"))
    os.mkfifo(os.path.join(m, b"fifo"), 0o601)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.join(m, b"socket"))
    if os.geteuid() == 0:
        os.mknod(os.path.join(m, b"device"), stat.S_IFBLK | 0o600, os.makedev(259, 1_000_000))
    os.link(file, os.path.join(m, b"second name"))

    def all_of_it():
        found = {}
        for name in sorted(os.listdir(m)):
            s = os.lstat(os.path.join(m, name))
            found[name] = (s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_rdev)
        return found, {n: os.getxattr(file, n) for n in os.listxattr(file)}, os.readlink(os.path.join(m, b"link"))
    before = all_of_it()
    same(before[0][b"\xff\xfe"][4], 2**33 * 10**9 + 999_999_998, "mtime in nanoseconds")
    same(before[0][b" "][4], -(10**9) * 10**6 - 1, "mtime before 1970")
    same(before[1].keys(), {"user.a", "user." + "n" * 250, "user.big"}, "names of attributes")
    same((before[0][b"-"][0], before[0][b"-"][2]), (before[0][b"second name"][0], 2), "inode and links of a hard link")
    thrice(library, lambda: check(all_of_it() == before, "attributes, times or inode numbers have changed"))


def test_privileges(library):
    """Set-user-id bits go on write and chown; ACLs are inherited and in step with the mode."""
    path = library.mnt / "suid"
    path.write_bytes(b"program\n")
    if os.geteuid() == 0:  # to whom writing as another user is open
        path.chmod(0o6755)
        os.chown(path, 1, 1)
        same(oct(stat.S_IMODE(os.stat(path).st_mode)), oct(0o755), "mode after chown")
        path.chmod(0o6777)
        run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", 'echo more >>"$0"', path)
        same(path.read_bytes(), b"program\nmore\n", "what another user wrote")
        thrice(library, lambda: same(oct(stat.S_IMODE(os.stat(path).st_mode)), oct(0o777), "mode after another user's write"))
    default = library.mnt / "inherits"
    default.mkdir()
    run("setfacl", "-d", "-m", "u:daemon:rwx,o::-", default)
    os.close(os.open(default / "child", os.O_CREAT | os.O_WRONLY, 0o666))
    (default / "sub").mkdir()

    def look():
        same(run("getfacl", "-cpE", default / "child").split(), ["user::rw-", "user:daemon:rwx", "group::r-x", "mask::rw-", "other::---"], "the ACL of a file")
        same(oct(stat.S_IMODE(os.stat(default / "child").st_mode)), oct(0o660), "the mode of a file under a default ACL")
        check("default:user:daemon:rwx" in run("getfacl", "-cp", default / "sub"), "a directory does not inherit the default ACL")
    thrice(library, look)
    (default / "child").chmod(0o640)
    check("mask::r--" in run("getfacl", "-cp", default / "child"), "chmod does not set the mask")


def test_append(library):
    """Two writers with O_APPEND: no line is lost or mixed."""
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


def test_limits(library):
    """Files of some TiB, and the numbers of statfs."""
    path = library.mnt / "far"
    with open(path, "wb") as f:
        os.pwrite(f.fileno(), b"far", 1 << 42)

    def look():
        same(os.stat(path).st_size, (1 << 42) + 3, "size")
        with open(path, "rb") as f:
            same(os.pread(f.fileno(), 10, (1 << 42) - 3), b"\0\0\0far", "content")
    thrice(library, look)
    here, below = os.statvfs(library.mnt), os.statvfs(library.dir)
    check(here.f_bavail * here.f_frsize <= below.f_bavail * below.f_frsize, "statfs says more than the backing store has")
    check(here.f_bavail * here.f_frsize > below.f_bavail * below.f_frsize // 2 or not (library.dir / "key").is_dir(), "statfs says far less than the backing store has")
    same(here.f_namemax, 255, "longest name")


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.closedir, libc.rewinddir):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def next_name(stream):
    entry = libc.readdir(stream)
    return entry.contents.name if entry else None


def test_large_directory(library):
    """100,000 entries: all are listed once, and positions stay valid while entries come and go."""
    many = 100_000
    where = os.fsencode(library.mnt / "large")
    os.mkdir(where)
    directory = os.open(where, os.O_RDONLY)
    for i in range(many):
        os.close(os.open(b"entry %06d" % i, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))
    stream = libc.opendir(where)
    positions, seen = [], []
    while True:
        at = libc.telldir(stream)
        name = next_name(stream)
        if name is None:
            break
        if len(seen) % 1000 == 7:
            positions.append((at, name))
        seen.append(name)
    same(len(seen), len(set(seen)), "names that were listed, and different ones")
    same(sorted(seen), sorted([b".", b".."] + [b"entry %06d" % i for i in range(many)]) , "names")
    # Remove two of three, but none at a position; add others.
    kept = {name for _, name in positions}
    removed = {n for i, n in enumerate(seen) if i % 3 and n.startswith(b"entry") and n not in kept}
    for name in removed:
        os.unlink(name, dir_fd=directory)
    for i in range(1000):
        os.close(os.open(b"new %06d" % i, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory))
    for at, name in reversed(positions):
        libc.seekdir(stream, at)
        same(next_name(stream), name, f"the entry at position {at}")
    left = set(seen) - removed | {b"new %06d" % i for i in range(1000)}
    libc.rewinddir(stream)
    seen = []
    while (name := next_name(stream)) is not None:
        seen.append(name)
        if name.startswith(b"entry") and len(seen) % 2:  # removing what has just been listed, as `rm -r` does
            os.unlink(name, dir_fd=directory)
            left.discard(name)
            removed.add(name)
    same(len(seen), len(set(seen)), "names listed while removing, and different ones")
    check(left <= set(seen), "an entry that stayed was not listed while others were removed")
    libc.closedir(stream)
    os.close(directory)
    same(set(os.listdir(where)), left - {b".", b".."}, "names in the end")
    library.remount()
    same(set(os.listdir(where)), left - {b".", b".."}, "names after a remount")


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def test_file_handles(library):
    """name_to_handle_at and open_by_handle_at, as NFS servers use them: a handle survives the kernel's forgetting."""
    if os.geteuid() != 0:
        return
    (library.mnt / "a" / "b").mkdir(parents=True)
    path = library.mnt / "a" / "b" / "file"
    path.write_bytes(b"by handle")
    handles = {}
    for each in (path, path.parent):
        handle, mount = Handle(bytes=128), ctypes.c_int()
        call(libc.name_to_handle_at, -100, os.fsencode(each), ctypes.byref(handle), ctypes.byref(mount), 0)
        handles[each] = handle
    drop_caches()
    root = os.open(library.mnt, os.O_RDONLY)
    try:
        fd = call(libc.open_by_handle_at, root, ctypes.byref(handles[path]), os.O_RDONLY)
        same(os.read(fd, 100), b"by handle", "content by handle")
        os.close(fd)
        fd = call(libc.open_by_handle_at, root, ctypes.byref(handles[path.parent]), os.O_RDONLY | os.O_DIRECTORY)
        same(os.listdir(fd), ["file"], "entries by handle")
        same(os.stat("..", dir_fd=fd).st_ino, os.stat(library.mnt / "a").st_ino, "the parent by handle")
        os.close(fd)
        path.unlink()
        drop_caches()
        fails(errno.ESTALE, lambda: call(libc.open_by_handle_at, root, ctypes.byref(handles[path]), os.O_RDONLY), "the handle of a file that is gone")
    finally:
        os.close(root)


def test_readers_and_a_writer(library):
    """Readers of a file that grows see a prefix of what it will be, never anything else."""
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


if __name__ == "__main__":
    main(["--allow-other"] if os.geteuid() == 0 else [])
