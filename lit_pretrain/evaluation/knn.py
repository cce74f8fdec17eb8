"""Weighted k nearest neighbours on frozen features (Wu et al. 2018, arXiv:1805.01978, section 3.4).

Neighbours by the cosine of the angle, each voting for its label with exp(cosine / temperature); k = 20 and 0.07 are the
values of DINO's protocol (Caron et al. 2021, arXiv:2104.14294), by which numbers are usually compared.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from lit_pretrain.errors import UserError


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Name test samples by their neighbours.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integers below `classes`.
        test_features: (M, D) float, on the same device.
        classes: Number of classes.
        neighbors: How many vote; all N if there are fewer.
        temperature: Of the votes; smaller gives more to the nearest.
        chunk: Test samples compared at a time, so that the similarities never hold more than (chunk, N).

    Returns:
        (M,) classes.

    Raises:
        UserError: If there is nothing to learn from, or the shapes do not fit.
    """
    if not len(train_features) or train_features.shape[1:] != test_features.shape[1:]:
        raise UserError(
            f"Neighbours cannot be found among features of shape {tuple(train_features.shape)} for features of shape "
            f"{tuple(test_features.shape)}: give at least one, of the same width."
        )
    train = functional.normalize(train_features.float(), dim=1)
    votes_of = functional.one_hot(train_labels.long(), classes).float()
    found = []
    for part in test_features.split(chunk):
        similarity = functional.normalize(part.float(), dim=1) @ train.T
        nearest, index = similarity.topk(min(neighbors, len(train)), dim=1)
        # Relative to the nearest one, so that exp cannot overflow.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        found.append((weights[..., None] * votes_of[index]).sum(dim=1).argmax(dim=1))
    return torch.cat(found) if found else train_labels.new_zeros(0)


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
