"""A training as slow as a kill script wants it, which notes where it is."""

import os
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Pace(Callback):
    """Lets no step be shorter than so many seconds, and writes the number of steps done to a file.

    Args:
        seconds: Of a step, at least.
        path: The file.
    """

    def __init__(self, seconds: float, path: str) -> None:
        self.seconds, self.path = seconds, Path(path)
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Wait, and note."""
        time.sleep(max(0.0, self._began + self.seconds - time.monotonic()))
        self._began = time.monotonic()
        other = self.path.with_suffix(".new")
        other.write_text(str(trainer.global_step))
        os.replace(other, self.path)
