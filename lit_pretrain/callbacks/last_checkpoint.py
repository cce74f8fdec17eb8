"""Keeps last.ckpt young, and makes it the end of the training where the steps run out in the middle of an epoch."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.callbacks.interruption import last_checkpoint_path
from lit_pretrain.errors import check_number
from lit_pretrain.tracking.run_record import keeper_of_last
from lit_pretrain.trainer_state import log_interval_of


class LastCheckpoint(Callback):
    """Saves last.ckpt after the very last step, and in between where the last save was long ago.

    Lightning's ModelCheckpoint saves when a validation or an epoch ends; a training that ends at `max_steps` between
    two of them would leave a last.ckpt of some steps before, and one whose validations are hours apart would lose hours
    to a power cut. Saving here, as the step ends and not as the training does, keeps the place within the epoch, so
    that the training can go on from it exactly.

    Args:
        minutes: Longest time without a save, looked at when logs are written; null for none in between.
    """

    def __init__(self, minutes: float | None = 15.0) -> None:
        check_number("LastCheckpoint.minutes", minutes, above=0)
        self.minutes = minutes
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on time counts."""
        self._saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever saves, the clock starts again."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if no step follows, or if it is time."""
        if keeper_of_last(trainer) is None:
            return
        if not is_last_step(trainer) and not self._is_time(trainer):
            return
        target = last_checkpoint_path(trainer)
        if target is not None:
            trainer.save_checkpoint(target, weights_only=False)
            # Else it is saved once more when the training has ended, and says that the epoch is over. Where `last.ckpt`
            # is a link to a checkpoint, this names that one, which `last.ckpt` itself cannot be.
            keeper = keeper_of_last(trainer)
            if keeper is not None and keeper.save_last != "link":
                keeper._last_checkpoint_saved = str(target)

    def _is_time(self, trainer: Trainer) -> bool:
        """Whether the last save was long ago; all ranks get the first one's answer."""
        if self.minutes is None or trainer.global_step % log_interval_of(trainer):
            return False
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return False
        overdue = time.monotonic() - self._saved_at >= 60 * self.minutes
        return bool(trainer.strategy.broadcast(overdue)) if trainer.world_size > 1 else overdue


def is_last_step(trainer: Trainer) -> bool:
    """Whether the step that ends is the training's last, by `max_steps`, `max_epochs`, `max_time` or a callback."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.should_stop and trainer.fit_loop._can_stop_early:
        return not loop._should_accumulate()
    if 0 <= loop.max_steps <= trainer.global_step:
        return not loop._should_accumulate()
    last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return last_epoch and loop._num_ready_batches_reached()
