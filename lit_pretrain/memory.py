"""Memory that a training frees is kept for its next step, instead of being given back and fetched anew.

glibc returns large blocks to the system as soon as they are free, and the system hands out zeroed pages one by one when
they are needed again: on 2 CPU cores a third of a small model's training step went into that (`benchmark text` shows
it). What is done now and then, by tensors of other sizes, would come on top of what a step takes, and leave holes in
it: so what is free is given back before and after. Linux with glibc only; elsewhere nothing is done.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Names and numbers of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INTEGER = 2**31 - 1


def glibc_function(name: str) -> Any:
    """A function of the C library; null where that is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def keep_memory() -> bool:
    """From now on this process keeps up to 2 GiB at the heap's end, and takes all blocks from the heap.

    Returns:
        Whether it could be set.
    """
    mallopt = glibc_function("mallopt")
    return bool(mallopt) and mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, LARGEST_INTEGER) == 1


@contextmanager
def given_back_memory() -> Iterator[None]:
    """What this process has freed is given back to the system before and after what is done within.

    The next training step fetches its memory anew: a tenth of a second for some hundred MB, so not for what is done at
    every step.
    """
    give_back()
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """Give free pages back to the system, those between others too."""
    if trim := glibc_function("malloc_trim"):
        trim(0)
