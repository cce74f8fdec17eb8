"""A training that is gone on with: what is set now is used, what would repeat or leave out samples is refused.

The order of an epoch is a function of its seed, and a place within it is a number of batches: with another batch size,
seed or number of devices the same number is another place.
"""

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
            compare(saved_facts, facts_of(trainer, pl_module), batches_done(checkpoint))

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
    """What order, place and draws depend on: `devices` and their `kind`, `seed` of the draws, and of each part of the
    data its own.

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
    kind = trainer.strategy.root_device.type
    return {"devices": trainer.world_size, "kind": kind, "seed": getattr(module, "seed", None), "orders": orders}


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Batches of an epoch that is not over, or 0."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return 0 if progress["is_last_batch"] else progress["current"]["ready"]


def compare(saved_facts: dict[str, Any], ours: dict[str, Any], done: int) -> None:
    """Refuse what would repeat samples of an epoch or leave them out, and say what cannot be exact.

    Args:
        saved_facts: The checkpoint's `facts_of`.
        ours: Those of the training that goes on from it.
        done: Batches of the epoch that are behind it; 0 between two epochs.

    Raises:
        UserError: If the place within the epoch is another one by what is set now.
    """
    devices = saved_facts["devices"], ours["devices"]
    inexact = [f"trainer.devices ({devices[0]} then, {devices[1]} now)"] if devices[0] != devices[1] else []
    if saved_facts["seed"] != ours["seed"]:
        inexact.append(f"the seed of the draws ({saved_facts['seed']} then, {ours['seed']} now)")
    for name, own in ours["orders"].items():
        former = saved_facts["orders"].get(name)
        # Texts and pictures beside pairs have epochs of their own, in whose middle they are nearly always.
        if former is None or not (done or name.startswith("data.")):
            continue
        for setting, changed, here in (
            ("seed", former["seed"] != own["seed"], own["seed"]),
            ("batch_size", former["batch_size"] * devices[0] != own["batch_size"] * devices[1], own["batch_size"]),
        ):
            if changed:
                raise UserError(
                    f"The checkpoint lies within an epoch of {name}.batch_size {former['batch_size']} on {devices[0]} "
                    f"device{'s' if devices[0] > 1 else ''} in the order of seed {former['seed']}, so {name}.{setting} "
                    f"{here} on {devices[1]} would repeat some of its samples and leave others out: give the same seed "
                    "and as many samples a step, or go on from the end of an epoch."
                )
        if former["samples"] != own["samples"]:
            inexact.append(f"the samples of {name} ({former['samples']} then, {own['samples']} now)")
    if inexact:
        rank_zero_warn(
            f"The training that is gone on with differs in {' and '.join(inexact)}: what follows is not, bit for bit, "
            "what an unbroken training would have been."
        )
