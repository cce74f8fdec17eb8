"""How long a training is, and how much of it is over, without disturbing Lightning's loops."""

import math

from lightning import Trainer

from lit_pretrain.errors import UserError
from lit_pretrain.trainer_state import data_module_of


def total_steps(trainer: Trainer) -> int | float:
    """Optimiser steps of the whole training; infinite where the clock ends it (`model.schedule.budget`).

    `trainer.estimated_stepping_batches` would build the loaders before a checkpoint's loader state is restored, and
    that state would be lost; so the data module is asked instead where it can tell.

    Raises:
        UserError: If the training has no end in steps, so that no schedule can be laid over it.
    """
    clock = getattr(trainer.lightning_module, "clock", None)
    if clock is not None and clock.budget is not None:
        return math.inf
    limits = [trainer.max_steps] if trainer.max_steps is not None and trainer.max_steps > 0 else []
    data = data_module_of(trainer)
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        if hasattr(data, "train_batches_per_epoch"):
            batches = data.train_batches_per_epoch
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
        elif not limits:
            limits.append(int(trainer.estimated_stepping_batches))
    if not limits or not math.isfinite(min(limits)):
        raise UserError(
            "The training has no end in steps, which the learning-rate schedule needs: set trainer.max_steps or "
            "trainer.max_epochs, or a time as model.schedule.budget."
        )
    return max(1, int(min(limits)))


def training_share(trainer: Trainer) -> float:
    """How much of a training is over, from 0 to 1, by its steps or by its clock."""
    steps = total_steps(trainer)
    if math.isinf(steps):
        return float(getattr(trainer.lightning_module, "clock").share)  # noqa: B009 (of ours alone)
    return min(1.0, trainer.global_step / steps)
