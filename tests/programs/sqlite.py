#!/usr/bin/env python3
"""SQLite on a mount: WAL (with memory shared between processes) and rollback journals, also across `kill -9`."""
import os
import sqlite3
import subprocess
import sys
import time
from common import check, main, run, same

# Commits one row after the other, and says so after each commit.
WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("pragma journal_mode=" + sys.argv[2])
db.execute("pragma synchronous=" + sys.argv[3])
db.execute("create table if not exists t(writer, i, filler)")
for i in range(int(sys.argv[5])):
    db.execute("insert into t values(?, ?, ?)", (sys.argv[4], i, "x" * (i % 3000)))
    print(i, flush=True)
"""


def writer(path, mode, synchronous, name, rows):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, mode, synchronous, name, str(rows)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(path, name):
    """Returns the rows of one writer, as the sqlite3 program reads them after its integrity check."""
    same(run("sqlite3", path, "pragma integrity_check").strip(), "ok", "integrity_check")
    return [int(x) for x in run("sqlite3", path, f"select i from t where writer = '{name}' order by rowid").split()]


def test_wal(library):
    """Two processes write concurrently."""
    path = library.mnt / "wal.db"
    writer(path, "wal", "normal", "", 0).communicate()  # going over to WAL asks for the database alone
    a, b = writer(path, "wal", "normal", "a", 500), writer(path, "wal", "normal", "b", 500)
    for each in (a, b):
        _, err = each.communicate(timeout=120)
        same(each.returncode, 0, f"a writer said {err}, and ended with")
    for name in "ab":
        same(rows(path, name), list(range(500)), f"rows of {name}")
    library.remount()
    for name in "ab":
        same(rows(path, name), list(range(500)), f"rows of {name} after a remount")
    db = sqlite3.connect(path, isolation_level=None)
    same(db.execute("pragma journal_mode").fetchone(), ("wal",), "journal mode")
    db.execute("delete from t where i % 2")
    db.execute("vacuum")
    db.close()
    library.remount()
    same(rows(path, "a"), list(range(0, 500, 2)), "rows after vacuum and a remount")


def killed(library, mode, synchronous):
    path = library.mnt / f"{mode}.db"
    for name, seconds in (("one", 0.3), ("two", 0.7), ("three", 1.1)):
        w = writer(path, mode, synchronous, name, 100_000)
        w.stdout.readline()
        time.sleep(seconds)
        library.kill()
        out, _ = w.communicate(timeout=60)
        library.clear()
        told = int(out.split()[-1]) if out.split() else 0
        library.mount()
        found = rows(path, name)
        same(found, list(range(len(found))), "rows after kill -9")
        check(len(found) > told, f"{told + 1} rows were committed, {len(found)} are there")
        print(f"      {mode}: {told + 1} commits told, {len(found)} there")


def test_wal_killed(library):
    killed(library, "wal", "full")


def test_wal_killed_without_fsync(library):
    """WAL with synchronous=normal writes without fsync: data must survive a kill as soon as write(2) has returned."""
    path = library.mnt / "normal.db"
    w = writer(path, "wal", "normal", "x", 2000)
    w.communicate(timeout=120)  # it has ended, so it has closed the file
    library.kill()
    library.clear()
    library.mount()
    same(rows(path, "x"), list(range(2000)), "rows after kill -9")


def test_journal_killed(library):
    killed(library, "delete", "full")


if __name__ == "__main__":
    main()
