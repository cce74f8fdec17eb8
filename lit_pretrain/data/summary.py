"""What was understood of the data, said in one line before training, and what in it is probably a mistake.

Labels are read from whatever column is named, and each of its types means something: a person sees here whether it
means what they think. Samples that are equal on both sides of a split are counted, for figures on these say little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.labelled.labels import Labels

# Classes that are named with their counts.
NAMED = 10
# Different numbers up to which whole ones look like classes.
FEW = 20
SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class PartSummary:
    """A part of the data.

    Attributes:
        samples: How many it has.
        source: Where they come from, if not from where the training samples do.
        keys: (N,) integers that are equal for equal samples, or null if they are not known.
    """

    samples: int
    source: str | None = None
    keys: numpy.ndarray | None = None


def data_line(source: str, contents: str, parts: Mapping[str, PartSummary], sample_name: str = "sample") -> str:
    """The line.

    Args:
        source: What a person knows the data by.
        contents: What is in it.
        parts: `train` and others.
        sample_name: What one of them is.
    """
    named = {"train": "training"}
    shares = [
        f"{part.samples:,} for {named.get(name, name)}{f' ({part.source})' if part.source else ''}"
        for name, part in parts.items()
    ]
    line = f"{source}: {contents}; {', '.join(shares)}"
    equal = {name: count for name, part in parts.items() if (count := equal_samples(parts["train"], part)) is not None}
    if equal:
        counts = ", ".join(f"{count:,} of {parts[name].samples:,} for {name}" for name, count in equal.items())
        line += f"; equal to a training {sample_name}: {counts}"
    return f"{line}."


def equal_samples(train: PartSummary, other: PartSummary) -> int | None:
    """How many of a part's samples are equal to one of the training's, or null if that is not known."""
    if other is train or train.keys is None or other.keys is None:
        return None
    return int(numpy.isin(other.keys, train.keys).sum())


def labels_told(facts: LabelFacts, column: str) -> str:
    """What labels were taken for, in a few words."""
    if facts.task == "regression":
        return f"numbers by '{column}' (regression, mean {facts.mean:.4g}, standard deviation {facts.std:.4g})"
    order = sorted(range(len(facts.classes)), key=lambda number: -facts.counts[number])
    numbers = order if len(order) <= NAMED else order[: NAMED - 2]
    counted = ", ".join(f"'{facts.classes[number]}' {facts.counts[number]:,}" for number in numbers)
    if len(order) > len(numbers):
        rarest = order[-1]
        counted += f" and {len(order) - len(numbers)} more, '{facts.classes[rarest]}' with the fewest, "
        counted += f"{facts.counts[rarest]:,}"
    several = ", any number of them a row" if facts.task == "multi_label" else ""
    return f"{len(facts.classes)} classes by '{column}'{several} ({facts.task}; in training {counted})"


def label_warnings(labels: Labels, padded: str | None = None) -> list[str]:
    """What is probably not meant in labels as they were read, a sentence each.

    Args:
        labels: Of all rows.
        padded: A cell of their file that became a number and has another form ("007"), or null.
    """
    where = f"The column '{labels.column}' of {labels.source}"
    if padded is not None:
        return [f"{where} holds '{padded}', which was read as the number {int(padded)}: if it is a name, add a letter."]
    if labels.task == "regression":
        distinct = numpy.unique(labels.values)
        if len(distinct) <= FEW and numpy.array_equal(distinct, numpy.floor(distinct)) and len(distinct) < len(labels):
            values = ", ".join(f"{value:g}" for value in distinct[:NAMED])
            return [
                f"{where} holds no other numbers than {values}, which are learned as numbers to predict: if they are "
                "classes, set data.task to single_label."
            ]
        return []
    sentences = []
    alike: dict[str, list[str]] = {}
    for name in labels.classes:
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    for names in [names for names in alike.values() if len(names) > 1][:NAMED]:
        listed = " and ".join(repr(name) for name in names)
        sentences.append(
            f"{where} has the classes {listed}, which differ in case or white space alone: write them alike."
        )
    separator = likely_separator(labels.classes)
    if labels.task == "single_label" and separator is not None:
        example = next(name for name in labels.classes if separator in name)
        sentences.append(
            f"{where} has the class '{example}', whose parts are classes too: if it is several, set "
            f"data.label_separator to '{separator}'."
        )
    return sentences


def likely_separator(classes: Sequence[str]) -> str | None:
    """What stands between several classes in the names of some, or null: names are then made of fewer parts."""
    for separator in SEPARATORS:
        joined = [name for name in classes if separator in name]
        parts = {part.strip() for name in classes for part in name.split(separator)}
        if joined and len(parts) < len(classes):
            return separator
    return None
