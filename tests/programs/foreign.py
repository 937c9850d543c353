#!/usr/bin/env python3
"""Foreign libraries below a mount: what the original programs wrote is read, what programs write there is decoded
without hushfs, a web server gives each picture its type, and killing at any moment leaves the old or the new."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from common import PROGRAM, REPO, Library, check, content, main, run, same, until, workplace

sys.path.insert(0, str(REPO / "tests"))
import foreign_check  # noqa: E402

VECTORS = REPO / "tests/vectors/foreign"
# The whole set, with the large files, where it lies beside the repository; and the checker that came with it.
WHOLE = Path(os.environ.get("HUSHFS_VECTORS") or REPO.parent / "shared/formats/vectors")
SECRETS = {"mms": "correct horse ñ 2019", "medusa": "DrMxa6NEhBuKcBqffvw675eHo/9J/W3WqXZ3spyI1/U=", "images": "0f1e2d3c4b5a69788796a5b4c3d2e1f0"}
FOLDERS = {"mms": "mms/run1-bucket", "medusa": "medusa/store/backups", "images": "imagestore"}
NODE = "node1.example.internal"
USERS = f"{NODE}/data/media/users-11112222333344445555666677778888"


@contextmanager
def foreign(kind, *options, whole=False, mount=True):
    base = workplace("foreign")
    library = Library(base, options)
    shutil.copytree((WHOLE if whole else VECTORS) / FOLDERS[kind], library.dir)
    run("chmod", "-R", "u+w", library.dir)
    library.password_file.write_text(SECRETS[kind])
    try:
        if mount:
            library.mount()
        yield library
        if library.process is not None:
            library.umount()
    except BaseException:
        if library.log.exists():
            print(library.log.read_text(errors="replace")[-2000:])
        raise
    finally:
        library.close()
        shutil.rmtree(base, ignore_errors=True)


def plain_of(whole):
    """What the large samples hold: Python's generator, with the seeds that the vectors name."""
    return {"m3.bin": lambda: random.Random(1014).randbytes(3145728), "m1.bin": lambda: random.Random(1012).randbytes(1048576)} if whole else {}


def read_vectors(whole):
    import hashlib
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    source, count = (WHOLE if whole else VECTORS), 0
    stored = lambda path: whole or not path.endswith(("3MB random.wav", "nb-2-big-Data.db", "_1051.png.enc", "_1257.png.enc"))  # noqa: E731
    with foreign("mms", whole=whole) as lib:
        for record in json.loads((source / "mms/expected.json").read_text())[0]["records_in_index_order"]:
            path = lib.mnt / record["path"]
            same(path.stat().st_size, record["filesize"], record["path"])
            if stored(record["path"]):
                same(digest(path), record["plain_sha256"], record["path"])
                count += 1
    with foreign("medusa", "-o", "view=backups", whole=whole) as lib:
        for e in json.loads((source / "medusa/expected.json").read_text()):
            path = lib.mnt / NODE / e["backup"] / e["keyspace"] / e["table"] / e["file"]
            if e["overwritten_by_diff2"] or e["backup"] == "full-2026" and not stored(e["file"]):
                try:
                    path.read_bytes()
                    check(False, f"{path} could be read")
                except OSError as error:
                    same(error.errno, 5, "EIO")
                continue
            same((path.stat().st_size, digest(path)), (e["size"], e["sha256"]), str(path))
            count += 1
        restored = lib.base / "restored"
        run("rsync", "-a", f"{lib.mnt}/{NODE}/diff-2/", f"{restored}/")
        check((restored / "manifest.json").is_file() and (restored / "media").is_dir(), "a restore by rsync")
    with foreign("images", whole=whole) as lib:
        for f in json.loads((source / "imagestore/expected.json").read_text())["files"]:
            if stored(f["file"]):
                path = lib.mnt / f["file"].removesuffix(".enc")
                same((path.stat().st_size, digest(path)), (f["size"], f["sha256"]), f["file"])
                same(os.getxattr(path, "user.mime_type").decode(), f["servedType"], f["file"])
                count += 1
    return count


def test_what_the_originals_wrote_is_read():
    same(read_vectors(False), 70, "files read")


def test_the_whole_set_of_vectors_is_read():
    if not WHOLE.is_dir():
        print("      (the whole set is not here)")
        return
    run("python3", WHOLE / "check.py")
    same(read_vectors(True), 17 + 39 + 18, "files read")


def test_mms_written_by_programs():
    with foreign("mms") as lib:
        music = lib.mnt / "music"
        before = foreign_check.mms(lib.dir, SECRETS["mms"], objects_missing={"music/3MB random.wav"})
        tone = VECTORS / "mms/plain/music/tone.mp3"
        shutil.copyfile(tone, music / "Ñew — 音.mp3")
        run("rsync", "-a", VECTORS / "mms/plain/music/video", music / "new folder")
        (music / "large.wav").write_bytes(content("large", 20_000_000))
        os.rename(music / "large.wav", music / "renamed.wav")
        os.rename(music / "edge", music / "moved")
        os.unlink(music / "moved/one.mp3")
        with open(music / "renamed.wav", "r+b") as f:
            f.seek(12_345)
            f.write(b"changed")
            f.truncate(19_000_000)
        check(subprocess.run(["cp", VECTORS / "mms/plain/music/cover.jpg", music], stderr=subprocess.DEVNULL).returncode != 0, "a cover was taken in clear")
        lib.umount()
        check("refused" in lib.log.read_text(), "the refusal is logged")
        files, records, generation = foreign_check.mms(lib.dir, SECRETS["mms"], objects_missing={"music/3MB random.wav"})
        check(generation > before[2], "the generation went up")
        same(files["music/Ñew — 音.mp3"], tone.read_bytes(), "a copied song")
        expected = bytearray(content("large", 20_000_000)[:19_000_000])
        expected[12_345:12_352] = b"changed"
        same(files["music/renamed.wav"] == expected, True, "a changed file")
        same(sorted(p for p in files if "/moved/" in p), sorted(p.replace("/edge/", "/moved/") for p in before[0] if "/edge/" in p and "one.mp3" not in p), "a moved folder")
        check("music/new folder/video/clip.mkv" in files, "what rsync wrote")
        tags = records["music/Ñew — 音.mp3"]
        original = before[1]["music/tone.mp3"]
        for member in ("title", "artist", "album", "year", "track_no", "track_of", "disk_no", "disk_of", "lossless", "sampleRate", "numberOfChannels", "dataformat"):
            same(tags.get(member), original.get(member), member)
        check(len({r["iv"] for r in records.values()}) == len(records), "vectors of their own")
        # Wide of nothing: every object has its record.
        named = {r["nameEnc"] for r in records.values()}
        same({f"music/{p.name}" for p in (lib.dir / "music").glob("*.encrypt")}, named - {before[1]["music/3MB random.wav"]["nameEnc"]}, "objects")


def test_mms_made_and_its_password_changed():
    base = workplace("init")
    library = Library(base)
    try:
        library.hushfs("init", "--format", "mms", "--password-file", library.password_file, library.dir)
        same(foreign_check.mms(library.dir, library.password_file.read_text().rstrip("\n"))[2], 1, "generation")
        library.mount()
        (library.mnt / "music/a.mp3").write_bytes(b"la" * 5000)
        library.umount()
        new = library.base / "new"
        new.write_text("another\n")
        library.hushfs("passwd", "--password-file", library.password_file, "--new-password-file", new, library.dir)
        same(foreign_check.mms(library.dir, "another")[0], {"music/a.mp3": b"la" * 5000}, "after the change")
        run(PROGRAM, "verify", "--password-file", library.password_file, library.dir, ok=(3,), env=library.env)
    finally:
        library.close()
        shutil.rmtree(base, ignore_errors=True)


def test_medusa_written_by_programs():
    with foreign("medusa") as lib:
        large = content("m", 3_500_000)
        (lib.mnt / USERS / "nb-9-big-Data.db").write_bytes(large)
        (lib.mnt / USERS / "empty.db").write_bytes(b"")
        os.rename(lib.mnt / USERS / "pic.png", lib.mnt / USERS / "renamed.png")
        full = lib.mnt / NODE / "full-2026/data/media/users-11112222333344445555666677778888"
        shutil.copyfile(VECTORS / "medusa/plain/pic.jpg" if (VECTORS / "medusa/plain/pic.jpg").exists() else VECTORS / "imagestore/plain/pic.jpg", full / "pic.jpg")
        os.unlink(full / "tone.mp3")
        for refused in (lib.mnt / USERS / "manifest-2.json", lib.mnt / "clear.txt", lib.mnt / NODE / "diff-2/meta/manifest.json"):
            try:
                refused.write_bytes(b"x")
                check(False, f"{refused} was taken")
            except PermissionError:
                pass
        lib.umount()
        files = foreign_check.medusa(lib.dir, SECRETS["medusa"], skip={("diff-1", "nb-1-big-Index.db"), ("full-2026", "nb-2-big-Data.db")})
        same(files["diff-2", f"{USERS}/nb-9-big-Data.db"] == large, True, "a large file")
        same(files["diff-2", f"{USERS}/empty.db"], b"", "an empty file")
        check(("diff-2", f"{USERS}/renamed.png") in files and ("diff-1", f"{USERS}/renamed.png") in files, "a name in all manifests")
        check(("full-2026", f"{NODE}/full-2026/data/media/users-11112222333344445555666677778888/tone.mp3") not in files, "a removed file")


def test_fernet_of_python_is_read():
    from cryptography.fernet import Fernet
    with foreign("medusa", mount=False) as lib:
        fernet, out = Fernet(SECRETS["medusa"]), b""
        plain = content("python", 2_500_000)
        for at in range(0, len(plain), 700_000):  # frames of another size than Medusa's
            token = fernet.encrypt(plain[at:at + 700_000])
            out += len(token).to_bytes(4, "big") + token
        (lib.dir / USERS / "by-python.db").write_bytes(out)
        lib.mount()
        same((lib.mnt / USERS / "by-python.db").read_bytes() == plain, True, "frames of Python's Fernet")


def test_images_written_by_programs():
    with foreign("images") as lib:
        loras = lib.mnt / "dam/loras"
        for name in ("pic.jpg", "pic.png", "pic.gif", "pic.webp"):
            shutil.copyfile(VECTORS / "imagestore/plain" / name, loras / f"new {name}")
        shutil.copyfile(VECTORS / "imagestore/plain/pic.gif", loras / "really a gif.JPG")
        (loras / "no extension").write_bytes(b"text")
        os.rename(loras / "new pic.png", lib.mnt / "dam/prompts/moved.png")
        os.unlink(loras / "new pic.jpg")
        lib.umount()
        for meta in (lib.dir / "dam/loras").glob("*_1051.png.enc.meta"), (lib.dir / "dam/loras").glob("*_1257.png.enc.meta"):
            for path in meta:  # their pictures are left out of the vectors
                path.unlink()
        files = foreign_check.images(lib.dir, SECRETS["images"])
        same(files["dam/loras/really a gif.JPG"][1], {"originalExtension": ".JPG", "mimeType": "image/gif"}, "a type by content")
        same(files["dam/loras/no extension"], (b"text", {"originalExtension": "", "mimeType": "application/octet-stream"}), "no extension")
        same(files["dam/prompts/moved.png"][0], (VECTORS / "imagestore/plain/pic.png").read_bytes(), "a moved picture")
        check("dam/loras/new pic.jpg" not in files and not list(lib.dir.rglob("new pic.jpg*")), "a removed picture")


def test_lighttpd_serves_each_type():
    with foreign("images") as lib:
        config = lib.base / "lighttpd.conf"
        port = 20_000 + os.getpid() % 20_000
        config.write_text(f'server.document-root = "{lib.mnt}"\nserver.port = {port}\nserver.bind = "127.0.0.1"\n'
                          'mimetype.use-xattr = "enable"\nmimetype.xattr-name = "user.mime_type"\n')
        server = subprocess.Popen(["/usr/sbin/lighttpd", "-D", "-f", config], stdin=subprocess.DEVNULL)
        try:
            def answers():
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing", timeout=5)
                except urllib.error.HTTPError:
                    return True
                except OSError:
                    return False
            until(answers, "lighttpd answers")
            served = 0
            for f in json.loads((VECTORS / "imagestore/expected.json").read_text())["files"]:
                path = f["file"].removesuffix(".enc")
                if not (lib.mnt / path).exists():
                    continue
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                    same((answer.headers["Content-Type"], len(answer.read())), (f["servedType"], f["size"]), path)
                    served += 1
            same(served, 16, "pictures served")
        finally:
            server.terminate()
            server.wait(10)


def test_killed_at_any_moment():
    """Writers that replace, make and remove; the process is killed; what is there afterwards is whole."""
    rounds = int(os.environ.get("FOREIGN_KILLS", 8))
    with foreign("mms", mount=False) as lib:
        known = {}
        for n in range(rounds):
            lib.mount()
            writer = subprocess.Popen([sys.executable, __file__, "--write", str(lib.mnt / "music"), str(n)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
            time.sleep(random.uniform(0.05, 0.6))
            lib.kill()
            told = writer.communicate(timeout=30)[0].split()
            lib.clear()
            lib.hushfs("verify", "--password-file", lib.password_file, lib.dir, ok=(0, 5))
            lib.mount()  # finishes what was cut short
            lib.umount()
            files, _, _ = foreign_check.mms(lib.dir, SECRETS["mms"], objects_missing={"music/3MB random.wav"})
            for number in told:
                known[int(number) % 7] = max(known.get(int(number) % 7, 0), int(number))
            for slot, version in known.items():
                data = files[f"music/target {slot}.mp3"]
                found = int(data[:20])
                check(found >= version, f"slot {slot} went back: {found}, and {version} was closed")
                same(data == body(found), True, f"target {slot} is whole")
            problems = run(PROGRAM, "verify", "--password-file", lib.password_file, lib.dir, ok=(5,), env=lib.env)
            check("1 problems" in problems, f"only the file that is left out is missing:\n{problems}")


def body(version):
    return b"%020d" % version + content(version, 1000 + version % 50_000)


def write(root, n):
    for i in range(10**9):
        version = (int(n) + 1) * 1_000_000 + i
        with open(f"{root}/target {version % 7}.mp3", "wb") as f:
            f.write(body(version))
        print(version, flush=True)
        if i % 5 == 4:
            with open(f"{root}/other.ogg", "wb") as f:
                f.write(b"o" * i)
            os.unlink(f"{root}/other.ogg")


def test_convert_is_compared_and_goes_on():
    for kind, expected in (("mms", 16), ("images", 16 + 11 + 2), ("medusa", None)):
        with foreign(kind, mount=False) as lib:
            target, new = lib.base / "vault", lib.base / "new"
            new.write_text("new password\n")
            argv = ("--password-file", lib.password_file, "--new-password-file", new, lib.dir, target)
            # What is missing from the vectors is named, and does not stop the rest.
            lib.hushfs("convert", *argv, ok=(0, 5))
            again = lib.hushfs("convert", *argv, ok=(0, 5))
            lib.hushfs("verify", "--password-file", new, target)
            vault = Library(lib.base / "v")
            vault.dir, vault.password_file, vault.env = target, new, lib.env
            lib.mount("--read-only")
            try:
                vault.mount("--read-only")
                compared = 0
                for path in lib.mnt.rglob("*"):
                    if not path.is_file():
                        continue
                    try:
                        data = path.read_bytes()
                    except OSError:
                        continue
                    copy = vault.mnt / path.relative_to(lib.mnt)
                    same((copy.read_bytes() == data, copy.stat().st_mtime_ns), (True, path.stat().st_mtime_ns), str(copy))
                    compared += 1
                check(compared >= 16, f"{kind}: {compared} files compared, {again}")
                vault.umount()
            finally:
                vault.close()


def test_verify_names_what_is_damaged_in_a_vault():
    base = workplace("verify")
    library = Library(base)
    try:
        library.init()
        library.mount()
        for n in range(3):
            (library.mnt / f"file {n}").write_bytes(content(n, 300_000))
        library.umount()
        library.hushfs("verify", "--password-file", library.password_file, library.dir)
        pack = max((library.dir / "data").iterdir(), key=lambda p: p.stat().st_size)
        pack.chmod(0o600)
        with open(pack, "r+b") as f:
            f.seek(100_000)
            f.write(b"damage!")
        text = run(PROGRAM, "verify", "--password-file", library.password_file, library.dir, ok=(5,), env=library.env)
        check("file 0" in text and "1 problems" in text, text)
    finally:
        library.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        signal.alarm(60)
        write(*sys.argv[2:])
    main()
