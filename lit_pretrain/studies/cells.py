"""One training of a study: what it is known by, and what is kept of it.

A cell is known by a hash of its whole resolved config and of the weights that it starts from, so that a study whose
file was changed repeats what changed and nothing else. Its outcome is a small file that is written whole or not at all.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_pretrain.tracking.paths import write_atomically

# A change of what a cell does or keeps makes all of them new.
FORMAT = 1

# diverged: its loss was not finite, and would be so again.
Status = Literal["finished", "diverged", "failed", "interrupted"]
DONE = ("finished", "diverged")


@dataclass(frozen=True)
class Cell:
    """A training to do.

    Attributes:
        labels: What tells cells apart, as {"encoder": "scratch", "seed": 0}; for tables and the run's name.
        config: The resolved config, without logger.
        start: Identity of the weights it starts from, empty for none.
        stage: Where it is measured: `test`, or `validation`, which the training does.
        checkpoint: Which one is measured: `last` or `best`.
    """

    labels: dict[str, Any]
    config: dict[str, Any]
    start: str = ""
    stage: str = "validation"
    checkpoint: str = "last"

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal characters, other ones for any other training."""
        parts = [FORMAT, self.config, self.start, self.stage, self.checkpoint]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """What its run is called."""
        return ", ".join(shown(key, value) for key, value in self.labels.items() if value is not None)

    @property
    def steps(self) -> int:
        """Optimiser steps of its training; -1 if they are not limited."""
        return int(self.config["trainer"].get("max_steps") or -1)


def shown(key: str, value: Any) -> str:
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
    """

    status: Status
    reason: str = ""
    run_id: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)
    seconds: float | None = None


class CellStore:
    """The files of a study's cells.

    Args:
        directory: The study's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "cells"

    def config_path(self, cell: Cell, stage: str = "fit") -> Path:
        """Where the config of its training, or of its test, lies."""
        return self.directory / f"{cell.hash}-{stage}.yaml"

    def log_path(self, cell: Cell) -> Path:
        """Where what it prints lies."""
        return self.directory / f"{cell.hash}.log"

    def outcome(self, cell: Cell) -> Outcome | None:
        """What came of it so far; null if nothing has."""
        try:
            content = json.loads((self.directory / f"{cell.hash}.json").read_text(encoding="utf-8"))
            return Outcome(**content)
        except (OSError, ValueError, TypeError):
            # Spoilt is as good as none: the cell is done again.
            return None

    def rehearsal_path(self, cell: Cell) -> Path:
        """Where the facts of a step of it lie."""
        return self.directory / "rehearsals" / f"{cell.hash}.json"

    def rehearsal(self, cell: Cell) -> dict[str, Any] | None:
        """What a step of it told; null if it was not rehearsed."""
        try:
            return json.loads(self.rehearsal_path(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, cell_hash: str, outcome: Outcome) -> None:
        """Keep what came of a cell."""
        write_atomically(self.directory / f"{cell_hash}.json", json.dumps(outcome.__dict__, indent=1) + "\n")

    def is_done(self, cell: Cell) -> bool:
        """Whether there is nothing left to do."""
        outcome = self.outcome(cell)
        return outcome is not None and outcome.status in DONE
