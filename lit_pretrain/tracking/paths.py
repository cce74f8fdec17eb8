"""Where runs land on this machine, and files that are written whole or not at all."""

import csv
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError

DATABASE_NAME = "mlflow.db"
ARTIFACTS_NAME = "artifacts"
RUN_FILE_NAME = "run.json"


def resolve_runs_directory(directory: str | Path | None = None) -> Path:
    """Return the absolute runs directory: the argument, else $LIT_PRETRAIN_RUNS, else ./runs."""
    return Path(directory or os.environ.get("LIT_PRETRAIN_RUNS") or "runs").expanduser().resolve()


def make_directory(path: Path) -> Path:
    """Make a directory with its parents.

    Raises:
        UserError: If the place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The directory {path} cannot be made ({error.strerror}): set LIT_PRETRAIN_RUNS to a writable place."
        ) from error
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; the rest of the run directory is as readable as the umask says.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as a table that any program reads, with a column for whatever one of them has; returns the path."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())
    return path


def remove_unfinished(directory: Path) -> None:
    """Remove what a process that was killed while it wrote has left below a run's directory; nobody may write there."""
    for pattern in (".*.part", ".*.partial"):
        for path in directory.rglob(pattern):
            path.unlink(missing_ok=True)


def safe_name(name: str) -> str:
    """Return `name` with whatever does not belong in a file name replaced by a dash."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "run"


def run_directory_name(run_name: str, run_id: str) -> str:
    """What a run's directory is called."""
    return f"{safe_name(run_name)}-{run_id[:8]}"


def shown_path(path: str | Path) -> str:
    """Return a path as a person would type it: relative to the working directory where it lies beneath it."""
    path = Path(path)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
