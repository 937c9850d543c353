#!/usr/bin/env python3
"""An ordinary user: no capabilities, fusermount3 from the package fuse3. If run as root, it becomes `nobody` first."""
import errno
import os
import pwd
import shutil
import stat
import subprocess
import sys
from common import PROGRAM, Library, check, content, fails, main, mounts, run, same, workplace


def a_day(library):
    """Creates a library, mounts it in the background, works in it, and unmounts it; twice, then read-only."""
    who = os.geteuid()
    library.init()
    for day in range(2):
        library.hushfs("mount", "--password-file", library.password_file, library.dir, library.mnt)
        check(library.answers(), "mount has returned, and the mount does not answer")
        folder = library.mnt / f"day {day}"
        folder.mkdir()
        for i in range(50):
            (folder / f"{i}").write_bytes(content(i, 1000 * i))
        (folder / "1").chmod(0o400)
        os.rename(folder / "2", folder / "renamed")
        os.symlink("renamed", folder / "2")
        os.setxattr(folder / "3", "user.note", b"mine")
        os.mkfifo(folder / "fifo")
        os.utime(folder / "4", ns=(1, 2))
        same((os.stat(folder / "5").st_uid, os.stat(library.mnt).st_uid), (who, who), "owners")
        try:
            os.chown(folder / "5", 0, 0)
            check(False, "an ordinary user gave a file to root")
        except PermissionError:
            pass
        if day == 0:
            run("fusermount3", "-u", library.mnt)
        else:
            library.hushfs("umount", library.mnt)
        check(not mounts(library.mnt), "the mount is still there")
    # As a process of ours, whose end is seen.
    library.mount("--read-only")
    for day in range(2):
        for i in range(50):
            same((library.mnt / f"day {day}" / f"{i}").read_bytes(), content(i, 1000 * i), f"content of {i}")
    same(os.getxattr(library.mnt / "day 1" / "3", "user.note"), b"mine", "attribute")
    library.umount()
    library.mount()
    library.kill()
    check(mounts(library.mnt), "no dead mount after kill -9")
    library.hushfs("mount", "--password-file", library.password_file, library.dir, library.mnt)
    same(sorted(os.listdir(library.mnt)), ["day 0", "day 1"], "names through a mount over the dead one")
    library.hushfs("umount", library.mnt)
    same(mounts(library.mnt), [], "mounts")


def roots_library(base):
    """A library that root wrote on another machine and then handed over."""
    library = Library(base)
    try:
        library.init()
        library.mount()
        (library.mnt / "secret").write_bytes(content("secret", 100_000))
        (library.mnt / "secret").chmod(0o600)
        (library.mnt / "folder").mkdir(mode=0o700)
        library.umount()
    finally:
        library.close()


def in_roots_library(base):
    """Without --uid, the files cannot be accessed; with it, they belong to the user."""
    library, who = Library(base), (os.geteuid(), os.getegid())
    try:
        library.mount()
        fails(errno.EACCES, (library.mnt / "secret").read_bytes, "reading a file of root's")
        library.umount()
        library.mount("--uid", str(who[0]), "--gid", str(who[1]))
        same((library.mnt / "secret").read_bytes(), content("secret", 100_000), "a file of root's")
        (library.mnt / "folder" / "new").write_bytes(b"new")
        (library.mnt / "secret").chmod(0o644)
        for name in "secret", "folder/new":
            found = os.stat(library.mnt / name)
            same((found.st_uid, found.st_gid), who, f"the owner of {name}")
        library.umount()
        library.mount()
        same((library.mnt / "secret").read_bytes(), content("secret", 100_000), "what everybody may read now")
        same(os.stat(library.mnt / "secret").st_uid, 0, "the owner that is stored")
        library.umount()
    finally:
        library.close()


def test_ordinary_user():
    if os.geteuid() != 0:
        if "HUSHFS_TEST_ROOTS" in os.environ:
            in_roots_library(os.environ["HUSHFS_TEST_ROOTS"])
        library = Library(workplace("user"))
        try:
            a_day(library)
        finally:
            library.close()
            shutil.rmtree(library.base, ignore_errors=True)
        return
    # The program and this suite may lie where only root can look: nobody gets copies.
    nobody = pwd.getpwnam("nobody")
    base = workplace("nobody")
    try:
        shutil.copy(PROGRAM, base / "hushfs")
        for name in ("common.py", "user.py"):
            shutil.copy(os.path.join(os.path.dirname(__file__), name), base / name)
        (base / "work").mkdir()
        roots_library(base / "work" / "roots")
        run("chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", base / "work")
        env = dict(os.environ, HUSHFS=str(base / "hushfs"), HUSHFS_TEST_WORK=str(base / "work"), HOME=str(base / "work"), TMPDIR=str(base / "work"),
                   HUSHFS_TEST_ROOTS=str(base / "work" / "roots"))
        env.pop("HUSHFS_TEST_TALLY", None)
        # The system's Python: one in root's home is out of nobody's reach.
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        # Outside of udev's care (containers) only root may open /dev/fuse: a mount namespace of its own has one that
        # everybody may open, as on any desktop. It ends with the last process in it, and so do its mounts.
        fuse = base / "fuse"
        os.mknod(fuse, 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        fuse.chmod(0o666)
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount --bind "$0" /dev/fuse && exec "$@"', fuse]
        done = subprocess.run([*namespace, "setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups", python, base / "user.py"],
                              cwd=base, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        check(done.returncode == 0, "as nobody:\n" + done.stdout[-3000:])
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
