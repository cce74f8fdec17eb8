"""Shows what each objective on pictures asks and what the model answers: a panel each, as charts in MLflow."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.errors import UserError
from lit_pretrain.modules.strategies import gathered
from lit_pretrain.tracking.run_record import run_files


class Panels(Callback):
    """Logs the pictures of the module's `panels()`, always of the same validation pictures.

    Args:
        count: Pictures of a panel.
        every_n_steps: Optimiser steps between panels; null for one after every validation.
    """

    def __init__(self, count: int = 8, every_n_steps: int | None = None) -> None:
        if count < 1 or (every_n_steps is not None and every_n_steps < 1):
            raise UserError(f"Panels.count is {count} and every_n_steps {every_n_steps}: give at least 1.")
        self.count = count
        self.every_n_steps = every_n_steps
        self._logged_step = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, if that is when it is asked for; the check before the training shows the untrained model."""
        if self.every_n_steps is None or trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, every so many steps."""
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            self._log(trainer, pl_module)

    @torch.no_grad()
    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        files, panels = run_files(trainer), getattr(pl_module, "panels", None)
        step = trainer.global_step
        if files is None or not callable(panels) or step == self._logged_step:
            return
        self._logged_step = step
        # Every rank draws, since a sharded model can only be run by all together; only rank zero's are kept.
        whole = gathered(pl_module if trainer.strategy.model is None else trainer.strategy.model)
        with whole, trainer.precision_plugin.forward_context():
            drawn = panels(self.count)
        for name, picture in drawn.items():
            if trainer.is_global_zero:
                files.log_picture(picture, f"panels/{name}", step)
