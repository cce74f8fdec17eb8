"""Makes what configs name without training, for a process of a study: wrong types and values come up at once."""

import json
from typing import Any

from lit_pretrain.cli.lightning_cli import CommandLine, command_line
from lit_pretrain.errors import UserError


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
