"""From what a probe has measured to the whole training: its time and where it goes, its memory, its disk."""

import math
from dataclasses import dataclass, field
from typing import Any

from lit_pretrain.commands.planning.probe import LEAST_STEPS, PARTS, Measured, seconds_of_report, seconds_of_step
from lit_pretrain.errors import is_share


@dataclass(frozen=True)
class Course:
    """What a training does beside its steps, as its trainer is set up.

    Attributes:
        accumulate: Batches of an optimiser step.
        batches_per_epoch: Of one process.
        check_every: Batches between validations; infinite for none by batches.
        check_seconds: Seconds between them, where they are counted so.
        every_epochs: Epochs between those in which there are validations; null where batches are counted through.
        log_every: Steps between two reports; 0 for none.
        sanity_batches: Validation batches before the first step.
        kept: Checkpoints that are kept; 0 where none is written.
        per_validation: Checkpoints that are written after a validation, at most.
        last_minutes: Minutes after which last.ckpt is written in any case.
        most_seconds: Of `trainer.max_time`.
        warm_up: Of the schedule, steps or a share.
    """

    accumulate: int = 1
    batches_per_epoch: float = math.inf
    check_every: float = math.inf
    check_seconds: float | None = None
    every_epochs: int | None = 1
    log_every: int = 50
    sanity_batches: int = 0
    kept: int = 2
    per_validation: int = 2
    last_minutes: float | None = 15.0
    most_seconds: float | None = None
    warm_up: int | float = 0.0

    def epochs(self, steps: float) -> float:
        """Passes over the data of so many steps."""
        return steps / math.ceil(self.batches_per_epoch / self.accumulate)

    def validations(self, steps: float, seconds: float) -> int:
        """How many there are in so many steps that take so many seconds."""
        if self.check_seconds is not None:
            return int(seconds / self.check_seconds)
        if math.isinf(self.check_every):
            return 0
        if self.every_epochs is None:
            return int(steps * self.accumulate // self.check_every)
        of_epoch = int(self.batches_per_epoch // self.check_every)
        whole = int(self.epochs(steps) + 1e-9)
        batches_left = (self.epochs(steps) - whole) * self.batches_per_epoch
        more = int((batches_left + 1e-6) // self.check_every) if (whole + 1) % self.every_epochs == 0 else 0
        return whole // self.every_epochs * of_epoch + more


@dataclass
class Estimate:
    """A whole training.

    Attributes:
        steps: Optimiser steps that are to come.
        seconds: By what they go to: `start`, the parts of a step, `epochs`, `validation`, `checkpoints`.
        step: Seconds of the parts of a step, at the mean of the training.
        validations: How many.
        checkpoints: How many are written, at most.
        epochs: Passes over the data.
        samples: Of all processes; tokens as well, where there are any.
        tokens: Padding included.
    """

    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    step: dict[str, float] = field(default_factory=dict)
    validations: int = 0
    checkpoints: int = 0
    epochs: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole."""
        return sum(self.seconds.values())


def mean_step(measured: Measured, steps: float) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the parts of a step and its costs, at the mean over what is left of a training of so many steps."""
    parts, cost, whole = dict.fromkeys(PARTS, 0.0), {"samples": 0.0, "tokens": 0.0}, 0.0
    begin = measured.steps_done / steps if math.isfinite(steps) and steps else 0.0
    for piece in measured.pieces:
        weight = max(0.0, piece.last - max(begin, piece.first))
        if weight == 0.0 or not (piece.steps or piece.reports or piece.warm or piece.free_running):
            continue
        whole += weight
        for part, seconds in seconds_of_step(piece).items():
            parts[part] += weight * seconds
        for name in cost:
            values = [one.get(name, 0.0) for one in piece.costs]
            cost[name] += weight * measured.processes * sum(values) / max(1, len(values))
    if whole == 0.0:
        # It ended before there was anything else.
        return seconds_of_step(measured.pieces[0]), cost
    return {name: value / whole for name, value in parts.items()}, {name: value / whole for name, value in cost.items()}


def estimate(measured: Measured, course: Course, steps: int) -> Estimate:
    """What a training of so many steps takes, those that are done already included in the number.

    Args:
        measured: By the probe.
        course: Of the training.
        steps: Of the whole.
    """
    left = max(0, steps - measured.steps_done)
    step, cost = mean_step(measured, steps)
    found = Estimate(left, step=step, epochs=course.epochs(steps))
    found.samples, found.tokens = left * cost["samples"], left * cost["tokens"]
    opening = measured.start_up + (0.0 if measured.prepared_anew else measured.preparation)
    found.seconds["start"] = opening + course.sanity_batches * measured.validation_batch
    found.seconds |= {part: left * seconds for part, seconds in step.items()}
    if course.log_every:
        found.seconds["logging"] += left / course.log_every * seconds_of_report(measured.pieces)
    first = measured.first_input or 0.0
    again = sorted(measured.epoch_starts)[len(measured.epoch_starts) // 2] if measured.epoch_starts else None
    further = max(0, math.ceil(course.epochs(left)) - 1)
    found.seconds["epochs"] = first + further * (first if again is None else again)
    if measured.validates:
        done = course.validations(measured.steps_done, 0.0)
        found.validations = course.validations(steps, sum(found.seconds.values())) - done
        once = measured.validation_batches * measured.validation_batch + measured.validation_rest
        found.seconds["validation"] = found.validations * once
    if course.kept:
        found.checkpoints = 1 + course.per_validation * found.validations
        if course.last_minutes is not None and not found.validations:
            found.checkpoints += int(found.total / (60.0 * course.last_minutes))
        found.seconds["checkpoints"] = found.checkpoints * measured.checkpoint_seconds
    return found


def steps_within(measured: Measured, course: Course, seconds: float) -> int:
    """The most steps of a training that ends within so many seconds, counted as those of `estimate`."""
    low, high = measured.steps_done, measured.steps_done + 1
    while estimate(measured, course, high).total <= seconds and high < 2**50:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if estimate(measured, course, middle).total <= seconds else (low, middle)
    return low


def steps_of_clock(measured: Measured) -> int:
    """Steps of a training that its clock ends, which does not count validations."""
    step, _ = mean_step(measured, math.inf)
    return measured.steps_done + int((measured.seconds_of_training or 0.0) / max(1e-9, sum(step.values())))


def warm_up_steps(course: Course, steps: int) -> int:
    """Steps in which the learning rate rises, of a schedule over so many."""
    return int(course.warm_up * steps) if is_share(course.warm_up) else int(course.warm_up)


def measured_steps(measured: Measured) -> int:
    """How many steps the estimate stands on."""
    return sum(len(piece.steps) + len(piece.reports) + len(piece.free_running) for piece in measured.pieces)


def is_rough(measured: Measured) -> bool:
    """Whether there were hardly any."""
    return measured_steps(measured) < LEAST_STEPS * len(measured.pieces)


def as_dictionary(found: Estimate, measured: Measured) -> dict[str, Any]:
    """Plain keys, for JSON."""
    return {
        "steps": found.steps,
        "epochs": found.epochs,
        "samples": found.samples,
        "tokens": found.tokens,
        "seconds": found.total,
        "seconds_by_part": found.seconds,
        "seconds_of_step": found.step,
        "validations": found.validations,
        "checkpoints": found.checkpoints,
        "memory_bytes": measured.memory + measured.workers_memory,
        "checkpoint_bytes": measured.checkpoint_bytes,
        "steps_measured": measured_steps(measured),
    }
