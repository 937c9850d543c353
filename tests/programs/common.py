"""Shared code of the program suites: a library in a new directory, its mount, and the cleanup.

A suite is a script of cases: functions named `test_...` that take a mounted `Library`. `main()` runs all of them
(or those named on the command line) one after another and prints the results. Only the standard library is used.
The suites read these environment variables:

HUSHFS             the program under test [default: target/release/hushfs]
HUSHFS_TEST_WORK   work directory [default: a new one in /var/tmp, which is a real disk more often than /tmp]
HUSHFS_TEST_TALLY  file to which `passed failed` is appended, for the sum at the end of contrib/test

`HUSHFS=tests/programs/standin` tests a suite itself, on another filesystem.
"""
import ctypes
import errno
import hashlib
import inspect
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

REPO = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("HUSHFS", REPO / "target/release/hushfs")).absolute()
PASSWORD = "correct horse battery staple"
SKIPPED = 77  # the exit code by which automake and others know a skipped test


class Failed(Exception):
    """A case failed."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def same(got, expected, what):
    check(got == expected, f"{what}: {short(got)}, expected {short(expected)}")


def short(value):
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."


def run(*argv, timeout=120, ok=(0,), **kw):
    """Runs a program and returns its output. An exit code that is not in `ok` fails the case."""
    kw.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([a if isinstance(a, bytes) else str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, **kw)
    text = done.stdout.decode(errors="replace")
    name = " ".join(map(str, argv))[:200]
    check(done.returncode in ok, f"`{name}` ended with {done.returncode}, expected {ok}:\n{text[-2000:]}")
    return text


def root_only():
    if os.geteuid() != 0:
        print("needs root")
        sys.exit(SKIPPED)


def mounts(where):
    """Returns the filesystem types mounted at `where`, lowest first. Reads the kernel's table, because stat fails on
    a dead mount."""
    where = os.fsencode(where)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, after = line.split(b" - ", 1)
        if before.split()[4].replace(b"\\040", b" ") == where:
            found.append(after.split()[0].decode())
    return found


def until(condition, what, timeout=30):
    end = time.monotonic() + timeout
    while not condition():
        check(time.monotonic() < end, f"{what}: not within {timeout} s")
        time.sleep(0.01)


def wait(process, seconds):
    """Returns the exit code of `process` as soon as it has ended. `Popen.wait` with a timeout doubles its polling
    interval each time, so it may return much later."""
    pidfd = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], seconds)
    finally:
        os.close(pidfd)
    check(ended, f"process {process.pid} has not ended after {seconds} s")
    return process.wait()


class Library:
    """A library in `base/library`, mounted on `base/mnt` by a child process in the foreground."""

    def __init__(self, base, options=(), program=PROGRAM):
        self.base, self.options, self.program, self.process = Path(base), tuple(options), program, None
        self.dir, self.mnt = self.base / "library", self.base / "mnt"
        self.password_file = self.base / "password"
        self.log, self.out = self.base / "mount.log", self.base / "mount.out"
        self.mnt.mkdir(parents=True, exist_ok=True)
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)
        # State of its own, so that no run knows of another, nor of the libraries of who runs it.
        self.env = dict(os.environ, XDG_STATE_HOME=str(self.base / "state"), XDG_CACHE_HOME=str(self.base / "cache"))

    def hushfs(self, verb, *args, **kw):
        return run(self.program, verb, *args, env=self.env, **kw)

    def init(self):
        self.dir.mkdir(exist_ok=True)
        self.hushfs("init", "--password-file", self.password_file, self.dir)

    def mount(self, *options):
        argv = [self.program, "mount", "--foreground", "--password-file", self.password_file, *self.options, *options, self.dir, self.mnt]
        with open(self.log, "ab") as log, open(self.out, "wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self.env)
        until(lambda: self.process.poll() is not None or self.answers(), "the mount answers", 60)
        check(self.process.poll() is None, f"mount ended with {self.process.returncode}")

    def answers(self):
        """Whether the mount exists and works, and is not the dead mount of a killed process."""
        try:
            return bool(mounts(self.mnt)) and os.statvfs(self.mnt) is not None
        except OSError:
            return False

    def umount(self):
        """Unmounts as a user would, and checks that the process ends without an error."""
        # What a program that just ended had open is released a moment after its end.
        for _ in range(100):
            done = subprocess.run(["umount", self.mnt] if os.geteuid() == 0 else ["fusermount3", "-u", self.mnt],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
            if done.returncode == 0 or b"busy" not in done.stdout:
                break
            time.sleep(0.05)
        check(done.returncode == 0, f"umount: {done.stdout.decode(errors='replace')}")
        code = wait(self.process, 60)
        self.process = None
        same(code, 0, "exit code of the mount")

    def remount(self, *options):
        """Unmounts and mounts again. Drops everything that was only in memory, including the kernel's caches."""
        self.umount()
        drop_caches()
        self.mount(*options)

    def kill(self):
        """Kills the hushfs process (`kill -9`) and waits for its end. The dead mount stays."""
        self.process.kill()
        self.process.wait(30)
        self.process = None

    def clear(self):
        """Detaches whatever is mounted, dead or alive."""
        while mounts(self.mnt):
            lazily = ["umount", "-l", self.mnt] if os.geteuid() == 0 else ["fusermount3", "-uz", self.mnt]
            if subprocess.run(lazily, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
                break

    def close(self):
        """Ends the mount and the process, whatever state they are in."""
        self.clear()
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None


def drop_caches():
    if os.geteuid() == 0:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def stored_bytes(library):
    """Returns the bytes in the library that a sync tool would copy. That excludes `new/`, so unmount or remount
    first."""
    return sum(p.stat().st_size for p in library.dir.rglob("*") if p.is_file() and p.parent.parent != library.dir / "new")


def content(seed, length):
    """Returns the same bytes for the same seed on every run; they cannot be compressed, and do not repeat."""
    return hashlib.shake_128(str(seed).encode()).digest(length)


def make_tree(root):
    """Creates a small tree with everything that copying programs get wrong."""
    root = Path(root)
    music = root / "Artist One" / "Album"
    music.mkdir(parents=True)
    for i, size in enumerate((0, 1, 4095, 4096, 16384, 16385, 100_000, 3_000_000)):
        (music / f"{i:02} track of {size}.flac").write_bytes(content(i, size))
    # Names of any bytes but / and NUL, up to 255 of them.
    odd = os.fsencode(root / "odd names")
    os.mkdir(odd)
    for i, name in enumerate((b" ", b"a\nb", b"\xff\xfe not UTF-8", "e\u0301 and \u00e9".encode(), b"-rf", b"*?[$`'\"\\", b"x" * 255, "\U0001f3b5".encode() * 63)):
        with open(os.path.join(odd, name), "wb") as f:
            f.write(content(name, 1000 + i))
    links = root / "links"
    links.mkdir()
    (links / "one").write_bytes(content("linked", 50_000))
    os.link(links / "one", links / "two")
    os.link(links / "one", root / "three")
    os.symlink("../Artist One/Album", links / "relative")
    os.symlink("/nowhere/" + "long/" * 200, links / "dangling")
    os.mkfifo(root / "fifo", 0o640)
    with open(root / "sparse", "wb") as f:
        f.write(b"head")
        f.seek(40 << 20)
        f.write(b"middle")
        f.truncate(64 << 20)
    attributes = root / "attributes"
    attributes.mkdir()
    for i, mode in enumerate((0o400, 0o644, 0o755, 0o4755, 0o2755, 0o600)):
        (attributes / f"mode {mode:o}").write_bytes(b"m")
        (attributes / f"mode {mode:o}").chmod(mode)
        os.utime(attributes / f"mode {mode:o}", ns=(10**18 + i, -(10**17) * i + 123_456_789))
    os.setxattr(attributes / "mode 644", "user.rating", b"5")
    os.setxattr(attributes / "mode 644", "user.bytes", bytes(range(256)))
    os.setxattr(attributes / "mode 755", "user.empty", b"")
    os.setxattr(attributes, "user.of a directory", b"x" * 2000)
    if os.geteuid() == 0:
        os.chown(attributes / "mode 644", 12345, 54321)
        os.chown(attributes / "mode 4755", 0, 54321)
        (attributes / "mode 4755").chmod(0o4755)
        os.lchown(links / "dangling", 7, 8)
        os.setxattr(attributes / "mode 600", "trusted.note", b"root only")
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    run("setfacl", "-m", "u:daemon:rw,g:daemon:r", attributes / "mode 644")
    run("setfacl", "-d", "-m", "u:daemon:rwx", attributes)
    (root / "empty").mkdir(mode=0o1777)
    for p in root.rglob("*"):
        if not p.is_file() and not p.is_dir() or p.is_symlink():  # rsync gives these no more than whole seconds
            os.utime(p, ns=(10**18, 10**18), follow_symlinks=False)
    for d in sorted((p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
        os.utime(d, ns=(10**18, 10**18 + 987_654_321))


def describe(root):
    """Lists every path below `root` with everything that a copy must keep. Hard links refer to the first path of the
    inode."""
    root = os.fsencode(root)
    tree, inodes = {}, {}
    for directory, _, _ in os.walk(root):
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            s = os.lstat(path)
            entry = {"type": stat.S_IFMT(s.st_mode), "mode": oct(stat.S_IMODE(s.st_mode)), "owner": (s.st_uid, s.st_gid), "mtime": s.st_mtime_ns}
            entry["xattrs"] = {x: os.getxattr(path, x, follow_symlinks=False) for x in sorted(os.listxattr(path, follow_symlinks=False))}
            if stat.S_ISREG(s.st_mode):
                entry["size"], entry["links"] = s.st_size, s.st_nlink
                with open(path, "rb") as f:
                    entry["content"] = hashlib.file_digest(f, "sha256").hexdigest()
            elif stat.S_ISLNK(s.st_mode):
                entry["target"] = os.readlink(path)
            elif stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode):
                entry["device"] = s.st_rdev
            if not stat.S_ISDIR(s.st_mode):
                inodes.setdefault(s.st_ino, []).append(os.path.relpath(path, root))
            tree[os.path.relpath(path, root)] = entry
    for paths in inodes.values():
        for path in paths:
            tree[path]["inode of"] = min(paths)
    return tree


def same_tree(got, expected, what):
    """Checks that two trees are the same. Each is a directory, or what `describe` returned for one."""
    got, expected = (t if isinstance(t, dict) else describe(t) for t in (got, expected))
    lines = [f"{p!r} is missing" for p in sorted(expected.keys() - got.keys())]
    lines += [f"{p!r} is too much" for p in sorted(got.keys() - expected.keys())]
    for path in sorted(got.keys() & expected.keys()):
        for key in sorted(got[path].keys() | expected[path].keys()):
            a, b = got[path].get(key), expected[path].get(key)
            if a != b:
                lines.append(f"{path!r}: {key} is {short(a)}, expected {short(b)}")
    check(not lines, f"{what}: {len(lines)} differences\n    " + "\n    ".join(lines[:12]))


def workplace(name):
    parent = Path(os.environ.get("HUSHFS_TEST_WORK") or "/var/tmp")
    # Short: the names of sockets below it have to fit into 108 bytes.
    path = Path(tempfile.mkdtemp(prefix=f"{name[:3]}-", dir=parent))
    path.chmod(0o755)  # other users are part of several cases
    return path


def call(function, *args):
    """Calls a libc function that returns -1 on error."""
    ctypes.set_errno(0)
    result = function(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def fails(number, action, what):
    """Checks that `action` fails with this errno."""
    try:
        action()
    except OSError as e:
        same(errno.errorcode[e.errno], errno.errorcode[number], what)
        return
    raise Failed(f"{what}: succeeded, expected {errno.errorcode[number]}")


def thrice(library, look):
    """Runs a check immediately, again without the kernel's caches, and again after a remount."""
    look()
    drop_caches()
    look()
    library.remount()
    look()


def main(options=(), init=True):
    """Runs the cases of the calling script. A case that takes no argument mounts for itself."""
    # The end of a step is announced by SIGTERM: let the `finally`s of the case run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    script = sys.modules["__main__"]
    cases = {n[5:]: f for n, f in vars(script).items() if n.startswith("test_")}
    unknown = [a for a in sys.argv[1:] if a not in cases]
    if unknown or not PROGRAM.is_file():
        print(f"no such case: {unknown}; there are {list(cases)}" if unknown else f"{PROGRAM} is not there: cargo build --release", file=sys.stderr)
        sys.exit(2)
    passed = failed = 0
    for name in sys.argv[1:] or cases:
        base = workplace(f"{Path(script.__file__).stem}-{name}")
        started = time.monotonic()
        library = Library(base, options)
        try:
            if inspect.signature(cases[name]).parameters:
                library.init()
                library.mount()
                cases[name](library)
                if library.process is not None:
                    library.umount()
            else:
                cases[name]()
            print(f"ok    {name} ({time.monotonic() - started:.1f} s)")
            passed += 1
        except (Exception, subprocess.TimeoutExpired) as e:
            print(f"FAIL  {name} ({time.monotonic() - started:.1f} s): {e if isinstance(e, Failed) else ''.join(traceback.format_exception(e))}")
            if library.log.exists() and library.log.stat().st_size:
                print("      the mount said:\n" + library.log.read_text(errors="replace")[-2000:])
            failed += 1
        finally:
            library.close()
            shutil.rmtree(base, ignore_errors=True)
    tally = os.environ.get("HUSHFS_TEST_TALLY")
    if tally:
        with open(tally, "a") as f:
            f.write(f"{passed} {failed}\n")
    print(f"{Path(script.__file__).stem}: {passed} of {passed + failed} cases hold")
    sys.exit(1 if failed else 0)
