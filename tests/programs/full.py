#!/usr/bin/env python3
"""A full disk: a small ext4 image that holds the library is filled, emptied and filled again.

Every error is reported by write, fsync or close: a file without a reported error is complete, then and after a remount.
Deleting works even when nothing else does, and frees space.
"""
import ctypes
import errno
import os
import subprocess
import time
from common import PROGRAM, Failed, call, check, content, libc, main, root_only, run, same, until

IMAGE_MIB = 160
MIB = 1 << 20


def small_disk(library, mib=IMAGE_MIB):
    """Puts the library onto a disk of its own. Returns a function that removes the disk."""
    image = library.base / "disk.img"
    with open(image, "wb") as f:
        f.truncate(mib * MIB)
    run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
    library.dir.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, library.dir)
    run("rmdir", library.dir / "lost+found")
    return lambda: run("umount", "-l", library.dir)


def on_small_disk(case):
    def test(library):
        # The runner has made a library on the large disk: this one is made anew.
        library.umount()
        run("rm", "-r", library.dir)
        take_away = small_disk(library)
        try:
            library.init()
            library.mount()
            case(library)
            library.umount()
        finally:
            library.clear()
            library.close()
            take_away()
    return test


def fill(library, folder, length, synced, limit=4 * IMAGE_MIB):
    """Writes files until the disk is full. Returns the files for which no error was reported, and the errors."""
    (library.mnt / folder).mkdir()
    whole, errors = [], []
    for i in range(limit * MIB // length):
        path = library.mnt / folder / f"{i:05}"
        try:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        except OSError as e:
            errors.append(e.errno)
            break
        try:
            data, at = content(f"{folder} {i}", length), 0
            while at < length:
                at += os.write(fd, data[at:at + 256 * 1024])
            if synced:
                os.fsync(fd)
        except OSError as e:
            errors.append(e.errno)
        try:
            os.close(fd)
        except OSError as e:
            errors.append(e.errno)
        if errors:
            break
        whole.append(path)
    same({errno.errorcode[e] for e in errors}, {"ENOSPC"}, "errors when the disk is full")
    return whole


def intact(library, paths, length):
    for path in paths:
        data = path.read_bytes()
        check(data == content(f"{path.parent.name} {int(path.name)}", length), f"{path.name}: {len(data)} bytes, {'other than were' if len(data) == length else 'not all that were'} written")


def writes_again(library, length):
    """Writes a file as soon as there is space for it: the space of deleted files is freed after a short while."""
    end = time.monotonic() + 90
    while True:
        try:
            with open(library.mnt / "again", "wb", buffering=0) as f:
                data, at = content("again", length), 0
                while at < length:
                    at += f.write(data[at:at + 256 * 1024])
                os.fsync(f.fileno())
            return
        except OSError as e:
            same(errno.errorcode[e.errno], "ENOSPC", "the error of writing after deleting")
            if time.monotonic() > end:
                raise Failed("everything was deleted 90 s ago, and there is still no room") from e
            time.sleep(0.5)


def fill_delete_fill(library, length, synced):
    (library.mnt / "kept").write_bytes(content("kept", 100_000))
    library.remount()  # so that what is kept shares no pack with what is deleted
    whole = fill(library, "fill", length, synced)
    written = len(whole) * length / MIB
    print(f"      {written:.0f} MiB fit on {IMAGE_MIB} MiB")
    check(written > IMAGE_MIB / 2, f"full after {written:.0f} of {IMAGE_MIB} MiB")
    intact(library, whole, length)
    # Reading, and changes that take next to no room, go on.
    os.listdir(library.mnt / "fill")
    library.remount()
    intact(library, whole, length)
    same((library.mnt / "kept").read_bytes(), content("kept", 100_000), "what was there before")
    for path in sorted((library.mnt / "fill").iterdir()):
        path.unlink()
    (library.mnt / "fill").rmdir()
    writes_again(library, 16 * MIB)
    library.remount()
    same(sorted(os.listdir(library.mnt)), ["again", "kept"], "names after emptying and a remount")
    check((library.mnt / "again").read_bytes() == content("again", 16 * MIB), "what was written after deleting")
    same((library.mnt / "kept").read_bytes(), content("kept", 100_000), "what was there before")


@on_small_disk
def test_large_files_synced(library):
    fill_delete_fill(library, 5 * MIB, synced=True)


@on_small_disk
def test_large_files(library):
    """Without fsync: data for which write and close reported no error must be there."""
    fill_delete_fill(library, 5 * MIB, synced=False)


@on_small_disk
def test_small_files(library):
    fill_delete_fill(library, 20_000, synced=False)


@on_small_disk
def test_full_from_outside(library):
    """When another program has filled the disk, deleting, killing and mounting must still work."""
    for i in range(50):
        (library.mnt / f"{i:05}").write_bytes(content(f"mnt {i}", 200_000))
    library.remount()
    with open(library.dir / "stranger", "wb", buffering=0) as f:
        try:
            while f.write(bytes(MIB)) == MIB:
                pass
            while f.write(bytes(4096)):
                pass
        except OSError as e:
            same(e.errno, errno.ENOSPC, "the error of filling the disk")
    intact(library, [library.mnt / f"{i:05}" for i in range(50)], 200_000)
    for i in range(0, 50, 2):
        (library.mnt / f"{i:05}").unlink()
    left = [f"{i:05}" for i in range(1, 50, 2)]
    same(sorted(os.listdir(library.mnt)), left, "names after deleting on a full disk")
    library.kill()
    library.clear()
    (library.dir / "stranger").unlink()
    library.mount()
    same(sorted(os.listdir(library.mnt)), left, "names after kill -9")
    intact(library, [library.mnt / n for n in left], 200_000)
    (library.mnt / "new").write_bytes(content("new", MIB))
    library.remount()
    same((library.mnt / "new").read_bytes(), content("new", MIB), "what was written when there was room again")


def fill_from_outside(library, left=0):
    """Fills the disk except for `left` bytes."""
    stranger = library.dir / "stranger"
    with open(stranger, "wb", buffering=0) as f:
        for step in (MIB, 4096):
            try:
                while f.write(bytes(step)) == step:
                    pass
            except OSError as e:
                same(e.errno, errno.ENOSPC, "the error of filling the disk")
    os.truncate(stranger, stranger.stat().st_size - left)
    return stranger


def growing_bytes(library):
    return sum(p.stat().st_size for p in (library.dir / "new").rglob("*") if p.is_file() and p.name != "reserve")


@on_small_disk
def test_taking_over_without_room(library):
    """After a kill on a full disk, a read-only mount shows everything synced, and a writable one needs less space
    than a copy."""
    for i in range(48):
        (library.mnt / f"{i:05}").write_bytes(content(f"mnt {i}", MIB))
    fd = os.open(library.mnt / "00047", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    paths = [library.mnt / f"{i:05}" for i in range(48)]
    library.kill()
    library.clear()
    for reserve in (library.dir / "new").rglob("reserve"):
        reserve.unlink()
    stranger = fill_from_outside(library)
    before = growing_bytes(library)
    check(before > 40 * MIB, f"only {before} bytes lie in new/")
    library.mount("--read-only")
    intact(library, paths, MIB)
    library.umount()
    same(growing_bytes(library), before, "bytes in new/ after a mount for reading")
    # Killed in the midst of it, twice, where there is room for less than a copy.
    os.truncate(stranger, stranger.stat().st_size - 12 * MIB)
    for _ in range(2):
        mount = subprocess.Popen([PROGRAM, "mount", "--foreground", "--password-file", library.password_file, library.dir, library.mnt],
                                 env=library.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while growing_bytes(library) <= before and mount.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        mount.kill()
        mount.wait(30)
        library.clear()
    library.mount()
    intact(library, paths, MIB)
    library.umount()
    same(growing_bytes(library), 0, "bytes in new/ at last")
    library.mount()
    intact(library, paths, MIB)


@on_small_disk
def test_killed_when_the_library_fills_the_disk(library):
    """The disk contains only the library, and nothing can be deleted; the library can still be mounted again."""
    for again in range(2):
        whole = fill(library, f"fill {again}", 5 * MIB, synced=True)
        library.kill()
        library.clear()
        library.mount()
        intact(library, whole, 5 * MIB)
        for path in whole[:2]:
            path.unlink()
        library.remount()
        intact(library, whole[2:], 5 * MIB)
    same(growing_bytes(library), 0, "bytes in new/ at last")
    text = library.hushfs("verify", "--password-file", library.password_file, library.dir, ok=(0, 5, 6))
    check("0 problems" in text, text)


@on_small_disk
def test_deleting_before_a_kill_makes_room(library):
    """The space of files deleted before the kill is used to recover the rest."""
    for folder in ("old", "kept"):
        (library.mnt / folder).mkdir()
        for i in range(30 if folder == "old" else 20):
            (library.mnt / folder / f"{i:05}").write_bytes(content(f"{folder} {i}", MIB))
        if folder == "old":
            library.remount()
    fill_from_outside(library)
    for path in (library.mnt / "old").iterdir():
        path.unlink()
    library.kill()
    library.clear()
    fill_again = library.dir / "stranger 2"
    for reserve in (library.dir / "new").rglob("reserve"):
        reserve.unlink()
    try:
        with open(fill_again, "wb", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
    except OSError as e:
        same(e.errno, errno.ENOSPC, "the error of filling the disk")
    library.mount()
    same(os.listdir(library.mnt / "old"), [], "what was deleted")
    intact(library, sorted((library.mnt / "kept").iterdir()), MIB)


@on_small_disk
def test_deleting_frees_in_the_same_mount(library):
    """Packs that are no longer used are removed immediately, even unpublished ones; unmounting leaves no reserve."""
    for folder in ("a", "b"):
        (library.mnt / folder).mkdir()
        for i in range(30):
            (library.mnt / folder / f"{i:05}").write_bytes(content(f"{folder} {i}", MIB))
        if folder == "a":
            library.remount()
    for folder in ("a", "b"):
        fill_from_outside(library)
        for path in (library.mnt / folder).iterdir():
            path.unlink()
        (library.mnt / "tiny").write_bytes(b"tiny")
        until(lambda: (s := os.statvfs(library.dir)).f_bavail * s.f_frsize > 20 * MIB, "what was deleted makes room", 30)
        (library.mnt / f"after {folder}").write_bytes(content("after", 8 * MIB))
    library.umount()
    same(list((library.dir / "new").rglob("reserve")), [], "reserves after an unmount")
    # The same when there is only the unmount to do it.
    library.mount()
    fill_from_outside(library)
    for name in ("after a", "after b", "tiny"):
        (library.mnt / name).unlink()
    library.umount()
    same(list((library.dir / "data").iterdir()), [], "packs after all was deleted")
    same(list((library.dir / "new").rglob("reserve")), [], "reserves after an unmount")
    library.mount()
    same(sorted(os.listdir(library.mnt)), ["a", "b"], "what is left")


def allocate(path, length, keep_size=False):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        call(libc.fallocate, fd, int(keep_size), ctypes.c_long(0), ctypes.c_long(length))
    finally:
        os.close(fd)


def free(library):
    s = os.statvfs(library.mnt)
    same(s.f_bfree, s.f_bavail, "free blocks, for root and for others")
    return s.f_bavail * s.f_frsize


@on_small_disk
def test_room_that_is_told(library):
    """All the space that statfs reports as free can be written, but not much more; nothing is lost."""
    for name in ("a", "b"):
        told = free(library)
        check(told > 100 * MIB, f"only {told} bytes are free on an empty disk")
        data = content(name, told)
        (library.mnt / name).write_bytes(data)
        check(free(library) < 2 * MIB, f"{free(library)} bytes are free when all is written")
        try:
            (library.mnt / "more").write_bytes(content("more", 5 * MIB))
            raise Failed("more was written than there was room for, and no error was told")
        except OSError as e:
            same(e.errno, errno.ENOSPC, "the error of writing more")
        (library.mnt / "more").unlink()
        library.remount()
        check((library.mnt / name).read_bytes() == data, f"{name} is not what was written")
        (library.mnt / name).unlink()
        library.remount()  # which makes room


@on_small_disk
def test_room_that_is_promised(library):
    """fallocate reserves space until the file is written, shows it in st_blocks, and fails if there is not enough."""
    mine, other = library.mnt / "mine", library.mnt / "other"
    told = free(library)
    allocate(mine, 64 * MIB)
    same(os.stat(mine).st_blocks * 512, 64 * MIB, "blocks of what was allocated")
    check(free(library) <= told - 64 * MIB, "what was promised is told to be free")
    try:
        allocate(other, told - 32 * MIB)
        raise Failed("more was promised than there is")
    except OSError as e:
        same(e.errno, errno.ENOSPC, "the error of allocating more")
    same((os.stat(other).st_size, os.stat(other).st_blocks), (0, 0), "what could not be allocated")
    allocate(library.mnt / "odd", 4095, keep_size=True)
    same((os.stat(library.mnt / "odd").st_size, os.stat(library.mnt / "odd").st_blocks), (0, 8), "a part of a block")
    check(len(fill(library, "filler", MIB, False)) > 30, "the disk was full too soon")
    with open(mine, "r+b") as f:
        for i in range(64):
            f.write(content(f"mine {i}", MIB))
            f.flush()
        os.fsync(f.fileno())
    same(os.stat(mine).st_blocks * 512, 64 * MIB, "blocks of what was written")
    library.remount()
    check(mine.read_bytes() == b"".join(content(f"mine {i}", MIB) for i in range(64)), "what was promised room is not what was written")


@on_small_disk
def test_mounting_when_full(library):
    """If the disk was filled while the library was not mounted, it can be mounted and read, and files can be
    deleted."""
    for i in range(20):
        (library.mnt / f"{i:05}").write_bytes(content(f"mnt {i}", MIB))
    library.umount()
    with open(library.dir / "stranger", "wb", buffering=0) as f:
        try:
            while f.write(bytes(4096)):
                pass
        except OSError:
            pass
    library.mount()
    intact(library, [library.mnt / f"{i:05}" for i in range(20)], MIB)
    try:
        (library.mnt / "no room").write_bytes(content("no room", 4 * MIB))
        raise Failed("4 MiB were written on a full disk, and no error was told")
    except OSError as e:
        same(errno.errorcode[e.errno], "ENOSPC", "the error of writing on a full disk")
    library.umount()
    (library.dir / "stranger").unlink()
    library.mount()
    intact(library, [library.mnt / f"{i:05}" for i in range(20)], MIB)


if __name__ == "__main__":
    root_only()
    main()
