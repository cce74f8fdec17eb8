"""How long a training will take, by its first steps."""

import math
import statistics
import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from lit_pretrain.callbacks.progress import total_steps
from lit_pretrain.callbacks.start_page import validation_batches
from lit_pretrain.required import required
from lit_pretrain.trainer_state import callbacks_of

# Steps that pay for what happens once, and steps that are measured after them.
WARM_UP, MEASURED = 5, 15
# Steps so slow are not waited for: from so many measured on, so many seconds are enough.
ENOUGH, SECONDS = 3, 20.0
# What ends sooner needs no announcement.
SHORTEST = 10.0


class RemainingTime:
    """Measures the first steps, and a validation if there is one before them."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._last: float | None = None
        self._steps = 0
        self._batch_began = 0.0
        self._validation_batch: float | None = None
        self._told = False

    def begin(self) -> None:
        """The training starts."""
        self._seconds, self._steps, self._told = [], 0, False
        self._last = None

    def disturbed(self) -> None:
        """What is done now is no step."""
        self._last = None

    def validation_batch_begins(self) -> None:
        """A batch of a validation is given to the model."""
        self._batch_began = time.perf_counter()

    def validation_batch_ends(self) -> None:
        """It is done; the first ones pay for what happens once, so that the last one counts."""
        self._validation_batch = time.perf_counter() - self._batch_began

    def step_ends(self, trainer: Trainer) -> str | None:
        """Note an optimiser step; the line, once, when enough are known."""
        if self._told:
            return None
        now, former = time.perf_counter(), self._last
        self._last = now
        self._steps += 1
        if former is not None and self._steps > WARM_UP:
            self._seconds.append(now - former)
        enough = len(self._seconds) >= ENOUGH and sum(self._seconds) >= SECONDS
        if len(self._seconds) < MEASURED and not enough:
            return None
        self._told = True
        return self.line(trainer, statistics.median(self._seconds))

    def line(self, trainer: Trainer, step: float) -> str | None:
        """The line; null of a training that is nearly over."""
        steps = total_steps(trainer) - trainer.global_step
        limit = clock_limit(trainer)
        if not math.isfinite(steps):
            return None if limit is None else f"About {words(limit)} by the clock, {words(step)} a step."
        seconds, parts = steps * step, f"{steps:,.0f} steps of {words(step)}"
        validations = validations_ahead(trainer, steps)
        if validations and self._validation_batch is not None:
            each = self._validation_batch * validation_batches(trainer)
            seconds += validations * each
            parts += f" and {validations:,} validation{'s' if validations > 1 else ''} of {words(each)}"
        if limit is not None and limit < seconds:
            return f"About {words(limit)}, when the clock ends it; all {steps:,.0f} steps would take {words(seconds)}."
        return f"About {words(seconds)} to go: {parts}." if seconds >= SHORTEST else None


def clock_limit(trainer: Trainer) -> float | None:
    """Seconds until `max_time` or the schedule's budget end the training; null without either."""
    found = [timer.time_remaining() for timer in callbacks_of(trainer) if isinstance(timer, Timer)]
    clock = getattr(trainer.lightning_module, "clock", None)
    if clock is not None and clock.budget is not None:
        found.append(clock.budget - clock.seconds)
    return min((seconds for seconds in found if seconds is not None), default=None)


def validations_ahead(trainer: Trainer, steps: float) -> int:
    """How many validations so many optimiser steps bring."""
    every = required(trainer.val_check_batch)
    if not validation_batches(trainer) or not math.isfinite(every) or every <= 0:
        return 0
    epochs = trainer.check_val_every_n_epoch or 1
    return int(steps * trainer.accumulate_grad_batches // (every * epochs))


def words(seconds: float) -> str:
    """A time as a person says it: 62 ms, 3.1 s, 2 min 10 s, 1 h 5 min, 3 d 2 h."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, small, small_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
