"""Labels of any kind of column: classes by number, any number of classes each, or numbers to be predicted."""

from dataclasses import dataclass, replace

import datasets
import numpy
import pyarrow
import pyarrow.compute
import torch
from torch import Tensor

from lit_pretrain.data.labelled.label_facts import LabelFacts, Task
from lit_pretrain.data.sources import check_column
from lit_pretrain.errors import UserError, is_share, nearest
from lit_pretrain.required import required

CLASSES = ("int", "uint", "bool", "string", "large_string")
NUMBERS = ("int", "uint", "bool", "float", "double", "halffloat")


@dataclass(frozen=True)
class Labels:
    """The labels of a source.

    Attributes:
        column: Column they come from.
        source: What a person knows the source by.
        classes: Names of the classes, by number; empty for numbers.
        values: (N,) int64 class of each row (`single_label`), (N,) float32 (`regression`), or (T,) int64 classes of all
            rows one after the other (`multi_label`).
        task: What kind of labels they are.
        ends: (N,) number of `values` up to the end of each row, for `multi_label`.
    """

    column: str
    source: str
    classes: list[str]
    values: numpy.ndarray
    task: Task = "single_label"
    ends: numpy.ndarray | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values if self.ends is None else self.ends)

    def take(self, rows: numpy.ndarray) -> "Labels":
        """The labels of some rows only."""
        if self.ends is None:
            return replace(self, values=self.values[rows])
        parts = [self._of(row) for row in rows]
        ends = numpy.cumsum([len(part) for part in parts], dtype=numpy.int64)
        return replace(self, values=numpy.concatenate([*parts, self.values[:0]]), ends=ends)

    def targets(self, rows: numpy.ndarray) -> Tensor:
        """What some rows are to become: (B,) int64 classes, (B,) float32 numbers, or (B, C) float32 zeros and ones."""
        if self.ends is None:
            return torch.from_numpy(self.values[rows])
        targets = torch.zeros(len(rows), len(self.classes))
        for target, row in zip(targets, rows, strict=True):
            target[torch.from_numpy(self._of(row))] = 1.0
        return targets

    def facts(self) -> LabelFacts:
        """What a head needs to know."""
        if self.task == "regression":
            numbers = self.values.astype(numpy.float64)
            return LabelFacts(self.task, samples=len(self), mean=float(numbers.mean()), std=float(numbers.std()) or 1.0)
        counts = numpy.bincount(self.values, minlength=len(self.classes)).tolist()
        return LabelFacts(self.task, list(self.classes), counts, len(self))

    def _of(self, row: int) -> numpy.ndarray:
        ends = required(self.ends)
        return self.values[ends[row - 1] if row else 0 : ends[row]]


def read_labels(
    data: datasets.Dataset,
    column: str,
    source: str,
    task: Task | None = "single_label",
    separator: str | None = None,
) -> Labels:
    """The labels of a column.

    Args:
        data: Rows with that column.
        column: `ClassLabel`, strings, integers or booleans for a class each; floats for numbers; lists of strings,
            integers or `ClassLabel` for any number of classes each. But for `ClassLabel`, the sorted values are the
            classes.
        source: What a person knows the source by.
        task: What the labels are; `regression` takes integers too, `single_label` whole numbers of any type. Null lets
            the column's type decide.
        separator: What stands between several classes in a text or number; a row without any has no class.

    Raises:
        UserError: If the column is missing or of another kind, or a row has no label or one that cannot be.
    """
    check_column(data, column, source, "data.label_column")
    feature = data.features[column]
    inner = inner_feature(feature)
    values = data.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if separator is not None:
        if inner is not None or isinstance(feature, datasets.ClassLabel) or not dtype.startswith((*CLASSES, "float")):
            raise not_labels(column, source, feature, "texts to be taken apart by data.label_separator")
        texts = values.cast(pyarrow.large_string()).to_pylist()
        parts = [[part.strip() for part in (text or "").split(separator) if part.strip()] for text in texts]
        return several_classes(
            pyarrow.array(parts, pyarrow.list_(pyarrow.string())), datasets.Value("string"), column, source
        )
    if task is None:
        task = "multi_label" if inner is not None else "regression" if dtype.startswith("float") else "single_label"
    if task == "multi_label":
        if inner is None or not str(getattr(inner, "dtype", "")).startswith(CLASSES):
            raise not_labels(column, source, feature, "lists of classes, strings or integers, to learn several a row")
        return several_classes(values, inner, column, source)
    if task == "regression":
        if inner is not None or not dtype.startswith(NUMBERS):
            raise not_labels(column, source, feature, "numbers")
        return numbers(values, feature, column, source)
    whole = inner is None and dtype.startswith("float") and are_whole(values)
    if inner is not None or not (whole or dtype.startswith(CLASSES)):
        raise not_labels(column, source, feature, "classes, strings, integers or booleans")
    return one_class(values, feature, column, source, whole)


def inner_feature(feature: object) -> object | None:
    """What a column of lists holds, or null for another column."""
    if isinstance(feature, list):
        return feature[0]
    return feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else None


def not_labels(column: str, source: str, feature: object, needed: str) -> UserError:
    """What is said of a column of another kind."""
    kind = "lists" if inner_feature(feature) is not None else getattr(feature, "dtype", type(feature).__name__)
    return UserError(
        f"The column '{column}' of {source} holds {kind}, not labels: give a column of {needed} by data.label_column, "
        "or null for none."
    )


def are_whole(values: pyarrow.Array) -> bool:
    """Whether floats are whole numbers, as a table of integers becomes where a cell is empty."""
    floats = values.drop_null().to_numpy(zero_copy_only=False)
    return bool(numpy.all(numpy.isnan(floats) | (numpy.floor(floats) == floats)))


def one_class(values: pyarrow.Array, feature: object, column: str, source: str, whole: bool) -> Labels:
    """A class each."""
    if whole:
        missing = pyarrow.compute.is_null(values, nan_is_null=True)
        check_rows(missing, "has no label", column, source, "take these rows out")
        values = values.cast(pyarrow.int64())
    names = class_names(feature)
    check_classes_known(values, names, column, source, None, len(values))
    if names is not None:
        return Labels(column, source, names, values.to_numpy().astype(numpy.int64))
    distinct, classes = numpy.unique(numpy.asarray(values.to_pylist()), return_inverse=True)
    return Labels(column, source, [str(label) for label in distinct], classes.astype(numpy.int64))


def several_classes(values: pyarrow.Array, inner: object, column: str, source: str) -> Labels:
    """Any number of classes each; a class named twice in a row counts once."""
    check_rows(values.is_null(), "has no label", column, source, "take these rows out (an empty list is a label)")
    rows = pyarrow.compute.list_parent_indices(values).to_numpy().astype(numpy.int64)
    flat = pyarrow.compute.list_flatten(values)
    class_list = class_names(inner)
    check_classes_known(flat, class_list, column, source, rows, len(values))
    if class_list is not None:
        names, classes = class_list, flat.to_numpy().astype(numpy.int64)
    elif len(flat):
        distinct, classes = numpy.unique(numpy.asarray(flat.to_pylist()), return_inverse=True)
        names = [str(label) for label in distinct]
    else:
        names, classes = [], numpy.zeros(0, dtype=numpy.int64)
    if not len(flat):
        raise UserError(f"No row of {source} has a class in '{column}': set data.label_column to another column.")
    rows, classes = numpy.divmod(numpy.unique(rows * len(names) + classes), len(names))
    ends = numpy.cumsum(numpy.bincount(rows, minlength=len(values)))
    return Labels(column, source, list(names), classes, "multi_label", ends)


def numbers(values: pyarrow.Array, feature: object, column: str, source: str) -> Labels:
    """A number each."""
    missing = pyarrow.compute.is_null(values, nan_is_null=True)
    if isinstance(feature, datasets.ClassLabel):
        missing = pyarrow.compute.or_kleene(missing, pyarrow.compute.less(values, 0)).fill_null(True)
    check_rows(missing, "has no label", column, source, "take these rows out")
    floats = values.cast(pyarrow.float32(), safe=False).to_numpy(zero_copy_only=False)
    infinite = pyarrow.array(~numpy.isfinite(floats))
    check_rows(infinite, "has an infinite label", column, source, "take these rows out")
    return Labels(column, source, [], floats.copy(), "regression")


def class_names(feature: object) -> list[str] | None:
    """The names that a `ClassLabel` gives its numbers, or null for another column."""
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def check_classes_known(
    values: pyarrow.Array, names: list[str] | None, column: str, source: str, rows: numpy.ndarray | None, total: int
) -> None:
    """Raise `UserError` for missing classes, and for numbers that have no name."""
    missing = values.is_null()
    if names is not None:
        # By custom, -1 says that a row of a test set has no label.
        missing = pyarrow.compute.or_kleene(missing, pyarrow.compute.less(values, 0)).fill_null(True)
    advice = "take these rows out, or set data.label_column to null where no labels are needed"
    check_rows(missing, "has no label", column, source, advice, rows, total)
    if names is not None:
        beyond = pyarrow.compute.greater_equal(values, len(names))
        problem = f"has a label beyond its {len(names)} classes"
        check_rows(beyond, problem, column, source, "give every class a name, or take these rows out", rows, total)


def check_rows(
    wrong: pyarrow.Array,
    problem: str,
    column: str,
    source: str,
    advice: str,
    rows: numpy.ndarray | None = None,
    total: int | None = None,
) -> None:
    """Raise `UserError` if something is wrong with some rows, saying with how many and which is the first.

    Args:
        wrong: (N,) booleans.
        problem: What it is.
        column: The column.
        source: What a person knows the source by.
        advice: What to do.
        rows: (N,) row of each, where `wrong` is of what their lists hold.
        total: Rows of the source, with `rows`.
    """
    wrong_rows = numpy.flatnonzero(wrong.to_numpy(zero_copy_only=False))
    if not len(wrong_rows):
        return
    wrong_rows = wrong_rows if rows is None else numpy.unique(rows[wrong_rows])
    raise UserError(
        f"The column '{column}' of {source} {problem} in {len(wrong_rows)} of its {total or len(wrong)} rows (the "
        f"first is row {wrong_rows[0]}): {advice}."
    )


def with_classes(labels: Labels, classes: list[str]) -> Labels:
    """The same labels numbered as another source's.

    Raises:
        UserError: If a class occurs that the other source does not have.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [labels.classes[value] for value in numpy.unique(labels.values) if labels.classes[value] not in numbers]
    if unknown:
        raise UserError(
            f"The column '{labels.column}' of {labels.source} has the class '{unknown[0]}'"
            f"{nearest(unknown[0], classes)}, which the training data does not have: give data of the same classes."
        )
    table = numpy.array([numbers.get(name, -1) for name in labels.classes])
    return replace(labels, classes=list(classes), values=table[labels.values])


def check_classes(labels: Labels) -> None:
    """Raise `UserError` if there is one label only, so that nothing could be told apart."""
    if labels.task == "multi_label":
        return
    present = numpy.unique(labels.values)
    if len(present) < 2:
        label = present[0] if labels.task == "regression" else labels.classes[present[0]]
        raise UserError(
            f"All rows of {labels.source} have the label '{label}' in '{labels.column}': set data.label_column to a "
            "column of several labels, or to null."
        )


def budget_size(budget: int | float, samples: int, classes: int, contents: str = "pictures") -> int:
    """How many samples a label budget is.

    Args:
        budget: A number of samples, or a share of them; see `errors.is_share`.
        samples: How many there are.
        classes: How many classes they have.
        contents: What the samples are, for messages.

    Raises:
        UserError: If it is more than there are, or does not give every class one.
    """
    share = is_share(budget)
    if not share and budget != int(budget):
        raise UserError(f"data.label_budget is {budget}: give a whole number of {contents}, or a share below 1.")
    count = round(budget * samples) if share else int(budget)
    if count < classes:
        raise UserError(
            f"data.label_budget of {budget} is {count} {contents}, fewer than the {classes} classes: give at least one "
            "a class."
        )
    if count > samples:
        raise UserError(
            f"data.label_budget is {budget}, and there are {samples} training {contents}: lower it, or leave it out."
        )
    return count


def stratified_choice(
    values: numpy.ndarray, count: int, generator: numpy.random.Generator, every_class: bool = True
) -> numpy.ndarray:
    """Draw so many rows that every class keeps its share.

    Draws are nested: from the same state of the generator, a smaller count's rows are among a larger one's.

    Args:
        values: (N,) class of each row.
        count: How many to draw.
        generator: Source of the draws.
        every_class: Whether every class gets at least one, though its share be smaller; `count` must suffice.

    Returns:
        (count,) sorted indices.
    """
    order = generator.permutation(len(values))
    # The j-th row of a class of n comes at (j + 1/2) / n: Webster's and Sainte-Lague's apportionment, which never takes
    # a seat away when there are more to give.
    places = numpy.empty(len(values))
    for value in numpy.unique(values):
        members = numpy.flatnonzero(values[order] == value)
        places[members] = (numpy.arange(len(members)) + 0.5) / len(members)
        if every_class:
            places[members[0]] = -1.0
    return numpy.sort(order[numpy.argsort(places, kind="stable")[:count]])
