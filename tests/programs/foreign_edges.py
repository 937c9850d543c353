#!/usr/bin/env python3
"""Edge cases of the foreign formats, on a real mount and on the command line: the path of a music library, several
keys, names that cannot be shown, unencrypted files, backups that must not be changed, and files that are refused."""
import errno
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import contextmanager

from common import PROGRAM, REPO, Library, check, content, fails, main, root_only, run, same, workplace

CASES = REPO / "tests/vectors/foreign/cases"
TABLE = "10.0.0.2/{}/data/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90"


@contextmanager
def library(case=None, secret="pässwörd", options=()):
    """A copy of a case, or an empty directory for a new library."""
    lib = Library(workplace("edges"), options)
    if case is not None:
        shutil.copytree(CASES / case, lib.dir)
        run("chmod", "-R", "u+w", lib.dir)
    lib.password_file.write_text(secret)
    try:
        yield lib
        if lib.process is not None:
            lib.umount()
    except BaseException:
        if lib.log.exists():
            print(lib.log.read_text(errors="replace")[-2000:])
        raise
    finally:
        lib.close()
        shutil.rmtree(lib.base, ignore_errors=True)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def object_of(path):
    return f"{hashlib.md5(path.encode()).hexdigest()}.encrypt"


def refused(path, data=b"x"):
    try:
        path.write_bytes(data)
    except PermissionError:
        return
    check(False, f"{path} was taken")


def stored(lib):
    return {str(p.relative_to(lib.dir)) for p in lib.dir.rglob("*") if p.is_file() and ".hushfs-tmp" not in p.parts}


def verb(lib, name, *argv, ok):
    return lib.hushfs(name, "--password-file", lib.password_file, *argv, lib.dir, ok=ok)


def test_the_path_of_a_music_library_is_kept():
    with library() as lib:
        lib.hushfs("init", "--format=mms", "--mms-path", "media/music/", "--password-file", lib.password_file, lib.dir)
        for name in ("one.mp3", "two.mp3"):
            lib.mount()
            (lib.mnt / "media/music" / name).write_bytes(content(name, 5000))
            check((lib.dir / "media/music" / object_of(f"media/music/{name}")).is_file(), f"the object of {name}")
            lib.umount()
            lib.mount()
            os.unlink(lib.mnt / "media/music" / name)
            lib.umount()
    with library("mms-lib/nested-prefix-empty") as lib:
        text = lib.hushfs("mount", "--password-file", lib.password_file, lib.dir, lib.mnt, ok=(2,))
        check("--mms-path" in text, text)
        lib.mount("--mms-path", "media/music/")
        os.makedirs(lib.mnt / "media/music")
        shutil.copyfile(CASES / "mms-tags/b01_v23_full.mp3", lib.mnt / "media/music/new.mp3")
        lib.umount()
        same(stored(lib), {"key", "music.index", ".hushfs-mms-path", f"media/music/{object_of('media/music/new.mp3')}"}, "what is stored")


def test_a_path_that_contradicts_what_is_known():
    with library() as lib:
        lib.hushfs("init", "--format=mms", "--password-file", lib.password_file, lib.dir)
        lib.mount("--mms-path", "data/")
        lib.umount()
        text = lib.log.read_text()
        check('"data/" was given, and "music/" was kept' in text, text)
    with library("mms-lib/key-and-key2") as lib:
        for options in (("--mms-path", "data/"), ("-o", "mms-path=media/music/"), ("--mms-path", "/")):
            text = lib.hushfs("mount", *options, "--password-file", lib.password_file, lib.dir, lib.mnt, ok=(2,))
            check("lie under \"music/\"" in text, text)
        lib.mount("--mms-path", "data/", "--read-only")
        same(sorted(os.listdir(lib.mnt / "music")), ["first.mp3", "sub"], "songs")


def test_owner_is_shown():
    root_only()
    with library("mms-lib/key-and-key2") as lib:
        lib.mount("--uid", "12345", "-o", "gid=54321,umask=077")
        song = lib.mnt / "music" / "first.mp3"
        for path in lib.mnt, song:
            same(os.stat(path)[4:6], (12345, 54321), f"the owner of {path}")
            same(os.stat(path).st_mode & 0o077, 0, f"what others may do with {path}")
        os.chown(song, 12345, 54321)
        fails(errno.EPERM, lambda: os.chown(song, 0, 0), "giving a file away")


def test_several_keys_and_no_index():
    with library("mms-lib/key-and-key2") as lib:
        for secret, ok in (("pässwörd", 0), ("xxx\n", 0), ("xxx\r\n", 0), ("\ufeffxxx\r\n", 0), ("yyy", 3)):
            lib.password_file.write_text(secret)
            verb(lib, "verify", ok=(ok,))
        (lib.dir / "music.index").unlink()
        for name in ("verify", "passwd"):
            text = verb(lib, name, ok=(4,))
            check("no index" in text, text)


def test_what_cannot_be_shown_is_named():
    with library("mms-lib/names-not-shown") as lib:
        new = lib.base / "new"
        new.write_text("new password")
        new.chmod(0o600)
        text = verb(lib, "verify", ok=(5,))
        for name in ("music//dbl.mp3", "music/d.mp3/b.mp3"):
            check(name in text, f"{name} is not named: {text}")
        check("does not name" not in text, text)
        text = lib.hushfs("convert", "--password-file", lib.password_file, "--new-password-file", new, lib.dir, lib.base / "vault", ok=(5,))
        for name in ("music//dbl.mp3", "music/d.mp3/b.mp3", "2 files are in"):
            check(name in text, f"{name} is not named: {text}")
    with library("mms-lib/nested-prefix-after-server-run") as lib:
        before = stored(lib)
        text = verb(lib, "verify", ok=(5,))
        check("media/1edb5995382ce612a76a029b87de97af.encrypt: an object that the index does not name" in text, text)
        same(stored(lib), before, "what is stored")


def test_what_was_refused_leaves_nothing_and_the_mount_ends_well():
    album = {"01.mp3": content(1, 300_000), "cover.jpg": content(2, 12_000_000), "notes.pdf": content(3, 100)}
    for case, secret, folder in (("mms-lib/key-and-key2", "pässwörd", "music"), ("medusa/under-way", json.loads((CASES / "medusa/expected.json").read_text())["key_secret_base64"], ".")):
        with library(case, secret) as lib:
            source = lib.base / "album"
            source.mkdir()
            for name, data in album.items():
                (source / name).write_bytes(data)
            lib.mount()
            before = stored(lib)
            unfinished = lib.mnt / folder / ".goutputstream-AB12CD"
            for _ in range(3):
                unfinished.write_bytes(content(4, 9_000_000))
                os.unlink(unfinished)
            for name in (".nomedia", ".lyrics.txt", "notes.txt~", ".x.tmp"):
                refused(lib.mnt / folder / name)
            # What is refused stays where it is.
            code = subprocess.run(["mv", source / "notes.pdf", lib.mnt / folder / ".notes.pdf"], stderr=subprocess.DEVNULL).returncode
            check(code != 0 and (source / "notes.pdf").exists(), "mv says so, and keeps the source")
            same(sum(p.stat().st_size for p in (lib.dir / ".hushfs-tmp").iterdir()), 0, "bytes of what was deleted")
            code = subprocess.run(["rsync", "-a", f"{source}/", f"{lib.mnt}/{folder}/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            check(code != 0, "rsync says that some were refused")
            same(sum(p.stat().st_size for p in (lib.dir / ".hushfs-tmp").iterdir()), 0, "bytes of what was refused")
            run(PROGRAM, "umount", lib.mnt, env=lib.env)
            same(lib.process.wait(60), 0, "exit code of the mount")
            lib.process = None
            lib.mount()
            # One that is still there at the end.
            unfinished.write_bytes(b"y")
            ended = subprocess.run([PROGRAM, "umount", lib.mnt], env=lib.env, capture_output=True, text=True)
            check(ended.returncode != 0 and unfinished.name in ended.stderr, f"{ended}")
            same(lib.process.wait(60), ended.returncode, "exit code of the mount")
            lib.process = None
            new = {f"music/{object_of('music/01.mp3')}"} if folder == "music" else set()
            same(stored(lib), before | new, "what is stored")
            check(not (lib.dir / ".hushfs-tmp").exists(), "the folder of temporary files is gone")


def test_pictures_and_styles_in_clear():
    expected = json.loads((CASES / "images/expected.json").read_text())
    new = (CASES / "images/new.png").read_bytes()
    with library("images/dam", expected["key"]) as lib:
        before = stored(lib)
        lib.mount()
        styles, loras = lib.mnt / "prompt-styles", lib.mnt / "loras"
        run("sed", "-i", "s/neon/rain/", styles / "urban.json")
        check(b"rain" in (lib.dir / "prompt-styles/urban.json").read_bytes(), "changed by sed")
        with open(styles / "urban.json", "r+b") as f:
            f.write(b" ")
        shutil.copyfile(CASES / "images/new.png", styles / "urban.png")
        run("rsync", "-a", "--ignore-times", CASES / "images/new.png", loras / "old_plain.png")
        (styles / "another.json").write_text("{}")
        (loras / "fresh.png").write_bytes(new)
        for path in ("prompt-styles/urban.png", "loras/old_plain.png"):
            same((lib.dir / path).read_bytes(), new, path)
        lib.umount()
        added = {"prompt-styles/another.json", "loras/fresh.png.enc", "loras/fresh.png.enc.meta"}
        same(stored(lib), before | added, "what is stored")
        lib.mount("--encrypt-all")
        (loras / "old_plain.png").write_bytes(b"new")
        lib.umount()
        encrypted = {"loras/old_plain.png.enc", "loras/old_plain.png.enc.meta"}
        same(stored(lib), (before | added | encrypted) - {"loras/old_plain.png"}, "all encrypted")


def test_types_of_what_arrives_by_rename():
    expected = json.loads((CASES / "svg/expected.json").read_text())
    with library("images/dam", "a made up key") as lib:
        lib.mount()
        files = [CASES / "svg" / name for name in expected]
        run("rsync", "-a", *files, lib.mnt / "loras")
        for name, mime in expected.items():
            meta = json.loads((lib.dir / f"loras/{name}.enc.meta").read_text())
            same((meta["mimeType"], meta["originalExtension"]), (mime, os.path.splitext(name)[1]), name)


def test_a_key_that_is_not_set_is_said_with_what_the_app_uses():
    with library("images/dam", "a made up key") as lib:
        for name in ("not-set-1", "not-set-2", "empty-1", "value-on-the-next-line-1"):
            env_file = lib.base / ".env"
            shutil.copyfile(CASES / f"env/{name}.env", env_file)
            env_file.chmod(0o600)
            text = lib.hushfs("verify", "--env-file", env_file, lib.dir, ok=(3,))
            check("IMAGE_ENCRYPTION_KEY is not set" in text and "your-32-character-secret-key-here!" in text, text)


def test_prefixes_and_broken_manifests():
    key = json.loads((CASES / "medusa/expected.json").read_text())["cut-manifest"]["key_secret_base64"]
    with library("medusa/prefixes-of-two-depths", key) as lib:
        new = lib.base / "new"
        new.write_text("new password")
        new.chmod(0o600)
        for name, argv in (("verify", [lib.dir]), ("convert", ["--new-password-file", new, lib.dir, lib.base / "vault"])):
            text = lib.hushfs(name, "--format=medusa", "--password-file", lib.password_file, *argv, ok=(2,))
            check('"org/b"' in text, text)
    with library("medusa/nested-prefix", key) as lib:
        text = verb(lib, "verify", "--format=medusa", ok=(0,))
        check("4 files, 0 problems" in text, text)
    with library("medusa/cut-manifest", key) as lib:
        new = lib.base / "new"
        new.write_text("new password")
        new.chmod(0o600)
        text = verb(lib, "verify", ok=(5,))
        check("n1/full1/meta/manifest.json" in text and "files, 1 problem" in text, text)
        text = lib.hushfs("convert", "--password-file", lib.password_file, "--new-password-file", new, lib.dir, lib.base / "vault", ok=(5,))
        check("n1/full1/meta/manifest.json" in text, text)
        lib.mount("--read-only", "-o", "view=backups")
        table = lib.mnt / "n1/full2/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90"
        same(len((table / "nb-1-big-Data.db").read_bytes()), 4000, "bytes of the other backup")


def test_backups_that_nothing_is_added_to():
    expected = json.loads((CASES / "medusa/expected.json").read_text())
    for name in ("under-way", "fernet-and-aws"):
        with library(f"medusa/{name}", expected["key_secret_base64"]) as lib:
            lib.mount()
            before = stored(lib)
            refused(lib.mnt / expected[name]["write"])
            same(stored(lib), before, "what is stored")
            (lib.mnt / expected[name]["write_allowed"]).write_bytes(b"x")
            for path, sha256 in expected[name]["files"].items():
                same(digest(lib.mnt / path), sha256, path)
    with library("medusa/two-prefixes/tenantA", expected["key_secret_base64"]) as lib:
        verb(lib, "verify", ok=(0,))
        lib.mount()
        (lib.mnt / TABLE.format("full1") / "nb-9-big-Data.db").write_bytes(b"new")
        lib.umount()
        manifest = json.loads((lib.dir / "10.0.0.2/full1/meta/manifest.json").read_text())
        check(all(o["path"].startswith("tenantA/10.0.0.2/") for section in manifest for o in section["objects"]), "every name has its prefix")
        verb(lib, "verify", ok=(0,))
        lib.mount("-o", "view=backups")
        same((lib.mnt / "10.0.0.2/full1/ks/users-a1b2c3d4e5f60718293a4b5c6d7e8f90/nb-9-big-Data.db").read_bytes(), b"new", "as a restore brings it")


if __name__ == "__main__":
    main()
