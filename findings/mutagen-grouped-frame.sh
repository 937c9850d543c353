#!/usr/bin/env bash
# mutagen 1.48.1 (pip): a text frame that belongs to a group is not seen, and the next save erases it.
#
# ID3v2.4 lets frames be grouped: a GRID frame names the group's number (128 here), and each member has a flag in its header and that
# number as one more byte before its contents.
# Expected: the title of such a file is read, or at least kept as it is when another field is changed.
# Happens: the extra byte is taken for the text encoding. 128 is none, so the frame is dropped without an error: the file has no
# title. It is not among the "unknown frames" kept for saving either: adding an album and saving removes the title from the file.
# eyeD3 0.9.9 reads the title, which shows that the file is well formed.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action=ignore --target lib \
    mutagen==1.48.1 eyed3==0.9.9 >&2 || exit 2

cat >run.py <<'PY'
import sys
from importlib.metadata import version

sys.path.insert(0, "lib")
import eyed3
from mutagen.id3 import ID3, TALB

eyed3.log.setLevel("ERROR")  # it warns that it keeps GRID as it is


def frame(name, body, flags=0):
    return name + bytes([0, 0, 0, len(body), 0, flags]) + body  # each body is under 128 bytes


GROUPED = 0x40
body = (
    frame(b"GRID", b"mailto:group@example.org\0\x80")
    + frame(b"TIT2", b"\x80\x03A grouped title", GROUPED)
    + frame(b"TPE1", b"\x03An artist")
)
audio = (b"\xff\xfb\x90\x00" + bytes(413)) * 60
with open("a.mp3", "wb") as file:
    file.write(b"ID3\4\0\0" + bytes([0, 0, 0, len(body)]) + body + audio)


def titles():
    return eyed3.load("a.mp3").tag.title, ID3("a.mp3").get("TIT2"), b"A grouped title" in open("a.mp3", "rb").read()


def show(when, seen):
    print(f"{when}: eyeD3 {version('eyed3')}: {seen[0]!r}, mutagen {version('mutagen')}: {seen[1]!r}, in the file: {seen[2]}")


before = titles()
show("title before", before)
tag = ID3("a.mp3")
print("frames mutagen sees:", sorted(tag.keys()), "unknown frames it would keep:", tag.unknown_frames)
unknown = list(tag.unknown_frames)
tag.add(TALB(encoding=3, text="An album"))
tag.save()
after = titles()
show("title after mutagen added an album", after)

as_described = before == ("A grouped title", None, True) and unknown == [] and after == (None, None, False)
print("as described: the title is not seen, then lost" if as_described else "CHANGED")
sys.exit(0 if as_described else 1)
PY
python3 run.py
