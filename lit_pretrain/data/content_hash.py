"""Hashes of files' bytes, remembered by place, size and times of change, so that large sources are read once.

What is remembered lies in a file of its own for every file, or for every folder of pictures, and is locked by itself:
another run does not wait for a hash that it does not need. Where nothing can be written nothing is remembered.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from lit_pretrain.errors import UserError
from lit_pretrain.required import required

MEMORY = "content-hashes"
# Bytes that a thread hashes at a time: a single large file keeps all cores busy too.
PART = 64 * 1024**2
# Parts that are handed to the threads at a time.
AT_ONCE = 4096
# Bytes from which a bar is shown.
LONG = 2 * 1024**3
# Nanoseconds within which a file could change twice and keep its times.
TICK = 50_000_000


def content_hash(files: Sequence[str], cache_directory: Path) -> str:
    """Hash of a few files' bytes, each remembered by itself, whatever their names.

    Raises:
        UserError: If a file cannot be read.
    """
    states = [file_state(file) for file in files]
    memory = Memory(cache_directory)
    known_hashes = {state: memory.recall(state) for state in states}
    if None in known_hashes.values():
        with memory.locked("\n".join(states)):
            known_hashes = {state: memory.recall(state) for state in states}
            missing = {state: file for state, file in zip(states, files, strict=True) if known_hashes[state] is None}
            for state, value in zip(missing, file_hashes(list(missing.values())), strict=True):
                known_hashes[state] = value
                memory.keep(state, value, [missing[state]])
    return "files:" + hashlib.sha256("\n".join(required(known_hashes[state]) for state in states).encode()).hexdigest()


def folder_hash(files: Sequence[str], cache_directory: Path) -> str:
    """Hash of very many files' bytes and of their names below the folder they share, remembered as one.

    Raises:
        UserError: If a file cannot be read.
    """
    states = "\n".join(map(file_state, files))
    memory = Memory(cache_directory)
    value = memory.recall(states)
    if value is None:
        with memory.locked(states):
            value = memory.recall(states)
            if value is None:
                parts = [
                    f"{name}:{file_hash}"
                    for name, file_hash in zip(names_below(files), file_hashes(files), strict=True)
                ]
                value = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
                memory.keep(states, value, files)
    return "folder:" + value


def checked_once(key: str, cache_directory: Path, compute: Callable[[], str]) -> str:
    """What takes a look at every file of a folder, from this machine's first process if it has looked already.

    Lightning lets the first process of a machine prepare the data before the others begin: they need not ask a network
    for the state of a million files again.

    Args:
        key: Names what is computed, but for the files' state.
        cache_directory: Where the first process leaves it.
        compute: Looks at every file.
    """
    memory = Memory(cache_directory)
    if is_later_process() and (value := memory.recall(f"checked {key}")) is not None:
        return value
    value = compute()
    memory.keep(f"checked {key}", value, ())
    return value


def is_later_process() -> bool:
    """Whether this is one of several training processes, and not its machine's first."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) > 0


def names_below(files: Sequence[str]) -> list[str]:
    """The files' names below the directory that they share."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return [os.path.relpath(os.path.abspath(file), root) for file in files]


def file_state(file: str) -> str:
    """A file's place, number, size and times of change; the last of them cannot be set back, as that of writing can.

    Raises:
        UserError: If it is not there.
    """
    with readable(file):
        state = os.stat(file)
    return f"{os.path.abspath(file)}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}"


def file_hashes(files: Sequence[str]) -> list[str]:
    """SHA-256 over each file's parts, in threads, with a bar if it takes long.

    Raises:
        UserError: If one cannot be read.
    """
    sizes = [os.path.getsize(file) for file in files]
    parts = ((file, start) for file, size in zip(files, sizes, strict=True) for start in range(0, max(size, 1), PART))
    total = sum(sizes)
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), DownloadColumn())
    with (
        ThreadPoolExecutor() as pool,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=total < LONG) as progress,
    ):
        task = progress.add_task("Reading the source", total=total)
        digests = (
            digest for some in iter(lambda: list(islice(parts, AT_ONCE)), []) for digest in pool.map(part_hash, some)
        )
        hashes: list[str] = []
        for size in sizes:
            whole = hashlib.sha256()
            for start in range(0, max(size, 1), PART):
                whole.update(next(digests))
                progress.advance(task, min(size - start, PART))
            hashes.append(whole.hexdigest())
    return hashes


def part_hash(part: tuple[str, int]) -> bytes:
    """SHA-256 of the bytes of a file from a place on."""
    file, start = part
    with readable(file), open(file, "rb", buffering=0) as stream:
        stream.seek(start)
        content = hashlib.sha256()
        rest = PART
        while rest > 0 and (block := stream.read(min(rest, 1024**2))):
            content.update(block)
            rest -= len(block)
        return content.digest()


@contextlib.contextmanager
def readable(file: str) -> Iterator[None]:
    """Say in one sentence if a file cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions, or leave it out.") from error


class Memory:
    """What was hashed before, a small file for each hash.

    Args:
        cache_directory: The directory of caches.
    """

    def __init__(self, cache_directory: Path) -> None:
        self.directory = cache_directory / MEMORY

    def entry(self, key: str) -> Path:
        """Where a key's hash lies."""
        return self.directory / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]

    def recall(self, key: str) -> str | None:
        """What is known under a key, or null."""
        try:
            return self.entry(key).read_text() or None
        except OSError:
            return None

    def keep(self, key: str, value: str, files: Iterable[str]) -> None:
        """Remember a hash, unless a file has changed so lately that it could change again and look the same."""
        changed = max((os.stat(file).st_ctime_ns for file in files), default=0)
        if time.time_ns() - changed < TICK:
            return
        entry = self.entry(key)
        partial = entry.with_name(f".{entry.name}.{os.getpid()}")
        # Best effort: a directory of caches that others have filled may be one to read only.
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            partial.write_text(value)
            partial.replace(entry)

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Let one process at a time find out what belongs to a key, where files can be locked."""
        lock = FileLock(f"{self.entry(key)}.lock")
        with contextlib.suppress(OSError, NotImplementedError):
            self.directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
