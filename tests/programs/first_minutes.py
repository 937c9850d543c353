#!/usr/bin/env python3
"""A newcomer's first minutes: the commands of the section "Start" of README.md, exactly as shown, typed at a terminal.

They are read from README.md, so that it and this test cannot drift apart. Two things differ from what a newcomer does:
the program is not built again, so `cargo run --release --` is replaced by the program under test; and the test command
(`contrib/test`, which runs this suite) is not run, but must exist.
"""
import os
import pty
import re
import select
import shlex
import shutil
import termios
import time
from common import PASSWORD, PROGRAM, REPO, Library, check, main, mounts, same, workplace
from mounting import serving

RUN = "cargo run --release --"
TEST = "contrib/test"
# 14 groups of 4 characters.
CODE = re.compile(r"^\s*((?:[0-9A-Z]{4}-){13}[0-9A-Z]{4})\s*$", re.IGNORECASE | re.MULTILINE)


def commands():
    """Returns the lines of the first code block in the section "Start", without comments."""
    section = re.search(r"^## Start\n(.*?)^## ", (REPO / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    check(section, "README.md has no section Start")
    block = re.search(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    check(block, "the section Start has no commands")
    lines = [re.sub(r"\s+# .*", "", line).strip() for line in block[1].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def type_at_terminal(line, home, environment):
    """Lets a shell run a line at a terminal of its own, and answers each password prompt. Returns the output."""
    shell, terminal = pty.fork()
    if shell == 0:
        try:
            os.chdir(home.parent / "checkout")
            os.execve("/bin/bash", ["bash", "-c", line], environment)
        finally:
            os._exit(127)
    shown, answered, status = b"", 0, None
    end = time.monotonic() + 60
    try:
        while True:
            check(time.monotonic() < end, f"`{line}` does not end; it shows {shown!r}")
            # Looked at before what is shown is read, so that all of it is read after the end.
            status = status or next((s for pid, s in [os.waitpid(shell, os.WNOHANG)] if pid), None)
            new = read_some(terminal)
            shown += new
            if status is not None and not new:
                break
            if shown[answered:].endswith(b": ") and not termios.tcgetattr(terminal)[3] & termios.ECHO:
                answered = len(shown)
                os.write(terminal, PASSWORD.encode() + b"\n")
    finally:
        os.close(terminal)
    text = shown.decode().replace("\r\n", "\n")
    same(os.waitstatus_to_exitcode(status), 0, f"exit code of `{line}`, which shows {text!r}")
    check(PASSWORD not in text, f"`{line}` shows the password")
    return text


def read_some(terminal):
    """Returns what programs wrote to the terminal within 50 ms, or nothing once the last one has closed it."""
    if not select.select([terminal], [], [], 0.05)[0]:
        return b""
    try:
        return os.read(terminal, 4096)
    except OSError:
        time.sleep(0.01)
        return b""


def contents(mountpoint):
    return {path.name: path.read_bytes() for path in mountpoint.rglob("*") if path.is_file()}


def test_first_minutes():
    lines = commands()
    check(TEST in lines and os.access(REPO / TEST, os.X_OK), f"README.md names no test command: {lines}")
    lines.remove(TEST)
    check(all(line.startswith(RUN) for line in lines if "cargo" in line or "hushfs" in line), f"commands that cannot be run here: {lines}")
    library = Library(workplace("first"))
    home = library.base / "home"
    library.dir, library.mnt = home / "library", home / "music"
    for folder in home, library.base / "checkout":
        folder.mkdir()
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    try:
        first_minutes(lines, library, environment)
    finally:
        library.close()
        shutil.rmtree(library.base, ignore_errors=True)


def first_minutes(lines, library, environment):
    codes, was_mounted, written = [], False, {}
    for line in lines:
        shown = type_at_terminal(line.replace(RUN, shlex.quote(str(PROGRAM))), library.base / "home", environment)
        codes += CODE.findall(shown)
        if " mount " in line:
            same(mounts(library.mnt), ["fuse.hushfs"], f"mounts after `{line}`")
            same(len(codes), 1, f"recovery codes shown by `{line}`: {shown!r}")
            check(shown.index(codes[0]) < shown.lower().index("write it down"), f"nothing says to write the code down: {shown!r}")
            check(f"mounted on {library.mnt}" in shown and f"hushfs umount {library.mnt}" in shown, f"`{line}` does not say what is mounted: {shown!r}")
            was_mounted = True
        elif " umount " in line:
            same(mounts(library.mnt), [], f"mounts after `{line}`")
        if mounts(library.mnt):
            written |= contents(library.mnt)
    check(was_mounted and written, f"nothing was mounted, or nothing written: {lines}")
    same(mounts(library.mnt), [], f"mounts after all of {lines}")
    same(serving(library), [], "processes after all of README")
    nothing_shows(library, written)
    # Beside them, only what this machine remembers.
    same(sorted(os.listdir(library.base / "home")), [".local", "library", "music"], "files in the home directory")
    same(os.listdir(library.base / "checkout"), [], "files in the checkout")
    kept(library, written, environment)


def nothing_shows(library, written):
    """The library contains the files, but neither their names nor their contents are readable in it."""
    same(contents(library.mnt), {}, "files left below the mount point")
    stored = [path for path in library.dir.rglob("*") if path.is_file()]
    check(any(path.parent == library.dir / "data" for path in stored), f"no pack is stored: {stored}")
    for path in stored:
        plain = path.read_bytes() + os.fsencode(path.name)
        for name, content in written.items():
            check(os.fsencode(name) not in plain and content.strip() not in plain, f"{name} shows in {path}")


def kept(library, written, environment):
    mount = f"{shlex.quote(str(PROGRAM))} mount ~/library ~/music"
    shown = type_at_terminal(mount, library.base / "home", environment)
    check(not CODE.search(shown), f"the recovery code is shown again: {shown!r}")
    same(contents(library.mnt), written, "files after mounting once more")
    type_at_terminal(f"{shlex.quote(str(PROGRAM))} umount ~/music", library.base / "home", environment)


if __name__ == "__main__":
    main()
