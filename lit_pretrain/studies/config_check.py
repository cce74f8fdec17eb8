"""Resolves configs, and makes what they name, without training, for a process of a study: mistakes come up at once."""

import json
from typing import Any

from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.errors import UserError


class Resolver(CommandLine):
    """The command line up to where all settings are known, in `config_dump`; `--print_config` parses them twice."""

    def instantiate_classes(self) -> None:
        """Make nothing."""
        self._dump_config()

    def _run_subcommand(self, subcommand: str) -> None:
        return


class Maker(CommandLine):
    """The command line up to where a command would begin: trainer, data and module are made."""

    def _run_subcommand(self, subcommand: str) -> None:
        return


def first_fault(configs: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The first of some configs that cannot be used, by its place, and why; null if all can."""
    for place, config in enumerate(configs):
        try:
            command_line(["fit", "--config", json.dumps(config)], Maker)
        except UserError as error:
            return place, str(error)
        except Exception as error:  # whatever somebody else's class raises
            return place, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None
