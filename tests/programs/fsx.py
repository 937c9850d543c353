#!/usr/bin/env python3
"""The crate fsx on a mount: random operations on one file, with every read compared with the expected contents.

All seeds but one are fixed. That one is printed; set FSX_SEED to repeat it.
"""
import os
import secrets
from common import REPO, Failed, main, run

CONFIG = """
flen = %d
nomsyncafterwrite = %s
[opsize]
max = %d
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 3
punch_hole = 3
sendfile = 1
posix_fadvise = 1
copy_file_range = 3
"""


def fsx(library, seed, operations, length=256 << 10, largest=64 << 10, msync=True, below=None):
    config = library.base / "fsx.toml"
    config.write_text(CONFIG % (length, "false" if msync else "true", largest))
    run(REPO / "target/tools/bin/fsx", "-f", config, "-N", operations, "-S", seed, "-P", library.base,
        (below or library.mnt) / f"fsx-{seed}", timeout=600, env=dict(library.env, RUST_BACKTRACE="0"))


def test_small_file(library):
    fsx(library, 1, 100_000)


def test_large_operations(library):
    """Operations on many blocks each, in a file of several MiB."""
    fsx(library, 2, 10_000, 8 << 20, 1 << 20)


def test_lazy_maps(library):
    """Writes through a map reach the file when the kernel decides, not by msync."""
    fsx(library, 9, 30_000, msync=False)


def test_remounted(library):
    """Several runs with a remount in between: each finds the file of the previous run, and truncates it."""
    for seed in range(3, 8):
        fsx(library, 3, 2_000)
        library.remount()


def possible_seed(library):
    """Returns a seed with which fsx succeeds on the underlying filesystem. With some seeds it allocates 0 bytes, which
    posix_fallocate(3) refuses, and takes that for a missing feature (seed 1796114990)."""
    for _ in range(5):
        seed = secrets.randbits(32)
        try:
            fsx(library, seed, 30_000, below=library.base)
            return seed
        except Failed:
            print(f"      seed {seed} fails without a mount, too")
    raise Failed("fsx does not even work without a mount")


def test_random_seed(library):
    seed = int(os.environ.get("FSX_SEED") or possible_seed(library))
    print(f"      FSX_SEED={seed}")
    fsx(library, seed, 30_000)


if __name__ == "__main__":
    main()
