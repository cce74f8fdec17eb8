"""Keeps the best checkpoint by the metric that the module names, and last.ckpt beside it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint whose metric may be the task's own, which is known only once the data is.

    A module with a property `monitor` (metric, "min" or "max") is compared by it, others by validation/loss.

    Args:
        save_top_k: How many of the best are kept; 0 keeps the last only.
        save_last: Whether last.ckpt is kept.
    """

    def __init__(self, save_top_k: int = 1, save_last: bool = True) -> None:
        super().__init__(
            filename="best-step={step:06d}",
            auto_insert_metric_name=False,
            monitor="validation/loss",
            mode="min",
            save_top_k=save_top_k,
            save_last=save_last,
        )
        self._training = False
        self._compared_by: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As Lightning's; only a training compares checkpoints."""
        super().setup(trainer, pl_module, stage)
        self._training = stage == "fit"

    @property
    def state_key(self) -> str:
        """The same before and after the metric is known, so that a resumed training finds its state."""
        return type(self).__name__

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the module's metric; what was best by another one, in the run that is gone on with, is not compared."""
        self.monitor, mode = getattr(pl_module, "monitor", (self.monitor, self.mode))
        if self._compared_by not in (None, self.monitor):
            self.best_k_models, self.kth_best_model_path = {}, ""
            self.best_model_path, self.best_model_score = "", None
            self.kth_value = torch.tensor(-torch.inf if mode == "max" else torch.inf)
        if mode != self.mode:
            self.mode = mode
            if not self.best_k_models:
                self.kth_value = torch.tensor(-torch.inf if mode == "max" else torch.inf)

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """As Lightning's; what is not finite is never among the best, not even where nothing else is there yet.

        Nor is what has a loss that is not: its accuracy is that of one class, a finite number.
        """
        loss = trainer.callback_metrics.get("validation/loss", torch.zeros(()))
        finite = current is not None and bool(torch.isfinite(current)) and bool(torch.isfinite(loss))
        return finite and super().check_monitor_top_k(trainer, current)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As Lightning's, but not where the training ends within an epoch.

        What is saved then says that the epoch is over, and takes the place of what LastCheckpoint has saved before: a
        training that goes on from it would leave the rest of the epoch out.
        """
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            super().on_train_epoch_end(trainer, pl_module)
            if self._should_save_on_train_epoch_end(trainer):
                self._save_last_of_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As Lightning's; last.ckpt is saved too where the metric is no better."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_of_step(trainer)

    def _save_last_of_step(self, trainer: Trainer) -> None:
        """Save last.ckpt unless this step has it: Lightning leaves the former one if no other checkpoint was saved.

        A training that has passed its best would lose all that came after it to a crash.
        """
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def state_dict(self) -> dict[str, Any]:
        """As Lightning's, with the mode."""
        return super().state_dict() | {"mode": self.mode}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Lightning's, with the mode; what only measures a checkpoint has no use for it."""
        if not self._training:
            return
        super().load_state_dict(moved_to(self.dirpath, state_dict))
        self.mode = state_dict.get("mode", self.mode)
        self._compared_by = state_dict.get("monitor")


def moved_to(directory: str | Path | None, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state of a ModelCheckpoint whose files lie in another directory by now, as those of a run that was moved.

    Args:
        directory: Where they may be.
        state_dict: As it was saved; Lightning forgets what was best where its directory is another.

    Returns:
        The same with the new paths, if none of the files is missing.
    """
    former = state_dict.get("dirpath")
    if not directory or not former or former == directory:
        return state_dict

    def moved(path: str) -> str:
        return (
            str(Path(directory) / Path(path).relative_to(former))
            if path and Path(path).is_relative_to(former)
            else path
        )

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    changed = {name: moved(state_dict[name]) for name in names if name in state_dict}
    best = {moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
    if not all(Path(path).exists() for path in best):
        return state_dict
    return state_dict | changed | {"best_k_models": best, "dirpath": directory}
