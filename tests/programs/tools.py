#!/usr/bin/env python3
"""git, tar and cp on a mount."""
import os
from common import check, describe, main, make_tree, run, same, same_tree, content

# Nothing of who runs this: neither their name nor their settings.
GIT = dict(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1", GIT_AUTHOR_NAME="A", GIT_AUTHOR_EMAIL="a@example.org",
           GIT_COMMITTER_NAME="A", GIT_COMMITTER_EMAIL="a@example.org", GIT_AUTHOR_DATE="1700000000 +0000", GIT_COMMITTER_DATE="1700000000 +0000")


def git(where, *args):
    return run("git", "-C", where, *args, env=dict(os.environ, **GIT))


def make_repository(where):
    where.mkdir()
    git(where, "init", "-q", "-b", "main")
    for commit in range(20):
        for i in range(15):
            path = where / f"dir {i % 4}" / f"file {i}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(f"line {n} of {i}, version {commit if n % 7 == commit % 7 else 0}" for n in range(100)))
        (where / "script").write_text("#!/bin/sh\n")
        (where / "script").chmod(0o755)
        if not (where / "link").is_symlink():
            (where / "link").symlink_to("script")
        (where / f"binary {commit}").write_bytes(content(commit, 30_000))
        git(where, "add", "-A")
        git(where, "commit", "-q", "-m", f"commit {commit}")
        if commit == 10:
            git(where, "branch", "side")
    git(where, "checkout", "-q", "side")
    (where / "side.txt").write_text("side")
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", "side")
    git(where, "checkout", "-q", "main")
    git(where, "merge", "-q", "--no-edit", "side")
    git(where, "tag", "-a", "v1", "-m", "v1")


def sound(where, head):
    git(where, "fsck", "--full", "--strict")
    same(git(where, "status", "--porcelain"), "", "git status")
    same(git(where, "rev-parse", "HEAD").strip(), head, "HEAD")


def test_git(library):
    """clone, work, gc and push back; fsck and a clean status after each, and after a remount."""
    origin, clone = library.base / "origin", library.mnt / "clone"
    make_repository(origin)
    head = git(origin, "rev-parse", "HEAD").strip()
    git(library.base, "clone", "-q", "--no-local", origin, clone)
    sound(clone, head)
    library.remount()
    sound(clone, head)
    (clone / "new.txt").write_text("new")
    git(clone, "mv", "script", "renamed")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "work on the mount")
    git(clone, "checkout", "-q", "-b", "other", "HEAD~5")
    git(clone, "checkout", "-q", "main")
    git(clone, "gc", "-q", "--prune=now")
    head = git(clone, "rev-parse", "HEAD").strip()
    sound(clone, head)
    git(clone, "push", "-q", "origin", "main:pushed")
    same(git(origin, "rev-parse", "pushed").strip(), head, "what was pushed")
    library.remount()
    sound(clone, head)
    git(library.mnt, "clone", "-q", "--no-local", clone, library.mnt / "second")
    git(library.base, "clone", "-q", clone, library.base / "back")
    sound(library.base / "back", head)


def test_tar(library):
    """A tree is packed into the mount, unpacked there, and packed from there."""
    source, back = library.base / "source", library.base / "back"
    make_tree(source)
    expected = describe(source)
    options = ["--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner", "--format=posix"]
    unpacked = library.mnt / "unpacked"
    unpacked.mkdir()
    run("tar", *options, "-C", source, "-cf", library.mnt / "tree.tar", ".")
    run("tar", *options, "--same-permissions", "-C", unpacked, "-xf", library.mnt / "tree.tar")
    same_tree(unpacked, expected, "what was unpacked on the mount")
    library.remount()
    same_tree(unpacked, expected, "what was unpacked, after a remount")
    back.mkdir()
    run("tar", *options, "-C", unpacked, "-cf", library.base / "back.tar", ".")
    run("tar", *options, "--same-permissions", "-C", back, "-xf", library.base / "back.tar")
    same_tree(back, expected, "what was packed from the mount")


def test_cp_and_mv(library):
    """cp with and without reflinks, mv into and out of the mount."""
    source = library.base / "source"
    make_tree(source)
    expected = describe(source)
    run("cp", "-a", source, library.mnt / "copy")
    run("cp", "-a", "--reflink=auto", library.mnt / "copy", library.mnt / "second")
    run("mv", library.mnt / "copy", library.mnt / "moved")
    library.remount()
    same_tree(library.mnt / "moved", expected, "the copy")
    same_tree(library.mnt / "second", expected, "the copy within the mount")
    run("mv", library.mnt / "moved", library.base / "out")
    same_tree(library.base / "out", expected, "what was moved out")
    check(not (library.mnt / "moved").exists(), "what was moved out is still there")
    run("rm", "-r", library.mnt / "second")
    same(os.listdir(library.mnt), [], "names after removing everything")


if __name__ == "__main__":
    main()
