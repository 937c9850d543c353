#!/usr/bin/env python3
"""Reads foreign libraries without hushfs: written from the description of their formats, for the tests alone.

Each function takes a folder and a secret and gives back what is in it, as {name: bytes}; what does not hold to the
format is an AssertionError that says what. Needs the package `cryptography`, of which the ciphers and Fernet are used.
"""
import base64
import hashlib
import json
from pathlib import Path

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def decrypt(key, iv, data):
    """AES-CBC and PKCS#7."""
    assert data and len(data) % 16 == 0, f"{len(data)} bytes are no blocks"
    opener = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    remover = padding.PKCS7(128).unpadder()
    return remover.update(opener.update(data) + opener.finalize()) + remover.finalize()


def encrypt(key, iv, data):
    """The same the other way round."""
    adder, closer = padding.PKCS7(128).padder(), Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return closer.update(adder.update(data) + adder.finalize()) + closer.finalize()


def mms_key(password, key_text):
    """The internal key out of a key file of Minio Music Server."""
    assert len(key_text) == 87, "a key file has 87 letters"
    wrapped = json.loads(key_text)
    assert list(wrapped) == ["data", "iv"]
    inner = decrypt(hashlib.sha256(password.encode()).digest()[:16], base64.b64decode(wrapped["iv"]), base64.b64decode(wrapped["data"]))
    assert len(inner) == 24
    return base64.b64decode(inner)


def mms_file(internal, iv, stored):
    """An object of Minio Music Server."""
    pieces = [decrypt(internal, iv, stored[at:at + 1024]) for at in range(0, len(stored), 1024)]
    assert all(len(piece) == 1008 for piece in pieces[:-1]), "a short segment inside"
    return b"".join(pieces)


def mms(root, password, index="music.index", key="key", objects_missing=()):
    """Minio Music Server: {path: contents}, and the records by path, and the index's generation."""
    root = Path(root)
    internal = mms_key(password, (root / key).read_text())
    text = (root / index).read_bytes().decode("ascii")
    assert text.endswith("\n"), "the server drops a last line without its end"
    first, *lines = text[:-1].split("\n")
    head = json.loads(first)
    assert first == json.dumps(head, separators=(",", ":")) and list(head) == ["version", "registers", "id"]
    assert head["version"] == 2 and head["registers"] == len(lines), f"{head}, {len(lines)} lines"
    files, records = {}, {}
    for line in lines:
        sealed = json.loads(line)
        assert line == json.dumps(sealed, separators=(",", ":")) and list(sealed) == ["data", "iv"]
        record_text = decrypt(internal, base64.b64decode(sealed["iv"]), base64.b64decode(sealed["data"])).decode()
        record = json.loads(record_text)
        assert list(record)[:6] == ["id", "path", "filesize", "extension", "iv", "nameEnc"], list(record)
        order = ["title", "artist", "album", "year", "track_no", "track_of", "disk_no", "disk_of", "duration", "lossless",
                 "bitrate", "sampleRate", "numberOfChannels", "dataformat"]
        rest = list(record)[6:]
        assert rest == [name for name in order if name in rest], f"members in another order: {rest}"
        assert record["iv"] == sealed["iv"], "the line and its file have one vector"
        path = record["path"]
        assert record["extension"] == path.rsplit(".", 1)[-1].lower()
        assert record["nameEnc"] == f"{record['nameEnc'].rpartition('/')[0]}/{hashlib.md5(path.encode()).hexdigest()}.encrypt"
        assert path not in records, f"{path} twice"
        records[path] = record
        if path in objects_missing:
            continue
        stored = (root / record["nameEnc"]).read_bytes()
        files[path] = mms_file(internal, base64.b64decode(record["iv"]), stored)
        assert len(files[path]) == record["filesize"], f"{path}: filesize"
    return files, records, head["id"]


def frames(key, stored):
    """A file of Fernet frames; what hushfs writes is canonical."""
    fernet, out, at, sizes = Fernet(key), [], 0, []
    while at < len(stored):
        length = int.from_bytes(stored[at:at + 4], "big")
        token = stored[at + 4:at + 4 + length]
        assert len(token) == length, "cut short"
        assert base64.urlsafe_b64encode(base64.urlsafe_b64decode(token)) == token, "not canonical"
        out.append(fernet.decrypt(token))
        sizes.append(len(out[-1]))
        at += 4 + length
    assert all(n == 1 << 20 for n in sizes[:-1]) and all(0 < n <= 1 << 20 for n in sizes), f"frames of {sizes}"
    return b"".join(out)


def medusa(root, key, skip=()):
    """Cassandra Medusa: {(backup, object): contents}, each held to its manifest; `skip` are objects not to look at."""
    root, files = Path(root), {}
    for path in sorted(root.glob("*/*/meta/manifest.json")):
        node, backup = path.parts[-4], path.parts[-3]
        text = path.read_text()
        manifest = json.loads(text)
        assert text == json.dumps(manifest), f"{path}: not as Python writes it"
        assert text == (root / "index/backup_index" / backup / f"manifest_{node}.json").read_text(), f"{path}: its copy differs"
        for section in manifest:
            assert list(section) == ["keyspace", "columnfamily", "objects"]
            for entry in section["objects"]:
                assert list(entry) == ["path", "MD5", "size", "source_MD5", "source_size"], list(entry)
                if (backup, Path(entry["path"]).name) in skip:
                    continue
                stored = (root / entry["path"]).read_bytes()
                assert len(stored) == entry["size"] and hashlib.md5(stored).hexdigest() == entry["MD5"], f"{backup}: {entry['path']}"
                plain = frames(key, stored)
                assert len(plain) == entry["source_size"]
                assert base64.b64encode(hashlib.md5(plain).digest()).decode() == entry["source_MD5"]
                files[backup, entry["path"]] = plain
    return files


def image(key, stored):
    """An encrypted picture."""
    return decrypt(hashlib.sha256(key.encode()).digest(), stored[:16], stored[16:])


def images(root, key):
    """The image store: {name: (contents, description)}."""
    root, files = Path(root), {}
    for path in sorted(root.rglob("*.enc")):
        stored = path.read_bytes()
        text = Path(f"{path}.meta").read_text()
        meta = json.loads(text)
        assert text == json.dumps(meta, separators=(",", ":")) and list(meta) == ["originalExtension", "mimeType"], text
        files[str(path.relative_to(root))[:-4]] = image(key, stored), meta
    return files
