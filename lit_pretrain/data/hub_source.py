"""Data sets by their name on the Hugging Face hub, or their copies in its cache where the hub cannot be reached."""

import contextlib
from collections.abc import Iterator
from typing import Any

import datasets

from lit_pretrain.errors import UserError
from lit_pretrain.hub import hub_answers, offline


def load_from_hub(
    path: str,
    name: str | None,
    data_files: str | list[str] | None,
    split: str,
    setting: str = "data.path",
    streaming: bool = False,
) -> Any:
    """Read a data set by its hub name, or its copy in the cache if the hub cannot be reached.

    Args:
        path: Name on the hub.
        name: Configuration of the data set.
        data_files: Files or patterns within it.
        split: Split to read.
        setting: Where the name was given, for the message.
        streaming: Whether rows are read as they are needed, from an `IterableDataset`.

    Raises:
        UserError: If neither the hub nor the cache has it, or it lacks the configuration or the split.
    """
    with contextlib.ExitStack() as stack:
        reachable = hub_answers()
        if not reachable:
            stack.enter_context(offline())
            stack.enter_context(datasets_offline())
        try:
            return datasets.load_dataset(path, name, data_files=data_files, split=split, streaming=streaming)
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


def load_remote(
    builder: str,
    addresses: list[str],
    options: dict[str, Any],
    split: str,
    setting: str = "data.path",
    streaming: bool = False,
) -> Any:
    """Read files from elsewhere, by whatever protocol `fsspec` knows; a copy is kept in the cache of `datasets`.

    Args:
        builder: Of `datasets`.
        addresses: Such as https://host/file.csv or s3://bucket/file.parquet.
        options: Of the builder.
        split: What to call the rows, or the part of them to read (train[:10%]).
        setting: Where the address was given, for the message.
        streaming: Whether rows are read as they are needed, from an `IterableDataset`, and no copy is kept.

    Raises:
        UserError: If a package for the protocol is missing, or the files cannot be read.
    """
    protocol = addresses[0].split("://")[0]
    try:
        files = {split.split("[")[0]: addresses}
        return datasets.load_dataset(builder, data_files=files, split=split, streaming=streaming, **options)
    except (ImportError, ValueError) as error:
        if "nstall" not in str(error) and "Protocol not known" not in str(error):
            raise no_remote(addresses, error, setting) from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{addresses[0]} cannot be read, since a package for {protocol}:// is missing ({reason}): install it, or "
            f"copy the files here and set {setting} to them."
        ) from error
    except Exception as error:  # every protocol and format fails in its own way
        raise no_remote(addresses, error, setting) from error


def no_remote(addresses: list[str], error: Exception, setting: str) -> UserError:
    """What is said of files elsewhere that cannot be read."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = (str(first).strip().splitlines() or [type(first).__name__])[0][:200]
    return UserError(f"{addresses[0]} cannot be read ({reason}): check {setting}, and the network.")


@contextlib.contextmanager
def datasets_offline() -> Iterator[None]:
    """Let `datasets` look into its cache only; it has copied the hub client's setting when it was imported."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
