#!/usr/bin/env python3
"""Mounted foreign libraries: files written by the original programs are read, files written to the mount are decoded
without hushfs, a web server gives each picture its type, and a kill at any moment leaves the old or the new file."""
import base64
import hashlib
import hmac
import importlib.util
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
    """Returns the contents of a large sample: output of Python's random generator, with the seed given in the
    vectors."""
    return {"m3.bin": lambda: random.Random(1014).randbytes(3145728), "m1.bin": lambda: random.Random(1012).randbytes(1048576)} if whole else {}


def read_vectors(whole):
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


class OurChecker:
    """The functions of the vectors' own checker that are used here, implemented with foreign_check."""
    mms_key, mms_dec = staticmethod(foreign_check.mms_key), staticmethod(foreign_check.mms_file)
    cbc_dec, cbc_enc, img = staticmethod(foreign_check.decrypt), staticmethod(foreign_check.encrypt), staticmethod(foreign_check.image)

    @staticmethod
    def mms_enc(key, iv, plain):
        return b"".join(foreign_check.encrypt(key, iv, plain[at:at + 1008]) for at in range(0, len(plain), 1008))

    @staticmethod
    def med_dec(key, stored):
        return foreign_check.frames(base64.urlsafe_b64encode(key), stored)

    @staticmethod
    def fernet_enc(key, seconds, iv, plain):
        front = b"\x80" + seconds.to_bytes(8, "big") + iv + foreign_check.encrypt(key[16:], iv, plain)
        return base64.urlsafe_b64encode(front + hmac.digest(key[:16], front, "sha256"))


def independent_checker():
    """Returns the checker that came with the vectors, which is independent of this repository, or ours if it is
    missing."""
    path = WHOLE / "check.py"
    if not path.is_file():
        print("      (by the repository's own checker)")
        return OurChecker
    spec = importlib.util.spec_from_file_location("vectors_check", path)
    module, argv = importlib.util.module_from_spec(spec), sys.argv
    sys.argv = [str(path)]  # it looks there for the vectors, which it checks when it is loaded
    try:
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
    return module


# On both sides of every block, segment and frame, of what is encrypted at once, and some that are large.
SIZES = (0, 1, 15, 16, 17, 1007, 1008, 1009, 1023, 1024, 1025, 2015, 2016, 2017, 264_095, 264_096, 264_097,
         1_048_575, 1_048_576, 1_048_577, 2_097_152, 3_145_729, 9_000_001)


def write_sizes(folder, name):
    """Writes files of all sizes, the larger ones not from front to back. Returns their contents by name."""
    expected = {}
    for size in SIZES:
        data = bytearray(content(size, size))
        with open(folder / name(size), "wb") as f:
            if size > 1000:
                f.seek(size // 2)
                f.write(data[size // 2:])
                f.seek(0)
            f.write(data[:size // 2] if size > 1000 else data)
        expected[name(size)] = data
    # A part of an older file, and more at its end.
    changed = name(SIZES[-1])
    with open(folder / changed, "r+b") as f:
        for at, piece in ((1_048_570, b"over the edge"), (len(expected[changed]), b"appended" * 1000)):
            f.seek(at)
            f.write(piece)
            expected[changed][at:at + len(piece)] = piece
    return {path: bytes(data) for path, data in expected.items()}


def check_written(what, plain, decoded, stored, encoded):
    check(decoded == plain, f"{what}: the checker decodes something else")
    check(encoded == stored, f"{what}: the checker encodes it otherwise")


def test_mms_written_is_decoded_independently():
    checker, b64 = independent_checker(), base64.b64decode
    with foreign("mms") as lib:
        expected = write_sizes(lib.mnt / "music", lambda size: f"of {size}.mp3")
        lib.umount()
        key = checker.mms_key(SECRETS["mms"], (lib.dir / "key").read_text())
        first, *lines = (lib.dir / "music.index").read_text().splitlines()
        same(json.loads(first)["registers"], len(lines), "registers")
        records = {}
        for line in map(json.loads, lines):
            record = json.loads(checker.cbc_dec(key, b64(line["iv"]), b64(line["data"])))
            records[record["path"]] = record
        for name, plain in expected.items():
            record = records[f"music/{name}"]
            stored, iv = (lib.dir / record["nameEnc"]).read_bytes(), b64(record["iv"])
            same(record["filesize"], len(plain), name)
            check_written(name, plain, checker.mms_dec(key, iv, stored), stored, checker.mms_enc(key, iv, plain))


def test_medusa_written_is_decoded_independently():
    checker, key = independent_checker(), base64.b64decode(SECRETS["medusa"])
    with foreign("medusa") as lib:
        expected = write_sizes(lib.mnt / USERS, lambda size: f"of {size}.db")
        lib.umount()
        manifest = json.loads((lib.dir / NODE / "diff-2/meta/manifest.json").read_text())
        objects = {o["path"]: o for section in manifest for o in section["objects"]}
        for name, plain in expected.items():
            stored, listed, encoded, at = (lib.dir / USERS / name).read_bytes(), objects[f"{USERS}/{name}"], b"", 0
            for part in range(0, len(plain), 1 << 20):  # each frame has a time and a vector of its own
                length = int.from_bytes(stored[at:at + 4], "big")
                front = base64.urlsafe_b64decode(stored[at + 4:at + 4 + length])[:25]
                token = checker.fernet_enc(key, int.from_bytes(front[1:9], "big"), front[9:], plain[part:part + (1 << 20)])
                encoded += len(token).to_bytes(4, "big") + token
                at += 4 + length
            check_written(name, plain, checker.med_dec(key, stored), stored, encoded)
            md5 = base64.b64encode(hashlib.md5(plain).digest()).decode()
            same((listed["size"], listed["MD5"], listed["source_size"], listed["source_MD5"]),
                 (len(stored), hashlib.md5(stored).hexdigest(), len(plain), md5), name)


def test_images_written_are_decoded_independently():
    checker, key = independent_checker(), hashlib.sha256(SECRETS["images"].encode()).digest()
    with foreign("images") as lib:
        loras = lib.mnt / "dam/loras"
        expected = write_sizes(loras, lambda size: f"of {size}.png")
        lib.umount()
        for name, plain in expected.items():
            stored = (lib.dir / f"dam/loras/{name}.enc").read_bytes()
            check_written(name, plain, checker.img(SECRETS["images"], stored), stored, stored[:16] + checker.cbc_enc(key, stored[:16], plain))
            same(set(json.loads((lib.dir / f"dam/loras/{name}.enc.meta").read_text())), {"originalExtension", "mimeType"}, name)


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


def test_frames_in_another_order_end_a_sequential_read():
    with foreign("medusa") as lib:
        data = content("frames", 5 << 20)
        (lib.mnt / USERS / "large.db").write_bytes(data)
        lib.umount()
        stored = lib.dir / USERS / "large.db"
        whole = stored.read_bytes()
        frame = len(whole) // 5
        parts = [whole[at:at + frame] for at in range(0, len(whole), frame)]

        def read():
            lib.mount("--read-only")
            done = subprocess.run(["dd", f"if={lib.mnt / USERS / 'large.db'}", f"of={lib.base / 'out'}", "bs=1M"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            lib.umount()
            return done.returncode, done.stderr, (lib.base / "out").read_bytes()

        code, text, out = read()
        same((code, out == data), (0, True), text)
        for a, b in ((0, 1), (0, 4), (2, 3), (3, 4)):
            swapped = list(parts)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            stored.write_bytes(b"".join(swapped))
            code, text, out = read()
            check(code != 0 and "Input/output error" in text, f"frames {a} and {b} swapped: dd ended with {code}: {text}")
        stored.write_bytes(whole)
        code, text, out = read()
        same((code, out == data), (0, True), text)


def test_images_with_the_key_in_an_env_file():
    """The key is read from a realistic .env file; a wrong password that is also given is ignored."""
    name, key = "dam/loras/lora_1795199454547_5261.jpg", SECRETS["images"]
    expected = {f["file"]: f["sha256"] for f in json.loads((VECTORS / "imagestore/expected.json").read_text())["files"]}[f"{name}.enc"]
    others = 'DATABASE_URL="postgres://u:p@h/db?x=1"\n# IMAGE_ENCRYPTION_KEY=comment\nMY_IMAGE_ENCRYPTION_KEY=other\nIMAGE_ENCRYPTION_KEY_OLD=old\n'
    texts = (f"IMAGE_ENCRYPTION_KEY={key}", f"IMAGE_ENCRYPTION_KEY={key}\n", f'{others}IMAGE_ENCRYPTION_KEY="{key}"\nNODE_ENV=production\n',
             f"{others}IMAGE_ENCRYPTION_KEY='{key}'\n\n", f"{others}export IMAGE_ENCRYPTION_KEY = {key}\r\nX=y\r\n")
    with foreign("images", mount=False) as lib:
        lib.password_file.write_text("wrong")
        env_file = lib.base / "env"
        for text in texts:
            env_file.write_text(text)
            env_file.chmod(0o600)
            lib.mount("--env-file", env_file)
            same(hashlib.sha256((lib.mnt / name).read_bytes()).hexdigest(), expected, text)
            lib.umount()
        check("others on this machine" not in lib.log.read_text(), "a file of one's own is not warned of")
        env_file.write_text(others)
        text = lib.hushfs("verify", "--env-file", env_file, lib.dir, ok=(3,))
        check("IMAGE_ENCRYPTION_KEY is not set" in text, text)


def test_medusa_with_the_key_in_its_ini():
    with foreign("medusa", mount=False) as lib:
        lib.password_file.write_text("wrong")
        ini = lib.base / "medusa.ini"
        ini.write_text(f"[cassandra]\nconfig_file = /etc/x\n\n[storage]\nbucket_name = b\nkey_secret_base64 = {SECRETS['medusa']}\n\n[monitoring]\n")
        for mode, warned in ((0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o644, True)):
            ini.chmod(mode)
            lib.log.write_text("")
            lib.mount("--read-only", "--medusa-ini", ini)
            check((lib.mnt / USERS / "tone.mp3").read_bytes(), "the key opens it")
            lib.umount()
            same("others on this machine can read this secret" in lib.log.read_text(), warned, f"a warning at mode {mode:o}")


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
    """The process is killed while files are replaced, created and removed; the files that exist afterwards are
    complete."""
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
            check("1 problem, as listed" in problems, f"only the file that is left out is missing:\n{problems}")


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
        check("file 0" in text and "1 problem, as listed" in text, text)
        with open(pack, "r+b") as f:
            f.seek(-10, os.SEEK_END)
            f.write(b"damage!")
        slot = next((library.dir / "key").iterdir())
        (slot.parent / ("0" * 32)).write_bytes(slot.read_bytes())
        text = run(PROGRAM, "verify", "--password-file", library.password_file, library.dir, ok=(5,), env=library.env)
        check(f"data/{pack.name}: damaged: the trailer" in text and f"key/{'0' * 32}: is a copy" in text and "2 problems" in text, text)
    finally:
        library.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        signal.alarm(60)
        write(*sys.argv[2:])
    main()
