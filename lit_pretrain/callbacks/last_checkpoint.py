"""Makes last.ckpt the end of the training, also where the steps run out in the middle of an epoch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_pretrain.callbacks.interruption import last_checkpoint_path


class LastCheckpoint(Callback):
    """Saves last.ckpt after the very last step.

    Lightning's ModelCheckpoint saves when a validation or an epoch ends; a training that ends at `max_steps` between
    two of them would leave a last.ckpt of some steps before. Saving here, as the step ends and not as the training
    does, keeps the place within the epoch, so that a longer training can go on from it.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if no step follows."""
        checkpoint = trainer.checkpoint_callback
        if not isinstance(checkpoint, ModelCheckpoint) or not checkpoint.save_last or not is_last_step(trainer):
            return
        target = last_checkpoint_path(trainer)
        if target is not None:
            trainer.save_checkpoint(target, weights_only=False)


def is_last_step(trainer: Trainer) -> bool:
    """Whether the step that ends is the training's last, by `max_steps` or `max_epochs`."""
    loop = trainer.fit_loop.epoch_loop
    if 0 <= loop.max_steps <= trainer.global_step:
        return not loop._should_accumulate()
    last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return last_epoch and loop._num_ready_batches_reached()
