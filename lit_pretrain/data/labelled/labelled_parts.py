"""Training, validation and test samples of labelled sources: which rows, with which labels."""

import hashlib
from dataclasses import dataclass, field

import numpy

from lit_pretrain.data.labelled.label_facts import LabelFacts, Task
from lit_pretrain.data.labelled.labelled_budget import rows_within_budget, split_labelled
from lit_pretrain.data.labelled.labelled_dataset import LabelledDataset, Samples
from lit_pretrain.data.labelled.labelled_source import Contents
from lit_pretrain.data.labelled.labels import Labels, check_classes, with_classes
from lit_pretrain.data.text.base_tokenizer import TextTokenizer
from lit_pretrain.required import required


@dataclass(frozen=True)
class LabelSettings:
    """What labels are read and which are used; see `LabelledDataModule` for the fields."""

    column: str | None
    task: Task | None
    validation_share: float
    budget: int | float | None
    seed: int
    separator: str | None = None


@dataclass
class Part:
    """The samples of a stage.

    Attributes:
        contents: The source's rows.
        rows: (N,) those of them that belong to it, sorted.
        labels: Labels of all rows of the source, or null.
        samples: Texts tokenised or pictures gathered, once asked for.
    """

    contents: Contents
    rows: numpy.ndarray
    labels: Labels | None = None
    samples: Samples | None = None
    _datasets: dict[bool, LabelledDataset] = field(default_factory=dict)

    def dataset(self, tokenizer: TextTokenizer | None, by_length: bool = False) -> LabelledDataset:
        """The samples, ready for batches; the same object at every call.

        Args:
            tokenizer: What makes the pieces of texts, at the first call.
            by_length: Whether the longest come first.
        """
        if self.samples is None:
            self.samples = self.contents.samples(self.rows, tokenizer)
        if by_length not in self._datasets:
            self._datasets[by_length] = LabelledDataset(self.samples, self.rows, self.labels, by_length)
        return self._datasets[by_length]

    def forget_samples(self) -> None:
        """Have them made again, with another tokenizer."""
        self.samples = None
        self._datasets.clear()


@dataclass(frozen=True)
class LabelledParts:
    """All parts.

    Attributes:
        parts: `train`, and `validation` and `test` where there are such; without test data of its own, `test` is the
            same object as `validation`.
        facts: What a head needs to know.
        fingerprint: Changes with the training source's content and labels, and with nothing else.
    """

    parts: dict[str, Part]
    facts: LabelFacts
    fingerprint: str


def share_out(main: Contents, others: dict[str, Contents], settings: LabelSettings) -> LabelledParts:
    """Read the labels of all sources and decide which rows are for what.

    Args:
        main: What is trained on.
        others: Sources of their own for `validation` and `test`.
        settings: Which labels.

    Raises:
        UserError: If labels are missing or cannot be, the sources' classes differ, or there are too few rows; all of it
            before pictures are decoded.
    """
    column = required(settings.column)
    labels = main.labels(column, settings.task, settings.separator)
    check_classes(labels)
    own_labels: dict[str, Labels] = {}
    for part, contents in others.items():
        labels_of_part = contents.labels(column, labels.task, settings.separator)
        own_labels[part] = (
            labels_of_part if labels.task == "regression" else with_classes(labels_of_part, labels.classes)
        )
    train, validation = split_labelled(labels, 0.0 if "validation" in others else settings.validation_share)
    for contents in (main, *others.values()):
        contents.make_ready(like=main)
    train = main.there(train)
    if settings.budget is not None:
        train = rows_within_budget(labels, train, settings.budget, settings.seed)
    parts = {"train": Part(main, train, labels)}
    if len(validation):
        parts["validation"] = Part(main, main.there(validation), labels)
    for part, contents in others.items():
        parts[part] = Part(contents, contents.there(numpy.arange(len(contents.data))), own_labels[part])
    if "validation" in parts:
        parts.setdefault("test", parts["validation"])
    content = hashlib.sha256("\n".join([main.fingerprint, column, labels.task, *labels.classes]).encode())
    content.update(labels.values.tobytes())
    return LabelledParts(parts, labels.take(train).facts(), content.hexdigest()[:16])
