"""Ctrl-C and SIGTERM end a training in order: the step is finished, last.ckpt is written, the run is marked killed.

Lightning turns SIGTERM into exit status 0 and saves nothing on Ctrl-C. Here the process ends with 130 (SIGINT) or 143
(SIGTERM), as shells expect, and `--ckpt_path last` goes on with the very next batch. A second Ctrl-C stops at once.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_pretrain.tracking.paths import shown_path

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Some launchers pass on a signal that the process has already got from the terminal.
SAME_SIGNAL_SECONDS = 0.5


class Interrupted(SystemExit):
    """The training was ended by a signal; as an exit it carries the shell's status for that signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption(Callback):
    """Handles SIGINT and SIGTERM while the trainer runs; SLURM's own signal for queueing anew stays Lightning's.

    With several processes all must stop after the same step, so they agree on it after every optimiser step; then an
    interruption waits for the end of a validation.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.saved_to: str | None = None
        self._requested_at = 0.0
        self._in_loop = False
        self._previous: dict[int, Any] = {}
        self._group: Any = None
        self._rank = 0
        self._process_id = 0
        self._launcher: Any = None
        self._validation_total: int | None = None
        self._saving_in_validation = False

    # -- signals

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the signals over; until the first step there is nothing to save, so they stop at once."""
        self.requested, self.saved_to, self._in_loop = None, None, False
        self._rank, self._launcher = trainer.global_rank, trainer.strategy.launcher
        self._process_id = os.getpid()
        if trainer.world_size > 1 and self._group is None:
            # On the CPU, so that asking after every step never makes a GPU wait.
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
            self._install()

    def _install(self) -> None:
        if self._previous:
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if handler is not None:
                signal.signal(number, handler)
        self._previous = {}

    def _take_over(self, trainer: Trainer) -> None:
        """Put Lightning's handler, registered since `setup`, aside: its way of stopping skips the checkpoint."""
        if self._previous:
            self._install()
            # These are what Lightning puts back at the end.
            trainer._signal_connector._original_handlers.update(self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            # A loader's worker, forked with this handler. A terminal's Ctrl-C reaches it too, but it must go on to
            # feed the step that is being finished; its parent ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if not self._in_loop:
            raise Interrupted(number)
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._requested_at = number, now
            if number == signal.SIGTERM and self._launcher is not None and hasattr(self._launcher, "kill"):
                self._launcher.kill(number)
            if self._rank == 0:
                # Straight to the file descriptor: a signal may arrive in the middle of a print.
                os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")
        elif now - self._requested_at > SAME_SIGNAL_SECONDS and (number == signal.SIGINT or self._rank == 0):
            raise Interrupted(number)

    # -- the loop

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has registered its handlers by now."""
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._take_over(trainer)
        self._in_loop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked to, unless gradients are being accumulated or a validation is due."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or not self._agreed(trainer):
            return
        if loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            # Stopping at its start, a moment from now, makes the resumed run begin with this validation.
            return
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the validation if asked to."""
        if not self._in_loop or trainer.sanity_checking:
            return
        self._validation_total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed
        if self._agreed(trainer):
            self._stop(trainer, in_validation=True)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within the validation if asked to; several processes may have unequal numbers of batches, so wait."""
        if self._in_loop and self.requested is not None and trainer.world_size == 1:
            self._stop(trainer, in_validation=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation is over."""
        self._validation_total = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is no step to wait for any more."""
        self._in_loop = False

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer at the same step."""
        if trainer.world_size == 1:
            return self.requested is not None
        asked = torch.tensor(self.requested or 0)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group)
        self.requested = int(asked) or None
        return self.requested is not None

    def _stop(self, trainer: Trainer, in_validation: bool = False) -> None:
        number = self.requested
        target = last_checkpoint_path(trainer)
        if target is not None:
            self._saving_in_validation = in_validation
            trainer.save_checkpoint(target, weights_only=False)
            self._saving_in_validation = False
            self.saved_to = target
        raise Interrupted(number)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Within a validation, record it as begun with no batch done: the resumed run then does the whole of it."""
        if not self._saving_in_validation:
            return
        done = self._validation_total or 0
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = {
            "total": {name: done + count for name, count in begun.items()},
            "current": begun,
            "is_last_batch": False,
        }

    # -- the end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say where things stand, and give the signals back."""
        self._in_loop = False
        self._restore()
        if isinstance(exception, Interrupted):
            where = f"Interrupted by {exception.signal_name} at step {trainer.global_step}"
            if self.saved_to:
                rank_zero_info(f"{where}; go on with --ckpt_path {shown_path(self.saved_to)}")
            else:
                rank_zero_info(f"{where}; nothing was saved since the last checkpoint.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._in_loop = False
        self._restore()


def last_checkpoint_path(trainer: Trainer) -> str | None:
    """Where the trainer's ModelCheckpoint keeps its last.ckpt; null if this training keeps no checkpoints.

    The callback is told, so that it goes on with the same file when the run is resumed.
    """
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or trainer.fast_dev_run or callback.dirpath is None:
        return None
    name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
    callback.last_model_path = callback.last_model_path or str(Path(callback.dirpath) / name)
    return callback.last_model_path
