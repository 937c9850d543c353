#!/usr/bin/env python3
"""The crate pjdfstest (the rewrite in Rust) on a mount: what POSIX requires of every call on names and attributes.

397 cases pass and one is skipped (FUSE cannot report LINK_MAX); fewer passes are a failure.
"""
import os
import re
from common import REPO, check, main, root_only, run

# Users that every Debian has: the program's own default wants one made for it.
CONFIG = """
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = %s
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""
# mount(8) hands a remount of a FUSE filesystem to mount.fuse, which would start a second one: -i asks the kernel itself.
MOUNT = '#!/bin/sh\nLIBMOUNT_FORCE_MOUNT2=always exec /bin/mount -i "$@"\n'


def pjdfstest(library, *patterns, remount):
    config, shim = library.base / "pjdfstest.toml", library.base / "bin" / "mount"
    config.write_text(CONFIG % ("true" if remount else "false"))
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(MOUNT)
    shim.chmod(0o755)
    other = library.base / "other"
    run("mkdir", "-p", other)
    text = run(REPO / "target/tools/bin/pjdfstest", "-c", config, "-p", library.mnt, "-s", other, *patterns, timeout=300, ok=(0, 1),
               env=dict(library.env, PATH=f"{shim.parent}:{os.environ['PATH']}", RUST_BACKTRACE="0", NO_COLOR="1"))
    found = re.search(r"Summary: (\d+) failed, (\d+) skipped, (\d+) passed", text)
    check(found, f"no summary:\n{text[-2000:]}")
    failed, skipped, passed = map(int, found.groups())
    failures = re.findall(r"^\S+ +FAILED\n.*", text, re.M)
    check(failed == 0, f"{failed} of pjdfstest's cases fail:\n" + "\n".join(failures))
    return passed, skipped, re.findall(r"^(\S+) +skipped", text, re.M)


def test_pjdfstest(library):
    # A case leaks a descriptor that is open for writing, after which its own process can remount nothing
    # read-only (on any filesystem): so the EROFS cases go first, in a process of their own.
    erofs, none, _ = pjdfstest(library, "erofs", remount=True)
    passed, skipped, names = pjdfstest(library, remount=False)
    print(f"      {erofs + passed} pass, {skipped - erofs + none} skipped: {[n for n in names if 'erofs' not in n]}")
    check(erofs + passed >= 397 and skipped - erofs + none <= 1, "397 cases pass elsewhere, and one is skipped")


if __name__ == "__main__":
    root_only()
    main(["--allow-other"])
