#!/usr/bin/env python3
"""`hushfs convert` copies a plain folder with everything that a library can hold, resumes after an interruption at any
moment, and does not change the source."""
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

from common import PROGRAM, Library, check, content, describe, main, make_tree, same, same_tree, until, workplace


@contextmanager
def conversion(kind):
    """What it takes to convert a library of this kind, or a plain folder."""
    base = workplace("convert")
    source, vault = Library(base / "from"), Library(base / "to")
    new = base / "new"
    new.write_text("new password\n")
    new.chmod(0o600)
    vault.password_file, vault.env = new, source.env
    options = ("--plain",) if kind == "plain" else ("--format", kind, "--password-file", source.password_file)
    try:
        yield source, vault, (*options, "--new-password-file", new, source.dir, vault.dir)
    finally:
        source.close()
        vault.close()
        shutil.rmtree(base, ignore_errors=True)


def make_music(source):
    """A library of Minio Music Server, with some files."""
    source.hushfs("init", "--format", "mms", "--password-file", source.password_file, source.dir)
    source.mount()
    for i in range(40):
        folder = source.mnt / "music" / f"Album {i % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.mp3").write_bytes(content(i, 700_000))
    source.umount()


def make_folder(source):
    make_tree(source.dir)
    for i in range(40):
        (source.dir / "Artist One" / f"{i}.flac").write_bytes(content(i, 700_000))


def copied(source, vault, kind):
    """Compares the library with the source, both mounted."""
    vault.hushfs("verify", "--password-file", vault.password_file, vault.dir)
    vault.mount("--read-only")
    if kind == "plain":
        same_tree(vault.mnt, source.dir, "the copy of a folder")
        same(*((s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns) for s in (os.stat(vault.mnt), os.stat(source.dir))), "the folder itself")
    else:
        source.mount("--read-only")
        same_tree(vault.mnt, source.mnt, "the copy of a library")
        source.umount()
    vault.umount()


def size(folder):
    """Returns the bytes in a folder in which another process writes and renames."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def whole_files(vault, expected):
    """Returns the inode of each file that exists, by name, and checks that each of them is complete."""
    if not vault.dir.is_dir() or not any((vault.dir / "index").glob("*")):
        return {}  # not even the library itself is there
    vault.mount("--read-only")
    found = {}
    for path in vault.mnt.rglob("*"):
        name = str(path.relative_to(vault.mnt))
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".hushfs-convert-"):
            same(hashlib.sha256(path.read_bytes()).hexdigest(), expected[name], f"{name} has its name and is not whole")
            found[name] = path.stat().st_ino
    vault.umount()
    return found


def cut_short(kind, make):
    """Interrupts a conversion at several moments, with SIGKILL and SIGINT; then lets it finish."""
    with conversion(kind) as (source, vault, argv):
        make(source)
        before = describe(source.dir)
        shown = before
        if kind != "plain":
            source.mount("--read-only")
            shown = describe(source.mnt)
            source.umount()
        expected = {os.fsdecode(path): entry["content"] for path, entry in shown.items() if "content" in entry}
        cuts, whole, midway = 0, {}, 0
        for n in range(10):
            process = subprocess.Popen([PROGRAM, "convert", *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=source.env)
            # At once, and then while it writes: after some more files, at any moment in the next.
            enough = size(vault.dir) + n * 500_000
            until(lambda: n == 0 or process.poll() is not None or size(vault.dir) > enough, "it gets on")
            time.sleep(random.uniform(0, 0.02))
            end = (signal.SIGKILL, signal.SIGINT)[n % 2]
            process.send_signal(end)
            text = process.communicate(timeout=60)[0].decode(errors="replace")
            check(process.returncode in (0, -end), f"{end.name}: ended with {process.returncode}: {text}")
            cuts += process.returncode != 0
            now = whole_files(vault, expected)
            check(whole.items() <= now.items(), "what was whole was copied again")
            whole, midway = now, midway + (0 < len(now) < len(expected))
        check(cuts >= 3 and midway >= 2, f"only {cuts} of 10 conversions were cut short, {midway} midway")
        source.hushfs("convert", *argv)
        copied(source, vault, kind)
        check(whole.items() <= whole_files(vault, expected).items(), "what was whole was copied again")
        same_tree(source.dir, before, "the source")


def test_a_foreign_library_cut_short():
    cut_short("mms", make_music)


def test_a_plain_folder_cut_short():
    cut_short("plain", make_folder)


def test_a_plain_folder_with_everything_in_it():
    with conversion("plain") as (source, vault, argv):
        make_tree(source.dir)
        source.dir.chmod(0o2750)
        os.utime(source.dir, ns=(10**18, 10**18 + 123_456_789))
        before = describe(source.dir)
        source.hushfs("convert", *argv)
        copied(source, vault, "plain")
        check(size(vault.dir) < 20_000_000, "holes stay holes")
        # A second time: nothing is copied, and nothing is lost. What was changed since is copied.
        source.hushfs("convert", *argv)
        copied(source, vault, "plain")
        same_tree(source.dir, before, "the source")
        (source.dir / "links/one").write_bytes(b"another")
        (source.dir / "links/relative").unlink()
        os.symlink("elsewhere", source.dir / "links/relative")
        (source.dir / "attributes/new").write_bytes(b"made below a default ACL that came later")
        os.removexattr(source.dir / "attributes/new", "system.posix_acl_access")
        source.hushfs("convert", *argv)
        copied(source, vault, "plain")


def test_a_large_hole():
    """A mostly empty disk image of a terabyte is copied, compared and verified within moments."""
    with conversion("plain") as (source, vault, argv):
        source.dir.mkdir(exist_ok=True)
        parts = {0: b"first", (1 << 39) + 77: content("middle", 30_000), (1 << 40) - 4: b"last"}
        with open(source.dir / "image", "wb") as f:
            for at, data in parts.items():
                f.seek(at)
                f.write(data)
        source.hushfs("convert", *argv, timeout=30)
        vault.hushfs("verify", "--password-file", vault.password_file, vault.dir, timeout=30)
        vault.mount("--read-only")
        same(os.stat(vault.mnt / "image").st_size, 1 << 40, "size")
        with open(vault.mnt / "image", "rb") as f:
            for at, data in parts.items():
                f.seek(at)
                check(f.read(len(data)) == data, f"what is at {at}")
        vault.umount()


def test_what_is_named_as_a_copy_under_way_is_refused():
    with conversion("plain") as (source, vault, argv):
        source.dir.mkdir()
        (source.dir / ".hushfs-convert-17").write_bytes(b"of the owner")
        (source.dir / "file").write_bytes(b"file")
        text = source.hushfs("convert", *argv, ok=(5,))
        check(".hushfs-convert-17" in text and "1 file could not be copied" in text, text)
        vault.mount("--read-only")
        same(os.listdir(vault.mnt), ["file"], "what is there")
        vault.umount()


if __name__ == "__main__":
    main()
