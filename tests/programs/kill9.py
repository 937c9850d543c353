#!/usr/bin/env python3
"""Repeated `kill -9` of the hushfs process under load, and what must be there afterwards.

After close(2), and after the reply to any call on names, nothing is lost. A new file renamed over an old one is never
empty or missing, even without fsync. The contents of a file that was not closed are a prefix of what was written.

Writers report through a pipe what the filesystem has acknowledged. All of it is checked after a remount. The moments of
killing are random; KILL9_SEED repeats them (as far as timing can be repeated).
"""
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from common import Library, check, content, describe, drop_caches, main, mounts, run, same, same_tree, until

SEED = int(os.environ.get("KILL9_SEED") or secrets.randbits(32))


def sized(seed):
    """Returns a length for a seed: most files are small, some span many blocks, some are empty."""
    r = random.Random(f"length {seed}")
    return r.choice((0, 1, 100, 4096, 5000, 16384, 16385, 70_000, 300_000, 1_500_000))


def body(seed):
    return content(seed, sized(seed))


def versioned(key, version):
    """Returns contents that identify their version and show whether they are complete."""
    rest = content((key, version), 2000 + 997 * (version % 40))
    return json.dumps([key, version, hashlib.sha256(rest).hexdigest()]).encode() + b"\n" + rest


# The writers: each does one thing for ever, and tells what has been answered. The end is an error of the dead mount.

def write_and_close(root, name, tell):
    """Writes new files in pieces."""
    for i in range(10**9):
        seed = f"{name}-{i}"
        data = body(seed)
        os.makedirs(f"{root}/{name}/{i // 50}", exist_ok=True)
        with open(f"{root}/{name}/{i // 50}/{seed}", "wb", buffering=0) as f:
            for at in range(0, len(data), 30_000):
                f.write(data[at:at + 30_000])
        tell("closed", f"{name}/{i // 50}/{seed}", seed)


def replace(root, name, tell):
    """Writes a new file and renames it over the old one without fsync, as editors and rsync do."""
    os.makedirs(f"{root}/{name}", exist_ok=True)
    # Higher than any that an earlier round told, or may have written without being told.
    for version in range(time.time_ns() // 1000, 10**18):
        key = f"{name}/target {version % 5}"
        with open(f"{root}/{name}/.new", "wb") as f:
            f.write(versioned(key, version))
        os.rename(f"{root}/{name}/.new", f"{root}/{key}")
        tell("renamed", key, version)


def append(root, name, tell):
    """Appends lines to a log, with a close after each."""
    path = f"{root}/{name}"
    start = len(open(path, "rb").read().splitlines()) if os.path.exists(path) else 0
    for i in range(start, 10**9):
        with open(path, "ab") as f:
            f.write(b"line %08d of a log\n" % i)
        tell("appended", name, i + 1)


def synced(root, name, tell):
    """Writes and calls fsync, and keeps the file open."""
    os.makedirs(f"{root}/{name}", exist_ok=True)
    seed = f"{name}-{time.time_ns()}"
    with open(f"{root}/{name}/{seed}", "wb", buffering=0) as f:
        tell("created", f"{name}/{seed}", seed)
        for at in range(0, 10**9, 12_345):
            f.write(content(f"{seed} {at}", 12_345))
            os.fsync(f.fileno())
            tell("synced", f"{name}/{seed}", at + 12_345)


def names(root, name, tell):
    """Changes names and attributes in every way; the last acknowledged state must hold."""
    os.makedirs(f"{root}/{name}", exist_ok=True)
    for i in range(time.time_ns() // 1000, 10**18):
        path = f"{name}/{i}"
        os.mkdir(f"{root}/{path}")
        tell("is", path, "directory")
        os.symlink(f"to {i}", f"{root}/{path}/link")
        tell("link", f"{path}/link", f"to {i}")
        with open(f"{root}/{path}/file", "wb") as f:
            f.write(b"%d" % i)
        os.chmod(f"{root}/{path}/file", 0o600 + i % 64)
        tell("mode", f"{path}/file", 0o600 + i % 64)
        os.setxattr(f"{root}/{path}/file", "user.i", b"%d" % i)
        tell("xattr", f"{path}/file", i)
        if i % 3 == 0:
            for gone in ("link", "file"):
                tell("unknown", f"{path}/{gone}", None)  # from here until the answer it may be there or not
                os.unlink(f"{root}/{path}/{gone}")
                tell("gone", f"{path}/{gone}", None)
            tell("unknown", path, None)
            os.rmdir(f"{root}/{path}")
            tell("gone", path, None)


def in_place(root, name, tell):
    """Writes to scattered places of a file and closes it each time, like a database or a tagger."""
    path = f"{root}/{name}"
    if not os.path.exists(path):
        with open(path, "wb") as f:
            f.write(bytes(64 * 4096))
    for version in range(time.time_ns() // 1000, 10**18):
        block = version * 7919 % 64
        with open(path, "r+b", buffering=0) as f:
            os.pwrite(f.fileno(), content((block, version), 4000) + b"%020d" % version + bytes(76), block * 4096)
        tell("block", f"{name} {block}", version)


WRITERS = {f.__name__: f for f in (write_and_close, replace, append, synced, names, in_place)}


def child(kind, root, name):
    """Runs this script as a writer. It ends even if its parent dies; otherwise it could fill the disk."""
    signal.alarm(120)

    def tell(*what):
        os.write(1, json.dumps(what).encode() + b"\n")
    try:
        WRITERS[kind](root, name, tell)
    except OSError as e:
        print(f"{kind}: {e}", file=sys.stderr)


def verify(root, told, name_of):
    """Compares the tree with what was acknowledged to the writers. Returns the number of acknowledgements that held."""
    answers = [(word, path, value) for path, words in told.items() for word, value in words.items()]
    for word, path, value in answers:
        where = root / path
        if word in ("closed", "renamed", "appended", "synced", "mode", "xattr"):
            check(where.is_file(), f"{path} is missing, told as {word}")
        if word == "closed":
            check(where.read_bytes() == body(value), f"{path}: {where.stat().st_size} bytes after close, expected the {sized(value)} that were written")
        elif word == "renamed":
            first, _, rest = where.read_bytes().partition(b"\n")
            key, version, digest = json.loads(first)
            same((key, hashlib.sha256(rest).hexdigest()), (path, digest), f"{path}: what a rename put in its place")
            check(version >= value, f"{path}: version {version}, after {value} was renamed into its place")
        elif word == "appended":
            lines = where.read_bytes().splitlines()
            same(lines, [b"line %08d of a log" % i for i in range(len(lines))], f"{path}: lines")
            check(len(lines) >= value, f"{path}: {len(lines)} lines, {value} were closed")
        elif word == "synced":
            got, seed = where.read_bytes(), os.path.basename(path)
            expected = b"".join(content(f"{seed} {at}", 12_345) for at in range(0, value + 5 * 12_345, 12_345))
            check(len(got) >= value and expected.startswith(got), f"{path}: {len(got)} bytes, {value} were synced" if expected.startswith(got) else f"{path}: other bytes than were written")
        elif word == "is":
            check(where.is_dir(), f"{path} is missing, told as made")
        elif word == "link":
            same(os.readlink(where), value, path)
        elif word == "mode":
            same(oct(where.stat().st_mode & 0o7777), oct(value), f"{path}: mode")
        elif word == "xattr":
            same(os.getxattr(where, "user.i"), b"%d" % value, f"{path}: attribute")
        elif word == "gone":
            check(not os.path.lexists(where), f"{path} is there, told as removed")
        elif word == "block":
            name, block = path.rsplit(" ", 1)
            with open(root / name, "rb") as f:
                got = os.pread(f.fileno(), 4096, int(block) * 4096)
            version = int(got[4000:4020] or 0)
            check(got[:4000] == content((int(block), version), 4000), f"{name}: block {block} is torn")
            check(version >= value, f"{name}: block {block} is of version {version}, {value} was closed")
    # What nobody told of may be there or not, and then it is the beginning of what was being written.
    for path in (root / name_of("write_and_close")).rglob("*-*"):
        if path.is_file():
            check(body(path.name).startswith(path.read_bytes()), f"{path.name}: other bytes than were written")
    return len(answers)


def remember(told, lines):
    """Keeps the newest report of each kind for a path."""
    for line in lines:
        word, path, value = json.loads(line)
        if word in ("gone", "unknown"):
            told.pop(path, None)
        if word not in ("created", "unknown"):
            told.setdefault(path, {})[word] = value


def killed(library):
    """Kills the process, and mounts again as after a reboot. The dead mount is tested by another case."""
    library.kill()
    library.clear()
    library.mount()


def load(library, seconds, name_of):
    """Runs all writers at the same time until the process is killed. Returns what was acknowledged to them."""
    lines, writers, said = [], [], ""
    try:
        for kind in WRITERS:
            with open(library.base / f"told by {kind}", "wb") as out:
                writers.append(subprocess.Popen([sys.executable, __file__, "--writer", kind, library.mnt, name_of(kind)],
                                                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True))
        time.sleep(seconds)
        early = [w for w in writers if w.poll() is not None]
        library.kill()
        said = [w.communicate(timeout=60)[1] for w in writers]
    finally:
        for w in writers:
            w.kill()
            w.wait()
    library.clear()  # not earlier: the writers would go on below the mount point
    check(not early, f"{len(early)} writers ended before the kill: {said}")
    for kind in WRITERS:
        lines += (library.base / f"told by {kind}").read_bytes().splitlines()
    return lines


def test_under_load(library):
    print(f"      KILL9_SEED={SEED}")
    moments, told, total = random.Random(SEED), {}, 0  # told: a path to words to values
    for round_number in range(8):
        # Some writers go on with what they left in the round before, some begin anew.
        def name_of(kind):
            return kind if kind in ("append", "in_place", "replace") else f"{kind} {round_number}"
        remember(told, load(library, moments.choice((0.4, 0.7, 1, 2, 4)), name_of))
        if round_number % 3 == 2:  # killed again while it takes in what was left over
            library.mount()
            time.sleep(moments.random() / 5)
            library.kill()
            library.clear()
        library.mount()
        total = verify(library.mnt, told, name_of)
    before = describe(library.mnt)
    library.remount()
    verify(library.mnt, told, name_of)
    same_tree(library.mnt, before, "the tree after a clean remount")
    print(f"      8 kills, {total} answers hold")


def test_killed_while_idle(library):
    """Killing an idle mount loses nothing and leaves nothing half-done, whether files were closed long ago or just
    now."""
    for i in range(200):
        (library.mnt / f"{i}").write_bytes(body(i))
    before = describe(library.mnt)
    for _ in range(3):
        killed(library)
        same_tree(library.mnt, before, "the tree after kill -9")
    library.remount()
    same_tree(library.mnt, before, "the tree after a clean remount")


def test_what_does_not_show_is_said(library):
    """After a kill, `verify` reports files that are not visible yet, and so does a mount under another id, as
    after this machine's state was lost. A read-only mount shows them."""
    said = "not visible yet"
    (library.mnt / "file").write_bytes(b"kept")
    library.kill()
    library.clear()
    check(said in library.hushfs("verify", "--password-file", library.password_file, library.dir), "verify says nothing")
    library.mount("--read-only")
    same((library.mnt / "file").read_bytes(), b"kept", "what a mount for reading shows")
    library.umount()
    same(library.log.read_text().count(said), 0, "times that a mount for reading says it")
    state, = (library.base / "state").rglob("*.state")
    old = state.read_text()
    device = [line for line in old.splitlines() if line.startswith("device ")][0]
    state.unlink()
    library.mount()
    same(os.listdir(library.mnt), [], "what shows under another id")
    library.umount()
    check(f"put `{device}` into it" in library.log.read_text(), "the old id is not named")
    state.write_text(old)
    library.mount()
    same((library.mnt / "file").read_bytes(), b"kept", "content under the old id")
    same(library.log.read_text().count(said), 1, "times that it was said in all")


def test_a_copy_is_whole_at_any_time(library):
    """A copy without new/ that a sync tool makes while files are overwritten can be mounted, and so can what a kill
    leaves."""
    (library.mnt / "file").write_bytes(content("old", 3_000_000))
    library.remount()
    copy, mnt = library.base / "copy", library.base / "copy-mnt"
    mnt.mkdir()
    secret = ("--password-file", library.password_file)

    def check_copy(expected):
        shutil.copytree(library.dir, copy, ignore=shutil.ignore_patterns("new"))
        library.hushfs("verify", *secret, copy)
        library.hushfs("mount", "--read-only", *secret, copy, mnt)
        same((mnt / "file").read_bytes(), content(expected, 3_000_000), "content in the copy")
        library.hushfs("umount", mnt)
        shutil.rmtree(copy)

    (library.mnt / "file").write_bytes(content("new", 3_000_000))
    time.sleep(7)  # what is older than 5 s is durable now, and not published
    check_copy("old")
    library.kill()
    library.clear()
    library.hushfs("verify", *secret, library.dir)
    library.mount()
    same((library.mnt / "file").read_bytes(), content("new", 3_000_000), "content after kill -9")
    library.umount()
    check_copy("new")


def test_stale_mount_point(library):
    """The next mount replaces a dead mount whose process was killed; a second mount is refused only while the first
    is alive."""
    (library.mnt / "file").write_bytes(b"kept")
    elsewhere = library.base / "elsewhere"
    elsewhere.mkdir()
    mount = ["mount", "--password-file", library.password_file, library.dir, elsewhere]
    library.hushfs(*mount, ok=(6,), timeout=30)
    library.kill()
    same(len(mounts(library.mnt)), 1, "dead mounts")
    library.mount()
    same(len(mounts(library.mnt)), 1, "mounts after mounting over a dead one")
    same((library.mnt / "file").read_bytes(), b"kept", "content")
    library.hushfs(*mount, ok=(6,), timeout=30)
    library.umount()
    same(mounts(library.mnt), [], "mounts in the end")


def test_umount_of_the_dead(library):
    """`hushfs umount`, `fusermount3 -u` and umount remove a mount whose process was killed."""
    library.kill()
    library.hushfs("umount", library.mnt, timeout=30)
    same(mounts(library.mnt), [], "mounts")
    library.mount()


def test_index_rewritten_under_work(library):
    """The index is rewritten while superseded records pile up in it; afterwards it can be opened, killed or not."""
    for version in range(20_000):
        (library.mnt / "new").write_bytes(b"%d" % version)
        os.rename(library.mnt / "new", library.mnt / f"target {version % 5}")
    expected = {f"target {v % 5}": b"%d" % v for v in range(19_995, 20_000)}

    def look():
        same({p.name: p.read_bytes() for p in library.mnt.iterdir()}, expected, "contents")
    killed(library)
    look()
    library.remount()
    look()


def test_large_file_being_written(library):
    """After a kill during a large copy, a prefix of the file is there, and the rest can be written again."""
    whole = content("large", 200 << 20)
    writer = subprocess.Popen([sys.executable, "-c", "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, open(sys.argv[1], 'wb'), 1 << 20)", library.mnt / "large"],
                              stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        writer.stdin.write(whole[:150 << 20])
        library.kill()
        writer.stdin.write(whole[150 << 20:])
        writer.stdin.close()
    except BrokenPipeError:
        pass
    writer.wait(60)
    library.clear()
    library.mount()
    got = (library.mnt / "large").read_bytes()
    check(whole.startswith(got), f"{len(got)} bytes are there, and they are not the beginning of what was written")
    with open(library.mnt / "large", "ab") as f:
        f.write(whole[len(got):])
    library.remount()
    check((library.mnt / "large").read_bytes() == whole, "content after writing the rest")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--writer"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        child(*sys.argv[2:])
    else:
        main()
