"""What a whole `fit` costs beside its bare training steps: loader, Lightning's loop, metrics, MLflow.

Both train the same model on the bundled speeches; the bare step repeats one of the loader's batches. The bare step is
timed before and after the fit, so that a machine that drifts cannot favour either.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule

from lit_pretrain.backbone import TextEncoder, TransformerConfig
from lit_pretrain.commands.benchmarks.contest import Contestant, hold
from lit_pretrain.commands.benchmarks.step import our_step
from lit_pretrain.data import DocumentDataModule
from lit_pretrain.modules import TextPretraining
from lit_pretrain.objectives import MaskedLanguageModeling, NextSentencePrediction
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


def measure_fit(arguments: argparse.Namespace, size: str, precision: str, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds a step of a fit of one size and of its bare step.

    Args:
        arguments: The benchmark's.
        size: BERT's name of the size.
        precision: Lightning's name of the precision.
        dtype: The same as a type.

    Returns:
        A row.
    """
    steps = WARM_UP_STEPS + max(20, round(arguments.rounds * arguments.seconds / 0.2))
    with tempfile.TemporaryDirectory() as directory, runs_in(directory):
        data = DocumentDataModule(
            vocabulary_size=arguments.vocabulary_size,
            sequence_length=arguments.sequence_length,
            batch_size=arguments.batch_size,
        )
        data.setup("fit")
        encoder = TextEncoder(size=size, transformer=dropout_config(arguments), max_positions=512)
        module = TextPretraining(
            encoder, [MaskedLanguageModeling(), NextSentencePrediction()], compile_blocks=not arguments.no_compile
        )
        clock = Clock()
        trainer = Trainer(
            max_steps=steps, precision=precision, limit_val_batches=0, log_every_n_steps=10, callbacks=[clock]
        )
        batch = data.batch_at(0, 0)
        batch.pop("sample_id")
        batch = {name: value.to(trainer.strategy.root_device) for name, value in batch.items()}
        bare = our_step(arguments, size, batch, dtype, compiled=not arguments.no_compile)[0]
        hold([bare], arguments.rounds, arguments.seconds, kept=True)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(module, data)
        hold([bare], arguments.rounds, arguments.seconds, kept=True)
    return fit_row(size, precision, clock, bare, arguments)


def fit_row(size: str, precision: str, clock: Clock, bare: Contestant, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was measured, as a row."""
    fitted, median = clock.seconds_per_step(), statistics.median(bare.kept_seconds)
    return {
        "size": size,
        "contestant": "whole fit",
        "precision": precision,
        "milliseconds_per_step": fitted * 1e3,
        "milliseconds_per_bare_step": median * 1e3,
        "tokens_per_second": arguments.batch_size * arguments.sequence_length / fitted,
        "share_of_bare_step": median / fitted,
    }


def dropout_config(arguments: argparse.Namespace) -> TransformerConfig:
    """The benchmark's dropout."""
    return TransformerConfig(dropout=arguments.dropout, attention_dropout=arguments.dropout)


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
