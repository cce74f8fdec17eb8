"""Batches of pictures by their keys."""

from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from lit_pretrain.data.loading import Key
from lit_pretrain.required import required


class ImageStore(Protocol):
    """What gives pixels: `ImageCache` or `ImageReader`.

    Attributes:
        rows: (N,) row of the source of each picture.
        facts: What is known of the pixels.
    """

    rows: numpy.ndarray
    facts: dict[str, Any]

    @property
    def skipped(self) -> int:
        """Damaged pictures that were left out."""

    def gather(self, members: numpy.ndarray, indices: numpy.ndarray) -> tuple[Tensor, numpy.ndarray]:
        """(B, 3, S, S) uint8 of the members at some indices, and (B,) their places in the store."""


class ImageDataset:
    """Some of a store's pictures, the same in every epoch.

    Args:
        images: Gives the pixels.
        members: (M,) places in the store of the pictures that belong to this data set.
        labels: Class of each row of the source, or null.
    """

    def __init__(self, images: ImageStore, members: numpy.ndarray, labels: numpy.ndarray | None = None) -> None:
        self.images, self.members, self.labels = images, members, labels

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.members)

    def population(self, epoch: int) -> int:
        """Number of pictures."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """A batch: `images` (B, 3, S, S) uint8, `sample_id` (B,) rows of the source, `label` (B,) if there are any."""
        return self.batch(numpy.array([index for _, index in keys]))

    def batch(self, indices: numpy.ndarray) -> dict[str, Tensor]:
        """As `__getitems__`, by the members' indices."""
        images, places = self.images.gather(self.members, indices)
        rows = self.images.rows[places]
        batch = {"images": images, "sample_id": torch.from_numpy(rows)}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[rows])
        return batch

    def member_labels(self) -> numpy.ndarray:
        """(M,) class of each member, where there are labels."""
        return required(self.labels)[self.images.rows[self.members]]


def keys_of(dataset: Any) -> numpy.ndarray | None:
    """(M,) integers of a data set's pictures, equal for equal pixels; null where they are not kept decoded."""
    keys = getattr(dataset.images, "keys", None)
    return None if keys is None else keys[dataset.members]
