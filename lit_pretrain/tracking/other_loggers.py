"""What other loggers than MLflow's are given: a place where a config names none, a run's facts, files and pictures.

Lightning's loggers are made with a directory of their own (`save_dir`). Where a config leaves it out, they write into
the run's directory, beside its checkpoints; they begin before any callback is asked, so that it must be there by then.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_pretrain.tracking.local_run import LocalRun
from lit_pretrain.tracking.paths import shown_path, write_atomically
from lit_pretrain.tracking.pictures import write_picture

if TYPE_CHECKING:
    from PIL.Image import Image

# What a config's `save_dir` is where it names none.
NO_PLACE = ""


def lacks_place(logger: Logger) -> bool:
    """Whether a logger was made without a directory to write to."""
    if isinstance(logger, WandbLogger):
        return logger._wandb_init["dir"] is None
    return logger.save_dir == NO_PLACE


def place(logger: Any, directory: Path, run: LocalRun | None = None) -> None:
    """Let a logger that lacks a place, and has not begun, write to a directory.

    Args:
        logger: Of any class; what is set of Lightning's own has no public name.
        directory: Where to; it exists.
        run: The run that is logged. In Weights & Biases it has its name, and when it goes on it is the same run there.
    """
    if isinstance(logger, WandbLogger):
        logger._wandb_init["dir"] = logger._save_dir = str(directory)
        if run is not None:
            logger._id = logger._wandb_init["id"] = logger._id or run.run_id
            logger._name = logger._wandb_init["name"] = logger._name or run.name
        return
    for name in ("_save_dir", "_root_dir"):
        if getattr(logger, name, None) == NO_PLACE:
            setattr(logger, name, str(directory))
    if isinstance(getattr(logger, "_version", None), int):
        # Counted where there was no place yet; a number that is there would write over what a run that goes on logged.
        logger._version = None


def log_facts(loggers: Iterable[Logger], facts: Mapping[str, Any]) -> None:
    """Give loggers facts of a run that become known after its settings were logged."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            # Its page shows one table of settings a run, which was written; its hparams.yaml has them all.
            dict.update(logger.hparams, facts)
        else:
            logger.log_hyperparams(dict(facts))


def log_picture(loggers: Iterable[Logger], picture: "Image", key: str, step: int) -> None:
    """Give a picture to those loggers that show pictures, TensorBoard's and Weights & Biases'."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, numpy.asarray(picture.convert("RGB")), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step)


class RunFiles:
    """A run's texts, tables and pictures as files; in the place of MLflow's logger, whose methods these are.

    Args:
        run_directory: Where to.
        loggers: Those that may show pictures too.
    """

    def __init__(self, run_directory: Path, loggers: Sequence[Logger] = ()) -> None:
        self.run_directory = run_directory
        self.loggers = loggers

    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact_file: str, listed: bool = True) -> None:
        """Write rows in the format of `mlflow.log_table`."""
        text = table_text(rows)
        self._write(artifact_file, lambda: write_atomically(self.run_directory / artifact_file, text))

    def log_picture(self, picture: "Image", key: str, step: int) -> None:
        """Write a picture of a step, and show it where pictures are shown."""
        self._write(key, lambda: write_picture(picture, self.run_directory, key, step))
        log_picture(self.loggers, picture, key, step)

    def _write(self, name: str, write: Any) -> None:
        try:
            write()
        except OSError as error:
            # What only decorates a training must not end it.
            rank_zero_warn(
                f"{name} cannot be written to {shown_path(self.run_directory)} ({error.strerror or error}): it is left "
                "out, and the training goes on."
            )


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as `mlflow.log_table` writes them; a column that a row lacks is empty there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[row.get(column) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False)
