"""A minute of a training, measured: what a step, a validation and a checkpoint take, of time and of memory.

The probe is the training itself, with its data, model, optimiser and schedule, run by the trainer that it is set up
for; what would be kept of it (run, logs, checkpoints) is left out. On a GPU the parts of a step are measured by waiting
for it after each of them, and whole steps without waiting, since a training does not wait either.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.callbacks.throughput import peak_memory
from lit_pretrain.commands.planning.machine import free_memory, workers_memory
from lit_pretrain.errors import UserError
from lit_pretrain.modules.short_sequences import ShortSequencesConfig
from lit_pretrain.modules.steps import total_steps
from lit_pretrain.trainer_state import data_module_of, log_interval_of

PARTS = ("input", "forward", "backward", "optimiser", "logging")
# Steps that are not measured: compilation, caches, memory that is asked for the first time.
WARM_UP = 5
# Fewest steps that a part of the training is measured by, however long they take; and the share at either end of the
# sorted steps that is left out of a mean.
LEAST_STEPS, TRIMMED = 3, 0.1
# Of the probe's time.
VALIDATION_SHARE = 0.3
# Bytes a parameter needs at least where AdamW trains it: weight, gradient, two moments; and what a checkpoint keeps.
TRAINED_BYTES, SAVED_BYTES = 16, 12


@dataclass
class Piece:
    """A part of the training within which its steps cost the same.

    Attributes:
        first: Share of the training at which it begins.
        last: Share at which it ends.
        whole: Whether sequences are whole by then, where they are cut at first.
        steps: Seconds of each part of the optimiser steps measured.
        reports: The same of steps whose figures are written down.
        free_running: Seconds of whole steps on a GPU that is not waited for.
        costs: Samples, tokens and operations of the steps, of this process.
    """

    first: float
    last: float
    whole: bool = True
    steps: list[dict[str, float]] = field(default_factory=list)
    reports: list[dict[str, float]] = field(default_factory=list)
    free_running: list[float] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    warm: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Measured:
    """What a probe has found; times in seconds, sizes in bytes."""

    pieces: list[Piece] = field(default_factory=list)
    start_up: float = 0.0
    preparation: float = 0.0
    prepared_anew: bool = False
    first_input: float | None = None
    epoch_starts: list[float] = field(default_factory=list)
    validation_batch: float = 0.0
    validation_rest: float = 0.0
    validation_batches: int = 0
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: float = 0.0
    memory: float = 0.0
    workers_memory: float = 0.0
    device: str = "cpu"
    parameters: int = 0
    # Of the training as it is set up.
    steps: float = 0.0
    steps_done: int = 0
    batches_per_epoch: float = 0.0
    seconds_of_training: float | None = None
    validates: bool = False
    processes: int = 1


class Probe(Callback):
    """Measures a training from within, and ends it.

    Args:
        seconds: About how long to measure.
        began: When the command did, by `time.perf_counter`.
        place: An existing directory on the disk of the checkpoints.
    """

    def __init__(self, seconds: float, began: float, place: Path) -> None:
        self.seconds, self.began, self.place = seconds, began, place
        self.measured = Measured()
        self._prepared = began
        self._pieces: Iterator[Piece] = iter(())
        self._piece: Piece | None = None
        self._marks: dict[str, float] = {}
        self._batches: list[dict[str, float]] = []
        self._cost: dict[str, float] = {}
        self._costs: dict[tuple, dict[str, float]] = {}
        self._seen, self._deadline = 0, 0.0
        self._waits = False
        self._epoch_begins, self._disturbed = True, True
        self._validation_due = False
        self._validation_marks: list[float] = []

    # -- before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The data is prepared by now."""
        self._prepared = time.perf_counter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether the weights alone fit into the memory, before an optimiser is made.

        Raises:
            UserError: If they do not.
        """
        found = self.measured
        found.device, found.processes = trainer.strategy.root_device.type, trainer.world_size
        found.parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        trained = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        needed, free = float(TRAINED_BYTES * trained), free_memory(trainer.strategy.root_device)
        # What is sharded is smaller here than it is told.
        if needed > free and trainer.world_size == 1:
            raise UserError(
                f"{trained:,} trained parameters take {needed / 2**30:.1f} GiB with gradients and AdamW's moments, and "
                f"{free / 2**30:.1f} GiB are free: make the model smaller, or train on another machine."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long the training is, and take over when it validates and what changes in its course."""
        found, loop = self.measured, trainer.fit_loop
        found.steps, found.steps_done = total_steps(trainer), trainer.global_step
        found.batches_per_epoch = float(trainer.num_training_batches)
        clock: Any = getattr(pl_module, "clock", None)
        if clock is not None and clock.budget is not None:
            found.seconds_of_training = clock.budget - clock.seconds
        # Not done yet where the first epoch has no validation.
        trainer.validating = True
        loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
        batches = loop.epoch_loop.val_loop.max_batches
        found.validation_batches = int(sum(batches)) if batches and numpy.isfinite(sum(batches)) else 0
        found.validates = found.validation_batches > 0
        found.pieces = pieces_of(pl_module, found.steps_done / found.steps if numpy.isfinite(found.steps) else 0.0)
        self._pieces = iter(found.pieces)
        state: Any = loop.epoch_loop
        state._should_check_val_fx = lambda fetcher: self._validation_due
        module: Any = pl_module
        begin, end = module.on_train_batch_start, module.on_train_batch_end
        module.on_train_batch_start = lambda batch, index: self._begin_in_module(module, begin, batch, index)
        module.on_train_batch_end = lambda outputs, batch, index: self._end_in_module(
            trainer, module, lambda: end(outputs, batch, index)
        )
        self._short = getattr(module, "short_sequences", None)
        self._next_piece(trainer)
        self._marks["after"] = time.perf_counter()
        found.start_up = self._marks["after"] - self.began - found.preparation

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of an epoch waits for more than itself."""
        self._epoch_begins = True

    # -- a step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there, on the device."""
        module: Any = pl_module
        if self._short is not None and self._piece is not None and self._piece.whole:
            # Later in the training.
            module.short_sequences = replace(self._short, parts=1)
        self._mark("start")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """The forward pass is over."""
        self._mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The backward pass is over."""
        self._mark("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The optimiser has stepped, if it was its turn."""
        self._mark("end")
        step_cost: Any = getattr(pl_module, "step_cost", None)
        if step_cost is None:
            return
        shapes = tuple(tuple(leaf.shape) for leaf in torch.utils._pytree.tree_leaves(batch) if hasattr(leaf, "shape"))
        if shapes not in self._costs:
            self._costs[shapes] = step_cost(batch)
        for name, value in self._costs[shapes].items():
            self._cost[name] = self._cost.get(name, 0.0) + value
        # Asking for the cost is no part of the training.
        self._marks["costed"] = time.perf_counter()

    def _begin_in_module(self, module: Any, begin: Any, batch: Any, index: int) -> Any:
        answer = begin(batch, index)
        if self._piece is not None:
            for objective in module._varying if hasattr(module, "_varying") else ():
                objective.training_share = (self._piece.first + self._piece.last) / 2
        return answer

    def _end_in_module(self, trainer: Trainer, module: Any, end: Any) -> Any:
        step, accumulates = trainer.global_step, trainer.fit_loop.epoch_loop._should_accumulate()
        answer = end()
        if self._short is not None:
            module.short_sequences = self._short
        self._mark("logged")
        marks = self._marks
        seconds = {
            "input": marks["start"] - marks["after"],
            "forward": marks["forward"] - marks["start"],
            "backward": marks["backward"] - marks["forward"],
            "optimiser": marks["end"] - marks["backward"],
            "logging": marks["logged"] - marks.get("costed", marks["end"]),
        }
        self._batches.append(seconds)
        if not accumulates:
            every = log_interval_of(trainer)
            self._finish_step(trainer, every > 0 and step % every == 0)
        marks["after"] = time.perf_counter()
        return answer

    def _mark(self, name: str) -> None:
        if self._waits:
            torch.cuda.synchronize()
        self._marks[name] = time.perf_counter()

    def _finish_step(self, trainer: Trainer, reports: bool) -> None:
        """Sort a step in, and decide what follows; collective."""
        found, piece = self.measured, self._piece
        whole = len(self._batches) == trainer.accumulate_grad_batches
        total = {part: sum(batch[part] for batch in self._batches) for part in PARTS}
        first_input, self._batches = self._batches[0]["input"], []
        cost, self._cost = self._cost, {}
        if self._epoch_begins:
            if found.first_input is None:
                found.first_input = first_input
            elif not self._validation_marks:
                found.epoch_starts.append(first_input)
        keep = whole and not self._epoch_begins and not self._disturbed
        self._epoch_begins = self._disturbed = False
        self._seen += 1
        if piece is not None:
            workers = getattr(data_module_of(trainer), "workers", 0) or 0
            # What workers have made ahead is no measure of how fast they are.
            if self._seen <= WARM_UP + 2 * workers and (self._seen <= 1 or time.perf_counter() < self._deadline):
                piece.warm.append(total)
                piece.costs.append(cost)
                self._start = time.perf_counter()
            elif keep:
                self._sort_in(piece, total, cost, reports)
            enough = len(piece.steps) + len(piece.reports) + len(piece.free_running) >= LEAST_STEPS
            # The first process says for all.
            if trainer.global_step >= found.steps - 1:
                # A short training: what is left of it is for the validation and the checkpoint.
                self._piece = None
            elif self._agreed(trainer, enough and time.perf_counter() > self._deadline):
                self._next_piece(trainer)
            if trainer.strategy.root_device.type == "cuda" and self._piece is piece:
                self._waits = time.perf_counter() > (self._start + self._deadline) / 2
        if self._piece is None:
            self._conclude(trainer)

    @staticmethod
    def _agreed(trainer: Trainer, own: Any) -> Any:
        """The first process's answer; collective."""
        return trainer.strategy.broadcast(own) if trainer.world_size > 1 else own

    def _sort_in(self, piece: Piece, total: dict[str, float], cost: dict[str, float], reports: bool) -> None:
        if self.measured.device == "cuda" and not self._waits:
            piece.free_running.append(sum(total.values()))
        elif reports:
            piece.reports.append(total)
        else:
            piece.steps.append(total)
        piece.costs.append(cost)

    def _next_piece(self, trainer: Trainer) -> None:
        self._piece, self._seen, self._waits = next(self._pieces, None), 0, False
        share = (1.0 - VALIDATION_SHARE * self.measured.validates) / len(self.measured.pieces)
        self._start = time.perf_counter()
        self._deadline = self._start + share * self.seconds

    # -- validation, checkpoint, end

    def _conclude(self, trainer: Trainer) -> None:
        found = self.measured
        self._waits = False
        if found.validates and not self._validation_marks:
            batch = max(1e-4, float(numpy.median([step["forward"] for step in all_steps(found)] or [1.0])))
            within = self._agreed(trainer, max(2, int(VALIDATION_SHARE * self.seconds / batch)))
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop._max_batches = [min(int(number), within) for number in loop.max_batches]
            self._validation_due = True
            if trainer.global_step < found.steps:
                return
        self._save(trainer)
        found.memory = peak_memory(trainer.strategy.root_device)
        found.workers_memory = workers_memory()
        trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It begins."""
        if not trainer.sanity_checking:
            self._validation_due = False
            self._validation_marks = [time.perf_counter()]

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **settings: Any) -> None:
        """A batch is over."""
        if not trainer.sanity_checking:
            self._validation_marks.append(time.perf_counter())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what would be shown after a validation, and sum up; this callback is the last."""
        if trainer.sanity_checking:
            return
        marks = self._validation_marks
        for name in ("examples", "panels"):
            shown: Any = getattr(pl_module, name, None)
            if callable(shown):
                shown(8)
        if marks[1:]:
            batches = numpy.diff(marks)
            # The first has what there is only once in it: an iterator, workers.
            typical = float(numpy.median(batches[1:] if len(batches) > 1 else batches))
            self.measured.validation_batch = typical
            self.measured.validation_rest = max(0.0, time.perf_counter() - marks[0] - typical * len(batches))

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint where the training would, and remove it; collective."""
        found = self.measured
        expected = SAVED_BYTES * found.parameters
        free = shutil.disk_usage(self.place).free
        found.checkpoint_bytes = float(expected)
        if free < 1.2 * expected:
            return
        directory = tempfile.mkdtemp(prefix=".plan-", dir=self.place) if trainer.is_global_zero else ""
        directory = trainer.strategy.broadcast(directory)
        try:
            before, path = time.perf_counter(), Path(directory) / "probe.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            found.checkpoint_seconds = time.perf_counter() - before
            files = [path] if path.is_file() else [*path.rglob("*")]
            found.checkpoint_bytes = float(sum(file.stat().st_size for file in files if file.is_file()))
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(directory)


def pieces_of(module: Any, done: float) -> list[Piece]:
    """The parts of a training that cost differently: sequences that are cut at first, and whole later.

    Args:
        module: Its module.
        done: Share of the training that is over already.
    """
    short = getattr(module, "short_sequences", None)
    if not isinstance(short, ShortSequencesConfig) or short.parts == 1 or short.until <= done:
        return [Piece(done, 1.0, whole=short is not None and short.until <= done)]
    pieces = [Piece(done, short.until, whole=False)]
    return pieces if short.until >= 1.0 else [*pieces, Piece(short.until, 1.0)]


def all_steps(measured: Measured) -> list[dict[str, float]]:
    """What was measured of all steps that were not the first ones, or of these where there are no others."""
    steps = [step for piece in measured.pieces for step in [*piece.steps, *piece.reports]]
    return steps or [step for piece in measured.pieces for step in piece.warm]


def seconds_of_step(piece: Piece) -> dict[str, float]:
    """What the parts of a step take in a piece, without what is written down now and then.

    Raises:
        UserError: If no step was made.
    """
    steps = piece.steps or piece.reports or piece.warm[1:] or piece.warm
    if not steps:
        raise UserError("The training has ended before a step could be measured: give it more steps.")
    totals = [sum(step.values()) for step in steps]
    cut = int(TRIMMED * len(steps))
    kept = [steps[place] for place in numpy.argsort(totals)[cut : len(steps) - cut]]
    mean = {part: float(numpy.mean([step[part] for step in kept])) for part in PARTS}
    if piece.free_running:
        # Waiting for the GPU after every part makes a step longer than it is.
        factor = float(numpy.median(piece.free_running)) / sum(mean.values())
        mean = {part: factor * seconds for part, seconds in mean.items()}
    return mean


def seconds_of_report(pieces: list[Piece]) -> float:
    """What writing down a step's figures adds to it."""
    reports = [step["logging"] for piece in pieces for step in piece.reports]
    others = [step["logging"] for piece in pieces for step in piece.steps]
    return max(0.0, float(numpy.median(reports) - numpy.median(others))) if reports and others else 0.0
