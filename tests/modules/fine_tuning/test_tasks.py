"""Losses, metrics and answers of the three tasks, by hand."""

import math

import pytest
import torch

from lit_pretrain.data.labelled.label_facts import LabelFacts
from lit_pretrain.errors import UserError
from lit_pretrain.modules.fine_tuning.tasks import class_weights_of, make_task

LETTERS = LabelFacts("single_label", ["a", "b", "c"], [6, 3, 1], 10)
TOPICS = LabelFacts("multi_label", ["x", "y"], [5, 2], 10)
NUMBERS = LabelFacts("regression", samples=3, mean=2.0, std=2.0)


def measured(task, logits, labels):
    metrics = task.metrics()
    # In two batches, as in a validation.
    for rows in (slice(0, 2), slice(2, None)):
        metrics.update(*task.for_metrics(logits[rows], labels[rows]))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_one_class():
    task = make_task(LETTERS)
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]]).log()
    labels = torch.tensor([0, 1, 2, 1])
    assert float(task.loss(logits, labels)) == pytest.approx(-math.log(0.7 * 0.6 * 0.6 * 0.3) / 4)
    # Told: a, b, c, a. F1 of a: one right, one wrong; of b: one right, one missed; of c: 1. Calibration: |0.7 - 1|,
    # twice |0.6 - 1|, |0.5 - 0|.
    expected = {"accuracy": 3 / 4, "f1": 7 / 9, "expected_calibration_error": (0.3 + 0.8 + 0.5) / 4}
    assert measured(task, logits, labels) == pytest.approx(expected)
    assert (task.monitor, task.mode, task.outputs) == ("accuracy", "max", 3)
    right, count = task.correct(logits, labels)["accuracy"]
    assert (int(right), float(count)) == (3, 4.0)
    answers = task.answers(logits)
    assert answers["label"] == ["a", "b", "c", "a"] and float(answers["probability"][0, 0]) == pytest.approx(0.7)


def test_smoothing_and_weights_are_for_training_alone():
    logits, labels = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log(), torch.tensor([0, 1])
    plain = -math.log(0.7 * 0.6) / 2
    smooth = make_task(LETTERS, label_smoothing=0.3)
    everywhere = -(math.log(0.7 * 0.2 * 0.1) + math.log(0.1 * 0.6 * 0.3)) / 2
    assert float(smooth.loss(logits, labels)) == pytest.approx(plain)
    assert float(smooth.loss(logits, labels, training=True)) == pytest.approx(0.7 * plain + 0.1 * everywhere)
    weighted = make_task(LETTERS, class_weights=torch.tensor([1.0, 3.0, 9.0]))
    assert float(weighted.loss(logits, labels)) == pytest.approx(plain)
    expected = -(math.log(0.7) + 3 * math.log(0.6)) / 4
    assert float(weighted.loss(logits, labels, training=True)) == pytest.approx(expected)
    # Mixed pictures bring probabilities of the classes.
    mixed = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    expected = -(0.5 * math.log(0.7 * 0.2) + math.log(0.6)) / 2
    assert float(make_task(LETTERS).loss(logits, mixed, training=True)) == pytest.approx(expected)
    # Weighted, they count as much as the classes they are mixed of: 0.5 + 1.5 and 3.
    expected = -(0.5 * math.log(0.7) + 1.5 * math.log(0.2) + 3 * math.log(0.6)) / 5
    assert float(weighted.loss(logits, mixed, training=True)) == pytest.approx(expected)
    unmixed = torch.nn.functional.one_hot(labels, 3).float()
    for one in (weighted, make_task(LETTERS, 0.3, torch.tensor([0.1, 0.2, 0.3]))):
        both = [float(one.loss(logits, given, training=True)) for given in (labels, unmixed)]
        assert both[0] == pytest.approx(both[1])
    assert float(make_task(LETTERS, class_weights=torch.zeros(3)).loss(logits, labels, training=True)) == 0.0


def test_several_classes():
    task = make_task(TOPICS)
    logits = torch.tensor([[0.9, 0.2], [0.4, 0.6], [0.95, 0.7]]).logit()
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = -math.log(0.9 * 0.8 * 0.4 * 0.6 * 0.05 * 0.3) / 6
    assert float(task.loss(logits, labels)) == pytest.approx(expected)
    # By falling probability x is wrong, right, right: precision 1/2 and 2/3 where it is right; y is wrong, right, -.
    expected = {"average_precision": (7 / 12 + 1 / 2) / 2, "f1": (1 / 2 + 2 / 3) / 2, "f1_micro": 4 / 7}
    assert measured(task, logits, labels) == pytest.approx(expected | {"exact_accuracy": 1 / 3})
    assert task.answers(logits)["label"] == [["x"], ["y"], ["x", "y"]]
    weighted = make_task(TOPICS, label_smoothing=0.2, class_weights=torch.tensor([2.0, 1.0]))
    # A one becomes 0.9 and a zero 0.1; where x is present its share of the loss is doubled.
    expected = -(2 * 0.9 * math.log(0.9) + 0.1 * math.log(0.1) + 0.1 * math.log(0.2) + 0.9 * math.log(0.8)) / 2
    assert float(weighted.loss(logits[:1], labels[:1], training=True)) == pytest.approx(expected)


def test_numbers_in_their_own_unit():
    task = make_task(NUMBERS)
    logits, labels = torch.tensor([[0.5], [-1.0], [1.5]]), torch.tensor([2.0, 1.0, 5.0])
    # The head's outputs stand for 3, 0 and 5; the labels are 0, -0.5 and 1.5 to it.
    assert task.answers(logits)["value"].tolist() == [3.0, 0.0, 5.0]
    assert float(task.loss(logits, labels)) == pytest.approx((0.25 + 0.25 + 0.0) / 3)
    expected = {"mse": 2 / 3, "spearman": 1.0, "pearson": 87 / math.sqrt(114 * 78)}
    assert measured(task, logits, labels) == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes():
    assert class_weights_of("balanced", LETTERS).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert class_weights_of("balanced", TOPICS).tolist() == pytest.approx([1.0, 4.0])
    assert class_weights_of([1.0, 0.0, 2.0], LETTERS).tolist() == [1.0, 0.0, 2.0]
    with pytest.raises(UserError, match="there is none of b: give a list"):
        class_weights_of("balanced", LabelFacts("single_label", ["a", "b"], [4, 0], 4))
    with pytest.raises(UserError, match="2 values for 3 classes"):
        class_weights_of([1.0, 2.0], LETTERS)
    with pytest.raises(UserError, match="give numbers from 0"):
        class_weights_of([1.0, -2.0, 1.0], LETTERS)
    with pytest.raises(UserError, match="the labels are numbers"):
        class_weights_of("balanced", NUMBERS)
