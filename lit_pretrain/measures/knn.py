"""Weighted k nearest neighbours on frozen features (Wu et al. 2018, arXiv:1805.01978, section 3.4).

Neighbours by the cosine of the angle, each voting for its label with exp(cosine / temperature); k = 20 and 0.07 are the
values of DINO's protocol (Caron et al. 2021, arXiv:2104.14294), by which numbers are usually compared.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.measures.finite import check_finite

# Similarities that are held at a time: 256 MiB.
SIMILARITIES_AT_ONCE = 2**26


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
    chunk: int | None = None,
) -> Tensor:
    """Name test samples by their neighbours.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integers below `classes`.
        test_features: (M, D) float, on the same device.
        classes: Number of classes.
        neighbors: How many vote; all N if there are fewer.
        temperature: Of the votes; smaller gives more to the nearest.
        chunk: Test samples compared at a time, whose similarities are (chunk, N); None takes as many as make 256 MiB.

    Returns:
        (M,) classes.

    Raises:
        UserError: If there is nothing to learn from, the shapes do not fit, or features are not finite.
    """
    if not len(test_features):
        return train_labels.new_zeros(0)
    similarity, index = nearest(train_features, test_features, neighbors, chunk)
    # Relative to the nearest one, so that exp cannot overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(index), classes).scatter_add_(1, train_labels.long()[index], weights)
    return votes.argmax(dim=1)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the test samples that their neighbours name rightly; see `knn_predict` for the arguments."""
    named = knn_predict(train_features, train_labels, test_features, classes, neighbors, temperature)
    return float((named == test_labels).float().mean())


@torch.no_grad()
def knn_mean(
    train_features: Tensor, train_values: Tensor, test_features: Tensor, neighbors: int = 20, chunk: int | None = None
) -> Tensor:
    """For numbers instead of classes: the mean of the neighbours' values.

    Args:
        train_features: (N, D) float.
        train_values: (N,) float.
        test_features: (M, D) float, on the same device.
        neighbors: How many are averaged; all N if there are fewer.
        chunk: As for `knn_predict`.

    Returns:
        (M,) float32 values.
    """
    _, index = nearest(train_features, test_features, neighbors, chunk)
    return train_values.float()[index].mean(dim=1)


@torch.no_grad()
def nearest(
    train_features: Tensor, test_features: Tensor, neighbors: int, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest training samples by the cosine of the angle.

    Args:
        train_features: (N, D) float.
        test_features: (M, D) float, on the same device.
        neighbors: How many; all N if there are fewer.
        chunk: As for `knn_predict`.

    Returns:
        (M, neighbors) cosines, the largest first, and places among the training samples.

    Raises:
        UserError: If there is nothing to find, the shapes do not fit, or features are not finite.
    """
    if not len(train_features) or train_features.shape[1:] != test_features.shape[1:]:
        raise UserError(
            f"Neighbours cannot be found among features of shape {tuple(train_features.shape)} for features of shape "
            f"{tuple(test_features.shape)}: give at least one, of the same width."
        )
    for features in (train_features, test_features):
        check_finite(features)
    train = functional.normalize(train_features.float(), dim=1)
    chunk = chunk or max(1, SIMILARITIES_AT_ONCE // len(train))
    parts = [
        (functional.normalize(part.float(), dim=1) @ train.T).topk(min(neighbors, len(train)), dim=1)
        for part in test_features.split(chunk)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
