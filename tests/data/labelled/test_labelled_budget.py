"""Which rows are for validation and which a label budget allows."""

import datasets
import numpy
import pytest

from lit_pretrain.data.labelled.labelled_budget import rows_within_budget, split_labelled
from lit_pretrain.data.labelled.labels import read_labels
from lit_pretrain.errors import UserError


def labels_of(values):
    return read_labels(datasets.Dataset.from_dict({"kind": values}), "kind", "it", None)


# All of one class first, as in IMDB.
CLASSES = labels_of(["neg"] * 60 + ["pos"] * 30 + ["odd"] * 10)
NUMBERS = labels_of([row / 7 for row in range(100)])
SEVERAL = labels_of([[str(row % 5)] + (["rare"] if row == 70 else []) for row in range(100)])


@pytest.mark.parametrize("labels", [CLASSES, NUMBERS, SEVERAL])
def test_parts_share_the_rows(labels):
    train, validation = split_labelled(labels, 0.2)
    assert len(validation) == 20 and sorted([*train, *validation]) == list(range(100))
    assert (numpy.diff(train) > 0).all() and (numpy.diff(validation) > 0).all()
    assert numpy.array_equal(split_labelled(labels, 0.2)[1], validation)
    assert [len(part) for part in split_labelled(labels, 0.0)] == [100, 0]


def test_validation_has_every_class_with_its_share():
    train, validation = split_labelled(CLASSES, 0.2)
    assert numpy.bincount(CLASSES.values[validation]).tolist() == [12, 2, 6]
    assert numpy.bincount(CLASSES.values[train]).tolist() == [48, 8, 24]
    # Classes of one row each are all in training.
    single = labels_of(["a"] * 20 + ["b", "c", "d"])
    assert set(single.values[split_labelled(single, 0.5)[0]]) == {0, 1, 2, 3}


@pytest.mark.parametrize("labels", [CLASSES, NUMBERS, SEVERAL])
def test_budgets_are_nested_and_go_by_the_seed(labels):
    rows = numpy.arange(0, 100, 2)
    before = set()
    for budget in (8, 0.3, 30, 50):
        chosen = rows_within_budget(labels, rows, budget, seed=1)
        assert len(chosen) == (15 if budget == 0.3 else budget) and (numpy.diff(chosen) > 0).all()
        assert before <= set(chosen) <= set(rows)
        before = set(chosen)
        present = set(labels.take(chosen).values) if labels.classes else set()
        assert len(present) == len(labels.classes)
    assert set(rows_within_budget(labels, rows, 20, seed=2)) != set(rows_within_budget(labels, rows, 20, seed=1))


def test_a_budget_keeps_the_classes_shares():
    chosen = rows_within_budget(CLASSES, numpy.arange(100), 20, seed=0)
    assert numpy.bincount(CLASSES.values[chosen]).tolist() == [12, 2, 6]


@pytest.mark.parametrize(
    ("labels", "budget", "sentence"),
    [
        (CLASSES, 2, r"data\.label_budget of 2 is 2 samples, fewer than the 3 classes"),
        (NUMBERS, 101, r"data\.label_budget is 101, and there are 100 training samples"),
        (SEVERAL, 4, r"too few to have all 6 classes of 'kind': give at least [56]"),
        (NUMBERS, 0, r"data\.label_budget of 0 is 0 samples"),
    ],
)
def test_budgets_that_cannot_be(labels, budget, sentence):
    with pytest.raises(UserError, match=sentence):
        rows_within_budget(labels, numpy.arange(100), budget, seed=0)


@pytest.mark.parametrize(("values", "share"), [(list("abcd"), 0.25), (["a", "b"], 0.9), ([0.5], 0.5)])
def test_too_few_rows_for_both_parts(values, share):
    with pytest.raises(UserError, match=r"data\.validation_share of .* of it for .*data\.validation_path"):
        split_labelled(labels_of(values), share)
