"""Refuses a metric to watch that no validation logs, before the training rather than at its first validation."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lit_pretrain.errors import UserError, nearest
from lit_pretrain.trainer_state import callbacks_of

STAGE = "validation/"


class MonitorCheck(Callback):
    """Looks at what Lightning's check of two validation batches has logged.

    Metrics of the training are not there yet, and are not looked for.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the metrics that callbacks watch with those that are logged.

        Raises:
            UserError: If one is missing.
        """
        logged = [name for name in trainer.callback_metrics if name.startswith(STAGE)]
        for callback in callbacks_of(trainer):
            monitor = getattr(callback, "monitor", None)
            if not isinstance(callback, EarlyStopping | ModelCheckpoint) or not logged or not monitor:
                continue
            if monitor.startswith(STAGE) and monitor not in logged and getattr(callback, "strict", True):
                raise UserError(
                    f"{type(callback).__name__} watches {monitor}, which is not logged{nearest(monitor, logged)}: set "
                    f"its monitor to one of {', '.join(logged)}."
                )
