"""Memory of a process that runs tests: what a test frees is given back, and a process that needs too much is told."""

import ctypes
import gc
import os
import sys
import time
from pathlib import Path

# Bytes that a process may need at most; what all tests import takes 0.8 GiB of them, and 1.0 while it is loaded. Pages
# of files count, such as of libraries.
LIMIT = 27 << 26
# From here on it is looked after a test what can be freed. That takes a tenth of a second, as long as many tests, so
# after short ones it is left for so many seconds.
MUCH = 19 << 26
PAUSE = 1.0
_collected_at = 0.0
# Names and numbers of glibc's malloc.h, with sizes at which a test's small blocks are still used again.
SETTINGS = {
    "M_MMAP_MAX": (-4, 65_536),
    "M_MMAP_THRESHOLD": (-3, 1 << 18),
    "M_TRIM_THRESHOLD": (-1, 64 << 20),
    # One heap for all threads: each one's own keeps what it has once needed.
    "M_ARENA_MAX": (-8, 1),
}


def give_back() -> None:
    """Let the allocator return large free blocks to the system at once."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for number, value in SETTINGS.values():
            libc.mallopt(number, value)


def collect(beyond: int = 0) -> None:
    """Free what only refers to itself, and return all free pages, if this process has more bytes than `beyond`."""
    global _collected_at
    if beyond and (time.monotonic() - _collected_at < PAUSE or status_of("VmRSS") <= beyond):
        return
    _collected_at = time.monotonic()
    if beyond and (parsers := sys.modules.get("lit_pretrain.cli.class_parsers")):
        # Kept for the next command of this process, of which tests give hundreds, with ever other settings.
        parsers.MADE.clear()
    gc.collect()
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
        forget_code()


def forget_code() -> None:
    """Let go of the machine code that is mapped: what is called again is mapped again out of the system's cache.

    Torch's libraries for GPUs alone run through a hundred megabytes of theirs when they are loaded, and never again
    without a GPU.
    """
    libc, unneeded = ctypes.CDLL(None), 4  # MADV_DONTNEED
    for line in Path("/proc/self/maps").read_text().splitlines():
        # Code is never written to, so that nothing is lost.
        addresses, access, _, _, _, *path = line.split(maxsplit=5)
        if access == "r-xp" and path and path[0].startswith("/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), unneeded)


def peak() -> int:
    """The most bytes of memory that this process has had since it began or since `forget_peak`; 0 where none tells."""
    return status_of("VmHWM")


def status_of(name: str) -> int:
    """Bytes that /proc/self/status gives a name; 0 where there is none."""
    try:
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    except (OSError, ValueError):
        return 0
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Begin anew, so that one test's peak is not another's."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def check_peak() -> None:
    """Fail, once, if this process has needed more than `LIMIT`.

    Raises:
        AssertionError: If it has.
    """
    if (found := peak()) > LIMIT:
        forget_peak()
        own, files = (status_of(name) / 2**30 for name in ("RssAnon", "RssFile"))
        raise AssertionError(
            f"Process {os.getpid()} has needed {found / 2**30:.2f} GiB of memory, more than {LIMIT / 2**30:.2f} (now "
            f"{own:.2f} of its own, and {files:.2f} of files): find what keeps it (a fixture, a cache), or use a "
            "smaller model."
        )
