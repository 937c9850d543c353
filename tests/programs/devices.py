#!/usr/bin/env python3
"""Which device a mount writes as: after moves, for copies, next to other devices, and with a copied home directory."""
import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from common import PROGRAM, Library, check, content, fails, main, mounts, root_only, run, same, stored_bytes, until

DATA = content("devices", 300_000)


def info(library, place=None):
    """Returns the unindented lines of `hushfs info`, run with the key, as a dictionary."""
    text = library.hushfs("info", "--password-file", library.password_file, place or library.dir)
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))


def refused(library, code, *options):
    """Checks that mounting fails with this exit code, and returns its output."""
    return library.hushfs("mount", *options, "--password-file", library.password_file, library.dir, library.mnt,
                          ok=(code,), timeout=60)


def beside(library, name, place=None, state=None):
    """The same library as another user, or at another path, mounts it."""
    other = Library(library.base / name)
    other.dir, other.password_file = place or library.dir, library.password_file
    other.env = dict(library.env, XDG_STATE_HOME=str(state)) if state else library.env
    # Ends with the first, however the case ends.
    close = library.close
    library.close = lambda: (other.close(), close())
    return other


def states(library):
    return sorted(p.name for p in (Path(library.env["XDG_STATE_HOME"]) / "hushfs").iterdir())


def state_text(library):
    folder = Path(library.env["XDG_STATE_HOME"]) / "hushfs"
    return {p.name: p.read_text() for p in folder.iterdir()}


def said(library):
    return library.log.read_text()


def as_first_format(library, place):
    """Turns the only state file into one of the first format, for the library at `place`."""
    folder = Path(library.env["XDG_STATE_HOME"]) / "hushfs"
    (path,) = folder.iterdir()
    lines = path.read_text().splitlines()
    kept = ["hushfs-state 1"] + [line for line in lines[1:] if line.split()[0] in ("fingerprint", "device", "head")]
    path.unlink()
    name = hashlib.sha256(os.fsencode(os.path.realpath(place))).hexdigest()[:32]
    (folder / f"{name}.state").write_text("\n".join(kept) + "\n")


def room_comes_back(library):
    """Checks that deleting a file frees its space by the next mount."""
    library.mount()
    (library.mnt / "big").write_bytes(content("big", 3_000_000))
    library.umount()
    before = stored_bytes(library)
    library.mount()
    (library.mnt / "big").unlink()
    library.umount()
    check(stored_bytes(library) < before - 2_000_000, "what is deleted gives no room back")
    same(info(library)["collects"], "yes", "collects")


def test_moved(library):
    """After a library is renamed, it is still recognised, this machine is still the same device, and a rollback is
    noticed."""
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    device = info(library)["device"]
    shutil.copytree(library.dir, library.base / "old")
    for name in ("renamed", "renamed again"):
        moved = library.base / name
        library.dir.rename(moved)
        library.dir = moved
        same(info(library)["device"], device, "device before the mount")
        room_comes_back(library)
        same(info(library)["device"], device, "device")
    same(len(states(library)), 1, "state files")
    same((info(library).get("copy of")), None, "copy of")
    library.dir.rename(library.base / "aside")
    library.dir = library.base / "put back"
    (library.base / "old").rename(library.dir)
    check("older than this machine has seen" in refused(library, 5), "an old index at a new place is not noticed")
    refused(library, 5, "--read-only")


def test_moved_after_a_crash(library):
    """After a crash and a move, the remains are recovered at the new path."""
    (library.mnt / "file").write_bytes(DATA)
    library.remount()
    (library.mnt / "late").write_bytes(DATA)
    os.sync()
    library.kill()
    library.clear()
    moved = library.base / "moved"
    library.dir.rename(moved)
    library.dir = moved
    library.mount()
    same((library.mnt / "late").read_bytes(), DATA, "what was synced before the crash")


def test_bind_mount(library):
    """A library seen through a bind mount is the same one, and is reported as in use."""
    root_only()
    bound = library.base / "bound"
    bound.mkdir()
    second = beside(library, "second", bound)
    run("mount", "--bind", library.dir, bound)
    try:
        check("already mounted" in refused(second, 6), "the second mount is let in")
        library.umount()
        device = info(library)["device"]
        place, library.dir = library.dir, bound
        room_comes_back(library)
        same(info(library)["device"], device, "device")
        library.dir = place
        room_comes_back(library)
        same(info(library)["device"], device, "device")
    finally:
        second.clear()
        library.clear()
        run("umount", "-l", bound)


def test_copy(library):
    """A copy next to the library is read-only until it gets a device of its own; the state of the original does not
    change."""
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    shutil.copytree(library.dir, library.base / "older")
    library.mount()
    (library.mnt / "newer").write_bytes(DATA)
    library.umount()
    before = state_text(library)
    for name in ("older", "equal"):
        place = library.base / name
        if name == "equal":
            shutil.copytree(library.dir, place)
        copy = beside(library, f"{name}-bench", place)
        for options in ((), ("--read-only",)):
            copy.mount(*options)
            same((copy.mnt / "file").read_bytes(), DATA, "content of the copy")
            fails(errno.EROFS, lambda: (copy.mnt / "x").write_bytes(b"x"), "writing to a copy")
            copy.umount()
        check("--new-device" in said(copy), "how to write to a copy is not said")
        same(state_text(library), before, "what is remembered")
        same(info(library, place)["copy of"], str(library.dir), "copy of")
        library.hushfs("verify", "--password-file", library.password_file, place)
    copy = beside(library, "older-bench", library.base / "older")
    copy.log.unlink()
    copy.mount("--new-device")
    (copy.mnt / "of the copy").write_bytes(DATA)
    copy.umount()
    check("frees no space" in said(copy), "what a new device means is not said")
    same(len(states(library)), 2, "state files")
    check(info(library, copy.dir)["device"] != info(library)["device"], "the copy has the library's device")
    check("frees no space" in info(library, copy.dir)["collects not because"], "info does not say what it means")
    copy.log.unlink()
    copy.mount()
    (copy.mnt / "again").write_bytes(DATA)
    copy.umount()
    same(said(copy), "", "what the next mount says")
    room_comes_back(library)
    # Both move, and each is what it was.
    devices = [info(library)["device"], info(library, copy.dir)["device"]]
    for one in (library, copy):
        moved = one.dir.with_name(one.dir.name + "-moved")
        one.dir.rename(moved)
        one.dir = moved
    copy.mount()
    copy.umount()
    room_comes_back(library)
    same([info(library)["device"], info(library, copy.dir)["device"]], devices, "devices after both moved")


def test_first_format(library):
    """A state file of an older version, which is named after the path, is still used, even if the library was moved."""
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    device = info(library)["device"]
    for place in (library.dir, library.base / "elsewhere"):
        as_first_format(library, place)
        same(info(library)["device"], device, "device before the mount")
        room_comes_back(library)
        same(info(library)["device"], device, "device")
        same(len(states(library)), 1, "state files")


def test_two_first_mounts(library):
    """If two processes mount a library for the first time, one succeeds, and both remember the same device."""
    (library.mnt / "file").write_bytes(DATA)
    library.umount()
    points = [library.base / f"p{i}" for i in range(2)]
    for p in points:
        p.mkdir()
    for number in range(6):
        env = dict(library.env, XDG_STATE_HOME=str(library.base / f"fresh{number}"))
        argv = [PROGRAM, "mount", "--password-file", library.password_file, library.dir]
        both = [subprocess.Popen([*argv, p], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for p in points]
        texts = [p.communicate(timeout=60)[0].decode() for p in both]
        same(sorted(p.returncode for p in both), [0, 6], f"exit codes ({texts})")
        same(len(list((library.base / f"fresh{number}/hushfs").iterdir())), 1, "state files")
        for p in points:
            if mounts(p):
                run(PROGRAM, "umount", p, env=env)


def test_another_device(library):
    """A library that another device has mounted on this machine is mounted for writing only with --force. Then neither
    device removes what the other uses."""
    (library.mnt / "file").write_bytes(DATA)
    (library.mnt / "other").write_bytes(content("other", 300_000))
    library.remount()
    other = beside(library, "bench2", state=library.base / "state2")
    try:
        text = refused(other, 6)
        check("has it mounted" in text and "--force" in text and "--read-only" in text, f"it says: {text}")
        other.mount("--read-only")
        same((other.mnt / "file").read_bytes(), DATA, "content")
        other.umount()
        other.mount("--force")
        (other.mnt / "file").rename(other.mnt / "kept")
        (library.mnt / "file").unlink()
        (other.mnt / "other").unlink()
        library.umount()
        same((other.mnt / "kept").read_bytes(), DATA, "what the other mount uses")
        library.mount("--force")
        same((library.mnt / "other").read_bytes(), content("other", 300_000), "what this mount uses")
        (library.mnt / "other").rename(library.mnt / "kept too")
        other.umount()
        same((library.mnt / "kept too").read_bytes(), content("other", 300_000), "what this mount uses")
        library.umount()
    finally:
        other.close()
    same(info(library)["collects"], "no", "collects")


def copied_home(library):
    """The library, synced to another machine with a copy of the home directory: both have one device id."""
    library.umount()
    ignore = shutil.ignore_patterns("new")
    state = library.base / "state2"
    shutil.copytree(library.env["XDG_STATE_HOME"], state)
    text = state / "hushfs" / states(library)[0]
    place = library.base / "library2"
    text.write_text(text.read_text().replace(f"place {library.dir}\n", f"place {place}\n"))
    shutil.copytree(library.dir, place, ignore=ignore)
    return beside(library, "bench2", place, state), ignore


def test_copied_home(library):
    """Two machines have one device id: the second one to see the other's segment takes a new id, and nothing that it
    wrote is lost, including the remains of a crash."""
    (library.mnt / "common").write_bytes(DATA)
    other, ignore = copied_home(library)
    old = info(library)["device"]
    try:
        library.mount()
        (library.mnt / "first").write_bytes(DATA)
        library.umount()
        other.mount()
        (other.mnt / "second").write_bytes(DATA)
        (other.mnt / "common").write_bytes(b"changed")
        os.sync()
        other.kill()
        other.clear()
        shutil.copytree(library.dir, other.dir, dirs_exist_ok=True, ignore=ignore)
        other.log.unlink()
        for _ in range(2):
            other.mount()
            for name in ("first", "second"):
                same((other.mnt / name).read_bytes(), DATA, f"content of {name}")
            same((other.mnt / "common").read_bytes(), b"changed", "content of common")
            other.umount()
            same(said(other).count("writes as device"), 1, "how often the new device is announced")
        check(info(other)["device"] != old, "both go on under one id")
        same(info(library)["device"], old, "the device of the first")
        shutil.copytree(other.dir, library.dir, dirs_exist_ok=True, ignore=ignore)
        library.mount()
        for name in ("first", "second"):
            same((library.mnt / name).read_bytes(), DATA, f"content of {name} on the first")
        library.umount()
        same(info(library)["device"], old, "the device of the first")
    finally:
        other.close()


def test_both_published(library):
    """The same after both have published: a machine that sees the other's segment takes a new id, and nothing is
    lost."""
    (library.mnt / "common").write_bytes(DATA)
    other, ignore = copied_home(library)
    names = []
    try:
        for number, one in enumerate((library, other, other)):
            one.mount()
            names.append(f"of {number}")
            (one.mnt / names[-1]).write_bytes(content(names[-1], 300_000))
            one.umount()
        old = info(library)["device"]
        for one, two in ((library, other), (other, library)):
            shutil.copytree(one.dir, two.dir, dirs_exist_ok=True, ignore=ignore)
        for _ in range(2):
            for one in (library, other):
                one.mount()
                for name in names:
                    same((one.mnt / name).read_bytes(), content(name, 300_000), f"content of {name}")
                names.append(f"of {len(names)}")
                (one.mnt / names[-1]).write_bytes(content(names[-1], 300_000))
                one.umount()
                to = other if one is library else library
                shutil.copytree(one.dir, to.dir, dirs_exist_ok=True, ignore=ignore)
        devices = {info(one)["device"] for one in (library, other)}
        check(len(devices) == 2 and old not in devices, f"devices are {devices}, {old} was taken")
        same([said(one).count("writes as device") for one in (library, other)], [1, 1], "how often a new device is announced")
        library.hushfs("verify", "--password-file", library.password_file, library.dir)
    finally:
        other.close()


def test_killed_is_no_copy(library):
    """However a mount ends, its own segments are not mistaken for those of another machine."""
    device = None
    for number in range(8):
        (library.mnt / f"f{number}").write_bytes(DATA)
        os.sync()
        if number % 2:
            subprocess.Popen(["umount", library.mnt])
            until(lambda: not mounts(library.mnt), "umount")
        library.kill()
        library.clear()
        now = info(library)["device"]
        device = device or now
        same(now, device, "device")
        library.mount()
        same(info(library)["device"], device, "device")
    check("writes as device" not in said(library), "a new device is taken")


if __name__ == "__main__":
    main()
