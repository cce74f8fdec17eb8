"""Where commands write what they print: looked at before anything slow, written whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import write_atomically


def check_writable(path: Path, option: str = "--json") -> None:
    """See that the file of an option can be written, before anything slow.

    Raises:
        UserError: If it cannot be written.
    """
    there = path.exists()
    try:
        path.open("a").close()
        if not there:  # a command that fails leaves no empty file
            path.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another file to {option}.") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write what `--json` asks for, null for what is not finite; an interrupted write leaves what was there."""
    path, text = Path(path), json.dumps(finite(content), indent=2, allow_nan=False) + "\n"
    if path.exists() and not path.is_file():
        # A pipe or /dev/stdout, in whose place no file should be put.
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path.resolve(), text)


def finite(content: Any) -> Any:
    """The content with None for every float that is not finite, at any depth: JSON has no NaN and no infinity."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
