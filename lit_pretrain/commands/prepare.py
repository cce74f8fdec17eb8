"""Prepare the data of a training before it: read the sources, train or load the tokenizer, build the caches."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pretrain.commands.engine import add_engine_arguments, check_engine, engine
from lit_pretrain.errors import UserError, counted

# Where `__main__` puts the arguments that are fit's.
TRAINING_ARGUMENTS = "training"
# The caches are the same whatever trains on them, and may be built where there is no accelerator.
ALONE = {
    "accelerator": "cpu",
    "devices": "1",
    "num_nodes": "1",
    "strategy": "auto",
    "precision": "32-true",
    "fast_dev_run": "false",
    "logger": "false",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own options; all others are as for fit."""
    parser.usage = (
        f"{parser.prog} --config FILE [--KEY VALUE ... as for fit] [--engine ray [--address A]] [--threads N]"
    )
    add_engine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build what a training would build before its first step.

    Raises:
        UserError: If the config is wrong, the data cannot be read, or a cluster cannot be used.
    """
    from lit_pretrain.cli.arguments import CONFIG_OPTIONS, values_of

    if not values_of(arguments.training, *CONFIG_OPTIONS):
        raise UserError("prepare builds what a training needs: add --config FILE, and what else fit would be given.")
    check_engine(arguments)
    if arguments.engine == "local":
        if arguments.threads:
            # What the tokenizers' library goes by.
            os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
        prepare(arguments.training)
        return 0
    from lit_pretrain.data.disk_cache import Workers, workers

    with engine(arguments, print) as cluster:
        needs = cluster.needs_of_part

        def run_all(function: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
            print(f"The cluster builds {counted(len(calls), 'part')}.", flush=True)
            logs = [Path(f"{place}.log") for place, *_ in calls]
            cluster.call_all(function, list(zip(calls, logs, strict=True)), needs, "part of a cache")

        before = workers.set(Workers(run_all, cluster.threads))
        try:
            prepare(arguments.training)
        finally:
            workers.reset(before)
    return 0


def prepare(arguments: list[str]) -> None:
    """The same with the arguments of `fit`, by this process or by `disk_cache.workers`."""
    from lit_pretrain.cli import lightning_cli

    class Preparation(lightning_cli.CommandLine):
        """Prepares the data in the place of a training."""

        def checkpoint_of_job(self, settings: Any) -> None:
            """None: a job that was queued anew has nothing to do with this."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Prepare and set up the data as Lightning would, and tell how long it took."""
            trainer: Any = self.trainer
            trainer.strategy.connect(self.model)
            trainer._data_connector.attach_data(self.model, datamodule=self.datamodule)
            began = time.perf_counter()
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")
            print(f"Prepared in {time.perf_counter() - began:.1f} seconds.")

    settings = [word for name, value in ALONE.items() for word in (f"--trainer.{name}", value)]
    lightning_cli.command_line(["fit", *arguments, *settings], Preparation)
