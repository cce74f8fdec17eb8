"""Hashes of files' bytes, remembered by size and time of change, so that large sources are read once."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

MEMORY = "content-hashes.json"


def content_hash(files: Sequence[str], cache_directory: Path) -> str:
    """Hash of a few files' bytes, each remembered by itself, whatever their names."""
    with Memory(cache_directory) as memory:
        hashes = [memory.recall(file_state(file), lambda file=file: file_hash(file)) for file in files]
    return "files:" + hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def folder_hash(files: Sequence[str], cache_directory: Path) -> str:
    """Hash of very many files' bytes and of their names below the folder they share, remembered as one."""

    def compute() -> str:
        names = names_below(files)
        with ThreadPoolExecutor() as pool:
            parts = [f"{name}:{value}" for name, value in zip(names, pool.map(file_hash, files), strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    states = hashlib.sha256("\n".join(map(file_state, files)).encode()).hexdigest()
    with Memory(cache_directory) as memory:
        return "folder:" + memory.recall(states, compute)


def names_below(files: Sequence[str]) -> list[str]:
    """The files' names below the directory that they share."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return [os.path.relpath(os.path.abspath(file), root) for file in files]


def file_state(file: str) -> str:
    """A file's place, size and time of change."""
    state = os.stat(file)
    return f"{os.path.abspath(file)}:{state.st_size}:{state.st_mtime_ns}"


def file_hash(file: str) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Memory:
    """What was hashed before, in a file of the cache directory; locked while it is open.

    Args:
        cache_directory: Where it lies.
    """

    def __init__(self, cache_directory: Path) -> None:
        cache_directory.mkdir(parents=True, exist_ok=True)
        self.path = cache_directory / MEMORY
        self.lock = FileLock(f"{self.path}.lock")
        self.known: dict[str, str] = {}

    def __enter__(self) -> "Memory":
        """Lock and read it; one that is damaged is begun anew."""
        self.lock.acquire()
        try:
            self.known = json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            self.known = {}
        self.before = len(self.known)
        return self

    def recall(self, key: str, compute: Callable[[], str]) -> str:
        """What is known under a key, computed if nothing is."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def __exit__(self, *_: object) -> None:
        """Write down what is new, and unlock."""
        try:
            if len(self.known) > self.before:
                partial = self.path.with_suffix(".partial")
                partial.write_text(json.dumps(self.known))
                partial.replace(self.path)
        finally:
            self.lock.release()
