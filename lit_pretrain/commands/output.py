"""Where commands write what they print: looked at before anything slow."""

from pathlib import Path

from lit_pretrain.errors import UserError


def check_writable(path: Path) -> None:
    """See that the JSON file can be written, before anything slow.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another file to --json.") from error
