#!/usr/bin/env bash
# tinytag 2.3.2 (pip): texts stored "unsynchronised" come out split, garbled or not at all.
#
# An ID3v2 writer may put a zero after each byte FF that a decoder could take for the start of audio, and sets a flag. UTF-16 texts start
# with FF FE in little-endian order, so that nearly every tag of a writer that uses both has such zeros. A reader has to take them out.
# Expected: title "Aÿà" and artist "An artist" in each of the three files.
# Happens: tinytag does not look at the flag.
#   - ID3v2.4, Latin-1: the zero is taken for the mark between two values, so that one title becomes two.
#   - ID3v2.3, Latin-1: sizes do not count the zeros, so that reading goes out of step as well: the artist is missing.
#   - ID3v2.3, UTF-16: the title is read from the wrong byte on: other letters altogether. The artist is missing, too.
# No error is raised. mutagen 1.48.1 reads all three, which shows that the files are well formed.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action=ignore --target lib \
    tinytag==2.3.2 mutagen==1.48.1 >&2 || exit 2

cat >run.py <<'PY'
import re
import sys
from importlib.metadata import version

sys.path.insert(0, "lib")
from mutagen.id3 import ID3
from tinytag import TinyTag

TITLE, ARTIST = "Aÿà", "An artist"


def unsynchronise(data):
    return re.sub(rb"\xff(?=[\xe0-\xff\x00])", b"\xff\x00", data)


def frame(name, body, flags=0):
    return name + bytes([0, 0, 0, len(body), 0, flags]) + body  # each body is under 128 bytes


def tag(major, body):
    return b"ID3" + bytes([major, 0, 0x80, 0, 0, 0, len(body)]) + body


def of_2_3(title):  # the whole tag is unsynchronised, after the sizes were set
    return tag(3, unsynchronise(frame(b"TIT2", title) + frame(b"TPE1", b"\0" + ARTIST.encode())))


latin = b"\0" + TITLE.encode("latin-1")
utf16 = b"\1\xff\xfe" + TITLE.encode("utf-16-le")
tags = {  # in 2.4 each frame has its own flag (2), and sizes count the zeros
    "ID3v2.4, Latin-1": tag(4, frame(b"TIT2", unsynchronise(latin), 2) + frame(b"TPE1", b"\0" + ARTIST.encode(), 2)),
    "ID3v2.3, Latin-1": of_2_3(latin),
    "ID3v2.3, UTF-16": of_2_3(utf16),
}
audio = (b"\xff\xfb\x90\x00" + bytes(413)) * 60
seen, right = {}, True
for kind, head in tags.items():
    with open("a.mp3", "wb") as file:
        file.write(head + audio)
    read = TinyTag.get("a.mp3").as_dict()
    seen[kind] = read.get("title"), read.get("artist")
    reference = ID3("a.mp3")
    pair = list(reference["TIT2"].text), list(reference["TPE1"].text)
    right = right and pair == ([TITLE], [ARTIST])
    print(kind)
    print(f"  mutagen {version('mutagen')}: title {pair[0]}, artist {pair[1]}")
    print(f"  tinytag {version('tinytag')}: title {seen[kind][0]}, artist {seen[kind][1]}")

garbled = seen["ID3v2.3, UTF-16"]
as_described = (
    right
    and seen["ID3v2.4, Latin-1"] == (["Aÿ", "à"], [ARTIST])
    and seen["ID3v2.3, Latin-1"][0] != [TITLE]
    and seen["ID3v2.3, Latin-1"][1] is None
    and garbled[0] != [TITLE]
    and garbled[1] is None
)
print("as described: split, garbled, missing" if as_described else "CHANGED")
sys.exit(0 if as_described else 1)
PY
PYTHONIOENCODING=utf-8 python3 run.py
