"""The data of an evaluation: a data module from settings, and its parts, read in the same order every time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_pretrain.cli import ConfigError, Parser, raise_user_error_within, read_yaml
from lit_pretrain.config_errors import explain
from lit_pretrain.data.image_dataset import ImageDataset
from lit_pretrain.data.labels import stratified_choice
from lit_pretrain.data.loading import EpochDataset, MistakesAsValues, as_it_is
from lit_pretrain.data.randomness import sample_generator
from lit_pretrain.errors import UserError

BATCH_SIZE = 128


def make_data(config: str | None, settings: list[str], default_class: str) -> LightningDataModule:
    """Build a data module as `fit` would.

    Args:
        config: A config of which only `data` is used, or null.
        settings: What the command line says of the data, as in ["--data.batch_size", "64"]; it wins. With a class
            (`--data CLASS`) the config's data is left alone.
        default_class: Class of the data if neither names one.

    Raises:
        UserError: If a setting is wrong, or nothing says which data.
    """
    names_class = any(one == "--data" or one.startswith("--data=") for one in settings)
    section: Any = None
    if config is not None and not names_class:
        content = read_yaml(config)
        section = content.get("data")
        if isinstance(section, dict) and content.get("seed_everything") not in (None, True, False):
            # Which samples a label budget draws goes by the training's seed.
            arguments = section.get("init_args") or {}
            if arguments.get("seed") is None:
                section = section | {"init_args": arguments | {"seed": content["seed_everything"]}}
    if section is None and not settings:
        raise UserError(
            "Nothing says on which data to evaluate: give --config FILE with a data section, or --data.KEY VALUE."
        )
    if section is None and not names_class:
        section = {"class_path": default_class}
    arguments = ["--config", json.dumps({"data": section})] if section is not None else []
    parser = Parser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    Parser.messages.clear()
    try:
        return parser.instantiate_classes(parser.parse_args([*arguments, *settings])).data
    except ConfigError as error:
        raise UserError(explain(Parser.messages, [config] if config else [])) from error
    except ValueError as error:
        raise_user_error_within(error)
        raise


@dataclass(frozen=True)
class Part:
    """Samples of one part of the data.

    Attributes:
        name: `train`, `validation` or `test`.
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
            [(0, int(one)) for one in ordered[start : start + BATCH_SIZE]]
            for start in range(0, len(ordered), BATCH_SIZE)
        ]
        loader = DataLoader(
            MistakesAsValues(self.dataset), batch_sampler=keys, num_workers=self.workers, collate_fn=as_it_is
        )
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


def read_labels(part: Part) -> Tensor:
    """(N,) labels of a part: told by its data set, else read with the batches."""
    told = getattr(part.dataset, "member_labels", None)
    if callable(told):
        return torch.as_tensor(told())[torch.from_numpy(part.indices)]
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
