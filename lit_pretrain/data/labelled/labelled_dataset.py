"""Batches of labelled samples by their keys, whatever the samples are."""

from typing import Any, Protocol

import numpy

from lit_pretrain.data.labelled.labels import Labels
from lit_pretrain.data.loading import Key
from lit_pretrain.required import required


class Samples(Protocol):
    """Some rows' texts or pictures: `EncodedTexts` or `ImageDataset`; texts have `lengths` (N,) in tokens too."""

    def __len__(self) -> int:
        """Number of samples."""

    def batch(self, indices: numpy.ndarray) -> dict[str, Any]:
        """Some of them; `sample_id` is the row of the source."""


class LabelledDataset:
    """Samples with their labels, the same in every epoch.

    Args:
        samples: The samples.
        rows: (N,) row of the source of each.
        labels: Of all rows of their source, or null.
        by_length: Whether the longest come first, so that evaluation pads little, and finds out at once if a batch does
            not fit the memory; else the samples keep their order.
    """

    def __init__(
        self, samples: Samples, rows: numpy.ndarray, labels: Labels | None = None, by_length: bool = False
    ) -> None:
        self.samples, self.labels = samples, labels
        lengths: numpy.ndarray | None = getattr(samples, "lengths", None)
        self.order = numpy.arange(len(samples))
        if by_length and lengths is not None:
            self.order = numpy.argsort(-lengths, kind="stable")
        self.lengths = lengths[self.order] if lengths is not None else None
        self.rows = rows[self.order]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def population(self, epoch: int) -> int:
        """Number of samples."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch of (epoch, index) keys: what the samples give, and `label` if there are any."""
        batch = self.samples.batch(self.order[[index for _, index in keys]])
        if self.labels is not None:
            batch["label"] = self.labels.targets(batch["sample_id"].numpy())
        return batch

    def member_labels(self) -> numpy.ndarray:
        """Labels of all samples as batches have them: (N,) classes or numbers, or (N, C) zeros and ones."""
        return required(self.labels).targets(self.rows).numpy()
