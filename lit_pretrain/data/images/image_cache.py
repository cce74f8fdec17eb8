"""Decoded pictures on disk, memory-mapped: squares of RGB in 8 bits, channels first.

It is built once (`disk_cache.py`), a few blocks of pictures at a time, so a source may be larger than the memory.
Its name is a fingerprint of everything that the pixels depend on. Labels are not part of it: they are read from the
source, so that trainings with other labels, or without any, share it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.disk_cache import FACTS, build_once, build_progress, write_array
from lit_pretrain.data.images.decoding import decode_blocks, no_readable
from lit_pretrain.data.images.image_source import EncodedPictures
from lit_pretrain.data.images.picture_statistics import PictureStatistics
from lit_pretrain.data.images.pictures import Square
from lit_pretrain.errors import UserError

FORMAT = 1
Corrupt = Literal["error", "skip"]
# Damaged pictures that a message names; the file it points to names all.
NAMED = 3


@dataclass
class ImageCache:
    """The arrays of a source's pictures.

    Attributes:
        directory: Where they lie.
        images: (N, 3, S, S) uint8.
        rows: (N,) row of the source that each comes from.
        facts: What was counted while it was built.
    """

    directory: Path
    images: numpy.ndarray
    rows: numpy.ndarray
    facts: dict[str, Any]
    flat: numpy.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """A row a picture: taking rows is the fastest way to gather, near the speed of the memory."""
        self.flat = numpy.asarray(self.images).reshape(len(self.images), -1)

    @classmethod
    def open(cls, directory: Path) -> "ImageCache":
        """Map a finished cache."""
        facts = json.loads((directory / FACTS).read_text())
        shape = (facts["pictures"], 3, facts["stored_size"], facts["stored_size"])
        images = numpy.memmap(directory / "images.bin", dtype=numpy.uint8, mode="r", shape=shape)
        rows = numpy.fromfile(directory / "rows.bin", dtype=numpy.int64)
        return cls(directory, images, rows, facts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes map the file themselves rather than receive all pictures."""
        return ImageCache.open, (self.directory,)

    @property
    def skipped(self) -> int:
        """Damaged pictures that were left out."""
        return self.facts["skipped_pictures"]

    @cached_property
    def keys(self) -> numpy.ndarray:
        """(N,) int64, equal for equal pixels; caches that older versions built have none, and are read for them."""
        path = self.directory / "keys.bin"
        return numpy.fromfile(path, dtype=numpy.int64) if path.is_file() else picture_keys(self.images)

    def gather(self, members: numpy.ndarray, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """Copy some pictures out.

        Args:
            members: (M,) places in this cache of the pictures to choose from.
            indices: (B,) which of the members.

        Returns:
            (B, 3, S, S) uint8, and (B,) their places.
        """
        places = members[indices]
        images = numpy.take(self.flat, places, axis=0).reshape(len(places), *self.images.shape[1:])
        return torch.from_numpy(images), places


def picture_keys(images: numpy.ndarray) -> numpy.ndarray:
    """(N,) int64 hashes of the pixels of (N, 3, S, S) uint8."""
    digests = [hashlib.blake2b(numpy.ascontiguousarray(image).data, digest_size=8).digest() for image in images]
    return numpy.frombuffer(b"".join(digests), dtype=numpy.int64)


def image_fingerprint(pictures: EncodedPictures, square: Square, corrupt: Corrupt) -> str:
    """The name of a cache: a hash over source, size, what becomes of damaged pictures, and format."""
    parts = [str(FORMAT), pictures.fingerprint, str(square.side), str(square.like is not None), corrupt]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def open_or_build(pictures: EncodedPictures, square: Square, corrupt: Corrupt, directory: Path) -> ImageCache:
    """Map the cache in `directory`, building it first if it is not there.

    Args:
        pictures: Where they come from.
        square: What they become.
        corrupt: Whether damaged pictures are an error or left out.
        directory: The cache's own, named by its fingerprint.

    Raises:
        UserError: If a picture is damaged and may not be, none can be read, sizes differ that must not, or the disk is
            full.
    """
    build_once(directory, lambda partial: build(pictures, square, corrupt, partial, directory), "decoded pictures")
    return ImageCache.open(directory)


def build(pictures: EncodedPictures, square: Square, corrupt: Corrupt, directory: Path, final: Path) -> None:
    """Decode every picture into `directory`, holding a few blocks at a time; damaged ones are listed beside `final`."""
    directory.mkdir(parents=True)
    statistics = PictureStatistics()
    unreadable: list[str] = []
    rows: list[numpy.ndarray] = []
    keys: list[numpy.ndarray] = []
    with (directory / "images.bin").open("wb") as file, build_progress("pictures") as progress:
        task = progress.add_task("Decoding", total=len(pictures))
        for block in decode_blocks(pictures, range(len(pictures)), square):
            write_array(file, block.images)
            rows.append(numpy.array(block.rows, dtype=numpy.int64))
            keys.append(picture_keys(block.images))
            statistics.add(block.statistics)
            unreadable += block.unreadable
            progress.advance(task, block.seen)
    if unreadable:
        unreadable_list(final).write_text("".join(f"{picture}\n" for picture in unreadable))
    if statistics.pictures == 0:
        raise no_readable(pictures, unreadable)
    if unreadable and corrupt == "error":
        raise UserError(
            f"{naming(unreadable, len(pictures), pictures.source, unreadable_list(final))}: repair or remove them, or "
            "set data.corrupt to skip."
        )
    for name, parts in (("rows", rows), ("keys", keys)):
        with (directory / f"{name}.bin").open("wb") as file:
            write_array(file, numpy.concatenate(parts))
    facts = {"stored_size": square.side, "pictures": statistics.pictures, "skipped_pictures": len(unreadable)}
    (directory / FACTS).write_text(json.dumps(facts | statistics.facts()) + "\n")


def unreadable_list(directory: Path) -> Path:
    """Where a cache's damaged pictures are named, one a line."""
    return directory.with_name(f"{directory.name}.unreadable.txt")


def naming(unreadable: Sequence[str], pictures: int, source: str, path: Path) -> str:
    """That so many pictures cannot be read, some of them by name, and where the others are named."""
    some = "; ".join(unreadable[:NAMED])
    more = f"; all are named in {path}" if len(unreadable) > NAMED else ""
    return f"{len(unreadable)} of the {pictures} pictures of {source} cannot be read ({some}{more})"
