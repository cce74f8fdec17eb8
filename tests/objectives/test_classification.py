"""Cross-entropy and accuracies per class, by hand."""

import math

import pytest
import torch

from lit_pretrain.objectives.classification import classification_output


def test_loss_and_accuracies_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0], [0.0, 0.0]], requires_grad=True)
    output = classification_output(logits, torch.tensor([1, 1, 0]), ["left", "right"], training=True)
    # Probabilities of the answers: 3/4, 1/5, 1/2; the last is a tie, which argmax gives to the first class.
    assert float(output.loss.detach()) == pytest.approx(-math.log(3 / 4 * 1 / 5 * 1 / 2) / 3)
    means = {name: (float(total), int(count)) for name, (total, count) in output.statistics.items()}
    assert means.pop("loss") == (pytest.approx(3 * float(output.loss.detach())), 3)
    assert means == {"accuracy": (2, 3), "accuracy_left": (1, 1), "accuracy_right": (1, 2)}
    assert not any(value.requires_grad for pair in output.statistics.values() for value in pair)
    output.loss.backward()
    # (softmax - one-hot) / 3
    torch.testing.assert_close(logits.grad[0], torch.tensor([1 / 4, -1 / 4]) / 3)


def test_tokens_that_do_not_count_change_nothing() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 2, requires_grad=True), torch.tensor([[1, 0, -100], [1, 1, 0]]) == 1
    counted = torch.tensor([[True, True, False], [True, False, False]])
    output = classification_output(logits, labels, ["kept", "swapped"], True, counted)
    alone = classification_output(logits[counted], labels[counted], ["kept", "swapped"], True)
    torch.testing.assert_close(output.loss, alone.loss)
    for name, (total, count) in alone.statistics.items():
        torch.testing.assert_close(output.statistics[name][0], total)
        assert int(output.statistics[name][1]) == int(count)
    output.loss.backward()
    assert logits.grad[~counted].abs().sum() == 0 and logits.grad[counted].abs().min() > 0
    # Nothing to count, and labels that are none where nothing counts.
    none = classification_output(logits, torch.full((2, 3), -100), [], True, torch.zeros(2, 3))
    assert float(none.loss.detach()) == 0
