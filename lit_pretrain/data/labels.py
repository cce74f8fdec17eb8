"""Labels of any kind of column as numbers of classes, and few of them drawn so that all classes keep their shares."""

from dataclasses import dataclass, replace

import datasets
import numpy
import pyarrow.compute

from lit_pretrain.data.sources import check_column
from lit_pretrain.errors import UserError, nearest


@dataclass(frozen=True)
class Labels:
    """The labels of a source.

    Attributes:
        column: Column they come from.
        source: What a person knows the source by.
        classes: Names of the classes, by number.
        values: (N,) int64 class of each row.
    """

    column: str
    source: str
    classes: list[str]
    values: numpy.ndarray


def read_labels(data: datasets.Dataset, column: str, source: str) -> Labels:
    """The labels of a column.

    Args:
        data: Rows with that column.
        column: `ClassLabel`, strings, integers or booleans; but for `ClassLabel`, the sorted values are the classes.
        source: What a person knows the source by.

    Raises:
        UserError: If the column is missing or of another kind, or a row has no label.
    """
    check_column(data, column, source, "data.label_column")
    feature = data.features[column]
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if not dtype.startswith(("int", "uint", "bool", "string", "large_string")):
        kind = "lists" if isinstance(feature, (list, datasets.List, datasets.LargeList)) else dtype
        raise UserError(
            f"The column '{column}' of {source} holds {kind}, not labels: give a column of classes, strings, integers "
            "or booleans by data.label_column, or null for none."
        )
    values = data.select_columns([column]).with_format("arrow")[:].column(column)
    missing = values.is_null()
    if isinstance(feature, datasets.ClassLabel):
        # By custom, -1 says that a row of a test set has no label.
        missing = pyarrow.compute.or_kleene(missing, pyarrow.compute.less(values, 0)).fill_null(True)
    rows = numpy.flatnonzero(missing.to_numpy())
    if len(rows):
        raise UserError(
            f"The column '{column}' of {source} has no label in {len(rows)} of its {len(values)} rows (the first is "
            f"row {rows[0]}): take these rows out, or set data.label_column to null."
        )
    if isinstance(feature, datasets.ClassLabel):
        return Labels(column, source, list(feature.names), values.to_numpy().astype(numpy.int64))
    found, classes = numpy.unique(numpy.asarray(values.to_pylist()), return_inverse=True)
    return Labels(column, source, [str(one) for one in found], classes.astype(numpy.int64))


def with_classes(labels: Labels, classes: list[str]) -> Labels:
    """The same labels numbered as another source's.

    Raises:
        UserError: If a class occurs that the other source does not have.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [labels.classes[one] for one in numpy.unique(labels.values) if labels.classes[one] not in numbers]
    if unknown:
        raise UserError(
            f"The column '{labels.column}' of {labels.source} has the class '{unknown[0]}'"
            f"{nearest(unknown[0], classes)}, which the training pictures do not have: give a test set of the same "
            "classes."
        )
    table = numpy.array([numbers.get(name, -1) for name in labels.classes])
    return replace(labels, classes=list(classes), values=table[labels.values])


def check_classes(labels: Labels) -> None:
    """Raise `UserError` if there is one class only, so that nothing could be told apart."""
    present = numpy.unique(labels.values)
    if len(present) < 2:
        raise UserError(
            f"All rows of {labels.source} have the label '{labels.classes[present[0]]}' in '{labels.column}': set "
            "data.label_column to a column of several classes, or to null."
        )


def budget_size(budget: int | float, pictures: int, classes: int) -> int:
    """How many pictures a label budget is.

    Args:
        budget: A number of pictures, or a share of them below 1.
        pictures: How many there are.
        classes: How many classes they have.

    Raises:
        UserError: If it is more than there are, or does not give every class one.
    """
    share = isinstance(budget, float) and 0.0 < budget < 1.0
    if not share and budget != int(budget):
        raise UserError(f"data.label_budget is {budget}: give a whole number of pictures, or a share below 1.")
    count = round(budget * pictures) if share else int(budget)
    if count < classes:
        raise UserError(
            f"data.label_budget of {budget} is {count} pictures, fewer than the {classes} classes: give at least one "
            "a class."
        )
    if count > pictures:
        raise UserError(
            f"data.label_budget is {budget}, and there are {pictures} training pictures: lower it, or leave it out."
        )
    return count


def stratified_choice(
    values: numpy.ndarray, count: int, generator: numpy.random.Generator, every_class: bool = True
) -> numpy.ndarray:
    """Draw so many rows that every class keeps its share.

    Args:
        values: (N,) class of each row.
        count: How many to draw.
        generator: Source of the draws.
        every_class: Whether every class gets at least one, though its share be smaller; `count` must suffice.

    Returns:
        (count,) sorted indices.
    """
    _, classes, sizes = numpy.unique(values, return_inverse=True, return_counts=True)
    shares = sizes * (count / len(values))
    quotas = numpy.floor(shares).astype(numpy.int64)
    if every_class:
        quotas = numpy.maximum(quotas, 1)
    # The largest remainders get what is left; where the ones at least came to too many, the largest surpluses give.
    while (difference := count - int(quotas.sum())) != 0:
        remainders = shares - quotas
        if difference > 0:
            remainders[quotas >= sizes] = -numpy.inf
            quotas[remainders.argmax()] += 1
        else:
            remainders[quotas <= 1] = numpy.inf
            quotas[remainders.argmin()] -= 1
    chosen = [generator.permutation(numpy.flatnonzero(classes == one))[:quota] for one, quota in enumerate(quotas)]
    return numpy.sort(numpy.concatenate(chosen))
