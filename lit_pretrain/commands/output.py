"""Where commands write what they print: looked at before anything slow, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from lit_pretrain.errors import UserError
from lit_pretrain.tracking.paths import write_atomically


def check_writable(path: Path) -> None:
    """See that the JSON file can be written, before anything slow.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another file to --json.") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write what `--json` asks for; an interrupted write leaves what was there."""
    path, text = Path(path), json.dumps(content, indent=2) + "\n"
    if path.exists() and not path.is_file():
        # A pipe or /dev/stdout, in whose place no file should be put.
        path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path.resolve(), text)
