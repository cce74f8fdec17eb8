"""A run's directory where no MLflow keeps one: a run of another logger, or of none, is found and gone on with too."""

import datetime
import uuid
from dataclasses import dataclass
from pathlib import Path

from lit_pretrain.tracking.find import DEFAULT_EXPERIMENT, RunRecord, read_run_file, run_directory_of_checkpoint
from lit_pretrain.tracking.paths import (
    RUN_FILE_NAME,
    make_directory,
    remove_unfinished,
    resolve_runs_directory,
    run_directory_name,
)
from lit_pretrain.tracking.processes import Presence


@dataclass
class LocalRun:
    """A run that only its directory knows.

    Attributes:
        run_id: 32 hexadecimal characters.
        directory: The run's.
        name: What it is called.
        resumed: Whether it goes on.
        presence: What shows others that it is worked on; null on ranks that only know of it.
    """

    run_id: str
    directory: Path
    name: str = ""
    resumed: bool = False
    presence: Presence | None = None

    def end(self) -> None:
        """Nobody works on it any more."""
        if self.presence is not None:
            self.presence.end()


def begin_local_run(name: str, checkpoint: str | Path | None = None) -> LocalRun:
    """Make the directory of a new run, or take that of the run that goes on.

    Args:
        name: First half of the run's name.
        checkpoint: What is gone on from; null, or one that lies in no run, makes a new run.

    Raises:
        UserError: If the directory cannot be made, or another process works on the run.
    """
    directory = run_directory_of_checkpoint(Path(checkpoint)) if checkpoint is not None else None
    if directory is not None:
        record = read_run_file(directory / RUN_FILE_NAME)
        run_id, run_name = record.run_id, record.run_name
    else:
        run_id = uuid.uuid4().hex
        run_name = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        directory = resolve_runs_directory() / DEFAULT_EXPERIMENT / run_directory_name(run_name, run_id)
        make_directory(directory)
        RunRecord(run_id, DEFAULT_EXPERIMENT, "", run_name, directory).write()
    presence = Presence.claim(directory)
    if checkpoint is not None:
        remove_unfinished(directory)
    return LocalRun(run_id, directory, run_name, checkpoint is not None, presence)
