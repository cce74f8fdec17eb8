"""A training that is gone on with: what is set now is used, what would repeat or leave out samples is refused.

The order of an epoch is a function of its seed, and a place within it is a number of batches: with another batch size,
seed or number of devices the same number is another place. Where batches, devices and accumulation make steps of as
many samples as before, the place is found again.
"""

from fractions import Fraction
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_pretrain.errors import UserError
from lit_pretrain.trainer_state import callbacks_of, data_module_of


class Resuming(Callback):
    """Keeps with every checkpoint what its place within an epoch depends on, and compares when it is gone on from."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._patience: list[tuple[EarlyStopping, int]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember settings that the state of a callback of Lightning's would take back."""
        self._patience = [
            (callback, callback.patience) for callback in callbacks_of(trainer) if isinstance(callback, EarlyStopping)
        ]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's training with this one, before anything is changed.

        Raises:
            UserError: If samples of the epoch would come twice or never.
        """
        saved_facts = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("facts")
        if saved_facts and trainer.state.fn == TrainerFn.FITTING:
            factor = compare(saved_facts, facts_of(trainer, pl_module), batches_done(checkpoint))
            if factor != 1:
                count_in_batches_of_now(checkpoint, factor)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to train for no time at all.

        Raises:
            UserError: If the run has trained for all of the `max_time` that it may.
        """
        for timer in callbacks_of(trainer):
            if not isinstance(timer, Timer):
                continue
            remaining = timer.time_remaining() if timer.time_elapsed() else None
            if remaining is not None and remaining <= 0.0:
                raise UserError(
                    f"The run has trained for {timer.time_elapsed():.0f} seconds, and trainer.max_time, which counts "
                    "from the run's beginning, allows no more: raise it to go on."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give settings back, and look at what is trained now."""
        for callback, patience in self._patience:
            callback.patience = patience
        self._facts = facts_of(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the place within an epoch depends on."""
        return {"facts": self._facts}


def facts_of(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What order, place and draws depend on: `devices` and their `kind`, `accumulation`, `seed` of the draws, and of
    each part of the data its own.

    Args:
        trainer: Whose data module is set up; JointDataModule's parts are named "data.pairs" and so on, others "data".
        module: With a `seed`, or without.
    """
    data = data_module_of(trainer)
    parts = {f"data.{name}": part for name, part in getattr(data, "parts", {}).items() if hasattr(part, "batch_size")}
    orders = {}
    for name, part in (parts or {"data": data}).items():
        if getattr(part, "batch_size", None) is not None:
            dataset = getattr(part, "train_dataset", None)
            samples = len(dataset) if dataset is not None else None
            orders[name] = {"batch_size": part.batch_size, "seed": getattr(part, "seed", None), "samples": samples}
            orders[name] |= {"fingerprint": getattr(part, "fingerprint", None)}
            # A stream has no order of its own, and says itself what it goes on with.
            cut_anywhere = getattr(part, "cut_anywhere", False) and not getattr(part, "streaming", False)
            orders[name] |= {"cut_anywhere": cut_anywhere and not parts}
    facts = {"devices": trainer.world_size, "kind": trainer.strategy.root_device.type, "orders": orders}
    return facts | {"seed": getattr(module, "seed", None), "accumulation": trainer.accumulate_grad_batches}


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Batches of an epoch that is not over, or 0."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return 0 if progress["is_last_batch"] else progress["current"]["ready"]


def compare(saved_facts: dict[str, Any], ours: dict[str, Any], done: int) -> Fraction:
    """Refuse what would repeat samples of an epoch or leave them out, and say what cannot be exact.

    Args:
        saved_facts: The checkpoint's `facts_of`.
        ours: Those of the training that goes on from it.
        done: Batches of the epoch that are behind it; 0 between two epochs.

    Returns:
        How many batches of now are as many samples as one of then, of all devices; 1 but for the same samples a step
        by other accumulation.

    Raises:
        UserError: If the place within the epoch is another one by what is set now.
    """
    factor = Fraction(1)
    devices = saved_facts["devices"], ours["devices"]
    inexact = []
    if devices[0] != devices[1]:
        inexact.append(
            f"trainer.devices ({devices[0]} then, {devices[1]} now), and masks, crops and dropout are drawn by device"
        )
    if saved_facts["seed"] != ours["seed"]:
        inexact.append(f"the seed of the draws ({saved_facts['seed']} then, {ours['seed']} now)")
    # Versions before did not keep it.
    accumulation = saved_facts.get("accumulation", ours.get("accumulation", 1)), ours.get("accumulation", 1)
    for name, own in ours["orders"].items():
        former = saved_facts["orders"].get(name)
        if former is None:
            continue
        if former.get("fingerprint") and former["fingerprint"] != own["fingerprint"]:
            inexact.append(f"what {name} is read from, which has changed")
        batches = former["batch_size"] * devices[0], own["batch_size"] * devices[1]
        steps = batches[0] * accumulation[0], batches[1] * accumulation[1]
        # Texts and pictures beside pairs have epochs of their own, in whose middle they are nearly always.
        if not (done or name.startswith("data.")):
            if devices[0] != devices[1] and steps[0] != steps[1]:
                inexact.append(f"the samples of a step ({steps[0]} then, {steps[1]} now)")
            continue
        ratio = Fraction(batches[0], batches[1])
        same_place = ratio == 1
        if not same_place and own.get("cut_anywhere") and steps[0] == steps[1] and done % accumulation[0] == 0:
            same_place, factor = True, ratio
        for setting, changed, here in (
            ("seed", former["seed"] != own["seed"], own["seed"]),
            ("batch_size", not same_place, own["batch_size"]),
        ):
            if changed:
                raise UserError(
                    f"The checkpoint lies within an epoch of {name}.batch_size {former['batch_size']} on {devices[0]} "
                    f"device{'s' if devices[0] > 1 else ''} in the order of seed {former['seed']}, so {name}.{setting} "
                    f"{here} on {devices[1]} would repeat some of its samples and leave others out: give "
                    f"{as_many_samples(name, former, own, devices, accumulation)}, or go on from the end of an epoch."
                )
        if former["samples"] != own["samples"]:
            inexact.append(f"the samples of {name} ({former['samples']} then, {own['samples']} now)")
    if inexact:
        rank_zero_warn(
            f"The training that is gone on with differs in {'; in '.join(inexact)}: what follows is not, bit for bit, "
            "what an unbroken training would have been."
        )
    return factor


def as_many_samples(
    name: str,
    former: dict[str, Any],
    own: dict[str, Any],
    devices: tuple[int, int],
    accumulation: tuple[int, int],
) -> str:
    """What to set for the seed and as many samples a step as a training had."""
    ways = []
    batch = former["batch_size"] * devices[0]
    if batch % devices[1] == 0:
        ways.append(f"{name}.batch_size {batch // devices[1]}")
        if accumulation[0] != accumulation[1]:
            ways[0] += f" and trainer.accumulate_grad_batches {accumulation[0]}"
    step, here = batch * accumulation[0], own["batch_size"] * devices[1]
    if own.get("cut_anywhere") and step % here == 0 and step != here * accumulation[1]:
        ways.append(f"{name}.batch_size {own['batch_size']} and trainer.accumulate_grad_batches {step // here}")
    samples = " or ".join(ways) or f"a number of devices that divides {batch}"
    seed = f"{name}.seed {former['seed']}, and " if former["seed"] != own["seed"] else ""
    return f"{seed}as many samples a step as before by {samples}"


def count_in_batches_of_now(checkpoint: dict[str, Any], factor: Fraction) -> None:
    """Count what a checkpoint has done in batches of another size.

    Args:
        checkpoint: As saved after whole optimiser steps; changed in place.
        factor: Batches of now that are as many samples as one of then.
    """
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: int(count * factor) for name, count in counts.items()})
    for state in loop["state_dict"].get("combined_loader", ()):
        state["batches"] = int(state["batches"] * factor)
