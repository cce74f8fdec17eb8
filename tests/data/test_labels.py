"""Labels of every kind of column, and budgets of them, by hand."""

import datasets
import numpy
import pytest

from lit_pretrain.data.labels import budget_size, check_classes, read_labels, stratified_choice, with_classes
from lit_pretrain.errors import UserError


def labels(values, feature=None):
    features = datasets.Features({"kind": feature}) if feature is not None else None
    return read_labels(datasets.Dataset.from_dict({"kind": values}, features=features), "kind", "pets")


def test_classes_strings_integers_and_booleans():
    named = labels([1, 0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    assert named.classes == ["cat", "dog"] and named.values.tolist() == [1, 0, 1]
    words = labels(["dog", "cat", "eel"])
    assert words.classes == ["cat", "dog", "eel"] and words.values.tolist() == [1, 0, 2]
    numbers = labels([30, 4, 30])
    assert numbers.classes == ["4", "30"] and numbers.values.tolist() == [1, 0, 1]
    assert labels([True, False]).values.tolist() == [1, 0]


def test_what_is_no_label_is_refused():
    for values, words in (
        ([0.5, 1.0], "holds float64, not labels"),
        ([["a"], ["b"]], "holds lists, not labels"),
        (["a", None, "b"], "has no label in 1 of its 3 rows .the first is row 1."),
    ):
        with pytest.raises(UserError, match=words):
            labels(values)
    with pytest.raises(UserError, match="has no label in 1 of its 2 rows"):
        labels([0, -1], datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(UserError, match="did you mean 'kind'"):
        read_labels(datasets.Dataset.from_dict({"kind": ["a"]}), "kinds", "pets")
    with pytest.raises(UserError, match="All rows of pets have the label 'a'"):
        check_classes(labels(["a", "a"]))


def test_a_test_set_is_numbered_as_the_training_set():
    found = with_classes(labels(["eel", "cat"]), ["cat", "dog", "eel"])
    assert found.values.tolist() == [2, 0]
    with pytest.raises(UserError, match="has the class 'eel', which the training pictures do not have"):
        with_classes(labels(["eel", "cat"]), ["cat", "dog"])


def test_budgets_keep_the_shares_and_every_class():
    values = numpy.repeat([0, 1, 2], [60, 30, 10])
    chosen = stratified_choice(values, 20, numpy.random.default_rng(0))
    assert numpy.bincount(values[chosen]).tolist() == [12, 6, 2] and len(set(chosen)) == 20
    assert numpy.bincount(values[stratified_choice(values, 4, numpy.random.default_rng(0))]).tolist() == [2, 1, 1]
    again, other = (stratified_choice(values, 20, numpy.random.default_rng(seed)) for seed in (0, 1))
    assert (chosen == again).all() and (chosen != other).any()


def test_sizes_of_budgets():
    assert budget_size(0.1, 500, 10) == 50 and budget_size(200, 500, 10) == 200
    for budget, words in ((5, "fewer than the 10 classes"), (501, "there are 500"), (2.5, "a whole number")):
        with pytest.raises(UserError, match=words):
            budget_size(budget, 500, 10)
