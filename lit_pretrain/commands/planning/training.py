"""A config's own training as it is probed: what would be kept of it, or end it otherwise, is left out."""

import contextlib
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar, Timer

from lit_pretrain.callbacks import Examples, Interruption, LastCheckpoint, MonitorCheck, Panels, Resuming, Summary
from lit_pretrain.cli import lightning_cli
from lit_pretrain.cli.arguments import CONFIG_OPTIONS, values_of
from lit_pretrain.commands.planning.estimate import Course
from lit_pretrain.commands.planning.machine import all_memory, held_to_free_memory, is_out_of_memory
from lit_pretrain.commands.planning.probe import Probe
from lit_pretrain.errors import UserError
from lit_pretrain.tracking.mlflow_logger import MLflowLogger
from lit_pretrain.tracking.paths import resolve_runs_directory, shown_path
from lit_pretrain.tracking.run_record import RunRecorder
from lit_pretrain.tracking.save_config import SaveConfig
from lit_pretrain.tracking.store import load_mlflow
from lit_pretrain.trainer_state import callbacks_of, log_interval_of, set_root_directory

# Callbacks that write, or end a training, or tell of it; a person's own others are measured with it.
LEFT_OUT = (
    *(Checkpoint, EarlyStopping, ProgressBar, Timer, Examples, Interruption, LastCheckpoint, MonitorCheck, Panels),
    *(Resuming, RunRecorder, SaveConfig, Summary),
)
SETTINGS = {"min_steps": "null", "min_epochs": "null", "fast_dev_run": "false"}


class PlanCommandLine(lightning_cli.CommandLine):
    """Probes in the place of a training.

    Attributes:
        probe: With what it has measured.
        course: What the training does beside its steps.
        has_no_end: Whether the config says of no number of steps or epochs.
        is_stopped_early: Whether the config may end it by a metric.
        memory: Bytes of the device.
        cache_bytes: What the data's caches take.
        free_disk: Bytes that are free where checkpoints go, beside the data's caches.
        place: That directory, as it is shown.
    """

    seconds: ClassVar[float] = 45.0
    began: ClassVar[tuple[float, float]] = (0.0, 0.0)
    has_budget: ClassVar[bool] = False
    scratch: ClassVar[str] = ""

    def checkpoint_of_job(self, settings: Any) -> None:
        """None: a job that was queued anew has nothing to do with this."""

    def before_fit(self) -> None:
        """Put the probe in the place of what keeps and ends a training."""
        trainer: Any = self.trainer
        began, wall = self.began
        self.has_no_end = trainer.max_steps in (None, -1) and trainer.fit_loop.max_epochs in (None, -1, 1000)
        clock = getattr(self.model, "clock", None)
        self.has_no_end = self.has_no_end and (clock is None or clock.budget is None) and self.has_budget
        runs = next((logger.runs_directory for logger in trainer.loggers if hasattr(logger, "runs_directory")), None)
        place = resolve_runs_directory(runs)
        place.mkdir(parents=True, exist_ok=True)
        callbacks = callbacks_of(self.trainer)
        self._timers = [callback for callback in callbacks if isinstance(callback, Timer)]
        self._checkpointers = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        self._last = [callback for callback in callbacks if isinstance(callback, LastCheckpoint)]
        self.is_stopped_early = any(isinstance(callback, EarlyStopping) for callback in callbacks)
        self.place = shown_path(place)
        self.probe = Probe(self.seconds, began, place)
        # The last, so that others' work after a validation counts.
        callbacks[:] = [*(one for one in callbacks if not isinstance(one, LEFT_OUT)), self.probe]
        if any(isinstance(logger, MLflowLogger) for logger in trainer.loggers):
            # The run that is left out loads it: seconds, and a tenth of a gigabyte or two.
            load_mlflow()
        trainer.loggers = []
        self._sanity_batches, trainer.num_sanity_val_steps = trainer.num_sanity_val_steps, 0
        set_root_directory(self.trainer, self.scratch)
        prepare = self.datamodule.prepare_data

        def timed_preparation() -> None:
            before = time.perf_counter()
            prepare()
            self.probe.measured.preparation += time.perf_counter() - before
            self.probe.measured.prepared_anew |= any(
                path.stat().st_mtime >= wall - 1.0 for cache in self._caches() for path in cache.glob("*/*")
            )

        self.datamodule.prepare_data = timed_preparation

    def after_fit(self) -> None:
        """Read what the trainer was set to, and what the machine has."""
        trainer: Any = self.trainer
        self.memory = all_memory(trainer.strategy.root_device)
        # The caches have taken theirs by now.
        self.free_disk = float(shutil.disk_usage(self.probe.place).free)
        self.cache_bytes = float(sum(path.stat().st_size for path in mapped_files() if self._is_cached(path)))
        keepers = [callback for callback in self._checkpointers if callback.save_top_k != 0 and callback.monitor]
        kept = sum(callback.save_top_k if callback.save_top_k > 0 else 3 for callback in keepers)
        lasts = int(any(callback.save_last for callback in self._checkpointers))
        seconds = [timer._duration for timer in self._timers if timer._duration is not None]
        schedule = getattr(self.model, "schedule_config", None)
        validates = trainer.val_check_batch is not None
        self.course = Course(
            accumulate=trainer.accumulate_grad_batches,
            batches_per_epoch=float(trainer.num_training_batches),
            check_every=float(trainer.val_check_batch) if validates else math.inf,
            check_seconds=trainer._val_check_time_interval,
            every_epochs=trainer.check_val_every_n_epoch,
            log_every=log_interval_of(self.trainer),
            sanity_batches=int(min(self._sanity_batches, self.probe.measured.validation_batches)),
            kept=kept + lasts,
            per_validation=min(len(keepers), 1) + lasts,
            last_minutes=self._last[0].minutes if self._last else None,
            most_seconds=min(seconds, default=None),
            warm_up=schedule.warm_up if schedule is not None else 0.0,
        )

    def _caches(self) -> list[Path]:
        """Where the data's caches lie."""
        parts = [self.datamodule, *getattr(self.datamodule, "parts", {}).values()]
        return [Path(part.cache_directory) for part in parts if getattr(part, "cache_directory", None)]

    def _is_cached(self, path: Path) -> bool:
        return any(path.is_relative_to(cache.resolve()) for cache in self._caches())


def probed(
    arguments: list[str], seconds: float, steps: int | None, has_budget: bool, began: float, wall: float
) -> PlanCommandLine:
    """Probe the training that `fit` would run with these arguments.

    Args:
        arguments: As for fit.
        seconds: About how long.
        steps: Of the training, in the place of the config's.
        has_budget: Whether a person has told how much time there is.
        began: When the command did, by `time.perf_counter`.
        wall: The same by `time.time`.

    Raises:
        UserError: If they are wrong, or a step does not fit into the memory.
    """
    if not values_of(arguments, *CONFIG_OPTIONS, "--ckpt_path"):
        raise UserError("plan probes a training: add --config FILE, and what else fit would be given.")
    if steps is not None:
        arguments = [*arguments, "--trainer.max_steps", str(steps)]
    for name, value in SETTINGS.items():
        arguments = [*arguments, f"--trainer.{name}", value]
    PlanCommandLine.seconds, PlanCommandLine.began = seconds, (began, wall)
    PlanCommandLine.has_budget = has_budget
    with (
        tempfile.TemporaryDirectory(prefix="lit-pretrain-plan-") as PlanCommandLine.scratch,
        memory_limit(),
        warnings.catch_warnings(),
    ):
        # Those of the training's callbacks that are left out.
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        try:
            return cast(PlanCommandLine, lightning_cli.command_line(["fit", *arguments], PlanCommandLine))
        except Exception as error:
            if is_out_of_memory(error):
                raise UserError(
                    f"A step of this training does not fit into the memory that is free "
                    f"({' '.join(str(error).split())[:150]}): lower data.batch_size (a contrastive model.chunk_size "
                    "keeps the batch), set model.gradient_checkpointing, or make the model smaller."
                ) from error
            raise


def memory_limit() -> Any:
    """Hold a training on the CPU to the memory that is free; a GPU refuses by itself, and maps more than it takes."""
    return contextlib.nullcontext() if torch.cuda.is_available() else held_to_free_memory()


def mapped_files() -> list[Path]:
    """Files that this process has mapped, by which caches are read; none where the system does not tell."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(errors="replace").splitlines() if maps.is_file() else []
    names = {found[1] for line in lines if (found := re.search(r"\s(/.*)$", line))}
    return [Path(name) for name in names if os.path.isfile(name)]
