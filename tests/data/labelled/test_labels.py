"""Columns as classes, and draws that keep the classes' shares."""

import datasets
import numpy
import pyarrow.parquet
import pytest
import torch
from picture_files import CLASSES, make_rows

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.data.labelled.labels import budget_size, check_classes, read_labels, stratified_choice, with_classes
from lit_pretrain.errors import UserError


def rows(values, feature=None):
    features = datasets.Features({"kind": feature}) if feature is not None else None
    return datasets.Dataset.from_dict({"kind": values}, features=features)


@pytest.mark.parametrize(
    ("values", "feature", "classes", "numbers"),
    [
        ([2, 0, 2], datasets.ClassLabel(names=["b", "a", "c"]), ["b", "a", "c"], [2, 0, 2]),
        (["red", "blue", "red"], None, ["blue", "red"], [1, 0, 1]),
        ([7, -1, 30, 7], None, ["-1", "7", "30"], [1, 0, 2, 1]),
        ([3, 1], datasets.Value("uint8"), ["1", "3"], [1, 0]),
        ([True, False, True], None, ["False", "True"], [1, 0, 1]),
    ],
)
def test_what_can_be_labels(values, feature, classes, numbers):
    labels = read_labels(rows(values, feature), "kind", "it")
    assert labels.classes == classes and labels.values.tolist() == numbers and labels.values.dtype == numpy.int64


@pytest.mark.parametrize(
    ("data", "column", "sentence"),
    [
        (make_rows(3), "lable", r"it has no column 'lable' \(did you mean 'label'\?\).*set data\.label_column"),
        (make_rows(3), "weight", "'weight' of it holds float64, not labels"),
        (make_rows(3), "picture", "'picture' of it holds PIL.Image.Image, not labels"),
        (rows([["a"], ["b"]]), "kind", "holds lists, not labels"),
        (rows(["a", None, "b", None]), "kind", r"no label in 2 of its 4 rows \(the first is row 1\)"),
        (rows([1, -1], datasets.ClassLabel(names=CLASSES)), "kind", r"in 1 of its 2 rows \(the first is row 1\)"),
        (rows([1, None], datasets.ClassLabel(names=CLASSES)), "kind", r"no label in 1 of its 2 rows"),
        (rows(["a", "a"]), "kind", "All rows of it have the label 'a' in 'kind'"),
    ],
)
def test_what_cannot_be_labels(data, column, sentence):
    with pytest.raises(UserError, match=sentence):
        check_classes(read_labels(data, column, "it"))


NAMES = datasets.ClassLabel(names=["x", "y", "z"])


@pytest.mark.parametrize(
    ("values", "feature", "classes", "targets"),
    [
        ([["b", "a"], [], ["a", "a"]], None, ["a", "b"], [[1, 1], [0, 0], [1, 0]]),
        ([[30, 4], [4]], datasets.List(datasets.Value("int32")), ["4", "30"], [[1, 1], [1, 0]]),
        ([[2], [0, 2], []], datasets.List(NAMES), NAMES.names, [[0, 0, 1], [1, 0, 1], [0, 0, 0]]),
        ([["a"], ["b"]], datasets.LargeList(datasets.Value("string")), ["a", "b"], [[1, 0], [0, 1]]),
        ([[0, 1], [2, 2]], datasets.List(NAMES, length=2), NAMES.names, [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_several_classes_a_row(values, feature, classes, targets):
    labels = read_labels(rows(values, feature), "kind", "it", None)
    assert labels.task == "multi_label" and labels.classes == classes and len(labels) == len(values)
    everything = labels.targets(numpy.arange(len(values)))
    assert everything.dtype == torch.float32 and everything.tolist() == targets
    some = labels.take(numpy.array([1, 0]))
    assert some.targets(numpy.array([0, 1])).tolist() == [targets[1], targets[0]]
    counts = [sum(column) for column in zip(*targets, strict=True)]
    assert labels.facts() == LabelFacts("multi_label", classes, counts, len(values))


@pytest.mark.parametrize(
    ("values", "feature", "task", "numbers"),
    [
        ([0.5, 3.25], None, None, [0.5, 3.25]),
        ([1, 0], datasets.Value("int8"), "regression", [1.0, 0.0]),
        ([0, 2], NAMES, "regression", [0.0, 2.0]),
        ([0.25, 4.0], datasets.Value("float16"), None, [0.25, 4.0]),
    ],
)
def test_numbers_to_predict(values, feature, task, numbers):
    labels = read_labels(rows(values, feature), "kind", "it", task)
    targets = labels.targets(numpy.array([0, 1]))
    assert targets.dtype == torch.float32 and targets.tolist() == numbers
    half = abs(numbers[1] - numbers[0]) / 2
    assert labels.facts() == LabelFacts("regression", samples=2, mean=sum(numbers) / 2, std=half)
    assert labels.facts().outputs == 1 and labels.take(numpy.array([0, 0])).facts().std == 1.0


def test_whole_floats_are_classes_if_one_says_so():
    data = rows([1.0, 0.0, 10.0])
    assert read_labels(data, "kind", "it", None).task == "regression"
    labels = read_labels(data, "kind", "it", "single_label")
    assert labels.classes == ["0", "1", "10"] and labels.facts() == LabelFacts(
        "single_label", labels.classes, [1] * 3, 3
    )


@pytest.mark.parametrize(
    ("values", "feature", "task", "sentence"),
    [
        ([["a"], None, []], None, None, r"no label in 1 of its 3 rows \(the first is row 1\)"),
        ([["a"], ["b", None], [None]], None, None, r"no label in 2 of its 3 rows \(the first is row 1\)"),
        ([[0], [0, -1]], datasets.List(NAMES), None, r"no label in 1 of its 2 rows \(the first is row 1\)"),
        ([[], []], datasets.List(NAMES), None, "No row of it has a class in 'kind'"),
        ([[0.5], [1.0]], None, None, "holds lists, not labels: give a column of lists of classes"),
        (["a", "b"], None, "multi_label", "holds string, not labels: give a column of lists"),
        (["1", "2"], None, "regression", "holds string, not labels: give a column of numbers"),
        ([[1.0]], None, "regression", "holds lists, not labels: give a column of numbers"),
        ([0.5, None, float("nan")], None, None, r"no label in 2 of its 3 rows \(the first is row 1\)"),
        ([0.5, float("inf")], None, None, r"an infinite label in 1 of its 2 rows \(the first is row 1\)"),
        ([1.0, None], None, "single_label", r"no label in 1 of its 2 rows \(the first is row 1\)"),
        ([-1, 1], NAMES, "regression", r"no label in 1 of its 2 rows \(the first is row 0\)"),
        ([2.5, 2.5], None, None, "All rows of it have the label '2.5' in 'kind'"),
    ],
)
def test_labels_that_are_wrong_are_counted(values, feature, task, sentence):
    with pytest.raises(UserError, match=sentence):
        check_classes(read_labels(rows(values, feature), "kind", "it", task))


def test_numbers_beyond_the_names_are_counted(tmp_path):
    # `datasets` looks at the numbers when it makes a column, not when it reads one.
    rows([0, 3, 1, 5], datasets.Value("int64")).to_parquet(tmp_path / "it.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "it.parquet")
    data = datasets.Dataset(table, info=datasets.DatasetInfo(features=datasets.Features({"kind": NAMES})))
    with pytest.raises(UserError, match=r"beyond its 3 classes in 2 of its 4 rows \(the first is row 1\)"):
        read_labels(data, "kind", "it")


def test_several_classes_are_numbered_as_the_training():
    labels = read_labels(rows([["fox", "cat"], [], ["cat"]]), "kind", "it", None)
    aligned = with_classes(labels, ["bird", "cat", "fox"])
    assert aligned.targets(numpy.arange(3)).tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(UserError, match=r"has the class 'fox' \(did you mean 'fix'\?\), which the training data"):
        with_classes(labels, ["fix", "cat"])


def test_only_some_rows_of_a_larger_source():
    data = rows(["a", None, "b", "c"]).select([3, 2])
    labels = read_labels(data, "kind", "it")
    assert labels.classes == ["b", "c"] and labels.values.tolist() == [1, 0]


def test_a_test_set_is_numbered_as_the_training():
    labels = read_labels(rows([1, 0, 1], datasets.ClassLabel(names=["dog", "cat", "fox"])), "kind", "it")
    aligned = with_classes(labels, ["bird", "cat", "dog"])
    assert aligned.values.tolist() == [1, 2, 1] and aligned.classes == ["bird", "cat", "dog"]
    with pytest.raises(UserError, match=r"'kind' of it has the class 'dog', which the training"):
        with_classes(labels, ["bird", "cat"])


def test_budgets():
    assert budget_size(30, 100, 10) == 30
    assert budget_size(100, 100, 10) == 100
    assert budget_size(0.25, 100, 10) == 25
    for budget, sentence in (
        (101, "is 101, and there are 100 training pictures"),
        (9, "of 9 is 9 pictures, fewer than the 10 classes"),
        (0.05, r"of 0\.05 is 5 pictures, fewer than the 10 classes"),
        (1.5, "a whole number of pictures, or a share below 1"),
        (-3, "fewer than the 10 classes"),
    ):
        with pytest.raises(UserError, match=sentence):
            budget_size(budget, 100, 10)


def counts(values, count, seed=0, **options):
    chosen = stratified_choice(values, count, numpy.random.default_rng(seed), **options)
    assert len(set(chosen)) == len(chosen) == count and (numpy.diff(chosen) > 0).all()
    return numpy.bincount(values[chosen], minlength=3).tolist()


def test_classes_keep_their_shares():
    values = numpy.repeat([0, 1, 2], [60, 30, 10])
    assert counts(values, 10) == [6, 3, 1]
    assert counts(values, 100) == [60, 30, 10]
    # 4.2, 2.1 and 0.7: the last has the largest remainder.
    assert counts(values, 7) == [4, 2, 1]
    # 1.8, 0.9 and 0.3: each one, and no more.
    assert counts(values, 3) == [1, 1, 1]
    assert counts(values, 3, every_class=False) == [2, 1, 0]
    assert counts(values, 1, every_class=False) == [1, 0, 0]
    skewed = numpy.repeat([0, 1, 2], [998, 1, 1])
    assert counts(skewed, 100) == [98, 1, 1] and counts(skewed, 999) == [997, 1, 1]


def test_draws_depend_on_the_generator_alone():
    values = numpy.arange(90) % 3
    first, again, other = (stratified_choice(values, 12, numpy.random.default_rng(seed)) for seed in (1, 1, 2))
    assert numpy.array_equal(first, again) and not numpy.array_equal(first, other)


@pytest.mark.parametrize("every_class", [True, False])
def test_smaller_draws_are_part_of_larger_ones(every_class):
    values = numpy.random.default_rng(0).choice(4, 200, p=[0.6, 0.3, 0.08, 0.02])
    sizes = numpy.bincount(values)
    before = set()
    for count in range(4, 201, 7):
        chosen = stratified_choice(values, count, numpy.random.default_rng(1), every_class)
        assert before <= set(chosen)
        before = set(chosen)
        taken = numpy.bincount(values[chosen], minlength=4)
        # Within one row of the share, but for the first row of each class.
        assert (abs(taken - sizes * count / 200) <= (2 if every_class else 1)).all()
