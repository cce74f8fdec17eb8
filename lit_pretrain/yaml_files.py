"""YAML files that a person writes, read with a sentence on what is wrong with one."""

from pathlib import Path
from typing import Any

import yaml

from lit_pretrain.errors import UserError

# Ten times as fast, where PyYAML was built with it.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """What a text in YAML holds.

    Raises:
        yaml.YAMLError: If it is not YAML; in the words of PyYAML's own loader.
    """
    try:
        return yaml.load(text, Loader=FAST_LOADER)
    except yaml.YAMLError:
        return yaml.safe_load(text)


def read_yaml(path: str | Path, what: str) -> Any:
    """What a YAML file holds.

    Args:
        path: The file.
        what: It is, for messages: "config", "study".

    Raises:
        UserError: If it cannot be read, or is not YAML.
    """
    try:
        return load_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read ({error.strerror}): check its path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"The {what} {path} is not valid YAML{where} ({problem}): correct it.") from error
