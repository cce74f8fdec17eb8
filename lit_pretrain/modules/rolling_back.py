"""Going back to the last checkpoint where gradients are not finite (`model.non_finite: roll_back`), counted.

A step that breaks is often the end of some that have led there: the weights have run off before the loss says so. Large
trainings start anew from an earlier checkpoint then and leave the batches between out (Chowdhery et al. 2022,
arXiv:2204.02311, section 5.1). This does so without a new start: what is trained becomes that of the last checkpoint
again, and steps, samples, schedule and logs go on.
"""

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_pretrain.errors import UserError
from lit_pretrain.modules import sparse_embeddings
from lit_pretrain.trainer_state import callbacks_of, is_fast_run

# Times that one checkpoint is gone back to before a training is given up.
MOST_TO_ONE = 3
# Files that are remembered; a training's best ones are deleted again.
REMEMBERED = 8


class RollBacks:
    """How often a training has gone back, and where it can go back to.

    Attributes:
        total: Of the training, and of the one that it goes on with.
        in_a_row: Since a checkpoint was saved of steps that were not undone.
        is_due: Whether the step that ends is to be undone.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self.is_due = False
        self._has_moved = False
        self._paths: list[str] = []

    def note_step(self, finite: bool) -> None:
        """Take in how a step went."""
        self._has_moved = finite
        self.is_due = not finite
        self.total += not finite
        self.in_a_row += not finite

    def note_checkpoint(self, path: str) -> None:
        """Take in that a checkpoint is saved or was resumed from."""
        self._paths = [former for former in self._paths if former != path][1 - REMEMBERED :] + [path]
        if self._has_moved:
            self.in_a_row = 0

    def state(self) -> dict[str, int]:
        """The counts, as a checkpoint has them that is being saved."""
        return {"total": self.total, "in_a_row": 0 if self._has_moved else self.in_a_row}

    def latest(self, trainer: Trainer) -> str | None:
        """The checkpoint to go back to, the same in all processes; null if there is none; collective."""
        # A plugin may still be writing.
        trainer.strategy.checkpoint_io.teardown()
        found = next((path for path in reversed(self._paths) if os.path.isfile(path)), None)
        return trainer.strategy.broadcast(found)


def check_roll_back(trainer: Trainer) -> None:
    """Refuse to train with roll-backs where there is nothing to go back to, or nothing that could be put back.

    Raises:
        UserError: In one sentence.
    """
    if is_fast_run(trainer):
        return
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks_of(trainer)):
        raise UserError(
            "model.non_finite roll_back goes back to the last checkpoint, and this training keeps none "
            "(trainer.enable_checkpointing): take skip, or keep checkpoints."
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            "model.non_finite roll_back puts whole weights back, which trainer.strategy "
            f"{type(trainer.strategy).__name__} cuts into shards: take skip, or ddp."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UserError(
            "model.non_finite roll_back cannot tell a step that breaks from one whose scale is too large, which "
            "trainer.precision 16-mixed leaves out by itself: take bf16-mixed."
        )


@torch.no_grad()
def put_back(trainer: Trainer, module: LightningModule, path: str) -> dict[str, Any]:
    """Make weights, buffers and the optimiser's moments those of a checkpoint; each process reads it.

    The optimiser's settings, its learning rates too, stay as they are.

    Returns:
        The checkpoint.
    """
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    # What is still to be multiplied with a table belongs to the numbers that are given up.
    sparse_embeddings.settle(module)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    (optimizer,) = trainer.optimizers
    (state,) = checkpoint["optimizer_states"]
    optimizer.load_state_dict(state)
    return checkpoint
