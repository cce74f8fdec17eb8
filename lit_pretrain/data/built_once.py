"""What takes long to make is made once and kept on disk.

It is made under a lock, so several processes may ask for it at once; and in a folder that gets its name only when
complete, so a killed build leaves nothing half done.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_pretrain.errors import UserError

FACTS = "facts.json"


def default_cache_directory() -> Path:
    """caches/ under the runs directory."""
    return Path(os.environ.get("LIT_PRETRAIN_RUNS", "runs")) / "caches"


def build_once(directory: Path, build: Callable[[Path], None], what: str) -> None:
    """Make a folder, unless it is there, or another process makes it in the meantime.

    Args:
        directory: The folder; it is complete if it holds `FACTS`.
        build: Makes it, `FACTS` last, under a name that it is handed.
        what: What it is, for messages.

    Raises:
        UserError: If the disk is full.
    """
    if (directory / FACTS).is_file():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if (directory / FACTS).is_file():
            return
        for left_over in directory.parent.glob(f"{directory.name}.partial-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial = directory.parent / f"{directory.name}.partial-{os.getpid()}"
        try:
            build(partial)
            partial.replace(directory)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"The disk of {directory.parent} is full, so the {what} could not be written: free some space, or set "
                "data.cache_directory to another disk."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def build_progress(unit: str) -> Progress:
    """A bar on stderr that counts so many of a unit."""
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn(unit), TimeRemainingColumn(), console=Console(stderr=True))
