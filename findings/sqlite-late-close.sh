#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0, pip): closing a connection from before a remount removes the write-ahead log of a new connection.
#
# A program opens a database in WAL mode and keeps the connection. Its filesystem is unmounted lazily, and another one with a copy of the
# files is mounted in the same place. A second program opens the database there and commits. Then the first one closes its connection.
# Expected: the old connection cleans up its own files only; SQLite looks whether its database is still the file at that path.
# Happens: it compares inode numbers alone, not the device. Where the file has the same number on both filesystems (here two tmpfs;
# a restored image or a network or FUSE filesystem that keeps its numbers will do), the old connection takes the new file for its own and
# removes "db-wal" by path. The second program goes on committing, without an error, to a log that no longer has a name. If it does not get
# to close its database (a crash, a power cut), all it committed is lost, even what was committed before the log was removed.
# Controls: without the late close nothing is lost; nor if the copy has another inode number.
#
# Needs unshare, as root or with user namespaces allowed: the two mounts are in a mount namespace of their own.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action=ignore --target lib apsw==3.54.1.0 >&2 || exit 2
apart="unshare --mount"
[ "$(id -u)" = 0 ] || apart="unshare --user --map-root-user --mount"
$apart sh -c 'mkdir place && mount -t tmpfs none place' || { echo "no mount namespace to be had: not run"; exit 2; }

cat >run.py <<'PY'
import os
import shutil
import subprocess
import sys

sys.path.insert(0, "lib")
import apsw


def connect(path="place/db"):
    connection = apsw.Connection(path)
    connection.execute("pragma journal_mode=wal").fetchall()
    connection.execute("pragma synchronous=full")
    return connection


def rows(connection):
    return [n for (n,) in connection.execute("select n from t order by n")]


def writer():  # commits 2, waits, commits 3, and ends without closing, as in a crash
    connection = connect()
    connection.execute("insert into t values (2)")
    print(flush=True)
    sys.stdin.readline()
    connection.execute("insert into t values (3)")
    print(f"  the writer has committed and sees {rows(connection)}", flush=True)
    os._exit(0)


def mount(files_before):
    subprocess.run(["mount", "-t", "tmpfs", "none", "place"], check=True)
    for n in range(files_before):
        open(f"place/other{n}", "w").close()
    shutil.copyfile("db", "place/db")
    return os.stat("place/db")


def scenario(name, late_close, files_before):
    print(name)
    first = mount(0)
    old = connect()
    rows(old)
    subprocess.run(["umount", "--lazy", "place"], check=True)
    second = mount(files_before)
    print(f"  same device {first.st_dev == second.st_dev}, same inode number {first.st_ino == second.st_ino}")
    new = subprocess.Popen([sys.executable, __file__, "writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    new.stdout.readline()
    if late_close:
        old.close()
    log = os.path.exists("place/db-wal")
    print(new.communicate("\n")[0], end="")
    found = rows(connect())
    print(f"  log still there: {log}; after reopening: {found}", flush=True)
    subprocess.run(["umount", "--lazy", "place"], check=True)
    return log, found


if sys.argv[1:] == ["writer"]:
    writer()
print("SQLite", apsw.sqlite_lib_version())
connection = connect("db")
connection.execute("create table t(n); insert into t values (1)")
connection.close()
seen = [
    scenario("the old connection is not closed", False, 0),
    scenario("closed late, another inode number", True, 1),
    scenario("closed late, the same inode number", True, 0),
]
as_described = seen == [(True, [1, 2, 3]), (True, [1, 2, 3]), (False, [1])]
print("as described: what was committed is lost" if as_described else "CHANGED")
sys.exit(0 if as_described else 1)
PY
$apart python3 run.py
