"""Ctrl-C and SIGTERM end a training in order: the step is finished, last.ckpt is written, the run is marked killed.

Lightning turns SIGTERM into exit status 0 and saves nothing on Ctrl-C. Here the process ends with 130 (SIGINT) or 143
(SIGTERM), as shells expect, and `--ckpt_path last` goes on with the very next batch. A second Ctrl-C stops at once.

SLURM's signal before a job's time is up (SIGUSR1, `sbatch --signal=SIGUSR1@90`) ends it in the same way, with 138, and
the job is queued anew; Lightning would save in the middle of a step, into the working directory.
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
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_pretrain.callbacks.end_page import going_on
from lit_pretrain.callbacks.progress import end_bar
from lit_pretrain.tracking.run_record import checkpointers, keeper_of_last, mlflow_logger, run_directory
from lit_pretrain.tracking.slurm import mark_requeued, requeue, requeue_signal
from lit_pretrain.trainer_state import is_fast_run

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_FLUSH = 10.0
# More than any signal's number.
FIRST = 1000
# Some launchers pass on a signal that the process has already got from the terminal.
SAME_SIGNAL_SECONDS = 0.5


class Interrupted(SystemExit):
    """The training was ended by a signal; as an exit it carries the shell's status for that signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_name = signal.Signals(signal_number).name


class Interruption(Callback):
    """Handles SIGINT, SIGTERM and SLURM's signal for queueing anew while the trainer runs.

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
        self._requeue_signal: int | None = None

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
            self._requeue_signal = None
            if stage == "fit":
                self._requeue_signal = requeue_signal(trainer._accelerator_connector.cluster_environment)
            signals = SIGNALS if self._requeue_signal is None else (*SIGNALS, self._requeue_signal)
            self._previous = {number: signal.getsignal(number) for number in signals}
            self._install()

    def _install(self) -> None:
        for number in self._previous:
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
        elif self.requested == self._requeue_signal and number == signal.SIGTERM:
            # Time is up in the middle of a long step: until SLURM kills, there is a chance to save it.
            return
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
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None  # within an epoch
        if loop._should_check_val_fx(fetcher):
            # Stopping at its start, a moment from now, makes the resumed run begin with this validation.
            return
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the validation if asked to."""
        if not self._in_loop:
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
        # Where one is asked to stop and another to be queued anew, all are queued anew.
        first = FIRST if self.requested is not None and self.requested == self._requeue_signal else 0
        request = torch.tensor((self.requested or 0) + first)
        torch.distributed.all_reduce(request, torch.distributed.ReduceOp.MAX, group=self._group)
        self.requested = int(request) % FIRST or None
        return self.requested is not None

    def _stop(self, trainer: Trainer, in_validation: bool = False) -> None:
        number = self.requested
        assert number is not None
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
            end_bar(trainer)
            where = f"Interrupted by {exception.signal_name} at step {trainer.global_step}"
            if not self.saved_to:
                where += "; nothing was saved since the last checkpoint"
            command = going_on(trainer) if trainer.is_global_zero and not is_fast_run(trainer) else None
            rank_zero_info(f"{where}; go on with: {command}" if command is not None else f"{where}.")
            if exception.code == 128 + (self._requeue_signal or 0):
                self._queue_anew(trainer)

    def _queue_anew(self, trainer: Trainer) -> None:
        """Let SLURM start the job again, once all is written that it will go on with."""
        if threading.current_thread() is threading.main_thread():
            # Queueing anew ends this process, which is about to end by itself.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not trainer.is_global_zero:
            return
        # A plugin may still be writing the checkpoint.
        trainer.strategy.checkpoint_io.teardown()
        logger = mlflow_logger(trainer)
        if logger is not None:
            logger.flush(SECONDS_TO_FLUSH)
        if (directory := run_directory(trainer)) is not None:
            mark_requeued(directory)
        problem = requeue()
        if problem is None:
            rank_zero_info("The job is queued anew, and goes on with this run.")
        else:
            rank_zero_warn(f"The job cannot be queued anew ({problem}): start it again, with --ckpt_path last.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._in_loop = False
        self._restore()


def last_checkpoint_path(trainer: Trainer) -> str | None:
    """Where a last.ckpt is kept; null if this training keeps no checkpoints.

    The callback that keeps it is told, so that it goes on with the same file when the run is resumed.
    """
    callback = keeper_of_last(trainer) or next(iter(checkpointers(trainer)), None)
    if callback is None or is_fast_run(trainer) or callback.dirpath is None:
        return None
    name = callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION
    callback.last_model_path = callback.last_model_path or str(Path(callback.dirpath) / name)
    return callback.last_model_path
