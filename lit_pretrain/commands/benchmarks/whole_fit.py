"""What a whole `fit` costs beside its bare training steps: loader, augmentation, Lightning's loop, metrics, MLflow.

Both train the same model on the same data; the bare step repeats one of the loader's batches. It is timed before and
after the fit, so that a machine that drifts cannot favour either.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning import Callback, LightningDataModule, LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_pretrain.commands.benchmarks.contest import Contestant, hold
from lit_pretrain.commands.benchmarks.setting import Setting
from lit_pretrain.commands.benchmarks.tables import Row
from lit_pretrain.memory import keep_memory
from lit_pretrain.modules.pretraining import Pretraining
from lit_pretrain.trainer import Trainer

# Steps before the clock starts: the first ones make caches and connections.
WARM_UP_STEPS = 10


@dataclass
class Clock(Callback):
    """Notes when each step has ended."""

    ends: list[float] = field(default_factory=list)

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        """Mean over all steps but the first ones: what stands between steps counts too."""
        return (self.ends[-1] - self.ends[WARM_UP_STEPS - 1]) / (len(self.ends) - WARM_UP_STEPS)


def measure_fit(
    arguments: argparse.Namespace,
    setting: Setting,
    make: Callable[[], tuple[LightningModule, LightningDataModule]],
    make_bare: Callable[[dict[str, Tensor]], Contestant],
    amount: float,
    unit: str,
) -> Row:
    """Seconds a step of a fit and of its bare step.

    Args:
        arguments: The benchmark's.
        setting: Its device and precision.
        make: Makes what is trained and the data; caches and runs land in a directory that is removed afterwards.
        make_bare: Makes the bare step for a batch that the objectives can read.
        amount: How many of the unit a step works off.
        unit: What is worked off.

    Returns:
        A row, but for what tells it from others.
    """
    keep_memory()
    with tempfile.TemporaryDirectory() as directory, runs_in(directory):
        module, data = make()
        data.prepare_data()
        data.setup("fit")
        batch = move_data_to_device(cast(Any, data).batch_at(0, 0), setting.device)
        if isinstance(module, Pretraining):
            batch = module.prepare(batch, torch.Generator(device=setting.device))
        bare = make_bare(batch)
        hold([bare], arguments.rounds, arguments.seconds, kept=True)
        # About as long as the bare step is timed.
        steps = round(arguments.rounds * arguments.seconds / statistics.median(bare.kept_seconds))
        clock = Clock()
        trainer = Trainer(
            accelerator=setting.device.type,
            devices=1,
            max_steps=WARM_UP_STEPS + max(20, steps),
            precision=cast(Any, setting.precision),
            limit_val_batches=0,
            log_every_n_steps=10,
            callbacks=[clock],
        )
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # Without validation there is no best checkpoint.
            warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
            trainer.fit(module, data)
        hold([bare], arguments.rounds, arguments.seconds, kept=True)
    fitted, median = clock.seconds_per_step(), statistics.median(bare.kept_seconds)
    return {
        "contestant": "whole fit",
        "precision": setting.precision,
        "milliseconds_per_step": fitted * 1e3,
        "milliseconds_per_bare_step": median * 1e3,
        f"{unit}_per_second": amount / fitted,
        "share_of_bare_step": median / fitted,
    }


@contextlib.contextmanager
def runs_in(directory: str) -> Any:
    """Let runs land in a directory for a while, not among the person's own."""
    names = ("LIT_PRETRAIN_RUNS", "MLFLOW_TRACKING_URI")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["LIT_PRETRAIN_RUNS"] = directory
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
