"""Whether a checkpoint's file is what was written, and what is said of one that is not.

torch writes a checksum beside each tensor and never looks at it when it loads (2.14 is built without that check), so
that a bit that a disk or a copy has turned over would be a weight like any other.
"""

import functools
import pickle
import re
import zipfile
from pathlib import Path

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.writer import first_line

# How torch names what it does not load.
FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed global")


def check_sums(path: str | Path) -> None:
    """Compare all that a file holds with its checksums, once for every state of the file; it reads the whole of it.

    Args:
        path: A local file; what is none, or is no archive of torch's, passes.

    Raises:
        UserError: If a part is not what was written.
    """
    file = Path(str(path).removeprefix("file://"))
    if not file.is_file() or not zipfile.is_zipfile(file):
        return
    state = file.stat()
    part = damaged_part(str(file), (state.st_ino, state.st_size, state.st_mtime_ns))
    if part is not None:
        raise UserError(
            f"The checkpoint {path} is damaged, {part} is not what was written: take another one of the run, or copy "
            "it anew."
        )


@functools.lru_cache(maxsize=64)
def damaged_part(path: str, state: tuple[int, ...]) -> str | None:
    """The first part of an archive that is not what was written, or null.

    Args:
        path: The file.
        state: By which it is known again.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return "its table of contents"


def unreadable(path: str | Path, error: Exception) -> UserError:
    """What is said of a file that torch does not load with plain tensors alone.

    Args:
        path: The file.
        error: What torch has raised.
    """
    foreign = FOREIGN.search(str(error))
    if foreign is not None:
        return UserError(
            f"{path} cannot be read as a checkpoint: it holds {foreign[1]} beside tensors and plain values, which is "
            "code to be run, and lit_pretrain never runs any that a checkpoint brings; save it without."
        )
    if isinstance(error, pickle.UnpicklingError):
        return UserError(
            f"{path} cannot be read as a checkpoint: it is none, or it holds objects that would run code when they are "
            "loaded, which lit_pretrain never does; take another one of the run."
        )
    return UserError(
        f"{path} cannot be read as a checkpoint ({first_line(error)}): it is damaged or none; take another one of the "
        "run."
    )
