"""Settings of a study's cells as arguments of the command line, which checks and resolves them as a person's."""

import json
from typing import Any

from lit_pretrain.errors import UserError

TOP = ("trainer", "model", "data", "seed_everything")


def arguments_of(overrides: dict[str, Any]) -> list[str]:
    """Overrides as arguments: {"model": {"optimizer.learning_rate": 0.1}} is --model.optimizer.learning_rate=0.1.

    Raises:
        UserError: If a key is not below trainer, model or data.
    """
    arguments = []
    for key, value in flatten(overrides):
        if key.split(".")[0] not in TOP:
            raise UserError(f"The override '{key}' is not below trainer, model or data: write it as model.KEY.")
        text = value if isinstance(value, str) else json.dumps(value)
        arguments.append(f"--{key}={text}")
    return arguments


def flatten(overrides: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; a class with its arguments, and an empty mapping, is a value."""
    flat = []
    for key, value in overrides.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value and "class_path" not in value:
            flat += flatten(value, name)
        else:
            flat.append((name, value))
    return flat
