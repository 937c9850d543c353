#!/usr/bin/env python3
"""Players on a mount: ffmpeg encodes, decodes and seeks as on a plain disk; MPD scans, lists and plays."""
import os
import subprocess
import time
from common import check, content, drop_caches, main, run, same, until

FFMPEG = ["ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
CODECS = {"flac": ["-c:a", "flac"], "mp3": ["-c:a", "libmp3lame", "-b:a", "192k"], "ogg": ["-c:a", "libvorbis"], "m4a": ["-c:a", "aac", "-movflags", "+faststart"]}
SECONDS = 40


def encode(number, target, title):
    """Encodes a track of noise and a tone, the same bytes each time."""
    run(*FFMPEG, "-f", "lavfi", "-i", f"anoisesrc=d={SECONDS}:c=pink:r=44100:a=0.2:seed={number}",
        "-f", "lavfi", "-i", f"sine=frequency={200 + 10 * number}:duration={SECONDS}", "-filter_complex", "amix=inputs=2",
        "-ac", "2", "-ar", "44100", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1", *CODECS[target.suffix[1:]],
        "-metadata", f"title={title}", "-metadata", "artist=The Artist", "-metadata", "album=The Album", "-metadata", f"track={number}", target)


def make_album(where):
    where.mkdir(parents=True)
    tracks = []
    for number, suffix in enumerate(CODECS, 1):
        tracks.append(where / f"{number:02} - Track é.{suffix}")
        encode(number, tracks[-1], f"Title {number}")
    return tracks


def frames(track, *seek):
    return run(*FFMPEG, *seek, "-i", track, "-map", "0:a", "-f", "framemd5", "-")


def test_decode_and_seek(library):
    plain = make_album(library.base / "album")
    (library.mnt / "album").mkdir()
    run("cp", *plain, library.mnt / "album")
    library.remount()
    for track in plain:
        there = library.mnt / "album" / track.name
        # Seeks first, while nothing is cached; backwards, as a listener does who looks for a place.
        for second in (35, 20.5, 0.1, 12.345, 39.9):
            same(frames(there, "-ss", str(second), "-t", "2"), frames(track, "-ss", str(second), "-t", "2"), f"{track.suffix} from second {second}")
        same(frames(there), frames(track), f"all of {track.suffix}")
        probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration,size:format_tags", "-of", "default=nw=1"]
        same(run(*probe, there), run(*probe, track), f"what ffprobe says of {track.suffix}")


def test_encode_onto_the_mount(library):
    """Encoders go back to the head of the file to fill in lengths and tables."""
    plain = make_album(library.base / "album")
    there = make_album(library.mnt / "album")
    library.remount()
    for a, b in zip(there, plain):
        check(a.read_bytes() == b.read_bytes(), f"{b.suffix} encoded onto the mount differs")


def test_mpd(library):
    plain = make_album(library.base / "album")
    album = library.mnt / "music" / "The Artist" / "The Album"
    album.mkdir(parents=True)
    run("cp", *plain, album)
    (album / "cover.jpg").write_bytes(content("cover", 100_000))
    library.remount()
    home, address = library.base / "mpd", library.base / "mpd.socket"
    home.mkdir()
    (library.base / "mpd.conf").write_text(f"""
music_directory "{library.mnt / 'music'}"
playlist_directory "{home}"
db_file "{home / 'db'}"
state_file "{home / 'state'}"
bind_to_address "{address}"
log_file "{home / 'log'}"
audio_output {{
    type "null"
    name "nothing"
}}
""")
    mpd = subprocess.Popen(["mpd", "--no-daemon", library.base / "mpd.conf"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def mpc(*args):
        return run("mpc", f"--host={address}", *args, timeout=60)
    try:
        until(address.exists, "MPD answers")
        mpc("update", "--wait")
        same(sorted(mpc("listall").splitlines()), sorted(f"The Artist/The Album/{t.name}" for t in plain), "what MPD found")
        same(sorted(mpc("list", "title").splitlines()), ["Title 1", "Title 2", "Title 3", "Title 4"], "titles that MPD read")
        mpc("add", "The Artist")
        for number in range(1, len(plain) + 1):
            mpc("play", str(number))
            until(lambda: "[playing]" in mpc("status"), "MPD plays")
            mpc("seek", "75%")
            time.sleep(0.3)
            status = mpc("status")
            check("[playing]" in status and f"#{number}/" in status and "ERROR" not in status, f"after a seek MPD says {status}")
        mpc("stop")
        # A new track is found by the next scan.
        run("cp", plain[0], album / "new.flac")
        mpc("update", "--wait")
        same(len(mpc("listall").splitlines()), len(plain) + 1, "tracks after one was added")
    finally:
        mpd.terminate()
        mpd.wait(20)
    same(mpd.returncode, 0, "MPD's exit code")


if __name__ == "__main__":
    main()
