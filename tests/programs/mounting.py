#!/usr/bin/env python3
"""The ways to begin and end a mount, and their exit codes."""
import errno
import hashlib
import itertools
import os
import pty
import pwd
import re
import resource
import select
import shutil
import signal
import subprocess
import termios
import time
from pathlib import Path
from common import PROGRAM, Library, check, content, drop_caches, fails, main, mounts, root_only, run, same, stored_bytes, until, workplace

DATA = content("mounting", 200_000)


def serving(library):
    """Returns the ids of the processes that have this library's directory on their command line."""
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
    """`mount` returns once the mount answers. After `end`, the process is gone and nothing is lost."""
    library.init()
    library.hushfs("mount", "--password-file", library.password_file, library.dir, library.mnt)
    check(library.answers(), "mount has returned, and the mount does not answer")
    check(serving(library), "no process serves the mount")
    (library.mnt / "file").write_bytes(DATA)
    run(*end)
    check(not mounts(library.mnt), "the mount is still there")
    return library


def with_library(case):
    """Passes a case an unmounted library, for cases that mount it themselves, and always cleans up."""
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
    """--create creates the library and the mount point if they are missing."""
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
    said = library.hushfs("mount", *right, library.dir, elsewhere, ok=(6,), timeout=30)
    check(f"already mounted at {library.mnt}" in said, f"where it is mounted is not said: {said}")
    said = library.hushfs("mount", *right, library.dir, library.mnt, ok=(6,), timeout=30)
    check("mounted there already" in said, said)
    said = library.hushfs("mount", *right, library.mnt, elsewhere, ok=(4,), timeout=30)
    check(f"give its folder, {library.dir}" in said, f"a mount that is given as a library: {said}")
    library.umount()
    (other / "a file").write_bytes(b"not a library")
    library.hushfs("init", *right, other, ok=(8,))
    library.hushfs("mount", *right, other, elsewhere, ok=(4,))
    library.hushfs("mount", "--password-file", wrong, library.dir, elsewhere, ok=(3,))
    library.hushfs("mount", "--no-such-option", library.dir, elsewhere, ok=(2,))
    library.hushfs("umount", elsewhere, ok=(8,))
    library.hushfs("mount", *right, library.dir, library.base / "missing", ok=(8,))
    library.hushfs("mount", *right, library.dir, library.password_file, ok=(8,))
    library.hushfs("mount", *right, library.dir, other, ok=(8,))
    same(mounts(elsewhere), [], "mounts")


@with_library
def test_not_empty(library):
    """A mount point that is not empty is accepted only with -o nonempty."""
    library.init()
    bare = library.mnt / "bare"
    bare.write_bytes(b"in clear")
    argv = ["mount", "--password-file", library.password_file, library.dir, library.mnt]
    check("-o nonempty" in library.hushfs(*argv, ok=(8,)), "how to mount nevertheless is not said")
    library.hushfs(*argv, "--create", ok=(8,))
    same(mounts(library.mnt), [], "mounts")
    library.hushfs(*argv, "-o", "nonempty")
    same(os.listdir(library.mnt), [], "names")
    library.hushfs("umount", library.mnt)
    same(bare.read_bytes(), b"in clear", "what was hidden")


@with_library
def test_success_is_said(library):
    """`mount` prints what is mounted where, and how to unmount it; with --quiet, it prints nothing."""
    library.init()
    library.mnt.rmdir()
    library.mnt = library.base / "it's music"
    library.mnt.mkdir()
    argv = [PROGRAM, "mount", "--password-file", library.password_file, library.dir, library.mnt]
    end = f"hushfs umount '{library.base}/it'\\''s music'"

    def printed(*options, **kw):
        done = subprocess.run([*argv, *options], env=library.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, **kw)
        same(done.returncode, 0, f"exit code of {options}: {done.stderr}")
        check(library.answers(), "it does not answer")
        run("sh", "-c", end.replace("hushfs", str(PROGRAM)), env=library.env)
        return done

    said = printed(stdout=subprocess.PIPE)
    same(said.stdout.decode(), f"{library.dir} mounted on {library.mnt} (end with: {end})\n", "standard output")
    has_log = os.path.exists("/dev/log")
    check(has_log or b"--log-file" in said.stderr, f"that no log is kept is not said: {said.stderr}")
    for quiet in "--quiet", "-oquiet":
        said = printed(quiet, stdout=subprocess.PIPE)
        same((said.stdout, said.stderr), (b"", b""), f"output under {quiet}")
    # mount(8), which calls it by another name, says so itself.
    plain, helper = argv[0], library.base / "mount.hushfs"
    helper.symlink_to(PROGRAM)
    argv[:5] = [helper, "-o", f"password-file={library.password_file}", library.dir]
    said = printed("-n", stdout=subprocess.PIPE)
    same((said.stdout, said.stderr), (b"", b""), "output for mount(8)")
    check(b"end with: " in printed("-v", stdout=subprocess.PIPE).stdout, "nothing is said to mount(8) with -v")
    argv[:4] = [plain, "mount", "--password-file", library.password_file, library.dir]
    # What is mounted is mounted, whether or not that can be printed.
    with open("/dev/full", "w") as full:
        printed(stdout=full)
    library.mount()
    until(lambda: "end with: " in library.out.read_text(), "it is said in the foreground")
    library.umount()


@with_library
def test_log_file(library):
    """The log of a background mount is written to the file, with times and names, even if mounting fails."""
    library.init()
    library.mount()
    (library.mnt / "song").write_bytes(DATA)
    library.umount()
    for pack in (library.dir / "data").iterdir():
        damaged = bytearray(pack.read_bytes())
        damaged[len(damaged) // 3] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(damaged)
    log = library.base / "log"
    for foreground in (False, True):
        if foreground:
            library.mount("--log-file", log)
        else:
            said = library.hushfs("mount", "--password-file", library.password_file, "--log-file", log, library.dir, library.mnt)
            check("syslog" not in said, said)
        fails(errno.EIO, (library.mnt / "song").read_bytes, "reading what is damaged")
        library.hushfs("umount", library.mnt)
        if foreground:
            same(library.process.wait(30), 0, "exit code")
            library.process = None
            check("song" not in library.log.read_text(), "the log is on standard error, too")
        lines = log.read_text().splitlines()
        check(len([line for line in lines if "read of song" in line]) == 1 + foreground, f"the log: {lines}")
        for line in lines:
            check(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ hushfs: ", line), f"a line without a time: {line}")
    same(log.stat().st_mode & 0o777, 0o600, "the mode of the log")


def as_user(who, *argv, **kw):
    """Runs a program as another user, without supplementary groups."""
    return run("setpriv", "--reuid", who.pw_uid, "--regid", who.pw_gid, "--clear-groups", *argv, **kw)


def owner_and_mode(path):
    found = os.lstat(path)
    return (found.st_uid, found.st_gid, oct(found.st_mode & 0o7777))


def test_owner_is_shown(library):
    """With --uid and --gid, a mount shows root's files as another user's; the stored owner does not change."""
    root_only()
    nobody, daemon = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    mine = (nobody.pw_uid, nobody.pw_gid)
    names = {"secret": 0o600, "program": 0o6755, "listed": 0o640, "given": 0o644}
    for name, mode in names.items():
        (library.mnt / name).write_bytes(DATA)
        os.chown(library.mnt / name, 12345 if name == "given" else 0, 0)
        (library.mnt / name).chmod(mode)
    (library.mnt / "folder").mkdir(mode=0o700)
    os.symlink("secret", library.mnt / "link")
    run("setfacl", "-m", "u:daemon:rw", library.mnt / "listed")
    acl = run("getfacl", "-n", "listed", cwd=library.mnt)
    library.remount("--allow-other", "--uid", str(mine[0]), "-o", f"gid={mine[1]},suid")
    for name in (".", "link", "folder", *names):
        same(owner_and_mode(library.mnt / name)[:2], mine, f"the owner of {name}")
    same(owner_and_mode(library.mnt / "program"), (*mine, "0o755"), "a program with set-id bits")
    same(owner_and_mode(library.mnt / "link")[2], "0o777", "the mode of a link")
    same(as_user(nobody, "sha256sum", library.mnt / "secret").split()[0], hashlib.sha256(DATA).hexdigest(), "what nobody reads")
    as_user(daemon, "cat", library.mnt / "secret", ok=(1,))
    as_user(daemon, "cat", library.mnt / "listed", ok=(1,))
    as_user(nobody, "sh", "-c", 'umask 022; echo new >folder/new; mkdir folder/sub; mknod folder/fifo p; ln -s x folder/x; echo more >>given; '
            'chmod 640 secret; chmod 4700 program; chown nobody:nogroup secret; mv given folder', cwd=library.mnt)
    same(owner_and_mode(library.mnt / "secret"), (*mine, "0o640"), "a file after chmod")
    as_user(nobody, "chown", "daemon", library.mnt / "secret", ok=(1,))
    before = os.stat(library.mnt / "listed").st_ctime_ns
    os.chown(library.mnt / "listed", *mine)
    same(os.stat(library.mnt / "listed").st_ctime_ns, before, "ctime after a change of nothing")
    for uid, gid in ((0, -1), (-1, 0), (mine[0], 0)):
        fails(errno.EPERM, lambda: os.chown(library.mnt / "listed", uid, gid), "giving a file away")
    access = "system.posix_acl_access"
    fails(errno.EOPNOTSUPP, lambda: os.getxattr(library.mnt / "listed", access), "an access list")
    same(os.listxattr(library.mnt / "listed"), [], "attributes")
    run("setfacl", "-m", "u:daemon:rw", library.mnt / "secret", ok=(1,))
    run("setfacl", "-b", library.mnt / "listed", ok=(0, 1))
    library.remount()
    expected = {"secret": (0, 0, "0o640"), "program": (0, 0, "0o6700"), "folder": (0, 0, "0o700"), "folder/new": (0, 0, "0o644"), "folder/sub": (0, 0, "0o755"),
                "folder/fifo": (0, 0, "0o644"), "folder/x": (0, 0, "0o777"), "folder/given": (12345, 0, "0o644")}
    same({name: owner_and_mode(library.mnt / name) for name in expected}, expected, "what is stored")
    same(run("getfacl", "-n", "listed", cwd=library.mnt), acl, "the access list that is stored")


def test_umask_is_shown(library):
    root_only()
    nobody = pwd.getpwnam("nobody")
    for name, mode in {"file": 0o664, "program": 0o4755, "folder": 0o1777}.items():
        (library.mnt / name).mkdir() if name == "folder" else (library.mnt / name).write_bytes(DATA)
        (library.mnt / name).chmod(mode)
    library.remount("--allow-other", "--umask", "027")
    shown = {"file": (0, 0, "0o640"), "program": (0, 0, "0o4750"), "folder": (0, 0, "0o1750")}
    same({name: owner_and_mode(library.mnt / name) for name in shown}, shown, "modes")
    as_user(nobody, "cat", library.mnt / "file", ok=(1,))
    as_user(nobody, "touch", library.mnt / "folder" / "new", ok=(1,))
    (library.mnt / "file").chmod(0o600)
    (library.mnt / "folder" / "new").mkdir(mode=0o777)
    library.remount()
    stored = {"file": (0, 0, "0o624"), "program": (0, 0, "0o4755"), "folder": (0, 0, "0o1777"), "folder/new": (0, 0, "0o755")}
    same({name: owner_and_mode(library.mnt / name) for name in stored}, stored, "what is stored")


def test_second_reader(library):
    """Read-only mounts are allowed while another mount writes."""
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
    """After `umount -f` or `umount -l` during requests, the mount still ends without an error, each time."""
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
    """Starts a process that creates and reads files, even after the mount was detached."""
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
    """Segments that a sync tool delivers after an older index was accepted and written to are applied: nothing is
    lost."""
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
    said = library.hushfs(*argv, ok=(5,))
    check("--accept-rollback" in said, "how to mount nevertheless is not said")
    check(f"{library.dir}: the index is older" in said, f"which library is not said: {said}")
    (library.base / "mount.hushfs").symlink_to(PROGRAM)
    same(run(library.base / "mount.hushfs", library.dir, library.mnt, "-o", f"password-file={library.password_file}", env=library.env, ok=(32,)),
         said, "what mount(8) is told")
    library.mount("--accept-rollback")
    said = [line for line in library.log.read_text().splitlines() if "continuing anyway" in line]
    check(said and not any("--accept-rollback" in line for line in said), f"how it goes on: {said}")
    write("meanwhile")
    for segment in late:
        (library.base / segment.name).rename(segment)
    for _ in range(2):
        library.mount()
        for name in ("first", "late", "meanwhile"):
            check((library.mnt / name).read_bytes() == content(name, 100_000), f"content of {name}")
        library.umount()


def test_forked_segments(library):
    """A copy of the library and of this machine's state replaces the original and is accepted; both continue, and
    can be merged later."""
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
    terminal, and a pipe that reports its state changes."""
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
    """A password prompt does not echo what is typed; after the program ends or is stopped in any way, the terminal
    echoes again."""
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
    """If the user who mounts has a file size limit (`ulimit -f`), it causes write errors, but does not end the
    mount."""
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
