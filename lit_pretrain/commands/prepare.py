"""Prepare the data of a training before it: read the sources, train or load the tokenizer, build the caches."""

import argparse
import time
from typing import Any

from lit_pretrain.errors import UserError

# Where `__main__` puts the arguments that are fit's.
TRAINING_ARGUMENTS = "training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say that all options are as for fit."""
    parser.usage = f"{parser.prog} --config FILE [--KEY VALUE ... as for fit]"


def run(arguments: argparse.Namespace) -> int:
    """Build what a training would build before its first step.

    Raises:
        UserError: If the config is wrong, or the data cannot be read.
    """
    from lit_pretrain.cli import lightning_cli
    from lit_pretrain.cli.arguments import CONFIG_OPTIONS, values_of

    if not values_of(arguments.training, *CONFIG_OPTIONS):
        raise UserError("prepare builds what a training needs: add --config FILE, and what else fit would be given.")

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

    lightning_cli.command_line(["fit", *arguments.training, "--trainer.logger", "false"], Preparation)
    return 0
