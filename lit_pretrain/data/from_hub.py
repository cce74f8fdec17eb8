"""Data sets by their name on the Hugging Face hub, or their copies in its cache where the hub cannot be reached."""

import contextlib
from collections.abc import Iterator

import datasets

from lit_pretrain.errors import UserError
from lit_pretrain.hub import hub_answers, offline


def load_from_hub(
    path: str, name: str | None, data_files: str | list[str] | None, split: str, setting: str = "data.path"
) -> datasets.Dataset:
    """Read a data set by its hub name, or its copy in the cache if the hub cannot be reached.

    Args:
        path: Name on the hub.
        name: Configuration of the data set.
        data_files: Files or patterns within it.
        split: Split to read.
        setting: Where the name was given, for the message.

    Raises:
        UserError: If neither the hub nor the cache has it, or it lacks the configuration or the split.
    """
    with contextlib.ExitStack() as stack:
        reachable = hub_answers()
        if not reachable:
            stack.enter_context(offline())
            stack.enter_context(datasets_offline())
        try:
            return datasets.load_dataset(path, name, data_files=data_files, split=split)
        except ValueError as error:
            message = str(error).splitlines()[0]
            if reachable:
                raise UserError(f"The data set '{path}' does not offer what was asked for: {message}") from error
            reason: Exception = error
        except Exception as error:  # the hub's client raises many kinds
            reason = error
    state = type(reason).__name__ if reachable else "the hub cannot be reached, and no copy is in the cache"
    raise UserError(
        f"'{path}' is neither a file or directory here nor a data set that the Hugging Face hub gave ({state}): "
        f"check {setting}, or the network."
    ) from reason


@contextlib.contextmanager
def datasets_offline() -> Iterator[None]:
    """Let `datasets` look into its cache only; it has copied the hub client's setting when it was imported."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
