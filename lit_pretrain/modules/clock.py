"""How long a training has trained, for schedules by the clock (`model.schedule.budget`).

Counted is the time from the first step to the last one in all parts of a training that is interrupted: reading, steps,
logging and the making of checkpoints between them. Evaluation in between, with whatever is measured and saved then,
does not count, so that trainings that are evaluated more or less often are trained alike.
"""

import math
import re
import time
from typing import Any

import torch

from lit_pretrain.errors import UserError

# Where a checkpoint has the time.
CLOCK = "lit_pretrain_clock"
SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
TIME = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def seconds_of(budget: str, setting: str) -> float:
    """A time such as "30m" or "1h30m" in seconds.

    Raises:
        UserError: If it is none, or no time at all.
    """
    if TIME.fullmatch(budget):
        seconds = sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([dhms])", budget))
        if seconds > 0:
            return seconds
    raise UserError(f"{setting} is {budget}: give a time with its units, such as 90s, 30m, 1h30m or 2d.")


class TrainingClock:
    """Seconds of training, the same in all processes: those of the first.

    Args:
        budget: Seconds that the training may take; null for no end, and then nothing is agreed on.

    Attributes:
        seconds: At the end of the last step.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.seconds = 0.0
        # Since the last step.
        self._further = 0.0
        self._running_since: float | None = None
        self._paused = False
        self._group: Any = None

    def start(self) -> None:
        """Count from now on; the first time, collective where there is a budget and several processes."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.budget is not None and self._group is None and together and torch.distributed.get_world_size() > 1:
            # On the CPU, so that asking after every step never makes a GPU wait.
            self._group = torch.distributed.new_group(backend="gloo")
        self._running_since = time.monotonic()

    def pause(self) -> None:
        """Do not count until `go_on`."""
        if self._running_since is not None:
            self._further += time.monotonic() - self._running_since
            self._running_since, self._paused = None, True

    def go_on(self) -> None:
        """Count again, if this has paused."""
        if self._paused:
            self._running_since, self._paused = time.monotonic(), False

    def end_step(self) -> None:
        """Count up to here, the end of an optimiser step; collective as `start` is."""
        self.pause()
        seconds = torch.tensor(self.seconds + self._further, dtype=torch.float64)
        if self._group is not None:
            torch.distributed.broadcast(seconds, src=0, group=self._group)
        self.seconds, self._further = float(seconds), 0.0
        self.go_on()

    @property
    def share(self) -> float:
        """How much of the budget is over, from 0 to 1."""
        return 0.0 if self.budget is None else min(1.0, self.seconds / self.budget)

    @property
    def is_over(self) -> bool:
        """Whether the training has taken all of its time."""
        return self.seconds >= (math.inf if self.budget is None else self.budget)
