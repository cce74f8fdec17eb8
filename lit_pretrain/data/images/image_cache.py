"""Decoded pictures on disk, memory-mapped: squares of RGB in 8 bits, channels first.

It is built once (`disk_cache.py`), a few blocks of pictures at a time, so a source may be larger than the memory.
Its name is a fingerprint of everything that the pixels depend on. Labels are not part of it: they are read from the
source, so that trainings with other labels, or without any, share it.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.disk_cache import FACTS, build_once, build_parts, build_progress, workers, write_array
from lit_pretrain.data.images.decoding import decode_blocks, no_readable
from lit_pretrain.data.images.image_source import EncodedPictures
from lit_pretrain.data.images.picture_statistics import PictureStatistics
from lit_pretrain.data.images.pictures import Square
from lit_pretrain.errors import UserError

FORMAT = 1
CONTENT = "decoded pictures"
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
    build_once(directory, lambda partial: build(pictures, square, corrupt, partial, directory), CONTENT)
    return ImageCache.open(directory)


def build(pictures: EncodedPictures, square: Square, corrupt: Corrupt, directory: Path, final: Path) -> None:
    """Decode every picture into `directory`, holding a few blocks at a time; damaged ones are listed beside `final`."""
    directory.mkdir(parents=True)
    if workers.get() is None:
        decoded = decode_rows(pictures, square, None, range(len(pictures)), directory)
    else:
        decoded = decode_by_parts(pictures, square, directory, final)
    statistics, unreadable = decoded.statistics, decoded.unreadable
    if unreadable:
        unreadable_list(final).write_text("".join(f"{picture}\n" for picture in unreadable))
    if statistics.pictures == 0:
        raise no_readable(pictures, unreadable)
    if unreadable and corrupt == "error":
        raise UserError(
            f"{naming(unreadable, len(pictures), pictures.source, unreadable_list(final))}: repair or remove them, or "
            "set data.corrupt to skip."
        )
    for name, array in (("rows", decoded.rows), ("keys", decoded.keys)):
        with (directory / f"{name}.bin").open("wb") as file:
            write_array(file, array)
    facts = {"stored_size": square.side, "pictures": statistics.pictures, "skipped_pictures": len(unreadable)}
    (directory / FACTS).write_text(json.dumps(facts | statistics.facts()) + "\n")


@dataclass
class Decoded:
    """What is known of pictures whose pixels are on the disk.

    Attributes:
        statistics: Of their pixels.
        unreadable: What is said of those that could not be read.
        rows: (N,) rows of the source.
        keys: (N,) equal for equal pixels.
    """

    statistics: PictureStatistics
    unreadable: list[str]
    rows: numpy.ndarray
    keys: numpy.ndarray

    def save(self, directory: Path) -> None:
        """Write it beside the pixels."""
        numbers = {name: value for name, value in vars(self.statistics).items()}
        numpy.savez(directory / "decoded.npz", rows=self.rows, keys=self.keys, **numbers)
        (directory / FACTS).write_text(json.dumps({"unreadable": self.unreadable}) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Decoded":
        """What was written."""
        with numpy.load(directory / "decoded.npz") as arrays:
            content = dict(arrays)
        rows, keys = content.pop("rows"), content.pop("keys")
        numbers: dict[str, Any] = {name: value if value.ndim else int(value) for name, value in content.items()}
        unreadable = json.loads((directory / FACTS).read_text())["unreadable"]
        return cls(PictureStatistics(**numbers), unreadable, rows, keys)


def decode_rows(
    pictures: EncodedPictures, square: Square, threads: int | None, some: range, directory: Path
) -> Decoded:
    """Write the pixels of some rows' pictures."""
    statistics, unreadable = PictureStatistics(), []
    rows, keys = [numpy.empty(0, numpy.int64)], [numpy.empty(0, numpy.int64)]
    with (directory / "images.bin").open("wb") as file, build_progress("pictures") as progress:
        task = progress.add_task("Decoding", total=len(some))
        for block in decode_blocks(pictures, some, square, threads):
            write_array(file, block.images)
            rows.append(numpy.array(block.rows, dtype=numpy.int64))
            keys.append(picture_keys(block.images))
            statistics.add(block.statistics)
            unreadable += block.unreadable
            progress.advance(task, block.seen)
    return Decoded(statistics, unreadable, numpy.concatenate(rows), numpy.concatenate(keys))


def decode_by_parts(pictures: EncodedPictures, square: Square, directory: Path, final: Path) -> Decoded:
    """The same of all rows, each part by another process; their pixels are joined here."""
    size = len(pictures) * 3.0 * square.side**2
    # Labels are not part of a cache.
    sent = copy.copy(pictures)
    sent.labels = None
    parts = build_parts(final, len(pictures), size, CONTENT, decode_part, sent, square)
    statistics, found = PictureStatistics(), []
    with (directory / "images.bin").open("wb") as file:
        for _, place in parts:
            found.append(Decoded.read(place))
            statistics.add(found[-1].statistics)
            with (place / "images.bin").open("rb") as part:
                shutil.copyfileobj(part, file, 1 << 24)
    unreadable = [picture for part in found for picture in part.unreadable]
    rows, keys = (numpy.concatenate([getattr(part, name) for part in found]) for name in ("rows", "keys"))
    return Decoded(statistics, unreadable, rows, keys)


def decode_part(pictures: EncodedPictures, square: Square, threads: int, rows: range, directory: Path) -> None:
    """A part of `decode_by_parts`."""
    directory.mkdir(parents=True)
    decode_rows(pictures, square, threads, rows, directory).save(directory)


def unreadable_list(directory: Path) -> Path:
    """Where a cache's damaged pictures are named, one a line."""
    return directory.with_name(f"{directory.name}.unreadable.txt")


def naming(unreadable: Sequence[str], pictures: int, source: str, path: Path) -> str:
    """That so many pictures cannot be read, some of them by name, and where the others are named."""
    some = "; ".join(unreadable[:NAMED])
    more = f"; all are named in {path}" if len(unreadable) > NAMED else ""
    return f"{len(unreadable)} of the {pictures} pictures of {source} cannot be read ({some}{more})"
