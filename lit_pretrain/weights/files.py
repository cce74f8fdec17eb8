"""A checkpoint's directory: config.json and weights, each written whole or not at all, and read by its own file names.

A directory may hold more files of tensors than its weights (other precisions, optimisers, adapters), which are not to
be mixed up with them; the names are those of transformers and timm.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_pretrain.checksums import damaged_part
from lit_pretrain.errors import UserError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# In this order; the index beside a name lists the files of weights that were cut into several.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_read: ContextVar[dict[Path, dict[str, Tensor]] | None] = ContextVar("read", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """Within this, a file that `read_or_held` reads is read a single time, however many towers are taken from it."""
    if _read.get() is not None:
        yield
        return
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def read_or_held(path: Path, read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file; within `read_once` those that were read before, whose values must not be changed."""
    tensors_by_file = _read.get()
    if tensors_by_file is None:
        return read()
    key = path.resolve()
    if key not in tensors_by_file:
        tensors_by_file[key] = read()
    return dict(tensors_by_file[key])


def weight_files(directory: Path, names: tuple[str, ...] = WEIGHT_NAMES) -> list[Path]:
    """The files that hold a directory's weights: of a known name or listed in its index, or the only one.

    Args:
        directory: Of a checkpoint.
        names: What the weights may be called, the first one found counts.

    Returns:
        One file, or several that together are the weights; empty if there is none.

    Raises:
        UserError: If nothing tells which of several files it is, or a file that an index lists is missing.
    """
    for name in names:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            try:
                listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise UserError(f"{index} is no index of weights ({error}): download the checkpoint again.") from error
            absent = [name for name in listed if not (directory / name).is_file()]
            if absent:
                raise UserError(f"{directory} lacks {', '.join(absent)}, which {index.name} lists: download it again.")
            return [directory / name for name in listed]
    files = [path for path in sorted(directory.iterdir()) if path.suffix in SUFFIXES and path.is_file()]
    if len(files) > 1:
        names_of_files = ", ".join(path.name for path in files[:4]) + (", ..." if len(files) > 4 else "")
        raise UserError(
            f"{directory} has several files of tensors ({names_of_files}), none called {' or '.join(names)}: rename "
            "the one that holds the weights."
        )
    return files


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file of one flat dictionary, read without running any pickled code.

    Raises:
        UserError: If it cannot be read.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as weights ({reason}): download the checkpoint again.") from error


def check_sums(path: Path) -> None:
    """Refuse a file of torch's that is not what was written; a file of safetensors has nothing that tells.

    Raises:
        ValueError: With the part that is damaged.
    """
    part = damaged_part(path)
    if part is not None:
        raise ValueError(f"{part} is not what was written")


def write_checkpoint(
    directory: str | Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    names: tuple[str, str] = ("model.safetensors", "config.json"),
) -> None:
    """Write tensors and their description.

    Args:
        directory: Made if it does not exist.
        tensors: By name; those that share memory are written apart.
        config: Their description.
        names: Of the files of both.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    for name, write in (
        (names[0], lambda path: save_file(tensors, path, metadata={"format": "pt"})),
        (names[1], lambda path: path.write_text(json.dumps(config, indent=2) + "\n")),
    ):
        partial = directory / f".{name}.partial"
        write(partial)
        partial.replace(directory / name)
