"""What callbacks that measure something after validations have in common: when they do, and where the figures go."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_pretrain.memory import given_back_memory
from lit_pretrain.tracking.run_record import log_figures


class Measurement(Callback):
    """Measures after every so many validations and logs what was found; a resumed run counts on.

    Args:
        every_n_validations: Validations between two measurements.
    """

    def __init__(self, every_n_validations: int) -> None:
        self.every_n_validations = every_n_validations
        self._validations = 0

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """What is found, by metric; for subclasses."""
        raise NotImplementedError

    def chance(self) -> dict[str, float]:
        """What the latest figures are without learning, by metric; those that are known."""
        return {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if it is time."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        with given_back_memory():
            metrics = self.figures(trainer, pl_module)
        log_figures(trainer, metrics)
        # Where the progress bar, the closing table and checkpoints find them.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self._validations = state_dict["validations"]
