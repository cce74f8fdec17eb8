"""What this machine has left: memory that this process may still take, and what its loader workers hold."""

import multiprocessing
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

UNLIMITED = float("inf")


def number_in(path: str, pattern: str, unit: float = 1.0) -> float | None:
    """The number of a line of a file of the system, or null."""
    file = Path(path)
    found = re.search(pattern, file.read_text(), re.MULTILINE) if file.is_file() else None
    return unit * int(found[1]) if found else None


def free_memory(device: torch.device) -> float:
    """Bytes that could still be taken: of a GPU, or of this machine and of the container that this process is in."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [number_in("/proc/meminfo", r"^MemAvailable:\s*(\d+) kB", 1024.0)]
    most, used = (number_in(f"/sys/fs/cgroup/memory.{name}", r"^(\d+)$") for name in ("max", "current"))
    if most is not None and used is not None:
        # Pages of files count as used, and are given back.
        files = number_in("/sys/fs/cgroup/memory.stat", r"^inactive_file (\d+)$") or 0.0
        limits.append(most - used + files)
    return min((limit for limit in limits if limit is not None), default=UNLIMITED)


def all_memory(device: torch.device) -> float:
    """Bytes of the device, or of this machine; infinite where nothing tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    limits = [
        number_in("/proc/meminfo", r"^MemTotal:\s*(\d+) kB", 1024.0),
        number_in("/sys/fs/cgroup/memory.max", r"^(\d+)$"),
    ]
    return min((limit for limit in limits if limit is not None), default=UNLIMITED)


def workers_memory() -> float:
    """Bytes that processes started by this one hold for themselves."""
    held = 0.0
    for process in multiprocessing.active_children():
        held += number_in(f"/proc/{process.pid}/status", r"^RssAnon:\s*(\d+) kB", 1024.0) or 0.0
    return held


@contextmanager
def held_to_free_memory() -> Iterator[None]:
    """Let an allocation beyond what is free fail here, instead of having the system end some process for it.

    Linux only; elsewhere nothing is done.
    """
    free = free_memory(torch.device("cpu"))
    data = number_in("/proc/self/status", r"^VmData:\s*(\d+) kB", 1024.0)
    if not sys.platform.startswith("linux") or data is None or free == UNLIMITED:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(data + free)
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is that memory was refused."""
    while error is not None:
        words = str(error).lower()
        refused = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in words for phrase in refused):
            return True
        error = error.__cause__ or error.__context__
    return False
