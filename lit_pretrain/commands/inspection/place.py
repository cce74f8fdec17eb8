"""Where a step stands: in which epoch, at which batches, and which checkpoint is the one before it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.find import RunRecord, checkpoints_of
from lit_pretrain.tracking.paths import shown_path


@dataclass(frozen=True)
class Saved:
    """What a checkpoint tells of where it stands.

    Attributes:
        path: The checkpoint.
        step: Optimiser steps behind it.
        epoch: Epoch that the next batch is of.
        batches: Batches of that epoch behind it.
        facts: What order and draws depend on (`callbacks.resuming`), empty in older ones.
        fingerprint: Of the data, or null.
    """

    path: Path
    step: int
    epoch: int
    batches: int
    facts: dict[str, Any]
    fingerprint: str | None


@dataclass(frozen=True)
class Place:
    """Where an optimiser step stands.

    Attributes:
        step: Optimiser steps before it.
        epoch: From 0.
        batches: Its batches within the epoch, from 0; several where gradients are accumulated.
    """

    step: int
    epoch: int
    batches: range


def read_saved(path: Path) -> Saved | None:
    """What a checkpoint tells, mapped and without running any pickled code; null if it is damaged or foreign."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        loop = content["loops"]["fit_loop"]
        progress, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    except Exception:  # it fails in many ways, and another one may be whole
        return None
    over = bool(progress["is_last_batch"])
    epoch = int(epochs["current"]["ready"]) - 1
    return Saved(
        path,
        int(content["global_step"]),
        epoch + 1 if over else epoch,
        0 if over else int(progress["current"]["ready"]),
        content.get("callbacks", {}).get("Resuming", {}).get("facts", {}),
        (content.get("lit_pretrain") or {}).get("data_fingerprint"),
    )


def saved_of(run: RunRecord, first: Path | None = None) -> list[Saved]:
    """All whole checkpoints of a run, the earliest first, with that which it went on from, if that is given."""
    paths = [*checkpoints_of(run), *([] if first is None else [first])]
    found = (read_saved(path) for path in dict.fromkeys(path.resolve() for path in paths))
    return sorted((saved for saved in found if saved is not None), key=lambda saved: saved.step)


def nearest(saved: list[Saved], step: int) -> Saved | None:
    """The last checkpoint from which so many steps, or fewer, were made; null if there is none."""
    return next((one for one in reversed(saved) if one.step <= step), None)


def place_of(step: int, before: Saved | None, batches_per_epoch: int, accumulate: int) -> Place:
    """Where a step stands, counted on from a checkpoint or from the beginning.

    Args:
        step: Optimiser steps before it.
        before: A checkpoint with no more steps; null for the beginning.
        batches_per_epoch: Of one process.
        accumulate: Batches of an optimiser step; an epoch's last step may have fewer.
    """
    epoch, first, left = (before.epoch, before.batches, step - before.step) if before is not None else (0, 0, step)
    per_epoch = math.ceil(batches_per_epoch / accumulate)
    done = first // accumulate + left
    epoch, place = epoch + done // per_epoch, done % per_epoch
    return Place(step, epoch, range(place * accumulate, min((place + 1) * accumulate, batches_per_epoch)))


def check_same(saved: list[Saved], seed: int, orders: dict[str, Any], run: RunRecord) -> None:
    """Refuse a run whose settings were changed while it went on, by which a step's place is another.

    Args:
        saved: Its checkpoints.
        seed: Of the draws, by its config.
        orders: Of each part of the data batch size, seed and number of samples, as they are now.
        run: Whose.

    Raises:
        UserError: If they differ.
    """
    for one in saved:
        if not one.facts:
            continue
        former = one.facts.get("orders", {})
        for name, own in orders.items():
            for setting, value in own.items():
                if name in former and former[name].get(setting) != value:
                    what = "samples of the data" if setting == "samples" else f"{name}.{setting}"
                    raise UserError(
                        f"{what} is {value} now, and was {former[name].get(setting)} for {shown_path(one.path)} of "
                        f"{run.run_name}: give what it was as for fit ({name}.{setting}), or the data as they were."
                    )
        if one.facts.get("seed") != seed:
            raise UserError(
                f"The seed of the draws is {seed} by the run's config, and was {one.facts.get('seed')} for "
                f"{shown_path(one.path)}: add --model.seed {one.facts.get('seed')}."
            )
