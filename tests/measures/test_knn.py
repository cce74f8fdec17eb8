"""Neighbours by hand."""

import pytest
import torch

from lit_pretrain.errors import UserError
from lit_pretrain.measures.knn import knn_accuracy, knn_predict


def at(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_nearest_weigh_more():
    # To 0 degrees: one of class 0 at 10 degrees (cosine 0.985), two of class 1 at 40 (0.766).
    train, labels = at(10, 40, -40), torch.tensor([0, 1, 1])
    # exp(0.985 / 0.07) is far more than 2 exp(0.766 / 0.07); at a temperature of 1 it is 2.68 against 4.30.
    assert knn_predict(train, labels, at(0), 2, 3, 0.07).tolist() == [0]
    assert knn_predict(train, labels, at(0), 2, 3, 1.0).tolist() == [1]


def test_only_k_neighbours_vote_and_length_does_not_matter():
    train, labels = at(5, 30, 31, 32) * torch.tensor([[0.01], [5.0], [7.0], [9.0]]), torch.tensor([2, 0, 0, 0])
    assert knn_predict(train, labels, 3 * at(0), 3, neighbors=1, temperature=10.0).tolist() == [2]
    assert knn_predict(train, labels, 3 * at(0), 3, neighbors=4, temperature=10.0).tolist() == [0]


def test_chunks_change_nothing_and_few_samples_are_enough():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 8, generator=generator), torch.randn(33, 8, generator=generator)
    labels = torch.randint(0, 4, (50,), generator=generator)
    whole = knn_predict(train, labels, test, 4)
    assert torch.equal(whole, knn_predict(train, labels, test, 4, chunk=7))
    assert knn_predict(train[:3], labels[:3], test, 4, neighbors=20).shape == (33,)
    assert knn_accuracy(train, labels, train, labels, 4, neighbors=1) == 1.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="of the same width"):
        knn_predict(torch.zeros(3, 4), torch.zeros(3), torch.zeros(2, 5), 2)
    with pytest.raises(UserError, match="at least one"):
        knn_predict(torch.zeros(0, 4), torch.zeros(0), torch.zeros(2, 4), 2)
