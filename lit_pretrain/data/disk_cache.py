"""What takes long to make is made once and kept on disk.

It is made under a lock, so several processes may ask for it at once; and in a folder that gets its name only when
complete, so a killed build leaves nothing half done.
"""

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_pretrain.errors import UserError

FACTS = "facts.json"
# Of a cache that several processes build, about so many bytes are a part.
PART_BYTES = 128 << 20


@dataclass(frozen=True)
class Workers:
    """Other processes, of this machine or of others, which build large caches by parts.

    Attributes:
        run: Calls a function with each of some tuples of arguments, all at a time if there is room, to their end.
        threads: That each call may use.
    """

    run: Callable[[Callable[..., None], Sequence[tuple[Any, ...]]], None]
    threads: int


# Null for this process alone.
workers: ContextVar[Workers | None] = ContextVar("workers", default=None)


def default_cache_directory() -> Path:
    """caches/ under the runs directory."""
    return Path(os.environ.get("LIT_PRETRAIN_RUNS") or "runs").expanduser() / "caches"


def chosen_cache_directory(path: str | None) -> Path:
    """The directory that a person gives for caches, or the default one."""
    return Path(path).expanduser() if path else default_cache_directory()


def build_once(directory: Path, build: Callable[[Path], None], content: str) -> None:
    """Make a folder, unless it is there, or another process makes it in the meantime.

    Args:
        directory: The folder; it is complete if it holds `FACTS`.
        build: Makes it, `FACTS` last, under a name that it is handed.
        content: What it is, for messages.

    Raises:
        UserError: If the disk is full, or cannot be written.
    """
    if (directory / FACTS).is_file():
        return
    with locked(directory, content):
        if (directory / FACTS).is_file():
            return
        for left_over in directory.parent.glob(f"{glob.escape(directory.name)}.partial-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial = directory.parent / f"{directory.name}.partial-{os.getpid()}"
        try:
            build(partial)
            partial.replace(directory)
            shutil.rmtree(parts_directory(directory), ignore_errors=True)
        except OSError as error:
            if not is_full(error):
                raise
            raise disk_is_full(directory.parent, content) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def build_parts(
    directory: Path, rows: int, size: float, content: str, build: Callable[..., None], *arguments: Any
) -> list[tuple[range, Path]]:
    """Have the parts of a cache built by `workers`; one that is there already is not built again.

    Args:
        directory: The cache's own; its parts lie beside it until it is complete.
        rows: Of the source.
        size: Bytes of all of them.
        content: What it is, for messages.
        build: Called with the arguments, the threads that it may use, the rows of a part (a range) and a directory that
            it makes, `FACTS` last.
        arguments: Of which copies are sent.

    Returns:
        For each part its rows and its directory, in order.
    """
    found = workers.get()
    assert found is not None
    number = max(1, min(rows, round(size / PART_BYTES)))
    ranges = [range(rows * part // number, rows * (part + 1) // number) for part in range(number)]
    parts = [(part, parts_directory(directory) / f"{part.start}-{part.stop}") for part in ranges]
    parts_directory(directory).mkdir(parents=True, exist_ok=True)
    calls = [
        (place, build, (*arguments, found.threads, part), f"part of the {content}")
        for part, place in parts
        if not (place / FACTS).is_file()
    ]
    found.run(build_part, calls)
    return parts


def build_part(directory: Path, build: Callable[..., None], arguments: tuple[Any, ...], content: str) -> None:
    """Build one part, once."""
    build_once(directory, lambda partial: build(*arguments, partial), content)


def parts_directory(directory: Path) -> Path:
    """Where the parts of a cache lie until it is complete."""
    return directory.with_name(f"{directory.name}.parts")


@contextmanager
def locked(directory: Path, content: str) -> Iterator[None]:
    """Let one process at a time make a folder.

    Raises:
        UserError: If its parent cannot be written.
    """
    lock = FileLock(f"{directory}.lock")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        full = is_full(error)
        raise (
            disk_is_full(directory.parent, content) if full else read_only(directory.parent, content, error)
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_array(file: BinaryIO, array: numpy.ndarray) -> None:
    """Append an array's bytes; what `numpy.ndarray.tofile` raises where the disk is full has no number."""
    file.write(numpy.ascontiguousarray(array).data)


def is_full(error: BaseException) -> bool:
    """Whether something could not be written for want of space, or of a share of it."""
    if not isinstance(error, OSError):
        return False
    # Libraries raise it anew, of the number keeping at most the words.
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "disk space" in str(error)


def disk_is_full(directory: Path, content: str) -> UserError:
    """What is said of a disk without space."""
    return UserError(
        f"The disk of {directory} is full, or your share of it is, so the {content} could not be written: free some "
        "space, or set data.cache_directory to another disk."
    )


def is_read_only(error: BaseException, directory: Path) -> bool:
    """Whether something could not be written in a directory for want of permission."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return False
    return error.filename is None or Path(os.path.abspath(error.filename)).is_relative_to(os.path.abspath(directory))


def read_only(directory: Path, content: str, error: OSError | None = None) -> UserError:
    """What is said of a directory that cannot be written and lacks something."""
    reason = error.strerror if error is not None else os.strerror(errno.EACCES)
    return UserError(
        f"{directory} cannot be written ({reason}), and the {content} is not there yet: set data.cache_directory to "
        "another place."
    )


def build_progress(unit: str) -> Progress:
    """A bar on stderr that counts so many of a unit."""
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn(unit), TimeRemainingColumn(), console=Console(stderr=True))
