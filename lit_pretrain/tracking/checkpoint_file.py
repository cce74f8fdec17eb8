"""What is said of a checkpoint's file that is not what was written, or is none."""

import pickle
import re
from pathlib import Path

from lit_pretrain.checksums import damaged_part
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.writer import first_line

# How torch names what it does not load.
FOREIGN = re.compile(r"GLOBAL (\S+) was not an allowed global")


def check_sums(path: str | Path) -> None:
    """Compare all that a checkpoint's file holds with its checksums, as `damaged_part` does.

    Args:
        path: A local file; what is none, or is no archive of torch's, passes.

    Raises:
        UserError: If a part is not what was written.
    """
    part = damaged_part(Path(str(path).removeprefix("file://")))
    if part is not None:
        raise UserError(
            f"The checkpoint {path} is damaged, {part} is not what was written: take another one of the run, or copy "
            "it anew."
        )


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
