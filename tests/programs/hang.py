#!/usr/bin/env python3
"""A store that does not answer: the library is kept in the mount of another one, whose process is stopped."""
import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from common import PROGRAM, Library, check, content, fails, main, mounts, root_only, run, same, until, workplace

SECONDS = 3
BIG = content("hang", 24 << 20)


@contextlib.contextmanager
def two_libraries(name):
    """A library, and another one in its mount. Both are always ended; the process of the lower one is resumed first."""
    base = workplace(name)
    lower = Library(base / "lower", ["-o", "timeout=3600"])
    upper = Library(base / "upper", ["-o", f"timeout={SECONDS}"])
    upper.dir = lower.mnt / "library"
    try:
        lower.init()
        lower.mount()
        upper.init()
        upper.mount()
        yield lower, upper
    finally:
        for library in upper, lower:
            if library.process is not None:
                library.process.send_signal(signal.SIGCONT)
        upper.close()
        lower.close()
        run("rm", "-rf", "--one-file-system", base)


def stop(library):
    library.process.send_signal(signal.SIGSTOP)


def go_on(library):
    library.process.send_signal(signal.SIGCONT)


def beside(*argv):
    """A program that may take any time, and inherits no file descriptors."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def within(seconds, action, what):
    """Returns or raises what `action` does, if it ends in time."""
    said = []

    def work():
        try:
            said.append((action(), None))
        except OSError as e:
            said.append((None, e))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    check(said, f"{what}: no answer within {seconds} s")
    if said[0][1]:
        raise said[0][1]
    return said[0][0]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def test_what_needs_no_store_never_waits():
    with two_libraries("free") as (lower, upper):
        write(upper.mnt / "big", BIG)
        write(upper.mnt / "small", b"small")
        (upper.mnt / "work").mkdir()
        os.sync()
        same((upper.mnt / "small").read_bytes(), b"small", "a small file")
        upper.remount()
        same((upper.mnt / "small").read_bytes(), b"small", "a small file")
        with open(upper.mnt / "open", "wb", buffering=0) as f:
            stop(lower)
            # Far more than there are threads; names are made where nobody lists them.
            programs = [beside("cat", upper.mnt / "big") for _ in range(20)]
            programs += [beside("mkdir", upper.mnt / "work" / str(i)) for i in range(20)]
            time.sleep(0.5)
            patience = SECONDS - 1
            same(within(patience, lambda: sorted(os.listdir(upper.mnt)), "ls"), ["big", "open", "small", "work"], "names")
            within(patience, lambda: os.stat(upper.mnt / "big"), "stat")
            fails(errno.ENOENT, lambda: within(patience, lambda: os.stat(upper.mnt / "none"), "lookup"), "a name that is not there")
            check(within(patience, lambda: os.statvfs(upper.mnt), "statfs").f_blocks > 0, "statfs says nothing")
            same(within(patience, (upper.mnt / "small").read_bytes, "a cached read"), b"small", "a cached file")
            within(patience, lambda: f.write(b"x"), "a write that fits into memory")
            go_on(lower)
        for program in programs:
            program.wait(60)
        same((upper.mnt / "big").read_bytes(), BIG, "the big file")
        upper.umount()


def test_what_was_refused_is_not_done():
    with two_libraries("said") as (lower, upper):
        for name in "a", "b", "full":
            write(upper.mnt / name, name.encode())
        with open(upper.mnt / "kept", "wb", buffering=0) as f:
            f.write(b"kept")
            stop(lower)
            patience = 4 * SECONDS
            refused = [
                ("mkdir", lambda: os.mkdir(upper.mnt / "new")),
                ("create", lambda: write(upper.mnt / "made", b"")),
                ("rename", lambda: os.rename(upper.mnt / "a", upper.mnt / "moved")),
                ("unlink", lambda: os.unlink(upper.mnt / "b")),
                ("truncate", lambda: os.truncate(upper.mnt / "full", 1)),
                ("chmod", lambda: os.chmod(upper.mnt / "full", 0o600)),
                ("fsync", lambda: os.fsync(f.fileno())),
            ]
            for what, action in refused:
                fails(errno.EIO, lambda: within(patience, action, what), what)
            go_on(lower)

            def answers():
                with contextlib.suppress(OSError):
                    os.mkdir(upper.mnt / "after")
                    return True
            until(answers, "the store answers again")
            os.fsync(f.fileno())
        until(lambda: "answers again" in upper.log.read_text(), "the log says that the store answers")
        names = ["a", "after", "b", "full", "kept"]
        mode = os.stat(upper.mnt / "full").st_mode
        for _ in range(2):
            same(sorted(os.listdir(upper.mnt)), names, "names")
            for name in "new", "made", "moved":
                check(not os.path.lexists(upper.mnt / name), f"{name} is there after all")
            same((upper.mnt / "full").read_bytes(), b"full", "what was not cut")
            same(os.stat(upper.mnt / "full").st_mode, mode, "a mode that was not changed")
            same((upper.mnt / "kept").read_bytes(), b"kept", "what was written before")
            upper.remount()
        log = upper.log.read_text()
        same(log.count("has not answered for"), 1, "times that it is said")
        same(log.count("answers again"), 1, "times that it is said to be over")
        check(str(upper.dir) in log, "the store is not named")
        upper.umount()


def umount(upper, *options):
    """Runs `hushfs umount` as a program that has no files open."""
    started = time.monotonic()
    done = subprocess.run([PROGRAM, "umount", *options, upper.mnt], env=upper.env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100)
    return done.returncode, done.stdout.decode(), time.monotonic() - started


def holding(path, data):
    """Starts another program that writes to a file and keeps it open."""
    script = "import sys, time; f = open(sys.argv[1], 'wb', 0); f.write(sys.argv[2].encode()); time.sleep(600)"
    program = beside("python3", "-c", script, path, data)
    until(lambda: os.path.exists(path) and os.stat(path).st_size == len(data), "it is written")
    return program


def test_umount_gives_up_and_force_does_not():
    with two_libraries("umo") as (lower, upper):
        program = holding(upper.mnt / "dirty", "dirty")
        try:
            stop(lower)
            code, text, seconds = umount(upper)
            same(code, 9, "exit code where the store does not answer")
            check("dirty" in text and "--force" in text, text)
            check(55 < seconds < 90, f"it gave up after {seconds:.0f} s")
            check(mounts(upper.mnt), "it is not mounted any more")
            code, text, seconds = umount(upper, "--force")
            same(code, 9, "exit code where something is lost")
            check("lost: 5 bytes of dirty" in text, text)
            check(seconds < 20, f"it took {seconds:.0f} s")
            check(not mounts(upper.mnt), "it is still mounted")
        finally:
            program.kill()
            go_on(lower)
            program.wait()
        upper.process.wait(30)
        upper.process = None
        upper.mount()
        same((upper.mnt / "dirty").read_bytes(), b"", "what was never written out")
        upper.umount()


def test_umount_of_a_stopped_process():
    with two_libraries("stop") as (_, upper):
        write(upper.mnt / "file", b"file")
        stop(upper)
        code, text, seconds = umount(upper, "--force")
        same(code, 9, "exit code where nobody says what is lost")
        check(seconds < 20, f"it took {seconds:.0f} s")
        check(not mounts(upper.mnt), "it is still mounted")
        go_on(upper)
        same(upper.process.wait(30), 0, "exit code of the process")
        upper.process = None
        upper.mount()
        same((upper.mnt / "file").read_bytes(), b"file", "what was written")
        stop(upper)
        code, text, seconds = umount(upper)
        same(code, 9, "exit code where the process does not answer")
        check(55 < seconds < 90, f"it gave up after {seconds:.0f} s")
        go_on(upper)
        same(umount(upper)[0], 0, "exit code of a umount")
        upper.process.wait(30)
        upper.process = None


def test_force_where_all_is_well():
    with two_libraries("well") as (_, upper):
        program = holding(upper.mnt / "busy", "busy")
        try:
            same(umount(upper)[0], 6, "exit code where it is in use")
            same(umount(upper, "--force")[0], 0, "exit code where nothing is lost")
            check(not mounts(upper.mnt), "it is still mounted")
            upper.process.wait(30)
            upper.process = None
        finally:
            program.kill()
            program.wait()
        upper.mount()
        same((upper.mnt / "busy").read_bytes(), b"busy", "what was written")
        upper.umount()


def test_findable_by_its_library():
    root_only()
    with two_libraries("find") as (_, upper):
        same(run("findmnt", "-n", "-o", "TARGET", "-S", upper.dir).strip(), str(upper.mnt), "what findmnt finds")
        same(run("df", "--output=source", upper.mnt).split()[1], str(upper.dir), "the source that df names")
        # umount(8) as root takes an absolute path of a folder for the mount point, without a look at the table.
        run("umount", upper.dir.name, cwd=upper.dir.parent)
        same(upper.process.wait(30), 0, "exit code of the mount")
        upper.process = None
        upper.mount("-o", "fsname=Some name,subtype=other")
        same(mounts(upper.mnt), ["fuse.other"], "the type that was asked for")
        same(run("findmnt", "-n", "-o", "SOURCE", upper.mnt).strip(), "Some name", "the source that was asked for")
        same(umount(upper)[0], 0, "exit code of a umount by place, whatever its type")
        upper.process.wait(30)
        upper.process = None
        upper.mount()
        same(subprocess.run([PROGRAM, "umount", upper.dir], env=upper.env, timeout=100).returncode, 0, "exit code of a umount by library")
        upper.process.wait(30)
        upper.process = None


if __name__ == "__main__":
    main()
