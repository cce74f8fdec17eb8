"""One training of a study: what it is known by, and what is kept of it.

A cell is known by a hash of its whole resolved config and of the contents of its data and of the weights that it starts
from, so that a study whose file or data was changed repeats what changed and nothing else. It belongs to its study: its
outcome is a small file in the study's directory, which is written whole or not at all. Another study that has the same
cell reads what came of it there, and writes nothing into it.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lit_pretrain.tracking.paths import RUN_FILE_NAME, write_atomically

# A change of what a cell does or keeps makes all of them new.
FORMAT = 2

# diverged: its loss was not finite, and would be so again.
Status = Literal["finished", "diverged", "failed", "interrupted"]
DONE = ("finished", "diverged")
# Settings of a module with two towers, each with an `init_from` of its own.
TOWERS = ("text", "vision")


@dataclass(frozen=True)
class Cell:
    """A training to do.

    Attributes:
        labels: What tells cells apart, as {"encoder": "scratch", "seed": 0}; for tables and the run's name.
        config: The resolved config, without logger.
        inputs: What changes with the contents of its data and of the weights that it starts from.
        stage: Where it is measured: `test`, or `validation`, which the training does.
        checkpoint: Which one is measured: `last` or `best`.
    """

    labels: dict[str, Any]
    config: dict[str, Any]
    inputs: str = ""
    stage: str = "validation"
    checkpoint: str = "last"

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal characters, other ones for any other training."""
        parts = [FORMAT, without_places(self.config), self.inputs, self.stage, self.checkpoint]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What its run is called."""
        return ", ".join(display_value(key, value) for key, value in self.labels.items() if value is not None)

    @property
    def steps(self) -> int:
        """Optimiser steps of its training; -1 if they are not limited."""
        return int(self.config["trainer"].get("max_steps") or -1)


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the paths of the weights that it starts from, whose contents are what counts."""
    settings = config.get("model", {}).get("init_args")
    if not settings:
        return config
    towers = {
        name: settings[name] | {"init_from": None} for name in TOWERS if (settings.get(name) or {}).get("init_from")
    }
    own = {"init_from": None} if "init_from" in settings else {}
    return config | {"model": config["model"] | {"init_args": settings | towers | own}}


def display_value(key: str, value: Any) -> str:
    """A label with what it is of; an encoder's name speaks for itself."""
    return str(value) if key == "encoder" else f"{key.replace('_', ' ')} {value}"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        status: How it ended.
        reason: Why it did not finish.
        run_id: MLflow's run.
        metrics: Last values of all metrics, those of the test included.
        parameters: What the run says of its model and data.
        history: (step, value) of the validation metric.
        seconds: Of training and validation; null if not known.
        jobs: How many cells of its study shared the processors while it was trained.
        study: Name of the study that it was taken from; empty for the cell's own.
    """

    status: Status
    reason: str = ""
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    seconds: float | None = None
    jobs: int = 1
    study: str = ""


class CellStore:
    """The files of a study's cells.

    Args:
        directory: The study's.
        metric: Without a finite value of which no cell counts as finished; empty for none.
    """

    def __init__(self, directory: Path, metric: str = "") -> None:
        self.directory = directory / "cells"
        self.metric = metric

    def config_path(self, cell: Cell, stage: str = "fit") -> Path:
        """Where the config of its training, or of its test, lies."""
        return self.directory / f"{cell.hash}-{stage}.yaml"

    def log_path(self, cell: Cell) -> Path:
        """Where what it prints lies."""
        return self.directory / f"{cell.hash}.log"

    def outcome_path(self, cell_hash: str) -> Path:
        """Where what came of it lies."""
        return self.directory / f"{cell_hash}.json"

    def outcome(self, cell: Cell) -> Outcome | None:
        """What came of it so far; null if nothing has."""
        return self.outcome_of(cell.hash)

    def outcome_of(self, cell_hash: str) -> Outcome | None:
        """The same, of the cell of a hash."""
        try:
            content = json.loads(self.outcome_path(cell_hash).read_text(encoding="utf-8"))
            outcome = Outcome(**content)
        except (OSError, ValueError, TypeError):
            # Spoilt is as good as none: the cell is done again.
            return None
        value = outcome.metrics.get(self.metric)
        if outcome.status == "finished" and self.metric and (value is None or not math.isfinite(value)):
            measured = "was not measured" if value is None else f"is {value}"
            return replace(outcome, status="failed", reason=f"{self.metric} {measured}")
        return outcome

    def shared(self, cell: Cell) -> Outcome | None:
        """What the same cell came to in another study of the experiment, if it has finished there."""
        for path in sorted(self.directory.parent.parent.glob(f"*/cells/{cell.hash}.json")):
            if path.parent == self.directory:
                continue
            outcome = CellStore(path.parent.parent, self.metric).outcome(cell)
            if outcome is not None and outcome.status == "finished":
                return replace(outcome, study=outcome.study or study_name(path.parent.parent))
        return None

    def rehearsal_path(self, cell: Cell) -> Path:
        """Where the facts of a step of it lie: they are known before a study begins, and the same to all of them."""
        return self.directory.parent.parent / ".rehearsals" / f"{cell.hash}.json"

    def rehearsal(self, cell: Cell) -> dict[str, Any] | None:
        """What a step of it told; null if it was not rehearsed."""
        try:
            return json.loads(self.rehearsal_path(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, cell_hash: str, outcome: Outcome) -> None:
        """Keep what came of a cell."""
        write_atomically(self.outcome_path(cell_hash), json.dumps(outcome.__dict__, indent=1) + "\n")

    def is_done(self, cell: Cell) -> bool:
        """Whether there is nothing left to do."""
        outcome = self.outcome(cell)
        return outcome is not None and outcome.status in DONE


def study_name(directory: Path) -> str:
    """Name of the study whose directory it is."""
    try:
        return str(json.loads((directory / RUN_FILE_NAME).read_text(encoding="utf-8"))["run_name"])
    except (OSError, ValueError, KeyError):
        return directory.name
