"""The data of an evaluation: a data module from settings, as `fit` would build it."""

import json
from typing import Any

from lightning import LightningDataModule

from lit_pretrain.cli.config_errors import explain
from lit_pretrain.cli.lightning_cli import ConfigError, Parser, raise_user_error_within, read_config
from lit_pretrain.errors import UserError


def make_data(config: str | None, settings: list[str], default_class: str) -> LightningDataModule:
    """Build a data module as `fit` would.

    Args:
        config: A config of which only `data` is used, or null.
        settings: What the command line says of the data, as in ["--data.batch_size", "64"]; it wins. With a class
            (`--data CLASS`) the config's data is left alone.
        default_class: Class of the data if neither names one.

    Raises:
        UserError: If a setting is wrong, or nothing says which data.
    """
    names_class = any(setting == "--data" or setting.startswith("--data=") for setting in settings)
    section: Any = None
    if config is not None and not names_class:
        content = read_config(config)
        section = content.get("data")
        if isinstance(section, dict) and content.get("seed_everything") not in (None, True, False):
            # Which samples a label budget draws goes by the training's seed.
            arguments = section.get("init_args") or {}
            if arguments.get("seed") is None:
                section = section | {"init_args": arguments | {"seed": content["seed_everything"]}}
    if section is None and not settings:
        raise UserError(
            "Nothing says on which data to evaluate: give --config FILE with a data section, or --data.KEY VALUE."
        )
    if section is None and not names_class:
        section = {"class_path": default_class}
    arguments = ["--config", json.dumps({"data": section})] if section is not None else []
    parser = Parser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    Parser.messages.clear()
    try:
        return parser.instantiate_classes(parser.parse_args([*arguments, *settings])).data
    except ConfigError as error:
        raise UserError(explain(Parser.messages, [config] if config else [])) from error
    except ValueError as error:
        raise_user_error_within(error)
        raise
