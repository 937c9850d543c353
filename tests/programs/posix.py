#!/usr/bin/env python3
"""What programs expect of a filesystem beyond names and attributes (which pjdfstest covers).

Many cases check three times: immediately, after the kernel's caches are dropped, and after a remount, because the
answers then come from different layers.
"""
import ctypes
import errno
import fcntl
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from common import Failed, call, check, content, drop_caches, fails, libc, main, run, same, thrice

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def rename2(old, new, flags):
    call(libc.renameat2, -100, os.fsencode(old), -100, os.fsencode(new), flags)


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
    """POSIX and BSD locks between processes: exclusive, shared, by range, waited for, and released when a process
    ends."""
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
    """An unlinked file stays usable while it is open; a removed directory that is still open is empty and stays empty."""
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
    same(os.fstat(d).st_nlink, 0, "links of a removed directory")
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
    # What overlayfs asks of the filesystem above: in the old place, a device that stands for a removed name.
    (m / "c").write_bytes(b"c")
    fails(errno.EEXIST, lambda: rename2(m / "c", m / "b", WHITEOUT | NOREPLACE), "WHITEOUT and NOREPLACE onto a name")
    fails(errno.EINVAL, lambda: rename2(m / "c", m / "b", WHITEOUT | EXCHANGE), "WHITEOUT and EXCHANGE")
    rename2(m / "c", m / "new", WHITEOUT)
    rename2(m / "new", m / "newer", WHITEOUT | NOREPLACE)

    def look():
        same(sorted(os.listdir(m)), ["a", "b", "c", "new", "newer"], "names")
        same([(m / "a" / "inside").read_bytes(), (m / "b").read_bytes(), (m / "newer").read_bytes()], [b"inside", b"a", b"c"], "contents")
        for name in ("c", "new"):
            found = os.lstat(m / name)
            same((found.st_mode, found.st_rdev, found.st_size), (stat.S_IFCHR, 0, 0), f"the whiteout at {name}")
    thrice(library, look)


def test_attributes(library):
    """Times, extended attributes, special files, unusual names, and the inode numbers of all of them."""
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


def test_names_of_attributes(library):
    """Extended attributes are in the namespaces of Linux, and only root sees `trusted.`, as on ext4."""
    file, is_root = library.mnt / "file", os.geteuid() == 0
    file.touch()
    file.chmod(0o666)
    actions = (lambda name: os.getxattr(file, name), lambda name: os.setxattr(file, name, b"1"), lambda name: os.removexattr(file, name))
    for name in ("system.a", "system.posix_acl_access.x", "foo", "foo.bar", "usera.b", "USER.a", "btrfs.compression"):
        for action in actions:
            fails(errno.EOPNOTSUPP, lambda: action(name), f"an attribute {name}")
    for name in ("user.",) + (("security.", "trusted.") if is_root else ()):
        for action in actions:
            fails(errno.EINVAL, lambda: action(name), f"an attribute {name}")
    os.setxattr(file, "user.a", b"1")
    both = os.XATTR_CREATE | os.XATTR_REPLACE
    fails(errno.EEXIST, lambda: os.setxattr(file, "user.a", b"2", both), "XATTR_CREATE and XATTR_REPLACE of one that is there")
    fails(errno.ENODATA, lambda: os.setxattr(file, "user.b", b"2", both), "XATTR_CREATE and XATTR_REPLACE of one that is not")
    same(os.getxattr(file, "user.a"), b"1", "the value")
    if is_root:
        for name in ("trusted.a", "trusted.b", "security.a"):
            os.setxattr(file, name, b"1")
        same(sorted(os.listxattr(file)), ["security.a", "trusted.a", "trusted.b", "user.a"], "names that root sees")
        buffer = ctypes.create_string_buffer(100)
        for size in (0, 100):
            length = as_user(1000, 1000, lambda: call(libc.listxattr, os.fsencode(file), buffer, size))
            same(length, len(b"security.a\0user.a\0"), f"length of the names that others see, asked with {size}")
        as_user(1000, 1000, lambda: same(sorted(os.listxattr(file)), ["security.a", "user.a"], "names that others see"))


def test_lists_that_are_not_there(library):
    """Removing ACLs succeeds even if there are none, as `setfacl -b` does."""
    file, folder = library.mnt / "file", library.mnt / "folder"
    file.touch()
    folder.mkdir()
    for path, name in ((file, "access"), (folder, "access"), (folder, "default")):
        attribute = "system.posix_acl_" + name
        os.removexattr(path, attribute)
        os.setxattr(path, attribute, struct.pack("<I", 2))  # a list of nothing
        fails(errno.ENODATA, lambda: os.getxattr(path, attribute), f"the {name} list")
    run("setfacl", "-m", "u:daemon:rw", file)
    run("setfacl", "-b", file)
    os.removexattr(file, "system.posix_acl_access")
    fails(errno.ENODATA, lambda: os.removexattr(file, "user.none"), "removing another attribute")


def as_user(uid, gid, action, groups=()):
    """Runs `action` as another user, and returns its result; an OSError is raised here as well."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            text = f"0 {action()}"
        except OSError as e:
            text = f"{e.errno} {e}"
        except BaseException as e:
            text = f"-1 {e}"
        os.write(told, text.encode())
        os._exit(0)
    os.close(told)
    with open(answer) as f:
        number, text = f.read().split(" ", 1)
    os.waitpid(child, 0)
    if number == "-1":
        raise Failed(text)
    if number != "0":
        raise OSError(int(number), text)
    return int(text) if text.isdecimal() else None


def test_set_id(library):
    """Changing the contents or owner of a file clears its set-id bits for the same users as on ext4."""
    if os.geteuid() != 0:
        return
    path, user = library.mnt / "program", 1000
    path.write_bytes(b"program\n" * 1000)

    def append(flags=0):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | flags)
        os.write(fd, b"x" * 4096)
        os.close(fd)

    def allocate():
        fd = os.open(path, os.O_WRONLY)
        call(libc.fallocate, fd, 0, ctypes.c_long(0), ctypes.c_long(100_000))
        os.close(fd)

    def after(mode, owner, action, who):
        os.chown(path, *owner)
        path.chmod(mode)
        before = os.stat(path).st_ctime_ns
        time.sleep(0.01)
        as_user(*who, action) if who else action()
        found = os.stat(path)
        return oct(stat.S_IMODE(found.st_mode)), found.st_ctime_ns > before

    # chown(-1, -1) is one like any other, but for who has no right to it.
    chown_nothing = lambda: os.chown(path, -1, -1)
    for who in (None, (user, user)):
        same(after(0o6755, (user, user), chown_nothing, who), (oct(0o755), True), f"chown(-1, -1) by {who}")
        same(after(0o2644, (user, user), chown_nothing, who), (oct(0o2644), True), f"chown(-1, -1) of a marked file by {who}")
        same(after(0o644, (user, user), chown_nothing, who), (oct(0o644), True), f"chown(-1, -1) of an ordinary file by {who}")
    try:  # EPERM elsewhere; over FUSE it cannot be told from what comes before a write, and changes nothing
        same(after(0o6755, (0, 0), chown_nothing, (user, user)), (oct(0o6755), False), "chown(-1, -1) by another")
    except PermissionError:
        same(oct(stat.S_IMODE(os.stat(path).st_mode)), oct(0o6755), "mode after chown(-1, -1) by another")
    for what, action in (("append", append), ("direct append", lambda: append(os.O_DIRECT)), ("truncate", lambda: os.truncate(path, 5)), ("fallocate", allocate)):
        same(after(0o6777, (0, 0), action, None), (oct(0o6777), True), f"{what} by root")
        same(after(0o6777, (0, 0), action, (user, user)), (oct(0o777), True), f"{what} by another")
        same(after(0o2666, (0, 0), action, None), (oct(0o2666), True), f"{what} of a marked file by root")
        same(after(0o2666, (0, user), action, (user, user)), (oct(0o2666), True), f"{what} of a marked file by one of its group")
        same(after(0o6666, (0, 0), action, (user, user)), (oct(0o666), True), f"{what} of a marked file by another")
    same(after(0o2644, (user, 7), lambda: os.chown(path, -1, user), (user, user)), (oct(0o644), True), "chgrp of a marked file from a foreign group")
    same(after(0o2644, (user, user), lambda: os.chown(path, user, user), (user, user)), (oct(0o2644), True), "chown of a marked file by one of its group")
    same(after(0o2644, (user, 7), lambda: os.chown(path, 8, 8), None), (oct(0o2644), True), "chown of a marked file by root")


def test_access_lists_by_others(library):
    """Setting an ACL clears the set-group-id bit if the user is not in the file's group, as on ext4."""
    if os.geteuid() != 0:
        return
    user, group, other = 1000, 500, 600
    file, directory = library.mnt / "file", library.mnt / "directory"
    file.write_bytes(b"file")
    directory.mkdir()
    for path in (file, directory):
        def after(gid, groups, *what):
            path.chmod(0o6755)
            run("setpriv", f"--reuid={user}", f"--regid={gid}", groups, "setfacl", *what, path)
            return oct(stat.S_IMODE(os.stat(path).st_mode))
        os.chown(path, user, group)
        add = ("-m", "u:daemon:rwx")
        same(after(other, "--clear-groups", *add), oct(0o4775), f"{path.name}: by one of another group")
        same(after(group, "--clear-groups", *add), oct(0o6775), f"{path.name}: by one of its group")
        same(after(other, f"--groups=7,{group}", *add), oct(0o6775), f"{path.name}: by one who has its group, too")
        same(after(other, "--clear-groups", "-b"), oct(0o4755), f"{path.name}: that says what the mode says")
        path.chmod(0o6755)
        run("setfacl", "-m", "u:bin:r", path)
        same(oct(stat.S_IMODE(os.stat(path).st_mode)), oct(0o6755), f"{path.name}: by root")
    directory.chmod(0o2755)
    run("setpriv", f"--reuid={user}", f"--regid={other}", "--clear-groups", "setfacl", "-d", "-m", "u:daemon:rwx", directory)
    same(oct(stat.S_IMODE(os.stat(directory).st_mode)), oct(0o2755), "after a default list")


# As 32-bit programs are that were built without large files. Says what the system would not tell it.
SMALL = r"""
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
int main(int argc, char **argv) {
    struct stat s;
    struct statfs f;
    struct dirent *e;
    int count = 0;
    DIR *d = opendir(argv[1]);
    if (!d || stat(argv[1], &s) || statfs(argv[1], &f)) { perror(argv[1]); return 1; }
    for (errno = 0; (e = readdir(d)); errno = 0) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        if (stat(path, &s)) { perror(path); return 1; }
        if (s.st_ino != e->d_ino && strcmp(e->d_name, "..")) { printf("%s: two numbers\n", path); return 1; }
        count++;
    }
    if (errno) { perror("readdir"); return 1; }
    printf("%d\n", count);
}
"""


def test_small_numbers(library):
    """Inode numbers fit 32-bit programs and doubles, and stay the same after a remount."""
    where = library.mnt / "many"
    where.mkdir()
    for i in range(1000):
        (where / f"f{i:03}").write_bytes(b"")
        os.link(where / f"f{i:03}", where / f"link{i:03}")
    program = library.base / "small"
    built = subprocess.run(["gcc", "-m32", "-x", "c", "-", "-o", program], input=SMALL.encode(), capture_output=True) if shutil.which("gcc") else None
    first = {}

    def look():
        found = {name: os.lstat(where / name).st_ino for name in os.listdir(where)}
        same(len(set(found.values())), 1000, "different numbers")
        check(all(1 < n < 1 << 32 for n in found.values()), "a number of more than 32 bits")
        same({e.name: e.inode() for e in os.scandir(where)}, found, "numbers as directories list them")
        same(first.setdefault("numbers", found), found, "numbers now and at first")
        check(os.statvfs(where).f_files < 1 << 32, "more files than 32 bits can count")
        stream = libc.opendir(os.fsencode(where))
        while next_name(stream) is not None:
            check(libc.telldir(stream) < 1 << 31, "a position in a directory that 32-bit programs cannot hold")
        libc.closedir(stream)
        if built is not None and built.returncode == 0:
            same(run(program, where).strip(), "2002", "entries that a 32-bit program sees")
    thrice(library, look)


def test_renaming_what_is_listed(library):
    """A program that renames each entry while it reads a directory finishes, and sees every entry."""
    where = os.fsencode(library.mnt / "renamed")
    os.mkdir(where)
    for i in range(3000):
        os.close(os.open(where + b"/%04d" % i, os.O_CREAT | os.O_WRONLY, 0o644))
    stream, seen = libc.opendir(where), []
    while (name := next_name(stream)) is not None:
        if name not in (b".", b".."):
            check(len(seen) < 6000, "there is no end to a directory in which names change")
            seen.append(name)
            os.rename(where + b"/" + name, where + b"/" + name + b".new")
    libc.closedir(stream)
    check({b"%04d" % i for i in range(3000)} <= set(seen), "an entry was not listed")


def test_privileges(library):
    """Set-user-id bits are cleared by write and chown; ACLs are inherited and consistent with the mode."""
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


def test_limits(library):
    """Files of several TiB, and the values of statfs."""
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
    """100,000 entries are each listed once, and directory offsets stay valid while entries are added and removed."""
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
    """name_to_handle_at and open_by_handle_at, as NFS servers use them: a handle stays valid after the kernel forgets
    the inode."""
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


if __name__ == "__main__":
    main(["--allow-other"] if os.geteuid() == 0 else [])
