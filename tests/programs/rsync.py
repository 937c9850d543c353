#!/usr/bin/env python3
"""rsync -aHAX --delete to a mount and back, compared with the plain source."""
import os
from common import check, content, describe, main, make_tree, run, same, same_tree

RSYNC = ["rsync", "-aHAXS", "--delete", "--numeric-ids"]


def again(source, copy, *options):
    """Checks that a second run finds nothing to do."""
    same(run(*RSYNC, *options, "--itemize-changes", f"{source}/", f"{copy}/"), "", "what a second run does")


def there_and_back(library, *options):
    source, copy, back = library.base / "source", library.mnt / "copy", library.base / "back"
    make_tree(source)
    expected = describe(source)
    run(*RSYNC, *options, f"{source}/", f"{copy}/")
    same_tree(copy, expected, "the copy")
    again(source, copy, *options)
    library.remount()
    same_tree(copy, expected, "the copy after a remount")
    again(source, copy, *options)
    again(source, copy, "--checksum", *options)
    run(*RSYNC, *options, f"{copy}/", f"{back}/")
    same_tree(back, expected, "the copy of the copy")
    return source, copy


def edit(source):
    """Changes a library between two runs: edits tags, and adds, renames, truncates and removes tracks."""
    music = source / "Artist One" / "Album"
    tracks = sorted(music.iterdir())
    with open(tracks[-1], "r+b") as f:
        f.seek(128)
        f.write(b"new tag" * 20)
    with open(tracks[-2], "ab") as f:
        f.write(content("appended", 50_000))
    os.truncate(tracks[-3], 1000)
    tracks[0].rename(music / "renamed.flac")
    tracks[1].unlink()
    (source / "Artist Two").mkdir()
    (source / "Artist Two" / "new.mp3").write_bytes(content("new", 700_000))
    os.link(source / "Artist Two" / "new.mp3", music / "linked.mp3")
    (source / "three").unlink()
    (source / "empty").rmdir()
    (source / "empty").write_bytes(b"a file where a directory was")
    run("setfacl", "-b", source / "attributes" / "mode 644")
    os.removexattr(source / "attributes" / "mode 644", "user.rating")
    (source / "attributes" / "mode 755").chmod(0o700)
    for i, directory in enumerate(p for p in source.rglob("*") if p.is_dir() and not p.is_symlink()):
        os.utime(directory, (1_600_000_000 + i,) * 2)  # rsync takes times within one second for the same


def test_there_and_back(library):
    source, copy = there_and_back(library)
    edit(source)
    run(*RSYNC, f"{source}/", f"{copy}/")
    same_tree(copy, source, "the copy after edits")
    again(source, copy)
    library.remount()
    same_tree(copy, source, "the copy after edits and a remount")


def test_in_place(library):
    """--inplace writes into the existing files, instead of new ones that are then renamed."""
    source, copy = there_and_back(library, "--inplace")
    edit(source)
    run(*RSYNC, "--inplace", "--no-whole-file", f"{source}/", f"{copy}/")
    same_tree(copy, source, "the copy after edits in place")
    again(source, copy, "--inplace")
    library.remount()
    same_tree(copy, source, "the copy after edits in place and a remount")


def test_within_the_mount(library):
    """From one directory of the mount to another."""
    source, copy = library.mnt / "source", library.mnt / "copy"
    make_tree(source)
    expected = describe(source)
    run(*RSYNC, f"{source}/", f"{copy}/")
    library.remount()
    same_tree(copy, expected, "the copy")
    same_tree(source, expected, "the source")
    run("rm", "-r", source)
    same_tree(copy, expected, "the copy when the source is gone")


if __name__ == "__main__":
    main()
