#!/usr/bin/env python3
"""The ways to begin and to end a mount, and what the exit codes say."""
import errno
import itertools
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import termios
import time
from pathlib import Path
from common import PROGRAM, Library, check, content, drop_caches, main, mounts, root_only, run, same, stored_bytes, until, workplace

DATA = content("mounting", 200_000)


def serving(library):
    """The ids of the processes that name this library's directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(library.dir) in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # it has just ended
            pass
    return found


def kept(library):
    drop_caches()
    library.mount()
    same((library.mnt / "file").read_bytes(), DATA, "what was written before the mount ended")
    library.umount()


def end_in_the_background(library, *end):
    """`mount` returns when the mount answers; after `end` there is no process, and nothing is lost."""
    library.init()
    library.hushfs("mount", "--password-file", library.password_file, library.dir, library.mnt)
    check(library.answers(), "mount has returned, and the mount does not answer")
    check(serving(library), "no process serves the mount")
    (library.mnt / "file").write_bytes(DATA)
    run(*end)
    check(not mounts(library.mnt), "the mount is still there")
    return library


def with_library(case):
    """For cases that mount in their own way: a library without a mount, ended whatever happens."""
    def test():
        library = Library(workplace(case.__name__))
        try:
            case(library)
        finally:
            library.close()
            for pid in serving(library):
                os.kill(pid, signal.SIGKILL)
            run("rm", "-rf", "--one-file-system", library.base)
    return test


@with_library
def test_background_hushfs_umount(library):
    end_in_the_background(library, PROGRAM, "umount", library.mnt)
    same(serving(library), [], "processes right after `hushfs umount`, which waits for them")
    kept(library)


@with_library
def test_background_umount(library):
    end_in_the_background(library, *(["umount"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]), library.mnt)
    until(lambda: not serving(library), "the process ends")
    kept(library)


@with_library
def test_background_fusermount(library):
    end_in_the_background(library, "fusermount3", "-u", library.mnt)
    until(lambda: not serving(library), "the process ends")
    kept(library)


def test_sigterm(library):
    signalled(library, signal.SIGTERM)


def test_sigint(library):
    signalled(library, signal.SIGINT)


def signalled(library, which):
    (library.mnt / "file").write_bytes(DATA)
    library.process.send_signal(which)
    same(library.process.wait(30), 0, f"exit code after {which.name}")
    library.process = None
    same(mounts(library.mnt), [], "mounts")
    kept(library)


@with_library
def test_create(library):
    """--create makes the library and the mount point where they are missing."""
    library.mnt.rmdir()
    library.mount("--create")
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    kept(library)


def test_read_only(library):
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    before = stored_bytes(library)
    for option in (["--read-only"], ["-o", "ro"]):
        library.mount(*option)
        same((library.mnt / "file").read_bytes(), DATA, "content")
        for change in (lambda: (library.mnt / "new").write_bytes(b""), lambda: (library.mnt / "file").unlink(),
                       lambda: (library.mnt / "file").chmod(0o600), lambda: open(library.mnt / "file", "r+")):
            try:
                change()
                check(False, f"a change under {option} went through")
            except OSError as e:
                same(e.strerror, os.strerror(30), "the error of a change")
        library.umount()
    same(stored_bytes(library), before, "bytes in the library after reading only")


def test_refusals(library):
    """Each error has its exit code."""
    wrong, other, elsewhere = library.base / "wrong", library.base / "other", library.base / "elsewhere"
    wrong.write_text("not the password\n")
    other.mkdir()
    elsewhere.mkdir()
    right = ["--password-file", library.password_file]
    library.hushfs("init", *right, library.dir, ok=(8,))
    library.hushfs("mount", *right, library.dir, elsewhere, ok=(6,), timeout=30)
    library.umount()
    (other / "a file").write_bytes(b"not a library")
    library.hushfs("init", *right, other, ok=(8,))
    library.hushfs("mount", *right, other, elsewhere, ok=(4,))
    library.hushfs("mount", "--password-file", wrong, library.dir, elsewhere, ok=(3,))
    library.hushfs("mount", "--no-such-option", library.dir, elsewhere, ok=(2,))
    library.hushfs("umount", elsewhere, ok=(8,))
    same(mounts(elsewhere), [], "mounts")


def test_second_reader(library):
    """Read-only mounts are not refused beside the one that writes."""
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    library.mount()
    second = Library(library.base / "second")
    second.dir, second.env = library.dir, library.env
    try:
        second.mount("--read-only")
        same((second.mnt / "file").read_bytes(), DATA, "content through the second mount")
        second.umount()
    finally:
        second.close()


def test_ended_under_load(library):
    """`umount -f` and `umount -l` while requests are on their way: the mount still ends well, each time."""
    root_only()
    for turn in range(24):
        if library.process is None:
            library.mount()
        busy = [write_for_ever(library.mnt) for _ in range(6)]
        time.sleep(0.1 + turn % 7 * 0.02)
        run("umount", *(["-f"] if turn % 2 else []), "-l", library.mnt)
        for pid in busy:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        same(library.process.wait(30), 0, "exit code of a mount that was ended under load")
        library.process = None
    check("No such file or directory" not in library.log.read_text(), "that nobody waited for an answer is no error")


def write_for_ever(mnt):
    """Starts a process that creates and reads files, also where the mount is out of sight already."""
    root = os.open(mnt, os.O_RDONLY)
    pid = os.fork()
    if pid:
        os.close(root)
        return pid
    try:
        for i in itertools.count():
            file = os.open(f"{os.getpid()} {i % 20}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=root)
            os.write(file, DATA[:3000])
            os.pread(file, 3000, 0)
            os.close(file)
    finally:
        os._exit(0)


def test_late_segments(library):
    """What a sync tool had not brought yet comes after an older index was accepted and written to: all is there."""
    index = library.dir / "index"

    def write(name):
        before = set(index.iterdir())
        (library.mnt / name).write_bytes(content(name, 100_000))
        library.umount()
        return set(index.iterdir()) - before

    write("first")
    library.mount()
    late = write("late")
    for segment in late:
        segment.rename(library.base / segment.name)
    argv = ["mount", "--password-file", library.password_file, library.dir, library.mnt]
    check("--accept-rollback" in library.hushfs(*argv, ok=(5,)), "how to mount nevertheless is not said")
    library.mount("--accept-rollback")
    write("meanwhile")
    for segment in late:
        (library.base / segment.name).rename(segment)
    for _ in range(2):
        library.mount()
        for name in ("first", "late", "meanwhile"):
            check((library.mnt / name).read_bytes() == content(name, 100_000), f"content of {name}")
        library.umount()


def test_forked_segments(library):
    """A copy of the library, and of what this machine knows of it, takes its place, and is accepted: both go on, and can
    be put together."""
    state = Path(library.env["XDG_STATE_HOME"])
    places = {library.dir: "library", state: "state"}

    def keep(name):
        for place, kind in places.items():
            shutil.copytree(place, library.base / f"{name}-{kind}")

    def put(name, kinds=("library", "state")):
        for place, kind in places.items():
            if kind in kinds:
                shutil.rmtree(place)
                shutil.copytree(library.base / f"{name}-{kind}", place)

    def write(name, *options):
        library.mount(*options)
        (library.mnt / name).write_bytes(content(name, 100_000))
        library.umount()

    library.umount()
    keep("common")
    write("ours")
    keep("ours")
    put("common")
    write("theirs")
    keep("theirs")
    write("later")
    put("ours", ("state",))
    later = library.base / "later-library"
    shutil.copytree(library.dir, later)
    put("theirs", ("library",))
    argv = ["mount", "--password-file", library.password_file, library.dir, library.mnt]
    library.hushfs(*argv, ok=(5,))
    for name in "meanwhile", "more":
        write(name, *["--accept-rollback"] * (name == "meanwhile"))
    shutil.copytree(later, library.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("new"))
    library.mount()
    for name in ("theirs", "later", "meanwhile", "more"):
        check((library.mnt / name).read_bytes() == content(name, 100_000), f"content of {name}")


def echoes(terminal):
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def at_terminal(library, *argv):
    """Starts the program as a shell does, in a process group of its own, so that it can be stopped. Returns its id, the
    terminal, and the pipe from which its changes of state are read."""
    reader, writer = os.pipe()
    shell, terminal = pty.fork()
    if shell == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            program = os.fork()
            if program == 0:
                os.setpgid(0, 0)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                os.execve(PROGRAM, [PROGRAM, *argv], library.env)
            os.write(writer, b"%d\n" % program)
            status = 0x7f
            while os.WIFSTOPPED(status):
                status = os.waitpid(program, os.WUNTRACED)[1]
                os.write(writer, b"%d\n" % status)
        finally:
            os._exit(0)
    os.close(writer)
    states = open(reader, "rb", buffering=0)
    return next_of(states), terminal, states


def next_of(states):
    check(select.select([states], [], [], 10)[0], "it neither ends nor stops")
    return int(states.readline())


@with_library
def test_prompt(library):
    """Nothing that is typed at a prompt is shown; whatever ends or stops the program, the terminal shows it again."""
    library.init()
    for which, typed in ((signal.SIGINT, b"\x03"), (signal.SIGQUIT, b"\x1c"), (signal.SIGTERM, b""), (signal.SIGHUP, b""), (None, b"qwx\n" * 3)):
        pid, terminal, states = at_terminal(library, "passwd", library.dir)
        try:
            until(lambda: not echoes(terminal), "the prompt")
            os.write(terminal, b"qwx\x1a")
            check(os.WIFSTOPPED(next_of(states)), "Ctrl-Z does not stop it")
            check(echoes(terminal), "a stopped prompt leaves the terminal without echo")
            os.kill(pid, signal.SIGCONT)
            until(lambda: not echoes(terminal), "the prompt again")
            os.write(terminal, typed)
            if which and not typed:
                os.kill(pid, which)
            same(next_of(states), which or 3 << 8, "how it ended")
            check(echoes(terminal), f"{which} leaves the terminal without echo")
            shown = os.read(terminal, 4096)
            check(b"Password: " in shown and b"qwx" not in shown, f"the terminal shows {shown}")
        finally:
            states.close()
            os.close(terminal)
            for left in serving(library):
                os.kill(left, signal.SIGKILL)


@with_library
def test_file_size_limit(library):
    """A limit of who mounts (`ulimit -f`) is an error of writing, and does not end the mount."""
    library.init()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        library.mount()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (library.mnt / "file").write_bytes(DATA)
    try:
        with open(library.mnt / "large", "wb") as f:
            f.write(content("large", 4 << 20))
            os.fsync(f.fileno())
        check(False, "more was written than may be")
    except OSError as e:
        same(errno.errorcode[e.errno], "EIO", "the error of writing too much")
    check(library.process.poll() is None, "the mount has ended")
    check("File too large" in library.log.read_text(), "the log does not say why")
    library.hushfs("umount", library.mnt, ok=(0, 9))
    library.process.wait(30)
    library.process = None
    kept(library)


def test_mount_time(library):
    library.umount()
    started = time.monotonic()
    library.mount()
    check(time.monotonic() - started < 2, "mounting an empty library takes 2 s and more")


if __name__ == "__main__":
    main()
