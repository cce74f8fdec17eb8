"""The parts of the data that an evaluation reads, in the same order every time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_pretrain.data.images.image_dataset import ImageDataset
from lit_pretrain.data.labelled.labels import stratified_choice
from lit_pretrain.data.loading import EpochDataset, Key, MistakesAsValues, as_it_is
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.errors import UserError
from lit_pretrain.required import required

BATCH_SIZE = 128


@dataclass(frozen=True)
class Part:
    """Samples of one part of the data.

    Attributes:
        name: `train`, `validation`, `test`, or `all`.
        dataset: Gives whole batches by `__getitems__`.
        indices: (N,) which of its samples, in order.
        labels: (N,) int64 classes or float32 values; null without labels.
        workers: Processes that make batches ahead.
    """

    name: str
    dataset: EpochDataset
    indices: numpy.ndarray
    labels: Tensor | None
    workers: int = 0

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches of the samples in their reading order."""
        ordered = self.indices[self.reading_order]
        keys = [
            [(0, int(place)) for place in ordered[start : start + BATCH_SIZE]]
            for start in range(0, len(ordered), BATCH_SIZE)
        ]
        dataset: Any = MistakesAsValues(self.dataset)  # no Dataset, but what DataLoader asks of one
        loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=keys, num_workers=self.workers, collate_fn=as_it_is)
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    @property
    def reading_order(self) -> numpy.ndarray:
        """(N,) places as batches have them: texts by their length, so that little is padded, pictures as they are."""
        lengths = getattr(getattr(self.dataset, "samples", None), "lengths", None)
        if lengths is None:
            return numpy.arange(len(self.indices))
        return numpy.argsort(-lengths[self.indices], kind="stable")

    def in_order(self, values: Tensor) -> Tensor:
        """What was found batch by batch (N, ...), in the order of the samples."""
        ordered = torch.empty_like(values)
        ordered[torch.from_numpy(self.reading_order)] = values
        return ordered

    def at(self, places: numpy.ndarray | Tensor) -> "Part":
        """The samples at some of this part's places."""
        places = numpy.asarray(places)
        labels = None if self.labels is None else self.labels[torch.from_numpy(places)]
        return replace(self, indices=self.indices[places], labels=labels)

    def sample_ids(self) -> Tensor:
        """(N,) ids of the samples: rows of their source."""
        if isinstance(self.dataset, ImageDataset):
            return torch.from_numpy(self.dataset.images.rows[self.dataset.members[self.indices]])
        return self.in_order(torch.cat([batch["sample_id"] for batch in self.batches()]))


def open_part(data: LightningDataModule, name: str, labelled: bool = True) -> Part:
    """A part of a data module that has been set up.

    Args:
        data: With `evaluation_loader`, and labels if they are needed.
        name: `train`, `validation` or `test`.
        labelled: Whether labels are needed.

    Raises:
        UserError: If the data has no such part.
    """
    dataset = getattr(data, f"{name}_dataset", None)
    if dataset is None:
        raise UserError(f"The data has no {name} part: set data.validation_share, or a test set of its own.")
    part = Part(name, dataset, numpy.arange(len(dataset)), None, getattr(data, "workers", 0))
    return replace(part, labels=read_labels(part)) if labelled else part


class JoinedDataset:
    """Several data sets of pictures one after the other.

    Args:
        parts: With `__getitems__` and `member_labels`.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.ends = numpy.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Samples of all."""
        return int(self.ends[-1])

    def population(self, epoch: int) -> int:
        """Samples of all."""
        return len(self)

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        """A batch; what lies in one data set is read together."""
        batches = []
        for place, keys_of_part in groupby(
            keys, key=lambda one: int(numpy.searchsorted(self.ends, one[1], side="right"))
        ):
            start = int(self.ends[place - 1]) if place else 0
            batches.append(self.parts[place].__getitems__([(epoch, index - start) for epoch, index in keys_of_part]))
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def member_labels(self) -> numpy.ndarray:
        """(N,) labels of all samples."""
        return numpy.concatenate([part.member_labels() for part in self.parts])


def whole_part(data: LightningDataModule) -> Part:
    """What a measurement that learns nothing is made on: the test part, or, without one of its own, all pictures.

    Args:
        data: Labelled pictures, set up.
    """
    if has_test_part(data):
        return open_part(data, "test")
    parts = [getattr(data, f"{name}_dataset", None) for name in ("train", "validation")]
    present = [part for part in parts if part is not None]
    joined = present[0] if len(present) == 1 else JoinedDataset(present)
    part = Part("all", joined, numpy.arange(len(joined)), None, getattr(data, "workers", 0))
    return replace(part, labels=read_labels(part))


def some_of(part: Part, limit: int) -> Part:
    """At most so many samples of a part, chosen so that classes keep their shares, the same at every call.

    Args:
        part: With labels.
        limit: How many.
    """
    if len(part) <= limit:
        return part
    generator = sample_generator("labelled arrays", part.name)
    return part.at(stratified_choice(required(part.labels).numpy(), limit, generator, every_class=False))


def task_of(data: LightningDataModule) -> tuple[str | None, list[str]]:
    """Kind of the labels, null for none, and the names of the classes."""
    facts = getattr(data, "label_facts", None)
    if facts is not None:
        return facts.task, list(facts.classes)
    classes = getattr(data, "classes", None)
    return ("single_label", list(classes)) if classes else (None, [])


def check_labelled_pictures(data: LightningDataModule, callback: str) -> None:
    """Refuse data that a callback cannot measure on, before any training.

    Args:
        data: Set up.
        callback: The callback's name.

    Raises:
        UserError: If it holds texts, no labels, or labels of another kind than a class each.
    """
    task, _ = task_of(data)
    if task is None:
        raise UserError(
            f"{callback} needs labels, which the data lacks: set data.label_column, give {callback} data of its own, "
            "or take it out of trainer.callbacks."
        )
    if task != "single_label" or getattr(data, "text", None) is not None:
        content = "texts" if getattr(data, "text", None) is not None else "labels of another kind"
        raise UserError(f"{callback} needs pictures with a class each, and its data has {content}: give it other data.")


def read_labels(part: Part) -> Tensor:
    """(N,) labels of a part: told by its data set, else read with the batches."""
    member_labels = getattr(part.dataset, "member_labels", None)
    if callable(member_labels):
        return torch.as_tensor(member_labels())[torch.from_numpy(part.indices)]
    return part.in_order(torch.cat([batch["label"] for batch in part.batches()]))


def has_test_part(data: LightningDataModule) -> bool:
    """Whether there is test data of its own; validation data may stand in for it."""
    test = getattr(data, "test_dataset", None)
    return test is not None and test is not getattr(data, "validation_dataset", None)


def draw(labels: Tensor, count: int, seed: int) -> numpy.ndarray:
    """Places of so many samples, classes keeping their shares: those that `data.label_budget` draws with this seed.

    Args:
        labels: (N,) classes, or values, which are drawn from without regard to them.
        count: How many.
        seed: Source of the draw.
    """
    generator = sample_generator(seed, "label budget")
    if labels.is_floating_point():
        return numpy.sort(generator.permutation(len(labels))[:count])
    return stratified_choice(labels.numpy(), count, generator)
