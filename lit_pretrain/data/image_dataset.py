"""From pictures to batches: uint8 squares, out of the memory-mapped cache or decoded on the way."""

import warnings
from typing import Protocol

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.image_cache import Corrupt
from lit_pretrain.data.image_source import EncodedPictures
from lit_pretrain.data.loading import Key
from lit_pretrain.data.pictures import Square, UnreadablePictureError, decode
from lit_pretrain.errors import UserError


class PictureStore(Protocol):
    """Where decoded pictures come from."""

    rows: numpy.ndarray

    def gather(self, members: numpy.ndarray, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """Pictures (B, 3, S, S) uint8 of members, and their places in the store."""


class DecodingStore:
    """Decodes pictures whenever they are asked for.

    Args:
        pictures: Where they come from.
        square: What they become.
        corrupt: Whether damaged pictures are an error, or the next readable one stands in for them.
    """

    def __init__(self, pictures: EncodedPictures, square: Square, corrupt: Corrupt) -> None:
        self.pictures, self.square, self.corrupt = pictures, square, corrupt
        self.rows = numpy.arange(len(pictures))
        self.skipped = 0

    def gather(self, members: numpy.ndarray, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """As `ImageCache.gather`."""
        side = self.square.side
        images = numpy.empty((len(indices), 3, side, side), dtype=numpy.uint8)
        places = numpy.empty(len(indices), dtype=numpy.int64)
        for number, index in enumerate(indices):
            images[number], places[number] = self._readable(members, int(index))
        return torch.from_numpy(images), places

    def _readable(self, members: numpy.ndarray, index: int) -> tuple[numpy.ndarray, int]:
        for step in range(len(members)):
            place = int(members[(index + step) % len(members)])
            (picture,) = self.pictures.read([place])
            try:
                return decode(picture, self.square), place
            except UnreadablePictureError as error:
                if self.corrupt == "error":
                    raise UserError(
                        f"A picture of {self.pictures.source} cannot be read ({error}): repair or remove it, or set "
                        "data.corrupt to skip."
                    ) from error
                self.skipped += 1
                warnings.warn(f"Left out, another stands in for it: {error}", stacklevel=2)
        raise UserError(f"None of the {len(members)} pictures of {self.pictures.source} can be read.")


class ImageDataset:
    """Some pictures of a store, with their labels.

    Args:
        store: Where they come from.
        members: (M,) places in the store.
        labels: (N,) classes of the source's rows, or null.
    """

    def __init__(self, store: PictureStore, members: numpy.ndarray, labels: numpy.ndarray | None = None) -> None:
        self.store, self.members, self.labels = store, members, labels

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.members)

    def population(self, epoch: int) -> int:
        """Number of pictures."""
        return len(self)

    def at(self, indices: numpy.ndarray) -> dict[str, Tensor]:
        """A batch of some pictures: `images` (B, 3, S, S) uint8, `sample_id` (B,) rows of the source, `label` (B,)."""
        images, places = self.store.gather(self.members, indices)
        rows = self.store.rows[places]
        batch = {"images": images, "sample_id": torch.from_numpy(rows)}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[rows])
        return batch

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """A clean batch of (epoch, index) keys."""
        return self.at(numpy.array([index for _, index in keys], dtype=numpy.int64))
