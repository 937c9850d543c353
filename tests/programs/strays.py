#!/usr/bin/env python3
"""Unexpected files in a library's folders, and files that a sync tool has not delivered yet, lock nobody out."""
import os
import shutil
import time
from pathlib import Path
from common import PROGRAM, Library, check, content, main, same, until, workplace

AREAS = ("index", "key", "data")
DATA = content("strays", 100_000)


def with_library(case):
    """For cases that mount the library themselves."""
    def test():
        library = Library(workplace(case.__name__))
        try:
            library.init()
            case(library)
        finally:
            library.close()
    test.__name__, test.__doc__ = case.__name__, case.__doc__
    return test


def write(library, name, *options):
    library.mount(*options)
    (library.mnt / name).write_bytes(DATA)
    library.umount()


def opens(library, *names, options=("--read-only",), kept=True):
    """Mounts, and checks that these names exist with their contents."""
    library.mount(*options)
    same(sorted(os.listdir(library.mnt)), sorted(names), f"names with {options}")
    for name in names if kept else ():
        check((library.mnt / name).read_bytes() == DATA, f"content of {name}")
    library.umount()


def said(library):
    text = library.log.read_text()
    library.log.write_text("")
    return text


def ask(library, verb, *options, ok=(0,)):
    return library.hushfs(verb, "--password-file", library.password_file, *options, library.dir, ok=ok)


def hex_name(digit):
    return digit * 32


def strays(area, library, foreign):
    """Yields, for each kind of stray, what it is, its file name, and a function that creates it."""
    folder = library.dir / area
    own = min(p for p in folder.iterdir() if p.is_file())
    other = min((foreign.dir / area).iterdir())
    slot = min((library.dir / "key").iterdir())

    def plain(name, data):
        return lambda: (folder / name).write_bytes(data)

    def sparse(name, head):
        def make():
            with open(folder / name, "wb") as file:
                file.write(head)
                file.truncate(1 << 40)
        return make

    def unreadable(name):
        def make():
            (folder / name).write_bytes(b"x" * 5000)
            (folder / name).chmod(0)
        return make

    whole = own.read_bytes()
    yield "an empty file", hex_name("e"), plain(hex_name("e"), b"")
    yield "a short file", hex_name("e"), plain(hex_name("e"), b"x" * 47)
    yield "random bytes", hex_name("e"), plain(hex_name("e"), os.urandom(9000))
    yield "zeros", hex_name("e"), plain(hex_name("e"), bytes(4096))
    yield "a slot", hex_name("5"), plain(hex_name("5"), slot.read_bytes())
    yield "another library's", other.name, plain(other.name, other.read_bytes())
    yield "a copy under another name", hex_name("c"), plain(hex_name("c"), whole)
    yield "a copy under another name, cut", hex_name("c"), plain(hex_name("c"), whole[:len(whole) // 2])
    yield "a copy (1)", own.name + " (1)", plain(own.name + " (1)", whole)
    yield "a folder", hex_name("d"), lambda: (folder / hex_name("d")).mkdir()
    yield "a dangling link", hex_name("b"), lambda: (folder / hex_name("b")).symlink_to("nowhere")
    yield "a link", hex_name("b"), lambda: (folder / hex_name("b")).symlink_to(own)
    yield "a pipe", hex_name("f"), lambda: os.mkfifo(folder / hex_name("f"))
    yield "unreadable", hex_name("a"), unreadable(hex_name("a"))
    yield "1 TiB of nothing", hex_name("9"), sparse(hex_name("9"), b"")
    yield "1 TiB of nothing behind a beginning", hex_name("9"), sparse(hex_name("9"), whole[:32] + bytes.fromhex(hex_name("9")))


@with_library
def test_strays(library):
    """With any stray file in any of the three folders, read-only and writable mounts work, and `info` and `verify`
    finish."""
    foreign = Library(workplace("foreign"))
    foreign.init()
    write(foreign, "theirs")
    write(library, "file")
    for area in AREAS:
        for kind, name, make in strays(area, library, foreign):
            make()
            try:
                what = f"{kind} in {area}/"
                print(what, flush=True)
                opens(library, "file")
                opens(library, "file", options=())
                is_no_file = kind in ("a folder", "a dangling link", "a link", "a pipe")
                if kind in ("an empty file", "random bytes", "another library's", "a copy under another name") and area != "data" or is_no_file and area == "index":
                    check(name in said(library), f"{what}: nothing is said")
                ask(library, "info")
                text = ask(library, "verify", ok=(0, 5))
                is_harmless = kind in ("a copy under another name", "a copy (1)") or is_no_file and area != "index" or (kind, area) == ("a slot", "key")
                check(("0 problems" in text) == is_harmless, f"{what}: {text}")
                check(is_harmless or name in text, f"{what}: {text}")
            finally:
                stray = library.dir / area / name
                stray.rmdir() if stray.is_dir() and not stray.is_symlink() else stray.unlink()
    foreign.close()


@with_library
def test_newest_segment_is_no_file(library):
    """Anything in place of the newest segment is reported: a link, a folder, a pipe, a cloud placeholder, another
    name."""
    index = library.dir / "index"
    write(library, "first")
    before = set(index.iterdir())
    write(library, "second")
    (segment,) = set(index.iterdir()) - before
    away = library.dir.parent / "segment"
    fresh = Library(workplace("fresh"))
    fresh.dir = library.dir
    os.rename(segment, away)
    for name, make in (
            (segment.name, lambda path: path.symlink_to(away)),
            (segment.name, lambda path: path.symlink_to("nowhere")),
            (segment.name, lambda path: path.mkdir()),
            (segment.name, os.mkfifo),
            (f".{segment.name}.icloud", Path.touch),
            (f"{segment.name} (1)", lambda path: shutil.copy(away, path)),
            (f"{segment.name}.cloud", Path.touch),
            (segment.name.upper(), lambda path: shutil.copy(away, path))):
        path = index / name
        make(path)
        opens(fresh, "first")
        text = said(fresh)
        check(f"index/{name}: " in text and "not arrived" in text, f"{name}: {text}")
        text = library.hushfs("mount", "--password-file", library.password_file, library.dir, library.mnt, ok=(5,))
        check(f"index/{name}" in text and "wait for the sync" in text, f"{name}: {text}")
        for verb, ok in ("verify", 5), ("info", 0):
            text = ask(fresh, verb, ok=(ok,))
            check(f"index/{name}: " in text, f"{verb} with {name}: {text}")
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    os.rename(away, segment)
    # Beside the segment itself they say nothing.
    (index / f".{segment.name}.icloud").touch()
    opens(library, "first", "second", options=())
    check("index/" not in said(library), "a placeholder beside its file")


@with_library
def test_cut_segment(library):
    """If the newest segment is truncated, it counts as missing. If an older one is, later changes that depend on it
    wait."""
    index = library.dir / "index"
    segments = []
    for name in ("first", "second", "third"):
        before = set(index.iterdir())
        write(library, name)
        segments += set(index.iterdir()) - before
    fresh = Library(workplace("fresh"))
    fresh.dir = library.dir

    def damage(segment):
        whole = segment.read_bytes()
        for bad in (whole[:len(whole) // 2], b"", bytes(len(whole)), whole[:-1], whole[:200] + b"\1" + whole[201:]):
            yield bad
        segment.write_bytes(whole)

    mount = ("mount", "--password-file", library.password_file)
    for bad in damage(segments[2]):
        segments[2].write_bytes(bad)
        # Who has not seen it cannot know; who has is told.
        opens(fresh, "first", "second")
        check(segments[2].name in said(fresh), "the file is not named")
        for argv in ((), ("--accept-rollback",)):
            opens(library, "first", "second", options=("--read-only", *argv))
        text = library.hushfs(*mount, library.dir, library.mnt, ok=(5,))
        check(segments[2].name in text and "wait for the sync" in text, text)
        text = ask(library, "verify", ok=(5,))
        check(segments[2].name in text, text)
    for bad in damage(segments[1]):
        segments[1].write_bytes(bad)
        opens(library, "first")
        text = said(library)
        check("segment 2 of" in text and "wait for the sync" in text and segments[1].name in text, text)
        opens(library, "first", "third", options=("--read-only", "--accept-rollback"))
        text = library.hushfs(*mount, library.dir, library.mnt, ok=(5,))
        check("segment 2 of" in text and "wait for the sync" in text and segments[1].name in text, text)
        ask(library, "verify", ok=(5,))
        check("segment 2 of" in ask(library, "info"), "info does not say what is missing")
    opens(library, "first", "second", "third")
    whole = segments[1].read_bytes()
    segments[1].write_bytes(whole[:1000])
    write(library, "fourth", "--accept-rollback")
    segments[1].write_bytes(whole)
    opens(library, "first", "second", "third", "fourth", options=())


@with_library
def test_no_index_yet(library):
    """A library with packs but no index is refused, whatever `index` is, and no index is created."""
    write(library, "file")
    fresh = Library(workplace("fresh"))
    fresh.dir = library.dir
    index, kept = library.dir / "index", library.base / "index"
    index.rename(kept)
    others = {
        "absent": (lambda: None, lambda: None),
        "empty": (index.mkdir, index.rmdir),
        "a dangling link": (lambda: index.symlink_to("nowhere"), index.unlink),
        "INDEX": (lambda: shutil.copytree(kept, library.dir / "INDEX"), lambda: shutil.rmtree(library.dir / "INDEX")),
        "links": (lambda: (index.mkdir(), [(index / p.name).symlink_to(p) for p in kept.iterdir()]), lambda: shutil.rmtree(index)),
        "cut": (lambda: (index.mkdir(), [(index / p.name).write_bytes(p.read_bytes()[:1000]) for p in kept.iterdir()]), lambda: shutil.rmtree(index)),
    }
    for what, (make, undo) in others.items():
        make()
        for who in (library, fresh):
            for options in ((), ("--read-only",)):
                text = who.hushfs("mount", "--password-file", who.password_file, *options, who.dir, who.mnt, ok=(5,))
                check("the index has not arrived yet" in text, f"{what}: {text}")
        text = ask(fresh, "verify", ok=(5,))
        check("the index has not arrived yet" in text, f"{what}: {text}")
        check(index.exists() == (what in ("empty", "links", "cut")), f"{what}: index/ was made")
        undo()
    kept.rename(index)
    for who in (library, fresh):
        opens(who, "file", options=())


@with_library
def test_first_publication_cut_short(library):
    """If the packs are published and the segment is not, the segment is recovered, because it is this device's own."""
    library.mount()
    (library.mnt / "file").write_bytes(DATA)
    fd = os.open(library.mnt / "file", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    library.kill()
    library.clear()
    (device,) = (library.dir / "new").iterdir()
    for file in device.iterdir():
        if file.read_bytes()[:8] == b"HUSHPACK":
            file.rename(library.dir / "data" / file.name)
    for verb in ("info", "verify"):
        ask(library, verb, ok=(0, 5))
    opens(library, "file", options=("--read-only",))
    opens(library, "file", options=())


@with_library
def test_a_copy_is_followed(library):
    """A read-only mount of a copy that is still being synced shows added and removed files."""
    def sync():
        for area in AREAS:
            there = set(os.listdir(library.dir / area))
            for name in there - set(os.listdir(copy.dir / area)):
                shutil.copy(library.dir / area / name, copy.dir / area / name)
            for name in set(os.listdir(copy.dir / area)) - there:
                (copy.dir / area / name).unlink()

    copy = Library(workplace("copy"))
    write(library, "old")
    write(library, "gone")
    shutil.copytree(library.dir, copy.dir, ignore=shutil.ignore_patterns("new"))
    copy.mount("--read-only")
    try:
        same(sorted(os.listdir(copy.mnt)), ["gone", "old"], "names before")
        check(not (copy.mnt / "later").exists(), "a name that is not there yet")
        check((copy.mnt / "old").read_bytes() == DATA, "contents before")
        number = (copy.mnt / "old").stat().st_ino
        library.mount()
        (library.mnt / "later").write_bytes(DATA)
        (library.mnt / "gone").unlink()
        (library.mnt / "old").write_bytes(DATA[::-1] * 2)
        (library.mnt / "folder").mkdir()
        (library.mnt / "folder/in it").write_bytes(DATA)
        library.umount()
        sync()
        until(lambda: sorted(os.listdir(copy.mnt)) == ["folder", "later", "old"], "the names are shown", 60)
        until(lambda: (copy.mnt / "later").exists(), "a name whose absence was known is shown", 60)
        until(lambda: not (copy.mnt / "gone").exists(), "a name that was known goes", 60)
        until(lambda: (copy.mnt / "old").read_bytes() == DATA[::-1] * 2, "the contents are the new ones", 60)
        same((copy.mnt / "old").stat().st_ino, number, "the number of a file")
        check((copy.mnt / "folder/in it").read_bytes() == DATA, "contents of what is new")
        copy.umount()
    finally:
        copy.close()


if __name__ == "__main__":
    main()
